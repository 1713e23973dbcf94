# ruff: noqa: S608 -- names in SQL are the engine's own
"""The data dictionary: tables that the engine writes, and views on them that users read."""

from __future__ import annotations

from oracle_server.engine.privileges import TABLESPACE, User

TABLES = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, comments TEXT,
    size_bytes INTEGER NOT NULL, fingerprint TEXT NOT NULL, path TEXT NOT NULL,
    metadata TEXT NOT NULL, input TEXT NOT NULL, output TEXT NOT NULL, attribute TEXT NOT NULL,
    dims INTEGER NOT NULL, is_text INTEGER NOT NULL, created TEXT NOT NULL, UNIQUE (owner, name)
);
CREATE TABLE privs (
    kind TEXT NOT NULL, model_id INTEGER, owner TEXT NOT NULL, name TEXT, grantor TEXT NOT NULL,
    grantee TEXT NOT NULL, privilege TEXT NOT NULL, grantable TEXT NOT NULL
);
CREATE TABLE tabs (owner TEXT, name TEXT, comments TEXT, PRIMARY KEY (owner, name));
CREATE TABLE cols (
    owner TEXT, table_name TEXT, name TEXT, id INTEGER, data_type TEXT, data_length INTEGER,
    data_precision INTEGER, data_scale INTEGER, nullable TEXT, vector_info TEXT
);
CREATE TABLE views (owner TEXT, name TEXT, text TEXT, sql TEXT, PRIMARY KEY (owner, name));
CREATE TABLE indexes (
    owner TEXT, name TEXT, type TEXT, table_name TEXT, uniqueness TEXT, ityp_owner TEXT,
    ityp_name TEXT, parameters TEXT, PRIMARY KEY (owner, name)
);
CREATE TABLE procedures (owner TEXT, object TEXT, procedure TEXT);
"""
# data lengths of an ONNX model's attribute: measured by others for a text model; unconfirmed for
# the BLOB of an image model
_ATTRIBUTES = """
SELECT name AS MODEL_NAME, attribute AS ATTRIBUTE_NAME, 'TEXT' AS ATTRIBUTE_TYPE,
       CASE is_text WHEN 1 THEN 'VARCHAR2' ELSE 'BLOB' END AS DATA_TYPE,
       CASE is_text WHEN 1 THEN 32767 END AS DATA_LENGTH, NULL AS DATA_PRECISION,
       NULL AS DATA_SCALE, 'ACTIVE' AS USAGE_TYPE, 'NO' AS TARGET, NULL AS ATTRIBUTE_SPEC,
       NULL AS VECTOR_INFO
FROM sys.models WHERE owner = '{user}'
UNION ALL
SELECT name, 'ORA$ONNXTARGET', 'VECTOR', 'VECTOR', NULL, NULL, NULL, 'ACTIVE', 'YES', NULL,
       'VECTOR(' || dims || ',FLOAT32)'
