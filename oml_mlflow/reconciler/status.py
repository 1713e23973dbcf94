"""Status of a bound name, the change it needs, and the words for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oml_mlflow.config.bindings import Binding
from oml_mlflow.planning.records import LedgerEntry

FORMAT_VERSION = "1.0"

IN_SYNC, OUT_OF_SYNC, DEGRADED = "in sync", "out of sync", "degraded"
PAUSED, PINNED, UNBOUND = "paused", "pinned", "unbound"
UNVERIFIED, UNREACHABLE = "unverified", "unreachable"

PROMOTE, HEAL, FINISH = "promote", "heal", "finish"


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

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; no secrets."""
        shown = {**vars(self), "binding": vars(self.binding) if self.binding else None}
        shown["live"] = vars(self.live) if self.live else None
        shown["change"] = None
        if self.change:
            shown["change"] = {**vars(self.change), "binding": vars(self.change.binding)}
        return shown


@dataclass(frozen=True)
class FleetPlan:
    """Status of every name, and the changes that are due.

    Attributes:
        statuses: One for each bound name, each refused binding, each name that is live but not
            bound, and each target that can't be reached; by target and name.
    """

    statuses: tuple[Status, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Changes that are due now."""
        return tuple(s.change for s in self.statuses if s.change is not None)

    def summary(self) -> str:
        """Return the last line of a plan."""
        kinds = [change.kind for change in self.changes]
        waiting = sum(bool(s.waits_for) for s in self.statuses)
        later = f" {waiting} more once the targets before have it." if waiting else ""
        if not self.changes and not waiting:
            return "Nothing to do."
        return (
            f"Plan: {kinds.count(PROMOTE)} to promote, {kinds.count(HEAL)} to heal, "
            f"{kinds.count(FINISH)} to finish, 0 to drop.{later} Nothing was changed."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; no secrets."""
        return {
            "format_version": FORMAT_VERSION,
            "summary": self.summary(),
            # the key in all plan files and --json documents so far
            "standings": [status.to_json() for status in self.statuses],
        }
