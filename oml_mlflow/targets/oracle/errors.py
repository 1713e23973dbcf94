"""Errors of the driver and the database, turned into this package's own."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import oracledb

from oml_mlflow.errors import (
    ConfigError,
    ForeignModel,
    LoginRefused,
    ModelRefused,
    OmlMlflowError,
    PlanStale,
    PrivilegeError,
    QuotaExceeded,
    TargetError,
    TargetLocked,
    TargetUnreachable,
)
from oml_mlflow.targets.oracle.statements import STALE_CODE

_CODE = re.compile(r"\b(ORA|DPY|PLS)-(\d{4,5})\b")

# Source: the pages of docs.oracle.com/error-help of these codes, and python-oracledb's errors.
_LOGIN = {"ORA-01017", "ORA-28000"}
_GONE = {"ORA-03113", "ORA-03114", "ORA-03135", "DPY-1001", "DPY-4005", "DPY-4011"}
_TIMEOUT = {"DPY-4024"}
_CONNECT = {"DPY-6000", "DPY-6001", "DPY-6003", "DPY-6004", "DPY-6005"}
_CONFIGURATION = {"DPY-4000", "DPY-4001", "DPY-4017", "DPY-4018", "DPY-4026", "DPY-4027"}
_QUOTA = {"ORA-01536", "ORA-01653", "ORA-01950"}
# "model already registered" is reported of a load, not documented
_TAKEN = {"ORA-40150", "ORA-40204"}
_PRIVILEGE = "ORA-01031"
_STALE = f"ORA-{STALE_CODE:05d}"
# Source: error-help pages ORA-54400 to ORA-54475, all of loading or scoring ONNX models.
_ONNX = range(54400, 54500)
_TABLESPACE = re.compile(r"tablespace '?\"?([A-Za-z][\w$#]*)", re.IGNORECASE)


@contextlib.contextmanager
def translated(
    step: str, *, state: str = "Nothing was changed.", user: str = "", hint: str = ""
) -> Iterator[None]:
    """Raise errors of the driver as this package's own.

    Args:
        step: What is being done, on what: ``loading CLIP_IMG_S4``.
        state: What state is left if it fails.
        user: Database user, for a GRANT.
        hint: Next step, unless the error has a better one.
    """
    try:
        yield
    except (oracledb.Error, oracledb.Warning, ConnectionError, TimeoutError) as error:
        raise from_driver(error, step, state=state, user=user, hint=hint) from error


def codes_of(error: BaseException) -> list[str]:
    """Return the codes in an error's text, outermost first, such as ``ORA-01017``."""
    return [f"{kind}-{number}" for kind, number in _CODE.findall(str(error))]


def from_driver(
    error: BaseException, step: str, *, state: str, user: str = "", hint: str = ""
) -> OmlMlflowError:
    """Return this package's error for one of the driver's, whose text it keeps.

    The other arguments are those of `translated`.
    """
    codes = codes_of(error)
    kind, better = _classify(error, codes, user)
    text = str(error).strip() or type(error).__name__
    stop = "" if text.endswith((".", "/", "!", "?")) else "."
    return kind(
        f"{step} failed: {text}{stop} {state}",
        hint=better or hint or "look the code up on docs.oracle.com/error-help, then run it again.",
        details={"codes": codes},
    )


def _classify(
    error: BaseException, codes: list[str], user: str
) -> tuple[type[OmlMlflowError], str]:
    found = set(codes)
    if _LOGIN & found:
        return LoginRefused, (
            "check the user and the password, which comes from OML_MLFLOW_PASSWORD unless the "
            "target's settings say otherwise; a DBA unlocks a locked account."
        )
    if _CONFIGURATION & found:
        return ConfigError, (
            "write it as host:port/service, or set config_dir= to the folder of tnsnames.ora."
        )
    if _CONNECT & found or isinstance(
        error, socket.gaierror | ConnectionRefusedError | TimeoutError
    ):
        return TargetUnreachable, "check host, port and service, and whether the listener is up."
    if _TIMEOUT & found:
        return TargetUnreachable, (
            "run it again, which finishes or undoes what is pending, with a longer call_timeout= "
            "if the database is only slow."
        )
    if _GONE & found or not codes or getattr(_info(error), "is_session_dead", False):
        return TargetUnreachable, "run it again: what is pending is finished or undone first."
    if _PRIVILEGE in found:
        return PrivilegeError, f"ask a DBA for: {needed_grant(user)}"
    if _QUOTA & found:
        named = _TABLESPACE.search(str(error))
        tablespace = named[1] if named else "<tablespace>"
        return QuotaExceeded, f"ask a DBA for: {quota_grant(user, tablespace)}"
    if _TAKEN & found:
        return ForeignModel, "choose another name, or have that model renamed by who owns it."
    if _STALE in found:
        return PlanStale, "run it again; `oml-mlflow history` shows who changed what."
    if any(code.startswith("ORA-") and int(code[4:]) in _ONNX for code in codes):
        return ModelRefused, (
            "`oml-mlflow check` names the rule that a file breaks; `oml-mlflow preflight --probe` "
            "finds out what this database takes."
        )
    return TargetError, ""


def needed_grant(user: str) -> str:
    """Return the GRANT that lets a user promote."""
    return f"GRANT CREATE MINING MODEL, CREATE TABLE TO {user or '<user>'};"


def quota_grant(user: str, tablespace: str, size_bytes: int = 0) -> str:
    """Return the statement that gives a user room."""
    room = f"{-(-size_bytes // 2**20)}M" if size_bytes else "UNLIMITED"
    return f"ALTER USER {user or '<user>'} QUOTA {room} ON {tablespace};"


def locked(name: str, holder: str, purpose: str, since: str, age: str) -> TargetLocked:
    """Return the error for a lock that another session holds."""
    return TargetLocked(
        f"{name} is held by {holder} since {since} ({age}), for {purpose}; its session is alive. "
        "Nothing was changed.",
        hint="wait for it. A DBA ends it with ALTER SYSTEM KILL SESSION: SELECT SID, SERIAL#, "
        "ACTION, CLIENT_INFO FROM V$SESSION WHERE MODULE = 'oml_mlflow'.",
        details={"holder": holder, "since": since, "purpose": purpose},
    )


def _info(error: BaseException) -> Any:
    return error.args[0] if error.args else None
