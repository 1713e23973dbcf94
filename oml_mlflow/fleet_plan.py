"""Fleet plan: how every bound name stands, and what is to be changed. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from oml_mlflow.bindings import Binding
from oml_mlflow.ledger import LedgerEntry

IN_SYNC, OUT_OF_SYNC, DEGRADED = "in sync", "out of sync", "degraded"
PAUSED, PINNED, UNBOUND = "paused", "pinned", "unbound"
UNVERIFIED, UNREACHABLE = "unverified", "unreachable"

PROMOTE, HEAL, FINISH = "promote", "heal", "finish"


@dataclass(frozen=True)
class Change:
    """One name of one target that is to follow its alias.

    Attributes:
        binding: What it follows.
        version: Version that is to be live.
        registry: Which registry and model; see `Registered`.
        before: Generation that is live now; a plan is stale once it is not.
        live: What is live now, for people.
        kind: ``promote``: another version; ``heal``: the same, since it was changed behind our
            back; ``finish``: what was begun.
    """

    binding: Binding
    version: str
    registry: str
    before: int
    live: str
    kind: str = PROMOTE


@dataclass(frozen=True)
class Standing:
    """How one name of one target stands.

    Attributes:
        target: Name of the target.
        name: Export name; ``*`` where a whole target is meant.
        state: One of the words above.
        text: Why, for people.
        hint: What to do about it; empty if nothing.
        binding: What it follows; None if nothing.
        wanted: Version that its alias points to; empty if none.
        live: What is live.
        change: What is to be done; None if nothing.
        waits_for: Targets that must have the version first.
    """

    target: str
    name: str
    state: str
    text: str
    hint: str = ""
    binding: Binding | None = None
    wanted: str = ""
    live: LedgerEntry | None = None
    change: Change | None = None
    waits_for: tuple[str, ...] = ()
