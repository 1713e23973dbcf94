"""Every statement of the Oracle target, in one place for a DBA to read.

Names of models come from `oml_mlflow.names` or, where a catalogue gave them, through
`quote_name`; values are bound, except in DDL and in the swap block, which take no binds: there
they are written by `literal`. The one query of a survey is in `survey`.

Sources: "LOAD_ONNX_MODEL Procedure", "DROP_ONNX_MODEL Procedure" (AI Vector Search User's Guide),
"RENAME_MODEL Procedure" (PL/SQL Packages and Types Reference), "COMMENT" and "GRANT" (SQL Language
Reference), and the reference pages of the views. Unverified on a real database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from oml_mlflow.errors import TargetError
from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.records import Grant, LedgerEntry
from oml_mlflow.targets.oracle.quoting import literal, model_token, quote_name

LEDGER, LIVE, LOCK = "OML_MLFLOW_LEDGER", "OML_MLFLOW_LIVE", "OML_MLFLOW_LOCK"
GEOMETRY, COLUMNS = "OML_MLFLOW_GEOMETRY", "OML_MLFLOW_COLUMNS"
# columns of vectors, in use or not: rows changed since a time may be stale in them
KEPT = "OML_MLFLOW_KEPT"
CAPABILITIES, NOTES = "OML_MLFLOW_CAPABILITIES", "OML_MLFLOW_NOTES"
SCHEMA = "OML_MLFLOW_SCHEMA"
REGISTRY, KEY, STORED = "REGISTRY", "KEY_COLUMN", "STORED_COLUMN"

# Version of the tables and of the comments on models. It rises when a release that knows the one
# before could misread or damage what is written from then on: not for a table or column that others
# can do without. Tables without a version are of version 1. OML_MLFLOW_SCHEMA itself, a row for
# each version that the tables have had, never changes.
SCHEMA_VERSION = 1

# times are UTC in ISO 8601 text, independent of a session's time zone and date format
CREATE_TABLES = {
    SCHEMA: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_SCHEMA (
  VERSION NUMBER(10) NOT NULL,
  CONSTRAINT OML_MLFLOW_SCHEMA_PK PRIMARY KEY (VERSION)
)""",
    LEDGER: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_LEDGER (
  NAME VARCHAR2(128) NOT NULL,
  GENERATION NUMBER(10) NOT NULL,
  ACTION VARCHAR2(16) NOT NULL,
  RESTORES NUMBER(10) NOT NULL,
  REGISTERED_MODEL VARCHAR2(512),
  VERSION VARCHAR2(64),
  RUN_ID VARCHAR2(64),
  IMG_SHA256 VARCHAR2(64),
  TXT_SHA256 VARCHAR2(64),
  IMG_BYTES NUMBER(19),
  TXT_BYTES NUMBER(19),
  DIMS NUMBER(10) NOT NULL,
  GEOMETRY VARCHAR2(128),
  PROFILE VARCHAR2(512),
  VERIFICATION VARCHAR2(16),
  PARITY VARCHAR2(4000),
  PROMOTED_AT VARCHAR2(40) NOT NULL,
  PROMOTED_BY VARCHAR2(512),
  REGISTRY VARCHAR2(512),
  CONSTRAINT OML_MLFLOW_LEDGER_PK PRIMARY KEY (NAME, GENERATION)
)""",
    LIVE: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_LIVE (
  NAME VARCHAR2(128) NOT NULL,
  GENERATION NUMBER(10) NOT NULL,
  PHASE VARCHAR2(16) NOT NULL,
  WORK CLOB,
  CHANGED_AT VARCHAR2(40) NOT NULL,
  CONSTRAINT OML_MLFLOW_LIVE_PK PRIMARY KEY (NAME)
)""",
    LOCK: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_LOCK (
  NAME VARCHAR2(128) NOT NULL,
  HOLDER VARCHAR2(512) NOT NULL,
  PURPOSE VARCHAR2(512) NOT NULL,
  SINCE VARCHAR2(40) NOT NULL,
  SESSION_ID VARCHAR2(64) NOT NULL,
  CONSTRAINT OML_MLFLOW_LOCK_PK PRIMARY KEY (NAME)
)""",
    GEOMETRY: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_GEOMETRY (
  NAME VARCHAR2(128) NOT NULL,
  GEOMETRY VARCHAR2(128) NOT NULL,
  VECTORS BLOB NOT NULL,
  CONSTRAINT OML_MLFLOW_GEOMETRY_PK PRIMARY KEY (NAME, GEOMETRY)
)""",
    COLUMNS: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_COLUMNS (
  NAME VARCHAR2(128) NOT NULL,
  COLUMN_NAME VARCHAR2(512) NOT NULL,
  MODEL_NAME VARCHAR2(128) NOT NULL,
  SOURCE VARCHAR2(4000),
  KEY_COLUMN VARCHAR2(128),
  GEOMETRY VARCHAR2(128),
  STORED_COLUMN VARCHAR2(128),
  MODIFIED_COLUMN VARCHAR2(128),
  CONSTRAINT OML_MLFLOW_COLUMNS_PK PRIMARY KEY (NAME, COLUMN_NAME)
)""",
    KEPT: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_KEPT (
  NAME VARCHAR2(128) NOT NULL,
  COLUMN_NAME VARCHAR2(512) NOT NULL,
  STORED_COLUMN VARCHAR2(128) NOT NULL,
  GEOMETRY VARCHAR2(128),
  SINCE TIMESTAMP NOT NULL,
  NEXT_SINCE TIMESTAMP,
  CONSTRAINT OML_MLFLOW_KEPT_PK PRIMARY KEY (NAME, COLUMN_NAME, STORED_COLUMN)
)""",
    CAPABILITIES: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_CAPABILITIES (
  ID NUMBER(10) NOT NULL,
  CONTENT CLOB NOT NULL,
  CONSTRAINT OML_MLFLOW_CAPABILITIES_PK PRIMARY KEY (ID)
)""",
    NOTES: """CREATE TABLE IF NOT EXISTS OML_MLFLOW_NOTES (
  NAME VARCHAR2(128) NOT NULL,
  KIND VARCHAR2(16) NOT NULL,
  CONTENT CLOB NOT NULL,
  WRITTEN_AT VARCHAR2(40) NOT NULL,
  WRITTEN_BY VARCHAR2(512),
  CONSTRAINT OML_MLFLOW_NOTES_PK PRIMARY KEY (NAME, KIND)
)""",
}
# tables of an earlier release lack these columns, and CREATE TABLE IF NOT EXISTS adds none
ADD_COLUMNS = {
    (table, column): f"""DECLARE
  is_there EXCEPTION;
  PRAGMA EXCEPTION_INIT(is_there, -1430);
