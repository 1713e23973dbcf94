"""Survey of an Oracle schema: all export names with one query.

Sources: USER_MINING_MODELS and USER_TAB_COLUMNS, Database Reference; "The Set Operators", SQL
Language Reference, which has TO_CHAR(NULL) for columns that only one of the queries has, since
ORA-01790 refuses columns of different types. Unverified on a real database.
"""

# every name in the statements is written here or in `statements`
# ruff: noqa: S608

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from typing import Any

from oml_mlflow.errors import TargetError
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.observed import Survey, assemble
from oml_mlflow.planning.records import LiveState, Work, refuse_newer
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database, is_missing
from oml_mlflow.targets.oracle.ledger import ledger_entry
from oml_mlflow.targets.oracle.models import model_from, recognised
from oml_mlflow.targets.oracle.notes import note_from

_NEEDED = (sql.LIVE, sql.LEDGER)
_NO_NUMBER, _NO_TEXT, _NO_CLOB = "TO_NUMBER(NULL)", "TO_CHAR(NULL)", "TO_CLOB(NULL)"
_LEDGER_NUMBERS = ("GENERATION", "RESTORES", "IMG_BYTES", "TXT_BYTES", "DIMS")
_NO_ENTRY = [
    _NO_NUMBER if column in _LEDGER_NUMBERS else _NO_TEXT for column in sql.ledger_columns()
]


def read_survey(db: Database) -> Survey:
    """Return what a schema holds under all export names. Read-only.

    One query; if a table or column of ours is missing, a second one asks which there are, and a
    third reads them.
    """
    step = "surveying what is live"
    try:
        rows = db.rows(_statement(sql.CREATE_TABLES, has_registry=True), step, inline=True)
    except TargetError as error:
        if not is_missing(error):
            raise
        rows = db.rows(f"{_MODELS}\nUNION ALL\n{_TABLES}", step, inline=True)
        there = {(name, column) for kind, name, _, column, *_ in rows if kind == "column"}
        tables = {table for table, _column in there}
        if sql.SCHEMA in tables:
            db.refuse_newer()
        if tables.issuperset(_NEEDED):
            has_registry = (sql.LEDGER, sql.REGISTRY) in there
            rows = db.rows(_statement(tables, has_registry=has_registry), step, inline=True)
    return _survey(db, rows)


def _branch(
    kind: str,
    source: str,
    name: str,
    *,
    number: str = _NO_NUMBER,
    texts: Collection[str] = (),
    content: str = _NO_CLOB,
    entry: Collection[str] = _NO_ENTRY,
) -> str:
    """Return one query of the union, its columns padded to the common types."""
    padded = [*texts, *[_NO_TEXT] * (3 - len(texts))]
    columns = [f"'{kind}'", name, number, *padded, content, *entry]
    return f"SELECT {', '.join(columns)} FROM {source}"


def _live(*, has_registry: bool) -> str:
    entry = sql.ledger_columns("E.", has_registry=has_registry)
    source = (
        f"{sql.LIVE} L LEFT JOIN {sql.LEDGER} E ON E.NAME = L.NAME AND E.GENERATION = L.GENERATION"
    )
    return _branch(
        "live",
        source,
        "L.NAME",
        number="L.GENERATION",
        texts=["L.PHASE"],
        content="L.WORK",
        entry=entry,
    )


_MODELS = _branch(
    "model",
    "USER_MINING_MODELS WHERE SUBSTR(MODEL_NAME, -4) IN ('_IMG', '_TXT')",
    "MODEL_NAME",
    number="MODEL_SIZE",
    texts=["TO_CHAR(CREATION_DATE, 'YYYY-MM-DD\"T\"HH24:MI:SS')", "COMMENTS"],
)
_NOTES = _branch(
    "note", sql.NOTES, "NAME", texts=["KIND", "WRITTEN_AT", "WRITTEN_BY"], content="CONTENT"
)
_CAPABILITIES = _branch(
    "capabilities", f"{sql.CAPABILITIES} WHERE ID = 1", _NO_TEXT, content="CONTENT"
)
_VERSIONS = _branch("version", sql.SCHEMA, _NO_TEXT, number="VERSION")
_TABLES = _branch(
    "column",
    f"USER_TAB_COLUMNS {sql.LIST_TABLES.partition(' FROM USER_TAB_COLUMNS ')[2]}",
    "TABLE_NAME",
    texts=["COLUMN_NAME"],
)


def _statement(tables: Collection[str], *, has_registry: bool) -> str:
    branches = [_live(has_registry=has_registry), _MODELS]
    branches += [_NOTES] if sql.NOTES in tables else []
    branches += [_CAPABILITIES] if sql.CAPABILITIES in tables else []
    branches += [_VERSIONS] if sql.SCHEMA in tables else []
    return "\nUNION ALL\n".join(branches)


def _digest(table: CapabilityTable) -> str:
    """Return a digest of the answers, whatever their time and wording."""
    answers = sorted(
        (json.dumps(asdict(row.capability), sort_keys=True), str(row.taken)) for row in table.rows
    )
    told = json.dumps([table.database_version, answers])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _survey(db: Database, rows: list[tuple[Any, ...]]) -> Survey:
    versions = [int(number) for kind, _, number, *_ in rows if kind == "version"]
    refuse_newer(db.uri, max(versions, default=1), sql.SCHEMA_VERSION)
    live, ledger, models, notes, capabilities = [], [], [], [], ""
    for kind, name, number, one, two, three, content, *entry in rows:
        if kind == "live":
            recorded = ledger_entry(tuple(entry)) if entry[0] else None
            ledger += [recorded] if recorded else []
            work = Work.from_json(content) if content else None
            state = LiveState(name, int(number), one, work)
            live.append((state, recorded[0] if recorded else None))
        elif kind == "model":
            created = datetime.fromisoformat(one) if one else None
            models.append(model_from(name, number, created, two))
        elif kind == "note":
            notes.append(note_from(name, one, content, two, three))
        elif kind == "capabilities":
            capabilities = _digest(CapabilityTable.from_json(content))
    return assemble(db.uri, db.version, live, recognised(models, ledger), notes, capabilities)
