"""One client's connection, from its first packet to its end."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Protocol

from oracle_server.statement import ConnectionDropped, OraError
from oracle_server.wire import login
from oracle_server.wire.answers import call_error, call_status
from oracle_server.wire.encoding import ProtocolError
from oracle_server.wire.engine_thread import EngineThread
from oracle_server.wire.lob_calls import LobCalls
from oracle_server.wire.lobs import LobStore
from oracle_server.wire.packets import BREAK_MARKER, MARKER, RESET_MARKER, Break, PacketStream
from oracle_server.wire.statements import EngineSession, Statements

MESSAGE_FUNCTION, MESSAGE_PIGGYBACK = 3, 17
REEXECUTE, FETCH, LOGOFF, COMMIT, ROLLBACK, REEXECUTE_AND_FETCH = 4, 5, 9, 14, 15, 78
EXECUTE, LOB_CALL, CLOSE_CURSORS, END_TO_END, PING = 94, 96, 105, 135, 147
SET_SCHEMA, SESSION_STATE, PIPELINE_BEGIN, PIPELINE_END = 152, 176, 199, 200
CANCELLED = OraError(1013, "user requested cancel of current operation")
END_TO_END_NAMES = ("client_identifier", "module", "action", "client_info", "dbop")


class Host(Protocol):
    """What a connection needs of the server that it belongs to."""

    fast_auth: bool
    folder: Path
    is_stopping: bool

    def serves(self, service: str) -> bool: ...
    def passwords(self) -> dict[str, str]: ...
    def version(self) -> str: ...
    def refusal(self) -> OraError | None: ...
    def open_session(self, user: str) -> EngineSession: ...
    def next_session_number(self) -> int: ...
    def count_lob_bytes(self, count: int) -> None: ...
    def lob_bytes_until_drop(self) -> int | None: ...
    def keep_error(self, error: BaseException) -> None: ...


class Connection:
    """One client's connection.

    Args:
        host: The server.
        sock: Its socket.
    """

    def __init__(self, host: Host, sock: socket.socket) -> None:
        self._host, self._stream = host, PacketStream(sock)
        self._lobs = LobStore(host.folder)
        self._engine = EngineThread(self._stream, lambda: host.is_stopping)
        self._session: EngineSession | None = None
        self._lob_bytes = 0

    def serve(self) -> None:
        """Serve the client until it leaves, dies or is dropped; close the session then."""
        try:
            if self._log_in():
                self._answer_requests()
        except (EOFError, ConnectionDropped, OSError):
            pass
        finally:
            self._engine.finish(self._session.close if self._session else lambda: None)
            self._lobs.close()

    def _log_in(self) -> bool:
        host, stream = self._host, self._stream
        greeting = login.read_greeting(stream)
        refusal = host.refusal()
        is_by_listener = refusal is not None and refusal.code in login.LISTENER_ERRORS
        if is_by_listener or not host.serves(greeting.service):
            login.refuse(stream, refusal.code if refusal else login.UNKNOWN_SERVICE)
            return False
        login.accept(stream, greeting, host.fast_auth)
        try:
            user, proof = login.check_password(stream, host.passwords())
            if refusal is not None:
                raise refusal
            session = self._session = self._engine.run(host.open_session, user)
        except OraError as error:
            stream.reply(call_error(error, False))
            return False
        number = host.next_session_number()
        login.welcome(stream, greeting.service, host.version(), number, proof)
        self._statements = Statements(stream, self._engine, session, self._lobs)
        self._lob_calls = LobCalls(stream, self._lobs, self._take, lambda: session.in_transaction)
        return True

    def _take(self, count: int) -> None:
        """Count LOB data; drop the connection where a fault says so.

        Raises:
            ConnectionDropped: If it does.
        """
        self._host.count_lob_bytes(count)
        self._lob_bytes += count
        limit = self._host.lob_bytes_until_drop()
        if limit is not None and self._lob_bytes > limit:
            # Closed with data unread and without lingering, the client sees a reset.
            option = struct.pack("ii", 1, 0)
            self._stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            raise ConnectionDropped

    @property
    def _in_transaction(self) -> bool:
        return bool(self._session and self._session.in_transaction)

    def _answer_requests(self) -> None:
        stream = self._stream
        is_open = True
        while is_open:
            try:
                stream.next_data()
                is_open = self._answer_request()
            except Break as interrupt:
                self._acknowledge(interrupt.marker)
            except OraError as error:
                stream.reply(call_error(error, self._in_transaction))
                stream.reset()
            except (EOFError, ConnectionDropped, ProtocolError, OSError):
                raise
            except Exception as error:
                self._host.keep_error(error)
                failure = OraError(600, f"internal error: {error!r}")
                stream.reply(call_error(failure, self._in_transaction))
                stream.reset()

    def _answer_request(self) -> bool:
        """Read one request and answer it; return whether the client stays."""
        stream = self._stream
        while True:
            kind, function, _sequence = stream.byte(), stream.byte(), stream.byte()
            stream.token = stream.integer()
            if kind != MESSAGE_PIGGYBACK:
                break
            self._take_piggyback(function)
        if kind != MESSAGE_FUNCTION:
            raise ProtocolError(f"message of type {kind}")
        if function == EXECUTE:
            self._statements.execute()
        elif function in (REEXECUTE, REEXECUTE_AND_FETCH):
            self._statements.reexecute(function == REEXECUTE_AND_FETCH)
        elif function == FETCH:
            self._statements.fetch()
        elif function == LOB_CALL:
            self._lob_calls.answer()
        elif function in (COMMIT, ROLLBACK) and self._session:
            session = self._session
            self._engine.run(session.commit if function == COMMIT else session.rollback)
            stream.reply(call_status(self._in_transaction))
        elif function in (PING, PIPELINE_END, LOGOFF):
            if function == PIPELINE_END:
                stream.integer()
            stream.reply(call_status(self._in_transaction))
        else:
            stream.body()
            raise OraError(3001, f"function {function} is not implemented")
        if stream.unread():
            raise ProtocolError(f"{stream.unread()} bytes left after function {function}")
        return function != LOGOFF

    def _take_piggyback(self, function: int) -> None:
        """Read what rides in front of a request."""
        stream = self._stream
        if function == CLOSE_CURSORS:
            self._statements.close_cursors()
        elif function == LOB_CALL:
            self._lob_calls.free()
        elif function == SET_SCHEMA:
            stream.byte()
            setattr(self._session, "current_schema", stream.twice_counted().decode())  # noqa: B010
        elif function == END_TO_END:
            self._take_end_to_end()
        elif function == SESSION_STATE:
            stream.integer()
        elif function == PIPELINE_BEGIN:
            stream.integer()
            stream.read(2)
        else:
            raise ProtocolError(f"piggyback {function} is not implemented")

    def _take_end_to_end(self) -> None:
        """Hand what the client tells of itself to the engine's session."""
        stream = self._stream
        stream.read(2)
        stream.integer()
        told = []
        for name in END_TO_END_NAMES:
            if name in ("client_info", "dbop"):
                stream.skip("bibi")
            told.append((name, stream.byte(), stream.integer()))
        for name, is_changed, size in told:
            if is_changed:
                value = (stream.counted() or b"").decode() if size else ""
                setattr(self._session, name, value)

    def _acknowledge(self, marker: int) -> None:
        """Answer an interruption: break, wait for the client's reset, reset, and an error."""
        stream = self._stream
        stream.send_packet(MARKER, bytes([1, 0, BREAK_MARKER]))
        while marker != RESET_MARKER:
            if stream.next_packet() == MARKER:
                marker = stream.body()[2]
        stream.send_packet(MARKER, bytes([1, 0, RESET_MARKER]))
        stream.reset()
        stream.reply(call_error(CANCELLED, self._in_transaction))
