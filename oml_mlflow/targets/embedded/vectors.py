"""What an embedded database knows of vectors: geometries, and what depends on live models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from oml_mlflow.names import SIDES, check_column, model_name
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import Dependant
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
            "SELECT table_column, model, source FROM oml.columns WHERE name = ? ORDER BY ALL",
            [name.upper()],
        ).fetchall()
        found = [Dependant("column", column, model, source) for column, model, source in rows]
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
        check_column(f"{table}.{column.source}")
        statement = f"SELECT {stored}, {column.source} FROM {table} LIMIT 0"  # noqa: S608
        self._db.execute(statement)
        self._db.execute(
            "INSERT OR REPLACE INTO oml.columns VALUES (?, ?, ?, ?)",
            [name.upper(), column.name, column.model, column.source],
        )

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        done = self._db.execute(
            "DELETE FROM oml.columns WHERE name = ? AND lower(table_column) = lower(?)",
            [name.upper(), column],
        ).fetchall()
        return done != [(0,)]
