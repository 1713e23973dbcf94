"""The engine of one session on a thread of its own, while the wire listens for the client."""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from oracle_server.wire.packets import Break, PacketStream


class EngineThread:
    """Runs a session's engine calls one after the other, all on the same thread.

    Args:
        stream: Connection of the client that waits for them.
        is_stopping: Says whether the server is being stopped.
    """

    def __init__(self, stream: PacketStream, is_stopping: Callable[[], bool]) -> None:
        self._stream, self._is_stopping = stream, is_stopping
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._woken, self._waker = socket.socketpair()
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        threading.Thread(target=self._work, name="oracle-engine", daemon=True).start()

    def _work(self) -> None:
        with self._waker:
            while call := self._calls.get():
                call()
                self._waker.send(b"x")

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        cancelled: threading.Event | None = None,
    ) -> Any:
        """Call the engine, and return what it returns or raise what it raises.

        A call is always waited for, as a database finishes a statement whose client is gone.

        Args:
            function: A method of the engine.
            arguments: What it takes.
            cancelled: Set when the client interrupts, or when the server stops.

        Raises:
            Break: If the client interrupted; the outcome of the call is dropped.
            EOFError: If the client went away meanwhile.
        """
        self._calls.put(lambda: self._keep(function, arguments))
        marker, is_gone = None, False
        while not self._is_done(watch_client=marker is None and not is_gone):
            try:
                marker = self._stream.look_for_marker()
            except (EOFError, OSError):
                is_gone = True
            if cancelled and (marker is not None or (is_gone and self._is_stopping())):
                cancelled.set()
        if marker is not None:
            raise Break(marker)
        if is_gone:
            raise EOFError
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def _is_done(self, watch_client: bool) -> bool:
        """Wait until the engine is done or the client says something."""
        client = self._stream.sock
        if watch_client and isinstance(client, ssl.SSLSocket) and client.pending():
            ready: list[socket.socket] = select.select([self._woken], [], [], 0)[0]
        else:
            watched = [self._woken, client] if watch_client else [self._woken]
            ready = select.select(watched, [], [])[0]
        if self._woken in ready:
            self._woken.recv(1)
            return True
        return False

    def _keep(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._outcome = (function(*arguments), None)
        except BaseException as error:  # raised again by run()
            self._outcome = (None, error)

    def finish(self, function: Callable[[], Any]) -> None:
        """Make one last call, whose client is gone, and end the thread."""
        self._calls.put(lambda: self._keep(function, ()))
        self._calls.put(None)
        self._is_done(watch_client=False)
        self._woken.close()
        error = self._outcome[1]
        if error is not None:
            raise error
