"""What an Oracle schema knows of vectors: geometries, and what depends on live models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oml_mlflow.errors import ConfigError, TargetError
from oml_mlflow.names import SIDES, check_column, model_name
from oml_mlflow.planning.checks import Check
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import (
    COLUMN,
    INDEX,
    KEPT_COLUMN,
    ColumnSwap,
    Dependant,
    demand_unique,
    refuse_claimed,
)
from oml_mlflow.promotion.target import EMBED_TIMEOUT_S
from oml_mlflow.targets.oracle import column_statements as columns
from oml_mlflow.targets.oracle import preflight
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
        statement = columns.read_columns(self._db.later_columns)
        rows = self._db.rows(statement, step, binds, of=sql.COLUMNS)
        found = [Dependant(COLUMN, *(value or "" for value in row)) for row in rows]
        kept = self._db.rows(columns.READ_KEPT, step, binds, of=sql.KEPT)
        in_use = {(column.name, column.stored) for column in found}
        beside = [Dependant(KEPT_COLUMN, *(value or "" for value in row)) for row in kept]
        found += [each for each in beside if (each.name, each.beside) not in in_use]
        indexes = self._db.rows(sql.LIST_DOMAIN_INDEXES, "reading the domain indexes")
        for side in SIDES:
            live = model_name(name, side)
            step = f"looking for views on {live}"
            views = self._db.rows(sql.LIST_VIEWS, step, {"model_name": live})
            found += [Dependant("view", view, live) for view, text in views if _names(text, live)]
            found += [
                Dependant(INDEX, index, live)
                for index, parameters in indexes
                if _names(parameters, live)
            ]
        return found

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits."""
        db, (table, stored) = self._db, check_column(column.name)
        chosen = [stored, column.source, *filter(None, (column.key, column.modified))]
        for each in chosen:
            check_column(f"{table}.{each}")
        hint = preflight.table_grant(table, db.user) if "." in table else ""
        db.rows(columns.look_at_columns(table, chosen), f"looking at {column.name}", hint=hint)
        step, key = f"registering {column.name}", {"name": name.upper(), "column_name": column.name}
        if column.key:
            [(rows, keys)] = db.rows(columns.count_keys(table, column.key), step)
            demand_unique(column, rows == keys)
        db.ensure_tables()
        refuse_claimed(column, [other for (other,) in db.rows(columns.CLAIMS, step, key)])
        db.write(columns.FORGET_COLUMN, step, key)
        binds = {"model_name": column.model, "source": column.source, "key": column.key or None}
        binds |= {"geometry": column.geometry or None, "stored": column.beside or None}
        binds |= {"modified": column.modified or None}
        db.write(columns.INSERT_COLUMN, step, {**key, **binds})
        db.commit()
        since = {"stored": column.stored, "geometry": column.geometry or None}
        if db.insert(columns.NOTE_SINCE, step, {**key, **since}):
            db.commit()

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        binds = {"name": name.upper(), "column_name": column}
        return self._db.forget(sql.COLUMNS, columns.FORGET_COLUMN, f"forgetting {column}", binds)

    def count(self, column: Dependant) -> tuple[int, int]:
        """Return how many rows have something to embed, and how many of them no vector."""
        [(rows, missing)] = self._db.rows(columns.count_rows(column), f"counting {column.name}")
        return int(rows), int(missing)

    def changed(self, column: Dependant) -> int:
        """Return 0: what was embedded is not recorded here."""
        return 0

    def missing(
        self, column: Dependant, after: Any, most: int, *, changed: bool = True
    ) -> list[Any]:
        """Return the keys of rows that have something to embed and no vector, in their order."""
        statement = columns.list_missing(column, most, behind=after is not None)
        binds = {} if after is None else {"after": after}
        step = f"looking for rows of {column.name}"
        return [key for (key,) in self._db.rows(statement, step, binds)]

    def fill(self, column: Dependant, first: Any, last: Any) -> int:
        """Embed rows without a vector, from one key to another, in one statement. Commits."""
        step = f"filling {column.name}"
        try:
            with self._db.giving_up(EMBED_TIMEOUT_S, step):
                count = self._db.write(
                    columns.fill_rows(column), step, {"first": first, "last": last}
                )
            self._db.commit()
        except TargetError:
            self._db.rollback()
            raise
        return count

    def note_failure(self, column: Dependant, key: Any, reason: str) -> None:
        """Do nothing: such rows stay NULL, and are tried again."""

    def checks(self, name: str) -> list[Check]:
        """Return whether columns in other users' tables can be filled. Read-only."""
        return preflight.check_columns(self._db, self.dependants(name))

    def retry(self, column: Dependant) -> None:
        """Do nothing: no failures are noted here."""

    def note_geometry(self, column: Dependant, geometry: str) -> None:
        """Record in which space a registered column's vectors are. Commits."""
        self._db.ensure_tables()
        binds = {"column_name": column.name, "geometry": geometry}
        self._db.write(columns.NOTE_GEOMETRY, f"noting the geometry of {column.name}", binds)
        self._db.commit()

    def demand_swap(self, swaps: Sequence[ColumnSwap], registered: Sequence[Dependant]) -> None:
        """Refuse; see `OracleTarget.swaps_columns`."""
        raise ConfigError(
            "columns are not swapped with models here. Nothing was changed.",
            hint="use `oml-mlflow promote --sql`.",
        )

    def drop(self, names: Sequence[str]) -> None:
        """Do nothing: no column is kept beside another here."""

    def sample(
        self, column: Dependant, most: int, seed: int
    ) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Return keys of random rows with a vector, that vector, and the live model's. Read-only.

        A hash of key and seed orders them.
        """
        rows = self._db.rows(columns.sample_rows(column, most, seed), f"sampling {column.name}")
        return [
            (key, np.asarray(old, np.float32), np.asarray(new, np.float32))
            for key, old, new in rows
        ]


def _names(text: str | None, model: str) -> bool:
    """Return whether a text names a model as a word of its own, quoted or not, in any case."""
    pattern = rf"(?<![\w$#]){re.escape(model)}(?![\w$#])"
    return re.search(pattern, text or "", re.IGNORECASE) is not None
