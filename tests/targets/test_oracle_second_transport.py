"""The tiny engine behind a wire server of another author: seerdb's Mirror.

What our own wire layer accepts is what we believe; where both agree, less of it is belief. Runs
only where ``seerdb==3.3.0`` is installed, which the tests do not ask for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import oracledb
import pytest
from oracle_server import statement as types
from oracle_server.engine import Database
from oracle_server.engine.session import EngineSession
from oracle_server.statement import Bind, Call, Column, OraError, Rows
from oracle_server.wire.binds import placeholders
from oracle_server.wire.lobs import FetchedLob
from test_oracle_wire import PASSWORD, TEXT, TinyDatabase, TinySession, bound, select

from oml_mlflow import drop, rollback
from oml_mlflow.errors import GeometryChanged
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.promotion.candidate import unregistered
from oml_mlflow.promotion.promote import promote_candidate
from oml_mlflow.targets.oracle.target import OracleTarget

seerdb_server = pytest.importorskip("seerdb.server")
seerdb_tns = pytest.importorskip("seerdb.common.tns")

FIELD_VERSION, TNS_VERSION = 24, 319
COLUMN_BYTES = {types.NUMBER: 22, types.BINARY_DOUBLE: 8}
PLSQL = ("BEGIN", "DECLARE")


class Backend:
    """Hands the Mirror's statements to a session of an engine."""

    capabilities = frozenset(seerdb_server.Capability)

    def __init__(self, database: TinyDatabase | Database) -> None:
        self._database = database
        self._session: TinySession | EngineSession | None = None

    def authenticate(self, username: str) -> str | None:
        self._session = self._database.open_session(username.upper())
        user = self._database.users.get(username.upper())
        return getattr(user, "password", user)

    def execute(self, sql: str, binds: Sequence[Any] = ()) -> Any:
        assert self._session
        is_plsql = sql.lstrip().upper().startswith(PLSQL)
        names = placeholders(sql, is_plsql)
        call = Call(sql, [_bind(bind, name) for bind, name in zip(binds, names, strict=False)])
        try:
            result = self._session.handle(call)
        except OraError as error:
            text = str(error).partition(": ")[2]
            raise seerdb_server.BackendError(
                text, ora_code=error.code, error_offset=error.offset
            ) from error
        if isinstance(result, Rows):
            columns = [_column(column) for column in result.columns]
            return seerdb_server.Result(columns=columns, rows=result.rows)
        outs = [call.out.get(b.name, b.value) for b in call.binds] if call.out else []
        return seerdb_server.Result(rowcount=result or 0, out_binds=outs)

    def commit(self) -> None:
        assert self._session
        self._session.commit()

    def rollback(self) -> None:
        assert self._session
        self._session.rollback()

    def close(self) -> None:
        if self._session:
            self._session.close()


def _bind(given: Any, name: str) -> Bind:
    value, kind = getattr(given, "value", given), getattr(given, "tns_type", 0)
    if kind == types.BLOB and value is not None:
        value = FetchedLob(types.BLOB, bytes(value))
    return Bind(kind, getattr(given, "max_size", 0), value, name)


def _column(column: Column) -> Any:
    size = COLUMN_BYTES.get(column.type, 4000)
    is_vector = column.type == types.VECTOR
    return seerdb_tns.ColumnMeta(
        column.name.encode(),
        column.type,
        size,
        size,
        vector_format=column.vector_format if is_vector else None,
        vector_dimensions=column.vector_dims if is_vector else None,
    )


@pytest.fixture
def database() -> TinyDatabase:
    return TinyDatabase()


