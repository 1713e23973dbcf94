"""What an embedded database knows of vectors: geometries, and what depends on live models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oml_mlflow.names import SIDES, model_name
from oml_mlflow.planning.checks import Check
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import COLUMN, ColumnSwap, Dependant, refuse_claimed
from oml_mlflow.targets.embedded import columns
from oml_mlflow.targets.embedded.connection import Connection

_REGISTERED = ("name", "model", "source", "key", "geometry")


class EmbeddedVectors:
    """What a database knows of vectors; see `Vectors`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def geometries(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Return vectors that stand for each geometry of an export name. Read-only."""
        rows = self._db.execute(
            "SELECT id, vectors FROM oml.geometry WHERE name = ?", [name.upper()]
        ).fetchall()
        return {key: unpack_vectors(packed) for key, packed in rows}

    def save(self, name: str, geometry: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep the vectors that stand for a geometry, unless there are some. Commits."""
        self._db.execute(
            "INSERT OR IGNORE INTO oml.geometry VALUES (?, ?, ?)",
            [name.upper(), geometry, pack_vectors(vectors)],
        )

    def dependants(self, name: str) -> list[Dependant]:
        """Return registered columns, those beside, and views that call a live model. Read-only."""
        rows = self._db.execute(
            "SELECT table_column, model, source, key_column, geometry FROM oml.columns "
            "WHERE name = ? ORDER BY ALL",
            [name.upper()],
        ).fetchall()
        found = [Dependant(COLUMN, *row) for row in rows]
        found += columns.kept_columns(self._db, name.upper())
        views = self._db.execute(
            "SELECT schema_name || '.' || view_name, sql FROM duckdb_views() WHERE NOT internal "
            "ORDER BY ALL"
        ).fetchall()
        for view, text in views:
            for live in (model_name(name, side) for side in SIDES):
                if re.search(rf"\b{re.escape(live)}\b", text, re.IGNORECASE):
                    found.append(Dependant("view", view, live))
        return found

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits."""
        columns.look_at(self._db, column)
        claimed = self._db.execute(
            "SELECT name FROM oml.columns WHERE lower(table_column) = lower(?) AND name <> ?",
            [column.name, name.upper()],
        ).fetchall()
        refuse_claimed(column, [other for (other,) in claimed])
        self._db.execute(
            "INSERT OR REPLACE INTO oml.columns BY NAME SELECT ? AS name, ? AS table_column, "
            "? AS model, ? AS source, ? AS key_column, ? AS geometry",
            [name.upper(), *(vars(column)[key] for key in _REGISTERED)],
        )

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        done = self._db.execute(
            "DELETE FROM oml.columns WHERE name = ? AND lower(table_column) = lower(?)",
            [name.upper(), column],
        ).fetchall()
        return done != [(0,)]

    def count(self, column: Dependant) -> tuple[int, int]:
        """Return how many rows have something to embed, and how many of them no vector."""
        [(rows, missing)] = self._db.execute(
            f"SELECT count(*), count(*) - count({column.stored}) FROM {column.table} "  # noqa: S608
            f"WHERE {column.source} IS NOT NULL"
        ).fetchall()
        return int(rows), int(missing)

    def changed(self, column: Dependant) -> int:
        """Return how many rows have another source than was embedded. Read-only."""
        [(count,)] = self._db.execute(
            f"SELECT count(*) FROM {column.table} it JOIN oml.embedded done "  # noqa: S608
            "ON (done.table_column, done.geometry, done.failure) = (?, ?, '') "
            f"AND done.key = CAST(it.{column.key} AS VARCHAR) "
            f"WHERE done.source_md5 IS DISTINCT FROM md5(it.{column.source})",
            [column.name, column.geometry],
        ).fetchall()
        return int(count)

    def missing(
        self, column: Dependant, after: Any, most: int, *, changed: bool = True
    ) -> list[Any]:
        """Return the keys of rows to embed, in their order; see `columns.due`. Read-only.

        They are looked for in ever longer ranges of keys, so that the sources of a large table are
        not all read for each batch.
        """
        due, place = columns.due(column, changed=changed), [column.name, column.geometry]
        length = most
        while bounds := columns.key_range(self._db, column, after, length):
            rows = self._db.execute(
                f"{due} AND it.{column.key} BETWEEN ? AND ? ORDER BY key LIMIT ?",
                [*place, *bounds, most],
            ).fetchall()
            if rows:
                return [key for (key,) in rows]
            after, length = bounds[1], 2 * length
        return []

    def fill(self, column: Dependant, first: Any, last: Any) -> int:
        """Embed the rows of `missing` from one key to another, or none. Commits."""
        with self._db.transaction():
            self._db.execute(
                f"CREATE OR REPLACE TEMP TABLE oml_due AS {columns.due(column)} "
                f"AND it.{column.key} BETWEEN ? AND ?",
                [column.name, column.geometry, first, last],
            )
            [(count,)] = self._db.execute(
                f"UPDATE {column.table} SET {column.stored} = {column.model}({column.source}) "  # noqa: S608
                f"WHERE {column.key} IN (SELECT key FROM oml_due)"
            ).fetchall()
            columns.note_embedded(self._db, column, "SELECT key FROM oml_due")
        return int(count)

    def note_failure(self, column: Dependant, key: Any, reason: str) -> None:
        """Leave a row out from now on, until its source changes or `retry`. Commits."""
        with self._db.transaction():
            self._db.execute("CREATE OR REPLACE TEMP TABLE oml_due AS SELECT ? AS key", [key])
            columns.note_embedded(self._db, column, "SELECT key FROM oml_due", reason or "refused")

    def checks(self, name: str) -> list[Check]:
        """Return nothing: a database of this kind has one user."""
        return []

    def retry(self, column: Dependant) -> None:
        """Forget the failures that were noted of a column. Commits."""
        self._db.execute(
            "DELETE FROM oml.embedded WHERE (table_column, geometry) = (?, ?) AND failure <> ''",
            [column.name, column.geometry],
        )

    def note_geometry(self, column: Dependant, geometry: str) -> None:
        """Record in which space a registered column's vectors are. Commits."""
        columns.note_geometry(self._db, column.name, geometry)

    def demand_swap(self, swaps: Sequence[ColumnSwap], registered: Sequence[Dependant]) -> None:
        """Raise TargetError unless columns can be swapped; see `Vectors`. Changes nothing."""
        columns.demand_swap(self._db, swaps, registered)

    def drop(self, names: Sequence[str]) -> None:
        """Drop columns that are kept beside registered ones; see `Vectors`. Commits."""
        columns.drop_columns(self._db, names)

    def sample(
        self, column: Dependant, most: int, seed: int
    ) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Return keys of random rows with a vector, that vector, and the live model's. Read-only.

        A hash of key and seed orders them.
        """
        rows = self._db.execute(
            f"SELECT key, vector, {column.model}(value) FROM (SELECT {column.key} AS key, "  # noqa: S608
            f"{column.stored} AS vector, {column.source} AS value FROM {column.table} "
            "WHERE vector IS NOT NULL AND value IS NOT NULL "
            f"ORDER BY hash({column.key}::VARCHAR || ?) LIMIT ?)",
            [f" {seed}", most],
        ).fetchall()
        return [
            (key, np.asarray(old, np.float32), np.asarray(new, np.float32))
            for key, old, new in rows
        ]
