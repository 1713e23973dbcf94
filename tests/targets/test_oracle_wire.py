"""The stand-in's wire layer against the unmodified python-oracledb, on a tiny engine."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import oracledb
import pytest
from oracle_server import statement as types
from oracle_server.server import OracleServer
from oracle_server.statement import Call, Column, ConnectionDropped, OraError, Rows
from oracle_server.wallet import write_alias, write_wallet
from oracle_server.wire.login import release_number

MB = 1 << 20
TEXT, BYTES = "ünïcode 🐕 " * 20_000, b"abc" * 100_000
PASSWORD = "sécret#1"  # noqa: S105 - of the stand-in
PATIENCE_S = 20


@dataclass
class TinyFaults:
    refuse_login: Exception | None = None
    drop_after_lob_bytes: int | None = None


@dataclass
class TinyDatabase:
    """An engine with canned answers, which keeps what it was asked."""

    users: dict[str, str] = field(default_factory=lambda: {"VEC": PASSWORD})
    version: str = "23.26.1.0.0"
    faults: TinyFaults = field(default_factory=TinyFaults)
    answers: dict[str, Callable[[TinySession, Call], int | Rows | None]] = field(
        default_factory=dict
    )
    calls: list[Call] = field(default_factory=list)
    sessions: list[TinySession] = field(default_factory=list)

    def open_session(self, user: str) -> TinySession:
        session = TinySession(self, user)
        self.sessions.append(session)
        return session


class TinySession:
    def __init__(self, database: TinyDatabase, user: str) -> None:
        self.database, self.user = database, user
        self.module = self.action = self.client_info = self.client_identifier = None
        self.in_transaction = False
        self.events: list[str] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def handle(self, call: Call) -> int | Rows | None:
        self.threads.add(threading.get_ident())
        self.database.calls.append(call)
        for start, answer in self.database.answers.items():
            if call.sql.startswith(start):
                return answer(self, call)
        if call.sql.lower().startswith("select 1"):
            return Rows([Column("1", types.NUMBER)], [(1,)])
        if call.sql.lower().startswith(("begin", "create")):
            return None
        self.in_transaction = True
        return 1

    def commit(self) -> None:
        self.in_transaction = False
        self.events.append("commit")

    def rollback(self) -> None:
        self.in_transaction = False
        self.events.append("rollback")

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.events.append("close")
        self.closed.set()


@pytest.fixture
def database() -> TinyDatabase:
    return TinyDatabase()


@pytest.fixture
def server(database: TinyDatabase) -> Iterator[OracleServer]:
    with OracleServer(database) as server:
        yield server
    assert server.errors == []
    assert all(session.closed.is_set() for session in database.sessions)


def connect(server: OracleServer, **changes: Any) -> oracledb.Connection:
    return oracledb.connect(**{"user": "vec", "password": PASSWORD, "dsn": server.dsn, **changes})


@pytest.fixture
def connection(server: OracleServer) -> Iterator[oracledb.Connection]:
    with connect(server) as connection:
        yield connection


def bound(database: TinyDatabase) -> list[Any]:
    return [bind.value for bind in database.calls[-1].binds]


def select(connection: oracledb.Connection, text: str = "select 1 from dual") -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


def test_login_tells_the_version_and_opens_a_session(
    server: OracleServer, database: TinyDatabase
) -> None:
    with connect(server) as connection:
        assert connection.version == "23.26.1.0.0"
        assert database.sessions[0].user == "VEC"
        assert select(connection) == [(1,)]
    assert database.sessions[0].closed.wait(PATIENCE_S)
    assert len(database.sessions[0].threads) == 1


@pytest.mark.parametrize("version", ["19.3.0.0.0", "21.4.0.0.0", "23.7.0.25.1"])
def test_version_of_the_database(version: str) -> None:
    with OracleServer(TinyDatabase(version=version)) as server, connect(server) as connection:
        assert connection.version == version


def test_release_number_has_one_byte_for_each_part() -> None:
    assert release_number("23.26.1.0.0") == (23 << 24) | (26 << 16) | (1 << 12)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"password": "wrong"}, "ORA-01017"),
        ({"user": "nobody"}, "ORA-01017"),
        ({"service": "NOPE"}, "DPY-6005"),
    ],
)
def test_refused_logins(server: OracleServer, changes: dict[str, str], code: str) -> None:
    if service := changes.pop("service", None):
        changes["dsn"] = f"127.0.0.1:{server.port}/{service}"
    with pytest.raises(oracledb.Error) as refused:
        connect(server, **changes)
    assert refused.value.args[0].full_code == code
    if service:
        assert "DPY-6001" in str(refused.value) or "12514" in str(refused.value)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ConnectionDropped(), "DPY-6005"),
        (OraError(12528, "all instances are blocking new connections"), "12528"),
        (OraError(28000, "the account is locked"), "ORA-28000"),
    ],
)
def test_login_fault(
    server: OracleServer, database: TinyDatabase, fault: Exception, told: str
) -> None:
    database.faults.refuse_login = fault
    with pytest.raises(oracledb.Error, match=told):
        connect(server)
    database.faults.refuse_login = None
    with connect(server) as connection:
        assert select(connection) == [(1,)]


def test_login_without_fast_authentication(database: TinyDatabase) -> None:
    with OracleServer(database, fast_auth=False) as server, connect(server) as connection:
        assert select(connection) == [(1,)]


@pytest.mark.parametrize("sdu", [8192, 32768])
def test_packet_sizes(database: TinyDatabase, server: OracleServer, sdu: int) -> None:
    prefix = {"connection_id_prefix": "p" * 80, "program": "x" * 60}
    database.answers["select text"] = lambda *_: Rows(
        [Column("T", types.VARCHAR)], [("x" * 30_000,)]
    )
    with connect(server, sdu=sdu, **prefix) as connection:
        assert connection.sdu == sdu
        assert select(connection, "select text") == [("x" * 30_000,)]
        with connection.cursor() as cursor:
            cursor.execute("insert into t values (:1, :2)", ["y" * 30_000, 5])
        assert bound(database) == ["y" * 30_000, 5]


def test_block_with_text_lob_and_json(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    data = os.urandom(100_000)
    metadata = {
        "function": "embedding",
        "input": {"input": ["DATA"]},
        "n": [1, 2.5, -3, None, True, False, {"deep": [{}]}],
        "long" * 80: "x" * 70_000,
        **{f"name {i}": i for i in range(300)},
    }
    with connection.cursor() as cursor:
        cursor.setinputsizes(m=oracledb.DB_TYPE_JSON)
        blob = connection.createlob(oracledb.DB_TYPE_BLOB, data)
        cursor.execute("BEGIN load(a => :n, b => :b, c => :m); END;", n="clip", b=blob, m=metadata)
        call = database.calls[-1]
        kinds = [(bind.name, bind.type) for bind in call.binds]
        assert kinds == [("N", types.VARCHAR), ("B", types.BLOB), ("M", types.JSON)]
        assert (call.bind("n"), call.bind("m")) == ("clip", metadata)
        lob = call.bind("b")
        assert (lob.size, lob.read_at(99_990, 100)) == (100_000, data[99_990:])
        assert lob.path.read_bytes() == data


@pytest.mark.parametrize("document", [{}, [], "text", 5, None, {"a": [1, {"b": 1.5, "ä": "ö"}]}])
def test_json_bound_and_fetched(
    connection: oracledb.Connection, database: TinyDatabase, document: Any
) -> None:
    rows = Rows([Column("J", types.JSON)], [(document,), (None,)])
    database.answers["select json"] = lambda *_: rows
    with connection.cursor() as cursor:
        cursor.setinputsizes(oracledb.DB_TYPE_JSON)
        cursor.execute("insert into t values (:1)", [document])
    assert bound(database) == [document]
    assert select(connection, "select json") == [(document,), (None,)]


def test_error_has_its_offset_and_leaves_the_connection_usable(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    def refuse(*_: Any) -> None:
        raise OraError(6550, "line 1, column 7:\nPLS-00201: identifier 'X.Y' must be declared", 6)

    database.answers["BEGIN x.y"] = refuse
    with connection.cursor() as cursor:
        for _ in range(3):
            with pytest.raises(oracledb.DatabaseError, match="PLS-00201") as failed:
                cursor.execute("BEGIN x.y; END;")
            told = failed.value.args[0]
            assert (told.code, told.full_code, told.offset) == (6550, "ORA-06550", 6)
            cursor.execute("select 1 from dual")
            assert cursor.fetchone() == (1,)


def test_fault_of_the_engine_is_kept(database: TinyDatabase) -> None:
    database.answers["BEGIN"] = lambda *_: 1 // 0  # type: ignore[func-returns-value]
    with OracleServer(database) as server:
        connection = connect(server)
        with (
            pytest.raises(oracledb.DatabaseError, match="ORA-00600"),
            connection.cursor() as cursor,
        ):
            cursor.execute("BEGIN x; END;")
        # The driver takes this code for the end of a session.
        assert not connection.is_healthy()
        assert [type(error) for error in server.errors] == [ZeroDivisionError]


SCALARS: list[tuple[int, Any, list[Any]]] = [
    (types.VARCHAR, oracledb.DB_TYPE_VARCHAR, ["", "x" * 4000, "🐕ß"]),
    (types.NUMBER, oracledb.DB_TYPE_NUMBER, [0, -1, 10**37, -0.5, 99.5]),
    (types.RAW, oracledb.DB_TYPE_RAW, [b"\0", bytes(range(256))]),
    (types.BINARY_DOUBLE, oracledb.DB_TYPE_BINARY_DOUBLE, [0.1, -1e300]),
    (types.BINARY_FLOAT, oracledb.DB_TYPE_BINARY_FLOAT, [0.5, -2.25]),
    (types.DATE, oracledb.DB_TYPE_DATE, [datetime.datetime(1999, 12, 31, 23, 59, 58)]),
    (
        types.TIMESTAMP,
        oracledb.DB_TYPE_TIMESTAMP,
        [datetime.datetime(2026, 1, 2, 3, 4, 5, 678901), datetime.datetime(1, 1, 1)],
    ),
    (types.BOOLEAN, oracledb.DB_TYPE_BOOLEAN, [True, False]),
    (types.CLOB, oracledb.DB_TYPE_CLOB, [TEXT]),
    (types.BLOB, oracledb.DB_TYPE_BLOB, [BYTES]),
    (types.VECTOR, oracledb.DB_TYPE_VECTOR, [array("f", [0.5, -0.0, 3e38])]),
]


@pytest.mark.parametrize(("kind", "db_type", "values"), SCALARS, ids=lambda value: str(value)[:24])
def test_values_and_nulls_of_every_type(
    connection: oracledb.Connection,
    database: TinyDatabase,
    kind: int,
    db_type: Any,
    values: list[Any],
) -> None:
    rows = Rows([Column("A", kind), Column("B", types.NUMBER)], [(v, 7) for v in [*values, None]])
    database.answers["select it"] = lambda *_: rows
    with connection.cursor() as cursor:
        cursor.execute("select it")
        assert cursor.description[0][1] is db_type
        fetched = [a.read() if isinstance(a, oracledb.LOB) else a for a, _ in cursor]
    # An empty string is NULL in Oracle.
    assert fetched == [None if value == "" else value for value in [*values, None]]
    for value in [*values, None]:
        with connection.cursor() as cursor:
            cursor.setinputsizes(db_type)
            is_lob = kind in (types.CLOB, types.BLOB) and value is not None
            given = connection.createlob(db_type, value) if is_lob else value
            cursor.execute("begin x(:1); end;", [given])
        (got,) = bound(database)
        expected = None if value == "" else value
        assert (got.value() if is_lob else got) == expected


def test_timestamp_with_time_zone_is_bound(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
    when = datetime.datetime(2026, 5, 6, 7, 8, 9, 1000, zone)
    with connection.cursor() as cursor:
        cursor.setinputsizes(oracledb.DB_TYPE_TIMESTAMP_TZ)
        cursor.execute("insert into t values (:1)", [when])
    # The driver keeps the clock and drops the zone.
    assert bound(database) == [when.replace(tzinfo=datetime.timezone.utc)]


@pytest.mark.parametrize(
    ("vector_format", "vector"),
    [
        (2, array("f", [i / 768 - 0.5 for i in range(768)])),
        (3, array("d", [0.1, -1e300])),
        (4, array("b", [1, -2, 3])),
        (5, array("B", [1, 255])),
    ],
)
def test_vectors_of_every_format(
    connection: oracledb.Connection, database: TinyDatabase, vector_format: int, vector: Any
) -> None:
    dims = len(vector) * (8 if vector_format == 5 else 1)
    rows = Rows([Column("V", types.VECTOR, vector_format, dims)], [(vector,)] * 300)
    database.answers["select vector"] = lambda *_: rows
    for _ in range(2):
        assert select(connection, "select vector from t") == [(vector,)] * 300
    with connection.cursor() as cursor:
        cursor.execute("insert into t values (:1, :2)", [vector, "after"])
    assert bound(database) == [vector, "after"]


def test_sparse_vector_is_bound(connection: oracledb.Connection, database: TinyDatabase) -> None:
    vector = oracledb.SparseVector(10, [1, 3], array("d", [1, 2]))
    with connection.cursor() as cursor:
        cursor.execute("insert into t values (:1)", [vector])
    (value,) = bound(database)
    assert (value.dims, value.indices, value.values) == (10, [1, 3], array("d", [1, 2]))


def test_out_values(connection: oracledb.Connection, database: TinyDatabase) -> None:
    def answer(_: TinySession, call: Call) -> None:
        call.out.update(T=f"got {call.bind('i')}", N=decimal.Decimal("1.5"), C=TEXT, Z=None)

    database.answers["begin :t"] = answer
    with connection.cursor() as cursor:
        text, number, clob = (
            cursor.var(str, 100),
            cursor.var(oracledb.DB_TYPE_NUMBER),
            cursor.var(oracledb.DB_TYPE_CLOB),
        )
        nothing = cursor.var(str)
        for i in range(3):
            cursor.execute(
                "begin :t := f(:i, :n, :c, :z); end;", t=text, i=i, n=number, c=clob, z=nothing
            )
            assert (text.getvalue(), number.getvalue()) == (f"got {i}", 1.5)
            assert (clob.getvalue().read(), nothing.getvalue()) == (TEXT, None)


def test_executemany_and_reexecute(connection: oracledb.Connection, database: TinyDatabase) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("insert into t values (:1, :2)", [(i, f"s{i}") for i in range(100)])
        assert cursor.rowcount == 100
        assert [[b.value for b in c.binds] for c in database.calls] == [
            [i, f"s{i}"] for i in range(100)
        ]
        for i in range(3):
            cursor.execute("begin y(:a, :b); end;", a=i, b=f"s{i}")
            assert bound(database) == [i, f"s{i}"]
        cursor.execute("update t set a = :n where b = :n or c = :k", n="a", k=2)
        names = [(bind.name, bind.value) for bind in database.calls[-1].binds]
        assert names == [("N", "a"), ("N", "a"), ("K", 2)]
        cursor.execute("begin x(q'[:no]', ':no', :n, :n, :b); end; -- :no", n="a", b="z")
        names = [(bind.name, bind.value) for bind in database.calls[-1].binds]
        assert names == [("N", "a"), ("B", "z")]


def test_many_rows(connection: oracledb.Connection, database: TinyDatabase) -> None:
    rows = [(decimal.Decimal(i) / 8 - 100, f"row {i}") for i in range(2500)]
    columns = [Column("N", types.NUMBER), Column("S", types.VARCHAR)]
    database.answers["select many"] = lambda *_: Rows(columns, rows)
    assert select(connection, "select many") == rows
    database.answers["select none"] = lambda *_: Rows(columns, [])
    assert select(connection, "select none") == []


def test_lob_offsets_are_strict(connection: oracledb.Connection) -> None:
    lob = connection.createlob(oracledb.DB_TYPE_BLOB)
    lob.write(b"abc", 1)
    with pytest.raises(oracledb.DatabaseError, match="ORA-22993"):
        lob.write(b"x" * 100_000, 10)
    lob.write(b"Z", 2)
    assert (lob.read(), lob.size()) == (b"aZc", 3)
    lob.trim(1)
    assert (lob.read(), lob.size()) == (b"a", 1)
    clob = connection.createlob(oracledb.DB_TYPE_CLOB)
    clob.write("äbc", 1)
    clob.write("Z", 2)
    assert (clob.read(), clob.read(2, 1), clob.size()) == ("äZc", "Z", 3)


def test_lob_of_another_connection_is_refused(
    server: OracleServer, connection: oracledb.Connection
) -> None:
    with connect(server) as other, connection.cursor() as cursor:
        lob = other.createlob(oracledb.DB_TYPE_BLOB, b"abc")
        for _ in range(2):
            with pytest.raises(oracledb.DatabaseError, match="ORA-22275"):
                cursor.execute("begin x(:b, :t); end;", b=lob, t="x" * 30_000)
        assert select(connection) == [(1,)]


def test_lob_after_bytes_on_one_cursor_shows_the_trap(connection: oracledb.Connection) -> None:
    """The driver sends the LOB as a CLOB then: a fresh cursor for each load avoids it."""
    data = os.urandom(40_000)
    with connection.cursor() as cursor:
        cursor.execute("begin x(:b); end;", b=data)
        with pytest.raises(oracledb.DatabaseError, match="ORA-00932"):
            cursor.execute("begin x(:b); end;", b=connection.createlob(oracledb.DB_TYPE_BLOB, data))


def test_fetched_lobs_are_read_in_pieces(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    columns = [Column("C", types.CLOB), Column("B", types.BLOB)]
    database.answers["select lobs"] = lambda *_: Rows(columns, [(TEXT, BYTES), (None, None)])
    (clob, blob), nothing = select(connection, "select lobs")
    assert nothing == (None, None)
    assert (clob.read(1, 8), blob.read(299_999, 100)) == ("ünïcode ", b"bc")
    size, pieces = blob.size(), []
    for offset in range(1, size + 1, 70_000):
        pieces.append(blob.read(offset, 70_000))
    assert b"".join(pieces) == BYTES
    with pytest.raises(oracledb.DatabaseError, match="ORA-22920"):
        blob.write(b"x", 1)
    oracledb.defaults.fetch_lobs = False
    try:
        for _ in range(2):
            assert select(connection, "select lobs") == [(TEXT, BYTES), (None, None)]
    finally:
        oracledb.defaults.fetch_lobs = True


def upload(connection: oracledb.Connection, megabytes: int, chunk: int) -> Any:
    """Write a pattern in chunks whose order shows."""
    lob = connection.createlob(oracledb.DB_TYPE_BLOB)
    block = os.urandom(chunk - 8)
    for offset in range(0, megabytes * MB, chunk):
        lob.write(offset.to_bytes(8, "big") + block, offset + 1)
    return lob, block


@pytest.mark.parametrize(("megabytes", "chunk"), [(350, MB), (352, 8 * MB)])
def test_large_upload_is_fast_and_right(
    server: OracleServer, database: TinyDatabase, megabytes: int, chunk: int
) -> None:
    with connect(server) as connection:
        begun = time.perf_counter()
        lob, block = upload(connection, megabytes, chunk)
        elapsed_s = time.perf_counter() - begun
        print(f"{megabytes / elapsed_s:.0f} MB/s in chunks of {chunk // MB} MB")  # noqa: T201
        assert lob.size() == megabytes * MB == server.received_lob_bytes
        with connection.cursor() as cursor:
            cursor.execute("begin x(:b); end;", b=lob)
        received = bound(database)[0]
        for offset in range(0, megabytes * MB, 5 * chunk):
            assert received.read_at(offset, chunk) == offset.to_bytes(8, "big") + block
        path = received.path
        assert path.stat().st_size == megabytes * MB
        del lob
        select(connection)
        assert not path.exists()
    # A generous bound for busy machines; the figure is printed.
    assert megabytes / elapsed_s > 50


def test_commit_rollback_and_the_transaction_flag(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    events = database.sessions[0].events
    with connection.cursor() as cursor:
        assert not connection.transaction_in_progress
        cursor.execute("insert into t values (1)")
        assert connection.transaction_in_progress
        connection.commit()
        assert not connection.transaction_in_progress
        cursor.execute("insert into t values (1)")
        connection.rollback()
        assert (events, connection.transaction_in_progress) == (["commit", "rollback"], False)
        connection.autocommit = True
        for value in range(2):
            cursor.execute("insert into t values (:1)", [value])
        assert (events[2:], connection.transaction_in_progress) == (["commit", "commit"], False)


def test_end_to_end_attributes_reach_the_engine(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    session = database.sessions[0]
    connection.module, connection.action = "oml_mlflow", "promote"
    connection.client_identifier, connection.clientinfo = "host:1", "plan 7"
    connection.ping()
    told = (session.module, session.action, session.client_identifier, session.client_info)
    assert told == ("oml_mlflow", "promote", "host:1", "plan 7")
    connection.action = None
    connection.current_schema = "OTHER"
    assert select(connection) == [(1,)]
    assert (session.module, session.action or "") == ("oml_mlflow", "")


@pytest.fixture
def stalled(database: TinyDatabase) -> threading.Event:
    """Set while a statement that waits for an interruption runs."""
    running = threading.Event()

    def wait(_: TinySession, call: Call) -> None:
        running.set()
        call.cancelled.wait(PATIENCE_S)

    database.answers["begin stall"] = wait
    return running


def test_call_timeout(connection: oracledb.Connection, stalled: threading.Event) -> None:
    begun, connection.call_timeout = time.monotonic(), 300
    with connection.cursor() as cursor:
        with pytest.raises(oracledb.Error, match="DPY-4024"):
            cursor.execute("begin stall; end;")
        assert time.monotonic() - begun < 5
        connection.call_timeout = 0
        assert connection.is_healthy()
        assert select(connection) == [(1,)]


def test_cancel(connection: oracledb.Connection, stalled: threading.Event) -> None:
    def cancel() -> None:
        stalled.wait(PATIENCE_S)
        connection.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with (
        connection.cursor() as cursor,
        pytest.raises(oracledb.DatabaseError, match="ORA-01013"),
    ):
        cursor.execute("begin stall; end;")
    thread.join()
    assert select(connection) == [(1,)]


def test_pool(server: OracleServer) -> None:
    pool = oracledb.create_pool(
        user="vec", password=PASSWORD, dsn=server.dsn, min=2, max=4, increment=1
    )
    with pool.acquire() as one, pool.acquire() as two:
        assert [select(one), select(two)] == [[(1,)], [(1,)]]
        assert pool.opened == 2
    pool.close()


def test_async_lobs_and_pipeline(
    server: OracleServer, database: TinyDatabase, stalled: threading.Event
) -> None:
    rows = [(i,) for i in range(2500)]
    database.answers["select many"] = lambda *_: Rows([Column("N", types.NUMBER)], rows)

    async def use() -> None:
        async with oracledb.connect_async(
            user="vec", password=PASSWORD, dsn=server.dsn
        ) as connection:
            assert await connection.fetchall("select 1 from dual") == [(1,)]
            lob = await connection.createlob(oracledb.DB_TYPE_BLOB)
            await lob.write(b"q" * 50_000, 1)
            await connection.execute("begin x(:1); end;", [lob])
            assert bound(database)[0].value() == b"q" * 50_000
            pipeline = oracledb.create_pipeline()
            for _ in range(20):
                pipeline.add_fetchall("select many")
                pipeline.add_execute("begin null; end;")
            results = await connection.run_pipeline(pipeline)
            assert [result.rows for result in results] == [rows, None] * 20
            connection.call_timeout = 300
            with pytest.raises(oracledb.Error, match="DPY-4024"):
                await connection.execute("begin stall; end;")

    asyncio.run(use())


def test_tls_wallet_and_alias(
    database: TinyDatabase, tmp_path: Path, stalled: threading.Event
) -> None:
    with OracleServer(database, tls=write_wallet(tmp_path)) as server:
        write_alias(tmp_path, "prod", server.port)
        places = {"config_dir": str(tmp_path), "wallet_location": str(tmp_path)}
        with connect(server, dsn="prod", **places) as connection:
            assert select(connection) == [(1,)]
            lob, _ = upload(connection, 20, MB)
            assert lob.size() == 20 * MB
            connection.call_timeout = 300
            with (
                pytest.raises(oracledb.Error, match="DPY-4024"),
                connection.cursor() as cursor,
            ):
                cursor.execute("begin stall; end;")
            assert select(connection) == [(1,)]
        with pytest.raises(oracledb.Error):
            connect(server, dsn=f"127.0.0.1:{server.port}/FREEPDB1", tcp_connect_timeout=1)
    assert server.errors == []


def test_connection_dropped_by_the_engine(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    def drop(*_: Any) -> None:
        raise ConnectionDropped

    database.answers["begin drop"] = drop
    begun = time.monotonic()
    with connection.cursor() as cursor, pytest.raises(oracledb.Error, match="DPY-4011"):
        cursor.execute("begin drop; end;")
    assert database.sessions[0].closed.wait(PATIENCE_S)
    assert time.monotonic() - begun < 1
    assert not connection.is_healthy()


def test_connection_dropped_in_a_lob(server: OracleServer, database: TinyDatabase) -> None:
    database.faults.drop_after_lob_bytes = 2_500_000
    connection = connect(server)
    with pytest.raises(oracledb.Error, match="DPY-4011"):
        upload(connection, 8, MB)
    assert database.sessions[0].closed.wait(PATIENCE_S)
    assert 2_500_000 < server.received_lob_bytes < 2_600_000
    database.faults.drop_after_lob_bytes = None
    with connect(server) as again:
        lob, _ = upload(again, 8, MB)
        assert lob.size() == 8 * MB


CLIENT = """
import sys, oracledb
connection = oracledb.connect(user="vec", password=sys.argv[1], dsn=sys.argv[2])
with connection.cursor() as cursor:
    cursor.execute("insert into t values (1)")
    print("ready", flush=True)
    if sys.argv[3] == "statement":
        cursor.execute("begin work; end;")
    sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["idle", "statement"])
