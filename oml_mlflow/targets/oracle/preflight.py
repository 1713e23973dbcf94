"""Oracle's own checks: version, privileges, DBMS_VECTOR, quota. Read-only."""

from __future__ import annotations

from collections.abc import Sequence

from oml_mlflow.errors import PrivilegeError, QuotaExceeded, TargetUnsupported
from oml_mlflow.planning.checks import FAILED, NOT_RUN, OK, Check
from oml_mlflow.planning.records import COLUMN, Dependant
from oml_mlflow.targets.oracle import quoting
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.errors import quota_grant

# Source: "Support for Image Transformer Models", AI Vector Search User's Guide, 23.7.
OLDEST = (23, 7)
NEWER = (23, 26)
_UNLIMITED = -1
_TO_FILL = ("SELECT", "UPDATE")


def checks(db: Database, size_bytes: int) -> list[Check]:
    """Return the checks of a database before so many bytes are loaded. Read-only."""
    held = {privilege for (privilege,) in db.rows(sql.LIST_PRIVILEGES, "reading privileges")}
    return [
        _check_version(db),
        _check_privileges(db, held),
        _check_package(db),
        _check_quota(db, held, size_bytes),
    ]


def check_columns(db: Database, dependants: Sequence[Dependant]) -> list[Check]:
    """Return whether registered columns in other users' tables can be filled. Read-only."""
    tables = {
        each.table.upper() for each in dependants if each.kind == COLUMN and "." in each.table
    }
    if not tables:
        return []
    held = {privilege for (privilege,) in db.rows(sql.LIST_PRIVILEGES, "reading privileges")}
    missing = []
    for table in sorted(tables):
        owner, _, name = table.partition(".")
        step, binds = f"reading the privileges on {table}", {"owner": owner, "table_name": name}
        granted = {privilege for (privilege,) in db.rows(sql.LIST_TABLE_PRIVILEGES, step, binds)}
        if owner != db.user and any(
            needed not in granted and f"{needed} ANY TABLE" not in held for needed in _TO_FILL
        ):
            missing.append(table)
    if not missing:
        return [Check("columns", OK, f"{', '.join(sorted(tables))} can be filled")]
    return [
        Check(
            "columns",
            FAILED,
            f"{db.user} can't fill {', '.join(missing)}.",
            " ".join(table_grant(table, db.user) for table in missing),
            PrivilegeError.code,
        )
    ]


def table_grant(table: str, user: str) -> str:
    """Return the statement by which a table's owner lets a user fill its columns."""
    return (
        f"ask its owner for: GRANT {', '.join(_TO_FILL)} ON {table} TO {quoting.quote_name(user)};"
    )


def demand_release(db: Database) -> None:
    """Raise TargetUnsupported for a database that can't hold pipelines. Read-only.

    Before anything is written: older releases don't know our statements either.
    """
    found = _check_version(db)
    if found.state == FAILED:
        raise TargetUnsupported(f"{db.uri}: {found.message} Nothing was changed.", hint=found.hint)


def release(version: str) -> tuple[int, ...]:
    """Return a version as numbers that can be compared."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _check_version(db: Database) -> Check:
    if release(db.version) >= OLDEST:
        return Check("database version", OK, db.version)
    return Check(
        "database version",
        FAILED,
        f"{db.version} can't hold image pipelines: those need 23.7 or newer.",
        "ask a DBA for release update 23.7 or newer, or choose another database.",
        TargetUnsupported.code,
    )


def _check_privileges(db: Database, held: set[str]) -> Check:
    needed = ["CREATE MINING MODEL"]
    if sql.CREATE_TABLES.keys() - db.tables:
        needed.append("CREATE TABLE")
    missing = [name for name in needed if name not in held]
    if not missing:
        return Check("privileges", OK, ", ".join(needed))
    return Check(
        "privileges",
        FAILED,
        f"{db.user} lacks {' and '.join(missing)}.",
        f"ask a DBA for: GRANT {', '.join(missing)} TO {quoting.quote_name(db.user)};",
        PrivilegeError.code,
    )


def _check_package(db: Database) -> Check:
    if db.rows(sql.FIND_PACKAGE, "looking for DBMS_VECTOR"):
        return Check("DBMS_VECTOR", OK, f"{db.user} may call it.")
    return Check(
        "DBMS_VECTOR",
        FAILED,
        f"{db.user} can't see the package DBMS_VECTOR.",
        f"ask a DBA for: GRANT EXECUTE ON SYS.DBMS_VECTOR TO {quoting.quote_name(db.user)};",
        PrivilegeError.code,
    )


def _check_quota(db: Database, held: set[str], size_bytes: int) -> Check:
    needed = f"{size_bytes / 2**20:,.0f} MiB"
    if "UNLIMITED TABLESPACE" in held:
        return Check("quota", OK, f"unlimited; {needed} to be loaded.")
    tablespaces = db.rows(sql.DEFAULT_TABLESPACE, "reading the default tablespace")
    if not tablespaces:
        return Check("quota", NOT_RUN, "the user's default tablespace is not known.")
    tablespace = str(tablespaces[0][0])
    rows = db.rows(sql.READ_QUOTA, "reading the quota", {"tablespace_name": tablespace})
    used, limit = (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)
    if limit == _UNLIMITED or limit - used >= size_bytes:
        free = "unlimited" if limit == _UNLIMITED else f"{(limit - used) / 2**20:,.0f} MiB free"
        return Check("quota", OK, f"{free} on {tablespace}; {needed} to be loaded.")
    return Check(
        "quota",
        FAILED,
        f"{max(0, limit - used) / 2**20:,.0f} MiB are free on {tablespace}, {needed} are to be "
        "loaded.",
        f"ask a DBA for: {quota_grant(quoting.quote_name(db.user), tablespace, used + size_bytes)}",
        QuotaExceeded.code,
    )
