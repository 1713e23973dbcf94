"""What an embedded database knows of vectors: geometries, and what depends on live models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from oml_mlflow.names import SIDES, check_column, model_name
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import Dependant, demand_unique, refuse_claimed
from oml_mlflow.targets.embedded.connection import Connection


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
        """Return registered columns, and views that call a live model. Read-only."""
        rows = self._db.execute(
            "SELECT table_column, model, source, key_column FROM oml.columns WHERE name = ? "
            "ORDER BY ALL",
            [name.upper()],
        ).fetchall()
        found = [Dependant("column", *row) for row in rows]
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
        table, stored = check_column(column.name)
        chosen = [stored, column.source, *([column.key] if column.key else [])]
        for each in chosen:
            check_column(f"{table}.{each}")
        self._db.execute(f"SELECT {', '.join(chosen)} FROM {table} LIMIT 0")  # noqa: S608
        if column.key:
            unique = f"SELECT count(*) = count(DISTINCT {column.key}) FROM {table}"  # noqa: S608
            demand_unique(column, self._db.execute(unique).fetchall() == [(True,)])
        claimed = self._db.execute(
            "SELECT name FROM oml.columns WHERE lower(table_column) = lower(?) AND name <> ?",
            [column.name, name.upper()],
        ).fetchall()
        refuse_claimed(column, [other for (other,) in claimed])
        self._db.execute(
            "INSERT OR REPLACE INTO oml.columns BY NAME SELECT ? AS name, ? AS table_column, "
            "? AS model, ? AS source, ? AS key_column",
            [name.upper(), column.name, column.model, column.source, column.key],
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
        table, stored = check_column(column.name)
        [(rows, missing)] = self._db.execute(
            f"SELECT count(*), count(*) - count({stored}) FROM {table} "  # noqa: S608
            f"WHERE {column.source} IS NOT NULL"
        ).fetchall()
        return int(rows), int(missing)

    def missing(self, column: Dependant, after: Any, most: int) -> list[Any]:
        """Return the keys of rows that have something to embed and no vector, in their order."""
        table, stored = check_column(column.name)
        behind, values = ("TRUE", []) if after is None else (f"{column.key} > ?", [after])
        rows = self._db.execute(
            f"SELECT {column.key} FROM {table} WHERE {behind} AND {stored} IS NULL "  # noqa: S608
            f"AND {column.source} IS NOT NULL ORDER BY {column.key} LIMIT ?",
            [*values, most],
        ).fetchall()
        return [key for (key,) in rows]

    def fill(self, column: Dependant, first: Any, last: Any) -> int:
        """Embed rows without a vector, from one key to another, in one statement. Commits."""
        table, stored = check_column(column.name)
        [(count,)] = self._db.execute(
            f"UPDATE {table} SET {stored} = {column.model}({column.source}) "  # noqa: S608
            f"WHERE {column.key} BETWEEN ? AND ? AND {stored} IS NULL "
            f"AND {column.source} IS NOT NULL",
            [first, last],
        ).fetchall()
        return int(count)

    def sample(
        self, column: Dependant, most: int, seed: int
    ) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Return keys of random rows with a vector, that vector, and the live model's. Read-only.

        A hash of key and seed orders them.
        """
        table, stored = check_column(column.name)
        rows = self._db.execute(
            f"SELECT key, vector, {column.model}(value) FROM (SELECT {column.key} AS key, "  # noqa: S608
            f"{stored} AS vector, {column.source} AS value FROM {table} WHERE {stored} IS NOT NULL "
            f"AND value IS NOT NULL ORDER BY hash({column.key}::VARCHAR || ?) LIMIT ?)",
            [f" {seed}", most],
        ).fetchall()
        return [
            (key, np.asarray(old, np.float32), np.asarray(new, np.float32))
            for key, old, new in rows
        ]
