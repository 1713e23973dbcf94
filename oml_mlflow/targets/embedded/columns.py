"""Columns of vectors in an embedded database: those beside registered ones, and what was embedded.

Of each row that this package embedded, the MD5 of its source is kept by column and geometry, so
that rows which changed since are found without embedding them again.
"""

# names in statements are those that `check_column` has passed
# ruff: noqa: S608

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb

from oml_mlflow.errors import TargetError
from oml_mlflow.names import check_column
from oml_mlflow.planning.records import KEPT_COLUMN, ColumnSwap, Dependant, demand_unique
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.database import first_lines

_log = logging.getLogger(__name__)
_LIST_VIEWS = (
    "SELECT schema_name || '.' || view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL"
)


def look_at(db: Connection, column: Dependant) -> None:
    """Raise TargetError unless a column's table is as it is registered. Read-only."""
    table, stored = check_column(column.name)
    chosen = [stored, column.source, *([column.key] if column.key else [])]
    for each in chosen:
        check_column(f"{table}.{each}")
    db.execute(f"SELECT {', '.join(chosen)} FROM {table} LIMIT 0")
    if column.key:
        unique = f"SELECT count(*) = count(DISTINCT {column.key}) FROM {table}"
        demand_unique(column, db.execute(unique).fetchall() == [(True,)])


def kept_columns(db: Connection, name: str) -> list[Dependant]:
    """Return the columns beside a name's registered ones. Read-only."""
    rows = db.execute(
        "SELECT table_column, model, source, key_column, kept.geometry, beside "
        "FROM oml.kept_columns kept JOIN oml.columns USING (name, table_column) WHERE name = ? "
        "ORDER BY ALL",
        [name],
    ).fetchall()
    return [Dependant(KEPT_COLUMN, *row) for row in rows]


def make_column(db: Connection, name: str, swap: ColumnSwap, dims: int) -> None:
    """Make the column that a registered one is swapped for, unless it is there."""
    row = [name, swap.column, swap.incoming, swap.geometry]
    table, _stored = check_column(swap.column)
    is_known = _is_known(db, swap)
    # one that is known may have been dropped by hand, one that is not is of others
    unless = "IF NOT EXISTS" if is_known else ""
    with _altering(swap.column):
        db.execute(f"ALTER TABLE {table} ADD COLUMN {unless} {swap.incoming} FLOAT[{dims}]")
    if not is_known:
        db.execute("INSERT INTO oml.kept_columns VALUES (?, ?, ?, ?)", row)


def swap_column(db: Connection, name: str, swap: ColumnSwap) -> None:
    """Give a column beside a registered one its name, and keep that one under another."""
    table, stored = check_column(swap.column)
    with _altering(swap.column):
        db.execute(f"ALTER TABLE {table} RENAME COLUMN {stored} TO {swap.outgoing}")
        db.execute(f"ALTER TABLE {table} RENAME COLUMN {swap.incoming} TO {stored}")
    db.execute(
        "DELETE FROM oml.kept_columns WHERE table_column = ? AND beside = ?",
        [swap.column, swap.incoming],
    )
    kept = [name, swap.column, swap.outgoing, swap.kept]
    db.execute("INSERT INTO oml.kept_columns VALUES (?, ?, ?, ?)", kept)
    note_geometry(db, swap.column, swap.geometry)


def note_geometry(db: Connection, column: str, geometry: str) -> None:
    """Record in which space a registered column's vectors are."""
    db.execute("UPDATE oml.columns SET geometry = ? WHERE table_column = ?", [geometry, column])


def demand_swap(db: Connection, swaps: Sequence[ColumnSwap], columns: Sequence[Dependant]) -> None:
    """Raise TargetError unless columns can be swapped, which is tried, and rolled back."""
    for column in columns:
        look_at(db, column)
    for swap in swaps:
        table, stored = check_column(swap.column)
        readable = [view for view in _views(db) if _is_readable(db, view)]
        with _altering(swap.column, "Nothing was changed."), _tried(db):
            unless = "IF NOT EXISTS" if _is_known(db, swap) else ""
            db.execute(f"ALTER TABLE {table} ADD COLUMN {unless} {swap.incoming} FLOAT[1]")
            db.execute(f"ALTER TABLE {table} RENAME COLUMN {stored} TO {swap.outgoing}")
            db.execute(f"ALTER TABLE {table} RENAME COLUMN {swap.incoming} TO {stored}")
            broken = [view for view in readable if not _is_readable(db, view)]
        if broken:
            raise TargetError(
                f"{', '.join(broken)} could not be read any more once {table} has one column more "
                "than now. Nothing was changed.",
                hint="name its columns instead of *, or drop it and make it again afterwards.",
            )


