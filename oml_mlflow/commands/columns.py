"""Verbs about stored vectors: the columns that hold them, filling and checking these."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from oml_mlflow.commands.chosen import choose
from oml_mlflow.config.file import Config
from oml_mlflow.errors import GeometryChanged, PlanStale, TargetError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.names import IMG, check_export_name, model_name
from oml_mlflow.planning.records import CHECKED, COLUMN, Dependant, Note, this_process
from oml_mlflow.promotion.filling import demand_embedded, embed_rows
from oml_mlflow.promotion.run import observe
from oml_mlflow.promotion.target import Session, Target

ROWS_SAMPLED, ROWS_PER_BATCH = 200, 256
# rows that are compared before others are embedded beside them
_ROWS_BEFORE = 32


def columns(
    name: str,
    target: Target | str | None = None,
    *,
    add: str | None = None,
    source: str = "",
    side: str = IMG,
    key: str = "",
    modified: str = "",
    remove: str | None = None,
    config: Config | None = None,
) -> list[Dependant]:
    """Return what depends on an export name; first remember or forget a column of its vectors.

    Args:
        name: Export name.
        target: A target, its URI, or the name of a declared one; the configuration's by default.
        add: Column to remember, ``table.column``.
        source: Column of the same table that was embedded.
        side: Pipeline that embedded it, ``img`` or ``txt``.
        key: Column that tells rows apart, which `fill` and `check_columns` need.
        modified: Column with the time of a row's last change, by which a script for an Oracle
            database embeds anew what changed meanwhile.
        remove: Column to forget, ``table.column``.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.

    Raises:
        TargetError: If a column to remember is not there, its key is not unique, or another name
            has it; if one to forget is not registered.

    Side effects: Writes a row to the target, or removes it; commits.
    """
    export_name = check_export_name(name)
    database, purpose = choose(target, config).database, f"columns of {name}"
    with database.session(purpose, create=bool(add or remove), missing_ok=True) as session:
        if add:
            model = model_name(export_name, side)
            live = observe(session, export_name).live
            geometry = live.geometry if live else ""
            column = Dependant(COLUMN, add, model, source, key, geometry, modified=modified)
            session.vectors.register_column(export_name, column)
        if remove and not session.vectors.forget_column(export_name, remove):
            raise TargetError(
                f"{remove} is not registered for {export_name.upper()} in {database.uri}. Nothing "
                "was changed.",
                hint=f"`oml-mlflow columns {name}` lists what is.",
            )
        return session.vectors.dependants(export_name)


@dataclass(frozen=True)
class Filled:
    """What filling a column came to.

    Attributes:
        column: The column.
        rows: Rows that got a vector.
        left: Rows that have something to embed and no vector now.
        failed: Keys of rows that can't be embedded, and why.
    """

    column: Dependant
    rows: int
    left: int
    failed: tuple[tuple[Any, str], ...]


def fill(
    name: str,
    target: Target | str | None = None,
    *,
    column: str = "",
    batch: int = ROWS_PER_BATCH,
    pause_s: float = 0.0,
    until: datetime | None = None,
    config: Config | None = None,
    on_event: Listener = silent,
) -> list[Filled]:
    """Embed the rows without a vector in a name's registered columns, by the database's own SQL.

    A batch of keys at a time, each committed, and the database opened for each, so that others get
    their turn. What was stopped goes on where it was: rows with a vector are left as they are. A
    row that can't be embedded stays NULL, is told, and stops nothing.

    Args:
        name: Export name.
        target: See `columns`.
        column: One of them, ``table.column``; all that have a key by default.
        batch: Rows of a batch.
        pause_s: Seconds to wait between batches.
        until: When to stop, after the batch that is under way.
        config: See `columns`.
        on_event: Told of progress.

    Raises:
        GeometryChanged: If a column holds vectors of another model than the live one.
        PlanStale: If another generation goes live meanwhile; rows so far are right.
        TargetError: If there is no such column, it has no key, or none of a batch's rows can be
            embedded.

    Side effects: Writes vectors; commits after each batch.
    """
    database = choose(target, config).database
    found = []
    for each in _with_key(name, database, column):
        found.append(_fill(name, database, each, batch, pause_s, until, on_event))
    return found


def _fill(
    name: str,
    database: Target,
    column: Dependant,
    batch: int,
    pause_s: float,
    until: datetime | None,
    on_event: Listener,
) -> Filled:
    purpose = f"fill {column.name}"
    with database.session(purpose) as session, session.lock(name.upper(), purpose):
        live = observe(session, name).live
        generation = live.generation if live else 0
        _, missing = session.vectors.count(column)
        _refuse_mixing(session, column, database.uri)
        if live is not None and column.geometry != live.geometry:
            # its vectors have just been found to be the live model's, or there are none
            session.vectors.note_geometry(column, live.geometry)
            column = replace(column, geometry=live.geometry)
        session.vectors.retry(column)
    failed: list[tuple[Any, str]] = []
    done, after = 0, None
    while until is None or datetime.now().astimezone() < until:
        with database.session(purpose) as session, session.lock(name.upper(), purpose):
            if session.journal.state(name.upper()).generation != generation:
                raise PlanStale(
                    f"another generation of {name.upper()} went live in {database.uri} while "
                    f"{column.name} was filled. Its {done:,} new vectors are of the one before.",
                    hint="run it again: what is there is compared with the live model first.",
                )
            keys = session.vectors.missing(column, after, batch)
            bad = embed_rows(session, column, keys)
        if not keys:
            break
        done, after = done + len(keys) - len(bad), keys[-1]
        failed += bad
        demand_embedded(column, keys, bad, database.uri, f"{done:,} others were.")
        on_event(Event("fill", column.name, done + len(failed), missing, "rows"))
        time.sleep(pause_s)
    with database.session(purpose, create=False) as session:
        _, left = session.vectors.count(column)
    return Filled(column, done, left, tuple(failed))


@dataclass(frozen=True)
class ColumnCheck:
    """Stored vectors, compared with what the live model gives for the same rows.

    Attributes:
        column: The column.
        rows: Rows that have something to embed.
        missing: Rows of them without a vector.
        changed: Rows whose source is another one than was embedded, where that is known.
        sampled: Rows that were embedded again.
        differ: Keys of those with another vector than the live model's.
        seed: With which they were drawn.
    """

    column: Dependant
    rows: int
    missing: int
    changed: int
    sampled: int
    differ: tuple[Any, ...]
    seed: int

    @property
    def ok(self) -> bool:
        """Whether every sampled vector is the live model's, and none is known to be stale."""
        return not self.differ and not self.changed

    @property
    def summary(self) -> str:
        """What it has shown, for people."""
        missing = f", {self.missing:,} of {self.rows:,} without a vector" if self.missing else ""
        changed = f", {self.changed:,} changed since they were embedded" if self.changed else ""
        share = f"{self.sampled - len(self.differ)} of {self.sampled} sampled rows"
        return f"{self.column.name}: {share} are the live model's{missing}{changed}"

    def finds(self, share: float) -> float:
        """Return the probability that a share of wrong rows would have been found."""
        return float(1 - (1 - share) ** self.sampled)


