"""Statements of one session: execution, OUT values, rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from oracle_server.statement import Bind, Call, OraError, Rows
from oracle_server.wire.answers import (
    LOB_TYPES,
    NO_DATA,
    call_error,
    describe,
    encode_value,
    no_parameters,
)
from oracle_server.wire.binds import MESSAGE_ROW, BindType, placeholders, read_bind_type, read_row
from oracle_server.wire.encoding import ProtocolError, signed, unsigned
from oracle_server.wire.engine_thread import EngineThread
from oracle_server.wire.lobs import LobStore
from oracle_server.wire.packets import PacketStream

MESSAGE_ROW_HEADER, MESSAGE_DIRECTIONS = 6, 11
PARSE, DEFINE, EXECUTE, FETCH, COMMIT, NOT_PLSQL = 0x01, 0x10, 0x20, 0x40, 0x100, 0x8000
REEXECUTE_COMMIT = 0x01
IN, OUT = 32, 16


class EngineSession(Protocol):
    """What a session of the engine offers to the wire."""

    module: str | None
    action: str | None
    client_info: str | None
    in_transaction: bool

    def handle(self, call: Call) -> int | Rows | None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Cursor:
    """A statement that the client has parsed, and the rows that it has not fetched yet."""

    text: str
    is_plsql: bool
    bind_types: list[BindType] = field(default_factory=list)
    is_out: list[bool] = field(default_factory=list)
    result: Rows | None = None
    fetched: int = 0
    wanted: list[int | None] = field(default_factory=list)


class Statements:
    """Answers the statement calls of one session.

    Args:
        stream: The connection.
        engine: Thread that the engine runs on.
        session: The engine's session.
        lobs: The session's LOBs.
    """

    def __init__(
        self,
        stream: PacketStream,
        engine: EngineThread,
        session: EngineSession,
        lobs: LobStore,
    ) -> None:
        self._stream, self._engine, self._session, self._lobs = stream, engine, session, lobs
        self._cursors: dict[int, Cursor] = {}
        self._next_number = 1

    def close_cursors(self) -> None:
        """Read the list of cursors that the client is done with, and forget them."""
        self._stream.byte()
        for _ in range(self._stream.integer()):
            self._cursors.pop(self._stream.integer(), None)

    def execute(self) -> None:
        """Read one execution and answer it."""
        stream = self._stream
        options, number = stream.integer(), stream.integer()
        stream.skip("bibi")
        stream.read(2)
        stream.integer()
        prefetch = stream.integer()
        stream.skip("ib")
        bind_count = stream.integer()
        stream.read(6)
        define_count = stream.integer()
        stream.integer()
        stream.read(3)
        stream.skip("ibii" + "bib" + "bibibbi")
        if options & PARSE:
            number = self._parse(number, not options & NOT_PLSQL)
        numbers = [stream.integer() for _ in range(13)]
        executions, is_query = numbers[1], bool(numbers[7])
        bind_types = [read_bind_type(stream) for _ in range(define_count or bind_count)]
        cursor = self._cursor(number)
        if options & DEFINE:
            cursor.wanted = [bind_type.type for bind_type in bind_types]
            stream.reply(*self._fetch(number, prefetch))
            return
        if bind_types:
            cursor.bind_types = bind_types
        rows = self._read_rows(cursor, bind_types, 1 if is_query else executions)
        if not options & EXECUTE:
            raise OraError(3001, "parsing without executing is not implemented")
        wanted_rows = prefetch if options & FETCH else 0
        self._run(number, rows, wanted_rows, is_query, bool(options & COMMIT))

    def _parse(self, number: int, is_plsql: bool) -> int:
        text = (self._stream.counted() or b"").decode()
        number = number or self._next_number
        self._next_number = max(self._next_number, number + 1)
        self._cursors[number] = Cursor(text, is_plsql)
        return number

    def _cursor(self, number: int) -> Cursor:
        cursor = self._cursors.get(number)
        if cursor is None:
            raise OraError(1001, "invalid cursor")
        return cursor

    def _read_rows(
        self, cursor: Cursor, bind_types: list[BindType], count: int
    ) -> list[list[Bind]]:
        if not bind_types:
            return [[] for _ in range(max(count, 1))]
        return [
            list(read_row(self._stream, bind_types, cursor.is_plsql, self._lobs))
            for _ in range(count)
        ]

    def reexecute(self, is_query: bool) -> None:
        """Read one execution of a statement that was executed before, and answer it."""
        stream = self._stream
        number, count, _, options = (stream.integer() for _ in range(4))
        cursor = self._cursor(number)
        is_out = cursor.is_out or [False] * len(cursor.bind_types)
        sent = [b for b, out in zip(cursor.bind_types, is_out, strict=True) if not out]
        rows = self._read_rows(cursor, sent, 1 if is_query else count)
        if len(sent) < len(is_out):
            rows = [_with_outs(row, cursor.bind_types, is_out) for row in rows]
        self._run(
            number, rows, count if is_query else 0, is_query, bool(options & REEXECUTE_COMMIT)
        )

    def _run(
        self,
        number: int,
        rows: list[list[Bind]],
        wanted_rows: int,
        is_query: bool,
        commits: bool,
    ) -> None:
        cursor, stream = self._cursors[number], self._stream
        names = placeholders(cursor.text, cursor.is_plsql)
        affected, calls, result = 0, [], None
        try:
            for binds in rows:
                for bind, name in zip(binds, names, strict=False):
                    bind.name = name
                    if isinstance(bind.value, OraError):
                        raise bind.value
                calls.append(Call(cursor.text, binds))
                result = self._handle(calls[-1])
                affected += result if isinstance(result, int) else 0
            if commits:
                self._engine.run(self._session.commit)
        except OraError as error:
            stream.reply(call_error(error, self._session.in_transaction, number, affected))
            return
        if isinstance(result, Rows):
            stream.reply(*self._answer_query(number, cursor, result, wanted_rows))
            return
        if is_query:
            raise ProtocolError(f"the engine returned no rows for the query {cursor.text[:80]!r}")
        outs = self._outs(cursor, names, calls) if cursor.is_plsql else []
        end = call_error(None, self._session.in_transaction, number, affected)
        stream.reply(*outs, no_parameters(), end)

    def _handle(self, call: Call) -> int | Rows | None:
        outcome: int | Rows | None = self._engine.run(
            self._session.handle, call, cancelled=call.cancelled
        )
        return outcome

    def _answer_query(
        self, number: int, cursor: Cursor, result: Rows, wanted_rows: int
    ) -> list[bytes]:
        kinds = [column.type for column in result.columns]
        if cursor.result is None or kinds != [column.type for column in cursor.result.columns]:
            cursor.wanted = [None] * len(kinds)  # or else what the client said last time holds
        cursor.result, cursor.fetched = result, 0
        description = describe(result.columns)
        if any(column.type in LOB_TYPES for column in result.columns):
            # The client says first how it wants them; the rows come then.
            end = call_error(None, self._session.in_transaction, number)
            return [description, no_parameters(), end]
        *rows, end = self._fetch(number, wanted_rows)
        return [description, *rows, no_parameters(), end]

    def _outs(self, cursor: Cursor, names: list[str], calls: list[Call]) -> list[bytes]:
        """Return which binds are OUT, and their values, one row for each execution."""
        if not cursor.bind_types:
            return []
        bound = list(zip(names, cursor.bind_types, strict=False))
        cursor.is_out = [any(name in call.out for call in calls) for name, _ in bound]
        directions = bytes(OUT if is_out else IN for is_out in cursor.is_out)
        head = bytes([MESSAGE_DIRECTIONS, 0]) + unsigned(len(bound)) + unsigned(0) * 5
        if not any(cursor.is_out):
            return [head + directions]
        returned = [b for b, is_out in zip(bound, cursor.is_out, strict=True) if is_out]
        return [head + directions] + [
            bytes([MESSAGE_ROW])
            + b"".join(self._out(b.type, call.out.get(name)) for name, b in returned)
            for call in calls
        ]

    def _out(self, kind: int, value: Any) -> bytes:
        return encode_value(kind, value, self._lobs) + signed(0)

    def fetch(self) -> None:
        """Read one request for more rows and answer it."""
        number, count = self._stream.integer(), self._stream.integer()
        self._cursor(number)
        self._stream.reply(*self._fetch(number, count))

    def _fetch(self, number: int, count: int) -> list[bytes]:
        """Return the next rows, and how the fetch went as the last item."""
        cursor, in_transaction = self._cursors[number], self._session.in_transaction
        if cursor.result is None:
            raise OraError(1002, "fetch out of sequence")
        columns, rows = cursor.result.columns, cursor.result.rows
        part = rows[cursor.fetched : cursor.fetched + max(count, 0)]
        cursor.fetched += len(part)
        parts = [bytes([MESSAGE_ROW_HEADER, 0]) + unsigned(0) * 6] if part else []
        for row in part:
            described = zip(columns, row, cursor.wanted, strict=True)
            values = (
                encode_value(c.type, value, self._lobs, c.vector_format, wanted)
                for c, value, wanted in described
            )
            parts.append(bytes([MESSAGE_ROW]) + b"".join(values))
        is_end = cursor.fetched >= len(rows)
        end = NO_DATA if is_end else None
        return [*parts, call_error(end, in_transaction, number, cursor.fetched)]


def _with_outs(row: list[Bind], bind_types: list[BindType], is_out: list[bool]) -> list[Bind]:
    """Return the binds of one row with OUT binds, which send no value, in their places."""
    sent = iter(row)
    return [
        Bind(bind_type.type, bind_type.size) if out else next(sent)
        for bind_type, out in zip(bind_types, is_out, strict=True)
    ]
