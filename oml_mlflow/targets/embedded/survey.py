"""Survey of an embedded database: all export names with one query."""

# every name in the statement is written here or in `schema`
# ruff: noqa: S608

from __future__ import annotations

from typing import Any

import duckdb

from oml_mlflow.planning.observed import Survey, assemble
from oml_mlflow.planning.records import LiveState, Work
from oml_mlflow.targets.embedded.files import as_found
from oml_mlflow.targets.embedded.folder import EmbeddedFolder
from oml_mlflow.targets.embedded.schema import (
    LEDGER_COLUMNS,
    SCHEMA,
    ledger_entry,
    loaded_model,
    note_from,
)
from oml_mlflow.targets.embedded.settings import CATALOG

_ENTRY = ", ".join(f"e.{column}" for column in LEDGER_COLUMNS)
# a name of an early release has a ledger only: its last generation is live, as in the journal
_STATEMENT = f"""
WITH live AS (
    SELECT name, generation, phase, work FROM oml.live
    UNION ALL
    SELECT name, arg_max(generation, (promoted_at, generation)), 'whole', NULL
    FROM oml.ledger WHERE name NOT IN (SELECT name FROM oml.live) GROUP BY name
)
SELECT row(l.name, l.generation, l.phase, l.work) AS live,
       CASE WHEN e.name IS NOT NULL THEN row({_ENTRY}) END AS entry
FROM live l LEFT JOIN oml.ledger e ON e.name = l.name AND e.generation = l.generation
UNION ALL BY NAME
SELECT row(name, side, fingerprint, dims, size_bytes, metadata, loaded_at) AS model
FROM oml.models WHERE right(name, 4) IN ('_IMG', '_TXT')
UNION ALL BY NAME
SELECT row(name, kind, content, written_at, written_by) AS note FROM oml.notes
UNION ALL BY NAME
SELECT row(fingerprint, identity) AS file FROM oml.files
"""


def read_survey(target: EmbeddedFolder) -> Survey:
    """Return what an embedded database holds. Read-only."""
    rows: list[tuple[Any, ...]] = []
    if (target.folder / CATALOG).is_file():
        with target.open_file("a survey") as raw:
            rows = _rows(target, raw)
    live = []
    for state, entry, *_ in rows:
        if state is not None:
            name, generation, phase, work = state
            pending = Work.from_json(work) if work else None
            found = LiveState(name, generation, phase, pending)
            live.append((found, ledger_entry(entry) if entry else None))
    noted = dict(row[4] for row in rows if row[4] is not None)
    listed = [loaded_model(row[2]) for row in rows if row[2] is not None]
    there = [model for model in listed if target.model_path(model.fingerprint).exists()]
    models = as_found(there, target.model_path, noted)
    notes = [note_from(row[3]) for row in rows if row[3] is not None]
    return assemble(target.uri, duckdb.__version__, live, models, notes)


def _rows(target: EmbeddedFolder, raw: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]]
    try:
        rows = raw.execute(_STATEMENT).fetchall()
    except (duckdb.CatalogException, duckdb.BinderException):
        # A database of an earlier release: missing tables exist for this transaction only.
        with target.alone("a survey"):
            raw.execute("BEGIN TRANSACTION")
            try:
                raw.execute(SCHEMA)
                rows = raw.execute(_STATEMENT).fetchall()
            finally:
                raw.execute("ROLLBACK")
    return rows
