"""How the live suite is told of a database, and what the header of pytest says about it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DSN_ENV, USER_ENV = "OML_MLFLOW_TEST_DSN", "OML_MLFLOW_TEST_USER"
GRANTEE_ENV, DECODE_ENV = "OML_MLFLOW_TEST_GRANTEE", "OML_MLFLOW_TEST_DECODE_OP"
WITHOUT_DATABASE = f"no database: give --oracle-dsn, or set {DSN_ENV}"
_TEST = re.compile(r"^def test_", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """The database that the suite runs against.

    Attributes:
        uri: Of the target, without secrets.
        grantee: Another user of it, who is granted privileges on scratch models; may be empty.
        decode_op: Its own decode operator, ``domain:Name``; may be empty.
    """

    uri: str
    grantee: str = ""
    decode_op: str = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say where the database is."""
    group = parser.getgroup("live Oracle suite", "tests/live, against a real Oracle database")
    group.addoption(
        "--oracle-dsn",
        default=os.environ.get(DSN_ENV),
        help="host:1521/service, or an alias; settings of a target may follow: "
        f"alias?config_dir=/etc/oracle. By default {DSN_ENV}. The password comes from "
        "OML_MLFLOW_PASSWORD.",
    )
    group.addoption(
        "--oracle-user",
        default=os.environ.get(USER_ENV),
        help=f"Whose schema holds the scratch models. By default {USER_ENV}.",
    )
    group.addoption(
        "--oracle-grantee",
        default=os.environ.get(GRANTEE_ENV, ""),
        help="Another user, who is granted SELECT on scratch models.",
    )
    group.addoption(
        "--oracle-decode-op",
        default=os.environ.get(DECODE_ENV, ""),
        help="The database's own decode operator, domain:Name, if it refuses DecodeImage.",
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Say how many tests of the live suite are skipped and why, or where they run."""
    texts = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    count = sum(len(_TEST.findall(text)) for text in texts)
    where = place(config)
    if where is None:
        return f"live Oracle suite: {count} tests skipped, {WITHOUT_DATABASE}"
    return f"live Oracle suite: {count} tests in {where.uri}, {reached(where)}"


def place(config: pytest.Config) -> Place | None:
    """Return where the suite runs; None if nobody said it.

    Raises:
        pytest.UsageError: If a database is named, but no user.
    """
    dsn, user = config.getoption("--oracle-dsn"), config.getoption("--oracle-user")
    if not dsn:
        return None
    if not user:
        raise pytest.UsageError(f"--oracle-dsn needs --oracle-user, or {USER_ENV}")
    more: dict[str, Any] = {
        "grantee": config.getoption("--oracle-grantee").upper(),
        "decode_op": config.getoption("--oracle-decode-op"),
    }
    return Place(f"oracle://{user}@{dsn}", **more)


def reached(where: Place) -> str:
    """Return the versions of a database and of the driver, or why it can't be reached."""
    import oracledb

    from oml_mlflow.errors import OmlMlflowError
    from oml_mlflow.targets.oracle.target import OracleTarget

    try:
        with OracleTarget.from_uri(where.uri).session("live suite", create=False) as session:
            return f"version {session.version}, by python-oracledb {oracledb.__version__}"
    except OmlMlflowError as error:
        return f"which can't be reached: {error.message}"