def test_session_is_closed_when_its_client_is_killed(
    server: OracleServer, database: TinyDatabase, where: str
) -> None:
    running, goes_on = threading.Event(), threading.Event()

    def work(session: TinySession, _: Call) -> None:
        running.set()
        goes_on.wait(PATIENCE_S)
        session.events.append("finished")

    database.answers["begin work"] = work
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, PASSWORD, server.dsn, where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with client:
        assert client.stdout
        assert client.stdout.readline() == b"ready\n"
        session = database.sessions[0]
        if where == "statement":
            assert running.wait(PATIENCE_S)
        client.send_signal(signal.SIGKILL)
        client.wait()
        killed = time.monotonic()
        if where == "statement":
            assert not session.closed.is_set()
            goes_on.set()
        assert session.closed.wait(PATIENCE_S)
        assert time.monotonic() - killed < 0.5
    assert session.events == (["finished", "close"] if where == "statement" else ["close"])


def test_stopping_the_server_ends_connections(
    database: TinyDatabase, stalled: threading.Event
) -> None:
    failures: list[str] = []

    def stall(connection: oracledb.Connection) -> None:
        with contextlib.suppress(oracledb.Error), connection.cursor() as cursor:
            cursor.execute("begin stall; end;")
            failures.append("it was answered")

    with OracleServer(database) as server:
        idle, busy = connect(server), connect(server)
        thread = threading.Thread(target=stall, args=(busy,))
        thread.start()
        assert stalled.wait(PATIENCE_S)
        begun = time.monotonic()
    thread.join(PATIENCE_S)
    assert time.monotonic() - begun < 3
    assert all(session.closed.is_set() for session in database.sessions)
    with pytest.raises(oracledb.Error):
        select(idle)
    with pytest.raises(oracledb.Error):
        connect(server)
    assert (failures, server.errors) == ([], [])


@pytest.mark.drill
def test_lob_of_more_than_a_gigabyte(
    connection: oracledb.Connection, database: TinyDatabase
) -> None:
    lob, block = upload(connection, 1200, 8 * MB)
    with connection.cursor() as cursor:
        cursor.execute("begin x(:b); end;", b=lob)
    received = bound(database)[0]
    assert received.size == 1200 * MB == lob.size()
    last = 1192 * MB
    assert received.read_at(last, 8 * MB) == last.to_bytes(8, "big") + block


@pytest.mark.drill
def test_all_of_it_with_the_oldest_driver(tmp_path: Path) -> None:
    target = tmp_path / "oldest"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    subprocess.run([*pip, "oracledb==4.0.2"], check=True)
    folder = Path(__file__).parents[1]
    path = os.pathsep.join([str(target), str(folder.parent), os.environ.get("PYTHONPATH", "")])
    begin = "import oracledb, pytest; assert oracledb.__version__ == '4.0.2'"
    code = f"{begin}; raise SystemExit(pytest.main([{__file__!r}, '-q', '-p', 'no:cacheprovider']))"
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder.parent, env=environment)