def drop_columns(db: Connection, names: Sequence[str]) -> None:
    """Drop columns that are kept beside registered ones; others are refused, missing ones skipped.

    One that the database does not let go, such as one before an index, stays, and is tried again
    after the next promotion.
    """
    for name in names:
        table, beside = check_column(name)
        rows = db.execute(
            "SELECT table_column, geometry FROM oml.kept_columns WHERE beside = ? "
            "AND starts_with(table_column, ? || '.')",
            [beside, table],
        ).fetchall()
        for column, geometry in rows:
            try:
                db.execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS {beside}")
            except duckdb.Error as error:
                _log.warning("column %s stays for now: %s", name, first_lines(error, 1))
                continue
            key = [column, geometry]
            db.execute(
                "DELETE FROM oml.kept_columns WHERE table_column = ? AND geometry = ? "
                "AND beside = ?",
                [*key, beside],
            )
            db.execute("DELETE FROM oml.embedded WHERE (table_column, geometry) = (?, ?)", key)


def due(column: Dependant, *, changed: bool = True) -> str:
    """Return the query of the rows of a column to embed: ``key``; wants column and geometry.

    Those without a vector that were not refused before, and, unless told otherwise, those whose
    source is another one than was embedded or refused.
    """
    other = f"done.key IS NOT NULL AND done.source_md5 IS DISTINCT FROM md5(it.{column.source})"
    return (
        f"SELECT it.{column.key} AS key FROM {column.table} it LEFT JOIN oml.embedded done "
        "ON (done.table_column, done.geometry) = (?, ?) "
        f"AND done.key = CAST(it.{column.key} AS VARCHAR) "
        f"WHERE ((it.{column.stored} IS NULL AND it.{column.source} IS NOT NULL "
        f"AND coalesce(done.failure, '') = ''){f' OR ({other})' if changed else ''})"
    )


def key_range(db: Connection, column: Dependant, after: Any, length: int) -> tuple[Any, Any] | None:
    """Return the first and last of so many keys behind one, or of all; None if there are none."""
    behind, values = ("", []) if after is None else (f"WHERE {column.key} > ?", [after])
    [(first, last)] = db.execute(
        f"SELECT min(key), max(key) FROM (SELECT {column.key} AS key FROM {column.table} "
        f"{behind} ORDER BY key LIMIT ?)",
        [*values, length],
    ).fetchall()
    return None if first is None else (first, last)


def note_embedded(db: Connection, column: Dependant, keys: str, failure: str = "") -> None:
    """Record the sources of the rows whose keys a query gives as embedded, or as refused."""
    place = [column.name, column.geometry]
    db.execute(
        "DELETE FROM oml.embedded WHERE (table_column, geometry) = (?, ?) "
        f"AND key IN (SELECT CAST(key AS VARCHAR) FROM ({keys}))",
        place,
    )
    db.execute(
        f"INSERT INTO oml.embedded SELECT ?, ?, CAST({column.key} AS VARCHAR), "
        f"md5({column.source}), ? FROM {column.table} "
        f"WHERE {column.key} IN (SELECT key FROM ({keys})) AND {column.source} IS NOT NULL",
        [*place, failure],
    )


def _is_known(db: Connection, swap: ColumnSwap) -> bool:
    known = "SELECT 1 FROM oml.kept_columns WHERE (table_column, beside) = (?, ?)"
    return bool(db.execute(known, [swap.column, swap.incoming]).fetchall())


def _views(db: Connection) -> list[str]:
    return [view for (view,) in db.execute(_LIST_VIEWS).fetchall()]


def _is_readable(db: Connection, view: str) -> bool:
    try:
        db.execute(f"SELECT * FROM {view} LIMIT 0")
    except duckdb.Error:
        return False
    return True


class _RolledBackError(Exception):
    pass


@contextmanager
def _tried(db: Connection) -> Iterator[None]:
    try:
        with db.transaction():
            yield
            raise _RolledBackError
    except _RolledBackError:
        return


@contextmanager
def _altering(column: str, state: str = "") -> Iterator[None]:
    """Say of an error that it is about a column's table, and what to do."""
    try:
        yield
    except duckdb.Error as error:
        raise TargetError(
            f"the table of {column} can't get another column of vectors beside it: "
            f"{first_lines(error, 1).rstrip('.')}. {state}".rstrip(),
            hint="drop the index that depends on the table, and make it again afterwards; rename "
            "a column that has the name.",
        ) from error