@contextlib.contextmanager
def served(database: TinyDatabase | Database) -> Iterator[str]:
    """Serve an engine through the Mirror; give the DSN."""
    mirror = seerdb_server.Server(
        "127.0.0.1",
        0,
        backend_factory=lambda: Backend(database),
        field_version=FIELD_VERSION,
        tns_version=TNS_VERSION,
    )
    thread = threading.Thread(target=mirror.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{mirror.port}/FREEPDB1"
    mirror.close()
    thread.join()


@pytest.fixture
def dsn(database: TinyDatabase) -> Iterator[str]:
    with served(database) as found:
        yield found


@pytest.fixture
def connection(dsn: str) -> Iterator[oracledb.Connection]:
    with oracledb.connect(user="vec", password=PASSWORD, dsn=dsn) as connection:
        yield connection


def test_login(connection: oracledb.Connection, dsn: str) -> None:
    assert select(connection) == [(1,)]
    with pytest.raises(oracledb.DatabaseError, match="ORA-01017"):
        oracledb.connect(user="vec", password="wrong", dsn=dsn)  # noqa: S106 - of the stand-in


def test_block_with_text_and_lob(connection: oracledb.Connection, database: TinyDatabase) -> None:
    data = os.urandom(300_000)
    lob = connection.createlob(oracledb.DB_TYPE_BLOB)
    for offset in range(0, len(data), 100_000):
        lob.write(data[offset : offset + 100_000], offset + 1)
    with connection.cursor() as cursor:
        cursor.execute("begin load(:n, :b); end;", n="clip", b=lob)
    call = database.calls[-1]
    received = call.bind("b")
    assert call.bind("n") == "clip"
    assert (received.size, received.read_at(0, received.size)) == (len(data), data)


def test_error_has_its_offset(connection: oracledb.Connection, database: TinyDatabase) -> None:
    def refuse(*_: Any) -> None:
        raise OraError(6550, "line 1, column 7:\nPLS-00201: identifier must be declared", 6)

    database.answers["begin x.y"] = refuse
    with connection.cursor() as cursor:
        with pytest.raises(oracledb.DatabaseError, match="PLS-00201") as failed:
            cursor.execute("begin x.y; end;")
        told = failed.value.args[0]
        assert (told.full_code, told.offset) == ("ORA-06550", 6)
    assert select(connection) == [(1,)]


@pytest.mark.parametrize(("vector_format", "typecode"), [(2, "f"), (3, "d"), (4, "b")])
def test_vectors(
    connection: oracledb.Connection, database: TinyDatabase, vector_format: int, typecode: str
) -> None:
    vector = array(typecode, [1, -2, 3])
    rows = Rows([Column("V", types.VECTOR, vector_format, 3)], [(vector,)] * 5)
    database.answers["select vector"] = lambda *_: rows
    assert select(connection, "select vector") == [(vector,)] * 5


def test_out_values_and_clobs(connection: oracledb.Connection, database: TinyDatabase) -> None:
    def answer(_: TinySession, call: Call) -> None:
        call.out["T"] = "out"

    database.answers["begin :t"] = answer
    database.answers["select text"] = lambda *_: Rows([Column("C", types.CLOB)], [(TEXT,)])
    with connection.cursor() as cursor:
        text = cursor.var(str, 100)
        cursor.execute("begin :t := f(:i); end;", t=text, i=5)
        assert text.getvalue() == "out"
    ((clob,),) = select(connection, "select text")
    assert clob.read() == TEXT


def test_commit_and_rollback(connection: oracledb.Connection, database: TinyDatabase) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("insert into t values (:1, :2)", [(i, f"s{i}") for i in range(3)])
    assert bound(database) == [2, "s2"]
    connection.commit()
    connection.rollback()
    assert database.sessions[0].events == ["commit", "rollback"]


def test_promote_and_back(
    tiny_pair: PipelinePair, resaved_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    first, second = (unregistered(pair, "a test") for pair in (tiny_pair, resaved_pair))
    with Database(users={"VEC": PASSWORD}) as database, served(database) as dsn:
        target = OracleTarget.from_uri(f"oracle://vec@{dsn}")
        assert promote_candidate(first, target, "clip").report.ok
        assert promote_candidate(second, target, "clip").entry.generation == 2
        back = rollback("clip", target)
        assert (back.entry.fingerprints, back.report.ok) == (tiny_pair.fingerprints, True)
        loaded = {name: sha for name, (sha, *_) in database.models("VEC").items()}
        assert loaded["CLIP_IMG"] == tiny_pair.fingerprints["img"]
        assert loaded["CLIP_TXT"] == tiny_pair.fingerprints["txt"]


def test_another_geometry_is_refused(
    tiny_pair: PipelinePair, second_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    first, other = (unregistered(pair, "a test") for pair in (tiny_pair, second_pair))
    with Database(users={"VEC": PASSWORD}) as database, served(database) as dsn:
        target = OracleTarget.from_uri(f"oracle://vec@{dsn}")
        promote_candidate(first, target, "clip")
        with pytest.raises(GeometryChanged):
            promote_candidate(other, target, "clip")
        drop("clip", target)
        assert database.models("VEC") == {}
