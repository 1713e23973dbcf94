"""Fixtures of the live suite: scratch names in a real schema, and their clean-up.

Everything that a test makes has a name that begins with ``OML_MLFLOW_LIVE_`` and a random part; it
is dropped again, also when the test fails. Tables of this package that were not there are dropped
at the end; those that were get back what they held. Everything else is only read.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import oracledb
import pytest

from live.options import WITHOUT_DATABASE, Place, place
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.promotion.candidate import Candidate, unregistered
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.settings import OracleSettings
from oml_mlflow.targets.oracle.target import OracleTarget

HERE = Path(__file__).parent
PREFIX = "OML_MLFLOW_LIVE_"
PROFILE = "oracle-23.7"
BY_NAME = (sql.LEDGER, sql.LIVE, sql.LOCK, sql.GEOMETRY, sql.COLUMNS, sql.KEPT, sql.NOTES)
FINDINGS = pytest.StashKey[list[tuple[str, str]]]()
Say = Callable[[str, object], None]


def pytest_configure(config: pytest.Config) -> None:
    """Keep what is found out until the end."""
    config.stash.setdefault(FINDINGS, [])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a database where nobody named one."""
    if place(config) is None:
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=WITHOUT_DATABASE))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show what was found out about the database."""
    findings = config.stash.get(FINDINGS, [])
    if findings:
        terminalreporter.section("what this database does")
    for question, answer in findings:
        lines = answer.splitlines() or [""]
        terminalreporter.write_line(f"{question}: {lines[0]}")
        for line in lines[1:]:
            terminalreporter.write_line(f"    {line}")


@dataclass(frozen=True)
class Schema:
    """The schema, and the scratch name that a test may use in it.

    Attributes:
        where: The database.
        name: Export name of this test's own.
    """

    where: Place
    name: str

    def target(self) -> OracleTarget:
        """Return a target with a connection of its own."""
        return OracleTarget.from_uri(self.where.uri)

    def connect(self) -> oracledb.Connection:
        """Return a plain connection."""
        return connect(self.where)

    def model_names(self) -> list[str]:
        """Return the models that this test made and that are there."""
        with self.connect() as connection:
            return _scratch_models(connection, self.name)


def connect(where: Place) -> oracledb.Connection:
    """Return a plain connection to a database."""
    settings = OracleSettings.from_uri(where.uri)
    wallet = settings.find_wallet_password()
    options: dict[str, Any] = {
        "config_dir": settings.config_dir or None,
        "wallet_location": settings.wallet_location or None,
        "wallet_password": wallet.reveal() if wallet else None,
    }
    return oracledb.connect(
        user=settings.user,
        password=settings.find_password().reveal(),
        dsn=settings.dsn,
        **{key: value for key, value in options.items() if value is not None},
    )


def rows(connection: oracledb.Connection, statement: str, **binds: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query; LOBs as what they hold."""
    with connection.cursor() as cursor:
        cursor.execute(statement, binds)
        return [tuple(v.read() if hasattr(v, "read") else v for v in row) for row in cursor]


def execute(connection: oracledb.Connection, statement: str, **binds: Any) -> None:
    """Run a statement that gives no rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, binds)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Keep something that was found out about the database, to be shown at the end."""

    def keep(question: str, answer: object) -> None:
        request.config.stash[FINDINGS].append((question, str(answer)))

    return keep


@pytest.fixture(scope="session")
def where(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The database, left as it was found."""
    found = place(request.config)
    assert found is not None
    with connect(found) as connection:
        tables = _tables(connection)
        kept = _capabilities(connection, tables)
        before = _everything(connection)
    yield found
    with connect(found) as connection:
        for table in sorted((_tables(connection) - tables).intersection(sql.CREATE_TABLES)):
            execute(connection, f"DROP TABLE {table} PURGE")
        if sql.CAPABILITIES in tables:
            execute(connection, sql.FORGET_CAPABILITIES)
            if kept:
                execute(connection, sql.INSERT_CAPABILITIES, content=kept)
            connection.commit()
        assert _everything(connection) == before


@pytest.fixture
def schema(where: Place) -> Iterator[Schema]:
    """A scratch name in the schema; all that has it is dropped afterwards."""
    name = f"{PREFIX}{secrets.token_hex(4).upper()}"
    yield Schema(where, name)
    with connect(where) as connection:
        for model in _scratch_models(connection, name):
            execute(connection, sql.DROP, model_name=model)
        views = [view for (view,) in rows(connection, "SELECT VIEW_NAME FROM USER_VIEWS")]
        for view in (view for view in views if view.startswith(name)):
            execute(connection, f"DROP VIEW {view}")
        tables = _tables(connection)
        for table in (table for table in tables if table.startswith(name)):
            execute(connection, f"DROP TABLE {table} PURGE")
        for table in tables.intersection(BY_NAME):
            execute(connection, f"DELETE FROM {table} WHERE NAME = :name", name=name)  # noqa: S608
        connection.commit()


@pytest.fixture(scope="session")
def candidates(
    where: Place,
    tiny_pair: PipelinePair,
    resaved_pair: PipelinePair,
    second_pair: PipelinePair,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Candidate, ...]:
    """A pair, other bytes with the same vectors, and other vectors, made for this database."""
    folder = tmp_path_factory.mktemp("candidates")
    return tuple(
        _fitting(pair, where, folder / str(number))
        for number, pair in enumerate((tiny_pair, resaved_pair, second_pair))
    )


def _fitting(pair: PipelinePair, where: Place, folder: Path) -> Candidate:
    """Return a pair as a candidate, its vectors in this process as the references."""
    candidate = unregistered(pair, "the live suite")
    if not where.decode_op:
        return candidate
    own = pair.for_profile(get_profile(PROFILE, decode_op=where.decode_op), folder)
    return replace(candidate, pair=own)


def _scratch_models(connection: oracledb.Connection, name: str) -> list[str]:
    found = [str(model) for model, *_ in rows(connection, sql.LIST_MODELS)]
    return [model for model in found if model.startswith(name)]


def _tables(connection: oracledb.Connection) -> set[str]:
    found = rows(connection, "SELECT TABLE_NAME FROM USER_TABLES")
    return {str(table) for (table,) in found if str(table).startswith("OML_MLFLOW_")}


def _capabilities(connection: oracledb.Connection, tables: set[str]) -> str:
    found = rows(connection, sql.READ_CAPABILITIES) if sql.CAPABILITIES in tables else []
    return str(found[0][0]) if found else ""


def _everything(connection: oracledb.Connection) -> dict[str, Any]:
    """Return what must be the same before and after: models, and what our tables hold."""
    tables = _tables(connection)
    held = {
        table: rows(connection, f"SELECT COUNT(*) FROM {table}")  # noqa: S608
        for table in tables.intersection(sql.CREATE_TABLES)
    }
    models = [(name, size, comment) for name, size, _, comment in rows(connection, sql.LIST_MODELS)]
    return {"models": models, "held": held, "capabilities": _capabilities(connection, tables)}


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    """Expect an error of the database with a code."""
    with pytest.raises(oracledb.DatabaseError, match=code):
        yield