BEGIN
  EXECUTE IMMEDIATE 'ALTER TABLE {table} ADD ({column} VARCHAR2({length}))';
EXCEPTION
  WHEN is_there THEN NULL;
END;"""
    for table, column, length in (
        (LEDGER, REGISTRY, 512),
        (COLUMNS, KEY, 128),
        (COLUMNS, "GEOMETRY", 128),
        (COLUMNS, STORED, 128),
        (COLUMNS, "MODIFIED_COLUMN", 128),
    )
}
NOTE_VERSION = f"""BEGIN
  INSERT INTO OML_MLFLOW_SCHEMA (VERSION) VALUES ({SCHEMA_VERSION});
  COMMIT;
EXCEPTION
  WHEN DUP_VAL_ON_INDEX THEN NULL;
END;"""  # noqa: S608
# every table of ours has one of the first three columns; the others were added later
LIST_TABLES = (
    "SELECT TABLE_NAME, COLUMN_NAME FROM USER_TAB_COLUMNS "
    "WHERE TABLE_NAME LIKE 'OML_MLFLOW_%' "
    "AND COLUMN_NAME IN ('NAME', 'ID', 'VERSION', 'REGISTRY', 'KEY_COLUMN', 'GEOMETRY', "
    "'STORED_COLUMN', 'MODIFIED_COLUMN')"
)
LIST_VERSIONS = "SELECT 'OML_MLFLOW_SCHEMA', TO_CHAR(VERSION) FROM OML_MLFLOW_SCHEMA"

# the session itself
READ_CONTEXT = (
    "SELECT SYS_CONTEXT('USERENV', 'MODULE'), SYS_CONTEXT('USERENV', 'ACTION'), "
    "SYS_CONTEXT('USERENV', 'CLIENT_INFO') FROM DUAL"
)
SESSION_ID = "SELECT DBMS_SESSION.UNIQUE_SESSION_ID FROM DUAL"
# a BOOLEAN of PL/SQL, as a number, which every client can bind
IS_ALIVE = (
    "BEGIN IF DBMS_SESSION.IS_SESSION_ALIVE(:session_id) THEN :alive := 1; "
    "ELSE :alive := 0; END IF; END;"
)

# models
# one block, so that a killed client leaves no model without the comment that says what it is; both
# commit by themselves, and COMMENT, as DDL, can only be dynamic in PL/SQL
LOAD = (
    "BEGIN DBMS_VECTOR.LOAD_ONNX_MODEL(model_name => :model_name, model_data => :model_data, "
    "metadata => JSON(:metadata)); EXECUTE IMMEDIATE :comment_statement; END;"
)
DROP = "BEGIN DBMS_VECTOR.DROP_ONNX_MODEL(model_name => :model_name, force => TRUE); END;"
LIST_MODELS = (
    "SELECT MODEL_NAME, MODEL_SIZE, CREATION_DATE, COMMENTS FROM USER_MINING_MODELS "
    "ORDER BY MODEL_NAME"
)
FIND_MODEL = "SELECT MODEL_SIZE FROM USER_MINING_MODELS WHERE MODEL_NAME = :model_name"
LIST_GRANTS = (
    "SELECT TABLE_NAME, GRANTEE, PRIVILEGE, GRANTABLE FROM USER_TAB_PRIVS_MADE "
    "WHERE TABLE_NAME = :model_name AND PRIVILEGE IN ('SELECT', 'ALTER')"
)

# our tables
_LEDGER_COLUMNS = (
    "NAME, GENERATION, ACTION, RESTORES, REGISTERED_MODEL, VERSION, RUN_ID, IMG_SHA256, "
    "TXT_SHA256, IMG_BYTES, TXT_BYTES, DIMS, GEOMETRY, PROFILE, VERIFICATION, PARITY, "
    "PROMOTED_AT, PROMOTED_BY, REGISTRY"
)
READ_LIVE = "SELECT GENERATION, PHASE, WORK FROM OML_MLFLOW_LIVE WHERE NAME = :name"
INSERT_LIVE = (
    "INSERT INTO OML_MLFLOW_LIVE (NAME, GENERATION, PHASE, WORK, CHANGED_AT) "
    "VALUES (:name, 0, 'loading', :work, :changed_at)"
)
BEGIN_WORK = (
    "UPDATE OML_MLFLOW_LIVE SET PHASE = 'loading', WORK = :work, CHANGED_AT = :changed_at "
    "WHERE NAME = :name AND GENERATION = :generation AND PHASE = 'whole'"
)
NOTE_WORK = "UPDATE OML_MLFLOW_LIVE SET WORK = :work WHERE NAME = :name AND PHASE = 'loading'"
END_WORK = (
    "UPDATE OML_MLFLOW_LIVE SET PHASE = 'whole', WORK = NULL, CHANGED_AT = :changed_at "
    "WHERE NAME = :name AND PHASE IN ('loading', 'cleaning')"
)
UNDO_SWAP = (
    "UPDATE OML_MLFLOW_LIVE SET PHASE = 'loading', CHANGED_AT = :changed_at "
    "WHERE NAME = :name AND GENERATION = :generation AND PHASE = 'swapping'"
)
INSERT_LOCK = (
    "INSERT INTO OML_MLFLOW_LOCK (NAME, HOLDER, PURPOSE, SINCE, SESSION_ID) "
    "VALUES (:name, :holder, :purpose, :since, :session_id)"
)
READ_LOCK = "SELECT HOLDER, PURPOSE, SINCE, SESSION_ID FROM OML_MLFLOW_LOCK WHERE NAME = :name"
TAKE_LOCK = (
    "UPDATE OML_MLFLOW_LOCK SET HOLDER = :holder, PURPOSE = :purpose, SINCE = :since, "
    "SESSION_ID = :session_id "
    "WHERE NAME = :name AND SESSION_ID = :dead_session AND SINCE = :dead_since"
)
RELEASE_LOCK = "DELETE FROM OML_MLFLOW_LOCK WHERE NAME = :name AND SESSION_ID = :session_id"
READ_GEOMETRIES = (
    "SELECT GEOMETRY, VECTORS FROM OML_MLFLOW_GEOMETRY WHERE NAME = :name ORDER BY GEOMETRY"
)
INSERT_GEOMETRY = (
    "INSERT INTO OML_MLFLOW_GEOMETRY (NAME, GEOMETRY, VECTORS) VALUES (:name, :geometry, :vectors)"
)
READ_CAPABILITIES = "SELECT CONTENT FROM OML_MLFLOW_CAPABILITIES WHERE ID = 1"
FORGET_CAPABILITIES = "DELETE FROM OML_MLFLOW_CAPABILITIES WHERE ID = 1"
INSERT_CAPABILITIES = "INSERT INTO OML_MLFLOW_CAPABILITIES (ID, CONTENT) VALUES (1, :content)"
READ_NOTES = "SELECT NAME, KIND, CONTENT, WRITTEN_AT, WRITTEN_BY FROM OML_MLFLOW_NOTES"
CHANGE_NOTE = (
    "UPDATE OML_MLFLOW_NOTES SET CONTENT = :content, WRITTEN_AT = :written_at, "
    "WRITTEN_BY = :written_by WHERE NAME = :name AND KIND = :kind"
)
INSERT_NOTE = (
    "INSERT INTO OML_MLFLOW_NOTES (NAME, KIND, CONTENT, WRITTEN_AT, WRITTEN_BY) "
    "VALUES (:name, :kind, :content, :written_at, :written_by)"
)
FORGET_NOTE = "DELETE FROM OML_MLFLOW_NOTES WHERE NAME = :name AND KIND = :kind"

# what depends on a model
LIST_VIEWS = (
    "SELECT VIEW_NAME, TEXT_VC FROM USER_VIEWS WHERE INSTR(UPPER(TEXT_VC), :model_name) > 0 "
    "ORDER BY VIEW_NAME"
)
LIST_DOMAIN_INDEXES = (
    "SELECT INDEX_NAME, PARAMETERS FROM USER_INDEXES WHERE INDEX_TYPE = 'DOMAIN' "
    "ORDER BY INDEX_NAME"
)

# preflight
LIST_PRIVILEGES = "SELECT PRIVILEGE FROM SESSION_PRIVS"
LIST_TABLE_PRIVILEGES = (
    "SELECT PRIVILEGE FROM ALL_TAB_PRIVS WHERE TABLE_SCHEMA = :owner AND TABLE_NAME = :table_name"
)
FIND_PACKAGE = (
    "SELECT OBJECT_NAME FROM ALL_OBJECTS WHERE OBJECT_NAME = 'DBMS_VECTOR' "
    "AND OBJECT_TYPE = 'PACKAGE'"
)
DEFAULT_TABLESPACE = "SELECT DEFAULT_TABLESPACE FROM USER_USERS"
READ_QUOTA = "SELECT BYTES, MAX_BYTES FROM USER_TS_QUOTAS WHERE TABLESPACE_NAME = :tablespace_name"

# raised by the swap block; -20000 to -20999 are free for applications
STALE_CODE = 20801


def embed(model: str) -> str:
    """Return the query that embeds one bound value."""
    return f"SELECT VECTOR_EMBEDDING({model_token(model)} USING :data AS DATA) FROM DUAL"  # noqa: S608


def ledger_columns(alias: str = "", *, has_registry: bool = True) -> list[str]:
    """Return the ledger's columns in reading order; NULL for a missing REGISTRY."""
    there = [f"{alias}{column}" for column in _LEDGER_COLUMNS.split(", ")]
    return there if has_registry else [*there[:-1], "TO_CHAR(NULL)"]


