"""A stand-in for Oracle Database that python-oracledb in thin mode connects to, on loopback."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oracle_server.statement import ConnectionDropped, OraError
from oracle_server.wire.session import Connection
from oracle_server.wire.statements import EngineSession

STOP_S = 5.0


class OracleServer:
    """Serves a database while it is entered; every connection is closed at the end.

    Args:
        database: State that all sessions share: ``users`` (by name a password, or what has one as
            ``password``), ``version``, ``open_session(user)`` and ``faults``, of which the wire
            reads two. ``refuse_login`` is an OraError (a listener refuses with one of ORA-12500
            to 12599, a database with any other) or ConnectionDropped, for a socket that is closed
            when it was accepted. ``drop_after_lob_bytes`` resets a connection after so much LOB
            data on it.
        services: Names of its services; the first one is in ``dsn``.
        port: Where to listen, 0 for any free port.
        tls: Set for TLS; the driver then wants ``tcps`` and a wallet, see ``wallet.py``.
        fast_auth: Whether the login may be one round trip shorter.

    Attributes:
        errors: Errors of this server and of the engine that are no ORA errors. A fixture
            asserts that there are none.
        received_lob_bytes: How much LOB data has come in so far.
    """

    def __init__(
        self,
        database: Any,
        services: Sequence[str] = ("FREEPDB1",),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        fast_auth: bool = True,
    ) -> None:
        self.database, self.fast_auth, self.is_stopping = database, fast_auth, False
        self._faults = getattr(database, "faults", None)
        self.errors: list[BaseException] = []
        self.received_lob_bytes = 0
        self._services, self._tls = services, tls
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._threads: dict[socket.socket, threading.Thread] = {}
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._temporary = tempfile.TemporaryDirectory(prefix="oracle_server_")
        self.folder = Path(self._temporary.name)

    @property
    def dsn(self) -> str:
        """Easy Connect string of the first service."""
        protocol = "tcps://" if self._tls else ""
        return f"{protocol}127.0.0.1:{self.port}/{self._services[0]}"

    def __enter__(self) -> OracleServer:
        threading.Thread(target=self._accept, name="oracle-listener", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close every connection and wait until the sessions of the engine are closed."""
        self.is_stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(STOP_S)
        self._temporary.cleanup()

    def wait_until_idle(self) -> None:
        """Wait until every client that is there now has left and its session is closed."""
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join()

    def drop_connections(self) -> None:
        """Close every connection, as an instance that goes down does; the server goes on."""
        with self._lock:
            sockets = list(self._threads)
        for sock in sockets:
            with contextlib.suppress(OSError):
                # Of the plain socket: another thread may be reading through TLS.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if isinstance(self._refused_login(), ConnectionDropped):
                sock.close()
                continue
            with self._lock:
                thread = threading.Thread(
                    target=self._serve, args=(sock,), name="oracle-connection", daemon=True
                )
                self._threads[sock] = thread
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        sock = plain
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._threads[sock] = self._threads.pop(plain)
            Connection(self, sock).serve()
        except OSError:
            pass  # a handshake that failed is the client's affair
        except Exception as error:
            self.keep_error(error)
        finally:
            sock.close()
            with self._lock:
                self._threads.pop(sock, None)

    # What a connection asks of its server

    def _refused_login(self) -> Exception | None:
        fault: Exception | None = getattr(self._faults, "refuse_login", None)
        return fault

    def refusal(self) -> OraError | None:
        """Return the error that a login is refused with, if a fault says so."""
        fault = self._refused_login()
        return fault if isinstance(fault, OraError) else None

    def lob_bytes_until_drop(self) -> int | None:
        """Return after how much LOB data on one connection a fault drops it."""
        limit: int | None = getattr(self._faults, "drop_after_lob_bytes", None)
        return limit

    def serves(self, service: str) -> bool:
        """Return whether there is such a service."""
        return service.upper() in (name.upper() for name in self._services)

    def passwords(self) -> dict[str, str]:
        """Return the passwords by user."""
        users = self.database.users.items()
        return {name: getattr(user, "password", user) for name, user in users}

    def version(self) -> str:
        """Return the version that a login tells."""
        return str(self.database.version)

    def open_session(self, user: str) -> EngineSession:
        """Open a session of the engine."""
        session: EngineSession = self.database.open_session(user)
        return session

    def next_session_number(self) -> int:
        """Return a number for a session."""
        return next(self._numbers)

    def count_lob_bytes(self, count: int) -> None:
        """Count LOB data that came in."""
        with self._lock:
            self.received_lob_bytes += count
        hook: Callable[[int], None] | None = getattr(self._faults, "on_lob_bytes", None)
        if hook is not None:
            hook(self.received_lob_bytes)

    def keep_error(self, error: BaseException) -> None:
        """Keep an error that is nobody's fault but ours, and log it."""
        logging.getLogger(__name__).error("the stand-in failed", exc_info=error)
        with self._lock:
            self.errors.append(error)
