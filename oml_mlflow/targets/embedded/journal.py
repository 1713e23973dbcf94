"""The journal of an embedded database: a swap is one transaction."""

from __future__ import annotations

from oml_mlflow.errors import PlanStale, TargetError
from oml_mlflow.names import model_name
from oml_mlflow.planning.records import (
    CLEANING,
    LOADING,
    SWAPPING,
    WHOLE,
    LedgerEntry,
    LiveState,
    Work,
)
from oml_mlflow.targets.embedded.columns import make_column, swap_column
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.schema import LEDGER_COLUMNS, ledger_entry, ledger_row


class EmbeddedJournal:
    """The journal of a database; see `Journal`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def state(self, name: str) -> LiveState:
        """Return what is live under an export name. Read-only."""
        name = name.upper()
        rows = self._db.execute(
            "SELECT generation, phase, work FROM oml.live WHERE name = ?", [name]
        ).fetchall()
        if not rows:
            promoted = self.ledger(name)
            return LiveState(name, promoted[-1].generation if promoted else 0)
        [(generation, phase, work)] = rows
        return LiveState(name, generation, phase, Work.from_json(work) if work else None)

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        rows = self._db.execute(
            f"SELECT {', '.join(LEDGER_COLUMNS)} FROM oml.ledger "  # noqa: S608
            "WHERE ? IS NULL OR name = ? ORDER BY promoted_at, generation",
            [name, name and name.upper()],
        ).fetchall()
        return [ledger_entry(row) for row in rows]

    def begin(self, work: Work) -> None:
        """Write work into the journal. Commits."""
        name = work.entry.name
        state = self.state(name)
        if state.phase != WHOLE or state.generation != work.before:
            raise _stale(name, work, state)
        live = [model_name(name, side) for side in work.incoming]
        self._db.refuse_macros([*live, *work.incoming.values()])
        self._db.execute(
            "INSERT OR REPLACE INTO oml.live VALUES (?, ?, ?, ?)",
            [name, work.before, LOADING, work.to_json()],
        )

    def swap(self, work: Work) -> None:
        """Give incoming models the live names and record it, all in one transaction."""
        entry, execute = work.entry, self._db.execute
        state = self.state(entry.name)
        if state.generation == entry.generation and state.phase == CLEANING:
            return
        if state.generation != work.before or state.phase not in (LOADING, SWAPPING):
            raise _stale(entry.name, work, state)
        with self._db.transaction():
            for side, slot in work.incoming.items():
                live = model_name(entry.name, side)
                if side in work.outgoing:
                    self._rename(live, work.outgoing[side])
                self._rename(slot, live)
            for swap in work.columns:
                swap_column(self._db, entry.name, swap)
            execute(
                f"INSERT INTO oml.ledger ({', '.join(LEDGER_COLUMNS)}) "  # noqa: S608
                f"VALUES ({', '.join('?' * len(LEDGER_COLUMNS))})",
                ledger_row(entry),
            )
            execute(
                "UPDATE oml.live SET generation = ?, phase = ?, work = ? WHERE name = ?",
                [entry.generation, CLEANING, work.to_json(), entry.name],
            )
        self._db.offer_functions()

    def fill(self, work: Work) -> None:
        """Make the columns beside registered ones, and write how far they are. Commits."""
        state = self.state(work.entry.name)
        if state.phase != LOADING or state.generation != work.before:
            raise _stale(work.entry.name, work, state)
        with self._db.transaction():
            for swap in work.columns:
                make_column(self._db, work.entry.name, swap, work.entry.dims)
            self._db.execute(
                "UPDATE oml.live SET work = ? WHERE name = ?", [work.to_json(), work.entry.name]
            )

    def _rename(self, old: str, new: str) -> None:
        done = self._db.execute(
            "UPDATE oml.models SET name = ? WHERE name = ?", [new, old]
        ).fetchall()
        if done != [(1,)]:
            raise TargetError(
                f"{old} is not loaded. The live pair is as it was.", hint="promote again."
            )

    def end(self, work: Work) -> None:
        """Clear the journal. Commits."""
        self._db.execute(
            "UPDATE oml.live SET phase = ?, work = NULL WHERE name = ?", [WHOLE, work.entry.name]
        )


def _stale(name: str, work: Work, state: LiveState) -> PlanStale:
    return PlanStale(
        f"{name}: generation {work.before} was to be followed, but {state.generation} is live, "
        f"phase {state.phase}. Nothing was changed.",
        hint="run the command again.",
    )
