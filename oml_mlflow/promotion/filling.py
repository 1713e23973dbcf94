"""Filling columns of vectors, by the database's own SQL: a few rows at a time, each committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oml_mlflow.errors import (
    ConfigError,
    PrivilegeError,
    QuotaExceeded,
    TargetError,
    TargetLocked,
    TargetUnreachable,
)
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.planning.columns import ColumnSize, places, registered
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import Dependant, Work
from oml_mlflow.promotion.target import Session, Target

# for so long the database is held at a time, and at least, if others are seen to wait; then they
# get their turn, who look every 0.1 s. Opening and closing it again take half a second.
SLICE_S, _SHORT_SLICE_S, TURN_S = 30.0, 1.0, 0.15
_BATCH_S, _SHORT_BATCH_S, _FIRST_ROWS, _MOST_ROWS = 2.0, 0.5, 16, 4096
# from so many on, a batch without a single vector is no fault of its rows
SUSPECT_ROWS = 8
_TIMED_ROWS = 16
_FLOAT_BYTES = 4
_NO_FAULT_OF_ROWS = (TargetLocked, TargetUnreachable, QuotaExceeded, PrivilegeError)


def embed_rows(session: Session, column: Dependant, keys: Sequence[Any]) -> list[tuple[Any, str]]:
    """Embed rows; return the keys of those that can't be, which are found by halves, and why.

    Side effects: Writes vectors, and notes of rows without; commits.
    """
    if not keys:
        return []
    try:
        session.vectors.fill(column, keys[0], keys[-1])
    except _NO_FAULT_OF_ROWS:
        raise
    except TargetError as error:
        if len(keys) == 1:
            session.vectors.note_failure(column, keys[0], error.message)
            return [(keys[0], error.message)]
        half = len(keys) // 2
        return [
            *embed_rows(session, column, keys[:half]),
            *embed_rows(session, column, keys[half:]),
        ]
    return []


def demand_embedded(
    column: Dependant, keys: Sequence[Any], bad: Sequence[tuple[Any, str]], uri: str, state: str
) -> None:
    """Raise TargetError if none of many rows could be embedded."""
    if len(bad) == len(keys) >= SUSPECT_ROWS:
        raise TargetError(
            f"none of {len(keys)} rows of {column.name} could be embedded in {uri}: {bad[0][1]} "
            f"{state}",
            hint="look at the first of them, and at the database's own log.",
        )


@dataclass
class Filling:
    """Fills the columns of a promotion, a slice at a time; others may fill them, too.

    All rows are gone through once. Then those that changed meanwhile are looked for, in one go with
    what ends the filling, since nobody else has the database.

    Attributes:
        uri: The target, for errors.
        failed: Rows that could not be embedded: column, key and reason.
    """

    uri: str
    on_event: Listener = silent
    failed: list[tuple[str, Any, str]] = field(default_factory=list)
    _behind: dict[str, Any] = field(default_factory=dict)
    _through: set[str] = field(default_factory=set)
    _rows: int = _FIRST_ROWS
    _done: int = 0
    _total: int = 0
    _begun: float = 0.0

    def fill_slice(self, session: Session, observed: Observed, work: Work) -> tuple[bool, Work]:
        """Fill for about `SLICE_S`; return whether all is filled, and the work with how far it is.

        Less long if others wait for the database. Side effects: Writes vectors; commits.
        """
        self._begun, columns = time.time(), places(observed, work)
        if not self._total:
            # once: for a large table, counting takes as long as a slice
            counts = [session.vectors.count(column) for column in columns]
            self._total = sum(count for count, _missing in counts)
            self._done = self._total - sum(missing for _count, missing in counts)
            self.on_event(Event("fill", work.entry.name, self._done, self._total, "rows"))
        is_whole = self._fill(session, columns)
        done = min(self._done, self._total)
        self.on_event(Event("fill", work.entry.name, done, self._total, "rows"))
        return is_whole, replace(work, filled=(done, self._total))

    def take_turns(self) -> None:
        """Leave the database to others for a moment."""
        time.sleep(TURN_S)

    def _fill(self, session: Session, columns: Sequence[Dependant]) -> bool:
        for column in columns:
            if column.name not in self._through and not self._forward(session, column):
                return False
        # once through, all are looked at from the first row on: what changed is embedded anew
        for column in columns:
            self._behind.pop(column.name, None)
            if not self._forward(session, column):
                return False
        return True

    def _forward(self, session: Session, column: Dependant) -> bool:
        """Fill a column to its last row; return False if time is up before."""
        # what changed is found by reading all sources, and so not before the end
        changed = column.name in self._through
        while keys := session.vectors.missing(
            column, self._behind.get(column.name), self._rows, changed=changed
        ):
            begun = time.monotonic()
            bad = embed_rows(session, column, keys)
            state = "What was embedded before is kept; the live pair is as it was."
            demand_embedded(column, keys, bad, self.uri, state)
            self.failed += [(column.name, key, reason) for key, reason in bad]
            self._done += len(keys) - len(bad)
            self._behind[column.name] = keys[-1]
            took = max(time.monotonic() - begun, 1e-3)
            # many rows at once take less time each; who waits is not seen before a batch's end
            is_wanted = session.is_wanted(self._begun)
            batch_s = min(_SHORT_BATCH_S if is_wanted else _BATCH_S, SLICE_S / 2)
            self._rows = max(1, min(_MOST_ROWS, int(len(keys) * batch_s / took)))
            elapsed = time.time() - self._begun
            # a clock that is set back ends it, too
            if not 0 <= elapsed < min(_SHORT_SLICE_S if is_wanted else SLICE_S, SLICE_S):
                return False
        self._through.add(column.name)
        return True


def demand_columns(session: Session, plan: Plan, target: Target) -> None:
    """Raise unless all registered columns can go live with a plan's models. Changes nothing.

    Raises:
        ConfigError: If this kind of database can't swap columns with models, nothing is
            registered, or the version has no references that tell its geometry.
        TargetError: If a column has no key, or its table, source or key is not as registered.
    """
    columns, name = registered(plan.observed), plan.observed.name
    if not target.swaps_columns:
        raise ConfigError(
            f"{target.uri} can't change columns and models in one transaction. Nothing was loaded.",
            hint="a DBA re-embeds with the script of `oml-mlflow promote --sql --reembed`.",
        )
    if not columns:
        raise ConfigError(
            f"no column is registered for {name} in {target.uri}, so that nothing would be "
            "re-embedded. Nothing was loaded.",
            hint=f"`oml-mlflow columns {name} --add TABLE.COLUMN …`, or --accept-new-geometry if "
            "nothing was stored.",
        )
    if plan.work is None or not plan.work.entry.geometry:
        raise ConfigError(
            f"{plan.title} has no reference vectors, so that nobody can tell its geometry. Nothing "
            "was loaded.",
            hint="log it with evidence: `oml_mlflow.log_model`.",
        )
    if missing := [column.name for column in columns if not column.key]:
        raise TargetError(
            f"{', '.join(missing)}: registered without a key, so that no row can be told from "
            "another. Nothing was loaded.",
            hint=f"oml-mlflow columns {name} --add {missing[0]} --key COLUMN …",
        )
    session.vectors.demand_swap(plan.work.columns, columns)


def column_sizes(session: Session, plan: Plan) -> tuple[ColumnSize, ...]:
    """Return what filling each of a plan's columns takes, by a few rows and the live model."""
    found, work = [], plan.work
    columns = {column.name: column for column in registered(plan.observed)}
    for swap in work.columns if work else ():
        assert work is not None  # noqa: S101 -- it has columns
        column = columns[swap.column]
        rows, _missing = session.vectors.count(column)
        seconds = _seconds_a_row(session, column) * rows
        found.append(ColumnSize(rows, seconds, rows * work.entry.dims * _FLOAT_BYTES))
    return tuple(found)


def _seconds_a_row(session: Session, column: Dependant) -> float:
    """Return how long the live model takes for a row; 0 if no row has a vector."""
    took = []
    # the first loads the model; the second is what finding rows takes
    for rows in (1, 1, 1 + _TIMED_ROWS):
        begun = time.monotonic()
        drawn = len(session.vectors.sample(column, rows, 0))
        took.append(time.monotonic() - begun)
    return max(took[2] - took[1], 0.0) / max(drawn - 1, 1) if drawn > 1 else 0.0
