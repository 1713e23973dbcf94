"""What an Oracle schema knows of vectors: geometries, and what depends on live models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from oml_mlflow.names import SIDES, check_column, model_name
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import Dependant
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database


class OracleVectors:
    """What a schema knows of vectors; see `Vectors`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def geometries(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Return vectors that stand for each geometry of an export name, by id. Read-only."""
        step, binds = "reading the geometries", {"name": name.upper()}
        rows = self._db.rows(sql.READ_GEOMETRIES, step, binds, of=sql.GEOMETRY)
        return {geometry: unpack_vectors(packed) for geometry, packed in rows}

    def save(self, name: str, geometry: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep the vectors that stand for a geometry, unless there are some. Commits."""
        self._db.ensure_tables()
        if geometry in self.geometries(name):
            return
        blob = self._db.blob(pack_vectors(vectors))
        binds = {"name": name.upper(), "geometry": geometry, "vectors": blob}
        self._db.write(sql.INSERT_GEOMETRY, f"keeping geometry {geometry}", binds)
        self._db.commit()

    def dependants(self, name: str) -> list[Dependant]:
        """Return what is known to depend on an export name's live models. Read-only.

        Registered columns, views whose text names a model, and domain indexes, such as hybrid
        vector indexes, whose parameters do.
        """
        step, binds = "reading the registered columns", {"name": name.upper()}
        rows = self._db.rows(sql.READ_COLUMNS, step, binds, of=sql.COLUMNS)
        found = [Dependant("column", column, model, source or "") for column, model, source in rows]
        indexes = self._db.rows(sql.LIST_DOMAIN_INDEXES, "reading the domain indexes")
        for side in SIDES:
            live = model_name(name, side)
            step = f"looking for views on {live}"
            views = self._db.rows(sql.LIST_VIEWS, step, {"model_name": live})
            found += [Dependant("view", view, live) for view, text in views if _names(text, live)]
            found += [
                Dependant("hybrid vector index", index, live)
                for index, parameters in indexes
                if _names(parameters, live)
            ]
        return found

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits."""
        db, (table, stored) = self._db, check_column(column.name)
        _, source = check_column(f"{table}.{column.source}")
        db.rows(sql.look_at_columns(table, [stored, source]), f"looking at {column.name}")
        db.ensure_tables()
        step, key = f"registering {column.name}", {"name": name.upper(), "column_name": column.name}
        db.write(sql.FORGET_COLUMN, step, key)
        binds = {**key, "model_name": column.model, "source": column.source}
        db.write(sql.INSERT_COLUMN, step, binds)
        db.commit()

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        binds = {"name": name.upper(), "column_name": column}
        return self._db.forget(sql.COLUMNS, sql.FORGET_COLUMN, f"forgetting {column}", binds)


def _names(text: str | None, model: str) -> bool:
    """Return whether a text names a model as a word of its own, quoted or not, in any case."""
    pattern = rf"(?<![\w$#]){re.escape(model)}(?![\w$#])"
    return re.search(pattern, text or "", re.IGNORECASE) is not None