def read_ledger(*, has_registry: bool) -> str:
    """Return the query of the whole ledger."""
    columns = ", ".join(ledger_columns(has_registry=has_registry))
    return f"SELECT {columns} FROM OML_MLFLOW_LEDGER ORDER BY PROMOTED_AT, GENERATION"  # noqa: S608


def comment(model: str, text: str) -> str:
    """Return the statement that writes a model's comment."""
    return f"COMMENT ON MINING MODEL {model_token(model)} IS {literal(text)}"


def grant(given: Grant) -> str:
    """Return the statement that gives a privilege."""
    option = " WITH GRANT OPTION" if given.grantable else ""
    return (
        f"GRANT {_privilege(given)} ON MINING MODEL {model_token(given.model)} "
        f"TO {_grantee(given)}{option}"
    )


def revoke(given: Grant) -> str:
    """Return the statement that takes a privilege away."""
    return (
        f"REVOKE {_privilege(given)} ON MINING MODEL {model_token(given.model)} "
        f"FROM {_grantee(given)}"
    )


def rename(old: str, new: str, kept: str = "") -> str:
    """Return the call that renames a model; what has the new name is renamed to `kept` first.

    "If a model with new_model_name already exists, then the procedure optionally renames
    new_model_name to versioned_model_name". Source: RENAME_MODEL Procedure. It does not say whether
    both renames are one transaction, so a crash between them has to be handled.
    """
    versioned = f", versioned_model_name => {literal(kept)}" if kept else ""
    return (
        f"DBMS_DATA_MINING.RENAME_MODEL(model_name => {literal(old)}, "
        f"new_model_name => {literal(new)}{versioned})"
    )


