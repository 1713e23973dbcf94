"""Status of a bound name, the change it needs, and the words for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oml_mlflow.config.bindings import Binding
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.planning.records import PROMOTE, LedgerEntry
from oml_mlflow.promotion.run import Promotion

IN_SYNC, OUT_OF_SYNC, DEGRADED = "in sync", "out of sync", "degraded"
PAUSED, PINNED, UNBOUND, FILLING = "paused", "pinned", "unbound", "filling"
UNREACHABLE = "unreachable"

HEAL, FINISH = "heal", "finish"


@dataclass(frozen=True)
class Change:
    """A change that brings one name of one target in line with its alias.

    Attributes:
        binding: What the name follows.
        version: Version that is to be live.
        registry: Which registry and model; see `Registered`.
        before: Generation that is live now; the plan is stale once another is.
        live: What is live now, for people; empty if nothing is.
        kind: ``promote``: another version; ``heal``: the same one, after drift; ``finish``: what
            was begun.
        adopt: Whether foreign models under the live names are adopted for it.
    """

    binding: Binding
    version: str
    registry: str
    before: int
    live: str
    kind: str = PROMOTE
    adopt: bool = False

    @property
    def heals(self) -> bool:
        """Whether it repairs drift."""
        return self.kind == HEAL

    @property
    def key(self) -> tuple[str, str, str]:
        """Target, name and version, which identify it."""
        return *self.binding.place, self.version

    @property
    def uri(self) -> str:
        """URI of the version."""
        return f"models:/{self.binding.model}/{self.version}"

    def __str__(self) -> str:
        b = self.binding
        live = self.live or "nothing"
        return f"{self.kind} {b.name} on {b.target}: {live} → {b.model} {self.version}"


@dataclass(frozen=True)
class Outcome:
    """Result of a change.

    Attributes:
        change: The change.
        promotion: What was done; None if it failed.
        error: Why it failed; None if it did not.
        elapsed_s: Duration in seconds.
    """

    change: Change
    promotion: Promotion | None = None
    error: OmlMlflowError | None = None
    elapsed_s: float = 0.0

    @property
    def is_filling(self) -> bool:
        """Whether stored vectors are still being made, so that the change has to go on."""
        return self.promotion is not None and self.promotion.is_filling


@dataclass(frozen=True)
class Status:
    """Status of one name of one target.

    Attributes:
        target: Name of the target.
        name: Export name; ``*`` for a whole target.
        state: One of the states above.
        text: Why, for people.
        hint: What to do about it; empty if nothing.
        binding: What it follows; None if nothing.
        wanted: Version that its alias points to; empty if none.
        live: What is live.
        change: The change that is due; None if none is.
        waits_for: Targets that must have the version first.
        drift: Changes made outside this package.
        is_error: Whether it needs somebody's action to get in sync.
        remarks: Remarks on the versions; see `oml_mlflow.reconciler.remarks`.
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
    drift: tuple[str, ...] = ()
    is_error: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def is_in_sync(self) -> bool:
        """Whether it is as its alias says, verified."""
        return self.state == IN_SYNC

    @property
    def is_unreachable(self) -> bool:
        """Whether its target can't be reached."""
        return self.state == UNREACHABLE

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; no secrets."""
        shown = {**vars(self), "binding": vars(self.binding) if self.binding else None}
        shown["live"] = vars(self.live) if self.live else None
        shown["change"] = None
        if self.change:
            shown["change"] = {**vars(self.change), "binding": vars(self.change.binding)}
        return shown