def check_columns(
    name: str,
    target: Target | str | None = None,
    *,
    rows: int = ROWS_SAMPLED,
    seed: int = 0,
    config: Config | None = None,
) -> list[ColumnCheck]:
    """Embed random rows of a name's registered columns again, and compare.

    Args:
        name: Export name.
        target: See `columns`.
        rows: How many of each column.
        seed: Draws the same rows again.
        config: See `columns`.

    Raises:
        TargetError: If no column with a key is registered.

    Side effects: Writes a note with the result to the target, for `status`; commits.
    """
    database = choose(target, config).database
    found: list[ColumnCheck] = []
    for column in _with_key(name, database, ""):
        with database.session(f"check {column.name}", create=False) as session:
            count, missing = session.vectors.count(column)
            changed = session.vectors.changed(column)
            sampled, differ = _differing(session, column, rows, seed)
        check = ColumnCheck(column, count, missing, changed, sampled, tuple(differ), seed)
        found.append(check)
    with database.session(f"note on {name}") as session:
        live = session.journal.state(name.upper()).generation
        said = "; ".join(check.summary for check in found)
        content = {"generation": live, "ok": all(check.ok for check in found), "said": said}
        session.notes.write(Note(name.upper(), CHECKED, content, written_by=this_process()))
    return found


def _differing(session: Session, column: Dependant, rows: int, seed: int) -> tuple[int, list[Any]]:
    model = next((m for m in session.models.list() if m.name == column.model), None)
    if model is None:
        raise TargetError(
            f"{column.model}, which {column.name} is registered for, is not loaded. Nothing was "
            "embedded.",
            hint="promote a version under its name first.",
        )
    limit = runtime_limit(read_precisions(model.metadata)[model.side], model.dims)
    drawn = session.vectors.sample(column, rows, seed)
    return len(drawn), [
        key
        for key, stored, now in drawn
        if stored.shape != now.shape or not np.abs(stored - now).max() <= limit
    ]


def _refuse_mixing(session: Session, column: Dependant, uri: str) -> None:
    sampled, differ = _differing(session, column, _ROWS_BEFORE, 0)
    # a few are rows whose source changed since, which a check names
    if 2 * len(differ) > sampled:
        raise GeometryChanged(
            f"{column.name} in {uri} holds vectors of another model: {len(differ)} of {sampled} "
            f"rows differ from {column.model}'s, such as {column.key} {differ[0]}. Nothing was "
            "embedded.",
            hint=f"set {column.name} to NULL where it is of another model, or everywhere.",
        )


def _with_key(name: str, database: Target, column: str) -> list[Dependant]:
    """Return the registered columns that can be filled row by row."""
    known = [each for each in columns(name, database) if each.kind == COLUMN]
    chosen = [each for each in known if not column or each.name.lower() == column.lower()]
    for each in chosen:
        if not each.key and column:
            raise TargetError(
                f"{column} was registered without a key. Nothing was changed.",
                hint=f"oml-mlflow columns {name} --add {column} --key COLUMN …",
            )
    found = [each for each in chosen if each.key]
    if not found:
        what = f"{column} is not" if column else "no column with a key is"
        raise TargetError(
            f"{what} registered for {name.upper()} in {database.uri}. Nothing was changed.",
            hint=f"oml-mlflow columns {name} --add TABLE.COLUMN --source … --side … --key …",
        )
    return found