def swap_block(
    entry: LedgerEntry,
    before: int,
    sizes: dict[str, int],
    *,
    revokes: Iterable[Grant],
    renames: Sequence[tuple[str, str, str]],
    grants: Iterable[Grant],
    at: str,
) -> str:
    """Return the one block that makes a generation live.

    DDL commits by itself: between the two renames the pair is mixed, and between a rename and the
    grants behind it others may be unable to use the new models. Both windows lie inside this one
    statement; PHASE is 'swapping' while they are open.

    Args:
        entry: Row of the ledger.
        before: Generation that is live until then.
        sizes: Bytes of the models by side.
        revokes: Privileges to take away before.
        renames: Old name, new name, and the name for a model that has the new one, if any.
        grants: Privileges to give afterwards.
        at: SQL expression of the time.
    """
    where = f"WHERE NAME = {literal(entry.name)} AND GENERATION = {int(before)}"
    stale = f"oml_mlflow: generation {int(before)} of {entry.name} is not live any more"
    lines = [
        "BEGIN",
        f"  UPDATE OML_MLFLOW_LIVE SET PHASE = 'swapping', CHANGED_AT = {at}",  # noqa: S608
        f"    {where} AND PHASE IN ('loading', 'swapping');",
        "  IF SQL%ROWCOUNT <> 1 THEN",
        f"    RAISE_APPLICATION_ERROR(-{STALE_CODE}, {literal(stale)});",
        "  END IF;",
        "  COMMIT;",
    ]
    lines += [f"  EXECUTE IMMEDIATE {literal(revoke(given))};" for given in revokes]
    lines += [f"  {rename(*names)};" for names in renames]
    lines += [f"  EXECUTE IMMEDIATE {literal(grant(given))};" for given in grants]
    lines += [
        f"  INSERT INTO OML_MLFLOW_LEDGER ({_LEDGER_COLUMNS})",
        f"    VALUES ({', '.join(_ledger_values(entry, sizes, at))});",
        f"  UPDATE OML_MLFLOW_LIVE SET GENERATION = {int(entry.generation)}, PHASE = 'cleaning',",  # noqa: S608
        f"    CHANGED_AT = {at}",
        f"    {where} AND PHASE = 'swapping';",
        "  COMMIT;",
        "END;",
    ]
    return "\n".join(lines)


def _ledger_values(entry: LedgerEntry, sizes: dict[str, int], at: str) -> list[str]:
    known: dict[str, Any] = {
        **vars(entry),
        "img_sha256": entry.fingerprints.get(IMG),
        "txt_sha256": entry.fingerprints.get(TXT),
        "img_bytes": sizes.get(IMG),
        "txt_bytes": sizes.get(TXT),
        "parity": json.dumps(entry.parity),
    }
    columns = _LEDGER_COLUMNS.lower().split(", ")
    return [at if column == "promoted_at" else _value(known[column]) for column in columns]


def _value(value: str | int | None) -> str:
    if value is None or value == "":
        return "NULL"
    return str(value) if isinstance(value, int) else literal(value)


def _grantee(given: Grant) -> str:
    return given.grantee if given.grantee == "PUBLIC" else quote_name(given.grantee)


def _privilege(given: Grant) -> str:
    # Only SELECT and ALTER are object privileges of a mining model. Source: ORA-40361.
    if given.privilege not in ("SELECT", "ALTER"):
        raise TargetError(
            f"{given.privilege!r} on {given.model} is no privilege of a mining model. "
            "Nothing was run."
        )
    return given.privilege