FROM sys.models WHERE owner = '{user}'
"""
_MODEL_COLUMNS = """
name AS MODEL_NAME, 'EMBEDDING' AS MINING_FUNCTION, 'ONNX' AS ALGORITHM,
'NATIVE' AS ALGORITHM_TYPE, substr(created, 1, 20) AS CREATION_DATE, 0 AS BUILD_DURATION,
size_bytes AS MODEL_SIZE, 'NO' AS PARTITIONED, comments AS COMMENTS{later}
"""
_PRIVS = """
grantee AS GRANTEE, {owner}coalesce(m.name, p.name) AS TABLE_NAME, grantor AS GRANTOR,
privilege AS PRIVILEGE, grantable AS GRANTABLE, 'NO' AS HIERARCHY, 'NO' AS COMMON, kind AS TYPE,
'NO' AS INHERITED
FROM sys.privs p LEFT JOIN sys.models m ON m.id = p.model_id
"""
_OBJECTS = """
SELECT owner AS OWNER, name AS OBJECT_NAME, 'MINING MODEL' AS OBJECT_TYPE, 'VALID' AS STATUS
FROM sys.models
UNION ALL SELECT owner, name, 'TABLE', 'VALID' FROM sys.tabs
UNION ALL SELECT owner, name, 'VIEW', 'VALID' FROM sys.views
UNION ALL SELECT owner, name, 'INDEX', 'VALID' FROM sys.indexes
UNION ALL SELECT DISTINCT owner, object, 'PACKAGE', 'VALID' FROM sys.procedures
"""


def views(name: str, user: User, version: str) -> dict[str, str]:
    """Return the queries behind the catalogue views of one user.

    Column names are those of the Database Reference; columns that no client of ours needs are
    left out.
    """
    granted = sorted({*user.privileges, *user.role_privileges})
    direct = sorted(user.privileges)
    full = (version + ".0.0.0.0").split(".")[:5]
    later = ", 'NO' AS EXTERNAL_DATA, 'NO' AS INMEMORY" if _is_2326(full) else ""
    own = f"WHERE owner = '{name}'"
    made = _PRIVS.format(owner="")
    seen = _PRIVS.format(owner="p.owner AS OWNER, ")
    return {
        "DUAL": "SELECT 'X' AS DUMMY",
        "USER_MINING_MODELS": f"SELECT {_MODEL_COLUMNS.format(later=later)} FROM sys.models {own}",
        "ALL_MINING_MODELS": (
            f"SELECT owner AS OWNER, {_MODEL_COLUMNS.format(later=later)} FROM sys.models {own} OR "
            f"id IN (SELECT model_id FROM sys.privs WHERE grantee IN ('{name}', 'PUBLIC'))"
        ),
        "USER_MINING_MODEL_ATTRIBUTES": _ATTRIBUTES.format(user=name),
        "USER_TABLES": (
            f"SELECT name AS TABLE_NAME, '{TABLESPACE}' AS TABLESPACE_NAME, 'VALID' AS STATUS "
            f"FROM sys.tabs {own}"
        ),
        "USER_TAB_COMMENTS": (
            f"SELECT name AS TABLE_NAME, 'TABLE' AS TABLE_TYPE, comments AS COMMENTS "
            f"FROM sys.tabs {own}"
        ),
        "USER_TAB_COLUMNS": (
            "SELECT table_name AS TABLE_NAME, name AS COLUMN_NAME, data_type AS DATA_TYPE, "
            "data_length AS DATA_LENGTH, data_precision AS DATA_PRECISION, "
            "data_scale AS DATA_SCALE, nullable AS NULLABLE, id AS COLUMN_ID, "
            f"vector_info AS VECTOR_INFO FROM sys.cols {own}"
        ),
        "USER_VIEWS": (
            "SELECT name AS VIEW_NAME, length(text) AS TEXT_LENGTH, substr(text, 1, 4000) AS "
            f"TEXT_VC FROM sys.views {own}"
        ),
        "USER_INDEXES": (
            "SELECT name AS INDEX_NAME, type AS INDEX_TYPE, owner AS TABLE_OWNER, table_name AS "
            "TABLE_NAME, uniqueness AS UNIQUENESS, 'VALID' AS STATUS, ityp_owner AS ITYP_OWNER, "
            f"ityp_name AS ITYP_NAME, parameters AS PARAMETERS FROM sys.indexes {own}"
        ),
        "USER_TAB_PRIVS_MADE": f"SELECT {made} WHERE p.owner = '{name}'",
        "USER_TAB_PRIVS": (
            f"SELECT {seen} WHERE '{name}' IN (p.owner, grantee, grantor) OR grantee = 'PUBLIC'"
        ),
        "ALL_TAB_PRIVS": (
            f"SELECT {_PRIVS.format(owner='p.owner AS TABLE_SCHEMA, ')} "
            f"WHERE '{name}' IN (p.owner, grantee, grantor) OR grantee = 'PUBLIC'"
        ),
        "USER_SYS_PRIVS": _listed(
            "PRIVILEGE", direct, f"'{name}' AS USERNAME, ", ", 'NO' AS ADMIN_OPTION"
        ),
        "SESSION_PRIVS": _listed("PRIVILEGE", granted),
        "USER_TS_QUOTAS": (
            f"SELECT '{TABLESPACE}' AS TABLESPACE_NAME, used_bytes() AS BYTES, "
            f"{-1 if user.quota_bytes is None else user.quota_bytes} AS MAX_BYTES, "
            f"'NO' AS DROPPED WHERE {int(user.quota_bytes is not None)}"
        ),
        "USER_USERS": (
            f"SELECT '{name}' AS USERNAME, 'OPEN' AS ACCOUNT_STATUS, "
            f"'{TABLESPACE}' AS DEFAULT_TABLESPACE"
        ),
        "ALL_USERS": "SELECT name AS USERNAME FROM sys.users",
        "ALL_OBJECTS": f"SELECT * FROM ({_OBJECTS}) WHERE OWNER IN ('{name}', 'SYS')",
        "USER_OBJECTS": (
            f"SELECT OBJECT_NAME, OBJECT_TYPE, STATUS FROM ({_OBJECTS}) WHERE OWNER = '{name}'"
        ),
        "ALL_PROCEDURES": (
            "SELECT owner AS OWNER, object AS OBJECT_NAME, procedure AS PROCEDURE_NAME, "
            "'PACKAGE' AS OBJECT_TYPE FROM sys.procedures"
        ),
        "PRODUCT_COMPONENT_VERSION": (
            f"SELECT '{_product(full)}' AS PRODUCT, '{full[0]}.0.0.0.0' AS VERSION, "
            f"'{'.'.join(full)}' AS VERSION_FULL, 'Production' AS STATUS"
        ),
    }


def _is_2326(version: list[str]) -> bool:
    return (int(version[0]), int(version[1])) >= (23, 26)


def _product(version: list[str]) -> str:
    edition = "AI Database 26ai" if _is_2326(version) else "Database 23ai"
    return f"Oracle {edition} Free"


def _listed(column: str, values: list[str], before: str = "", behind: str = "") -> str:
    listed = [f"SELECT {before}'{value}' AS {column}{behind}" for value in values]
    return " UNION ALL ".join(listed) or f"SELECT {before}NULL AS {column}{behind} WHERE 0"
