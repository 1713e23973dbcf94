"""HTTP limits of the webhook receiver: sizes, times and connections.

They apply before a sender is authenticated, so they are the same for all, and no settings.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# a short backlog: a new request is read before its connection is the oldest
_CONNECTIONS, BACKLOG = 400, 100
_MAX_HEADER_BYTES, _STEP_BYTES = 16_384, 4_096
# heads that other servers may frame differently (RFC 9112, sections 5.2 and 6)
_AMBIGUOUS = re.compile(
    rb"\n[ \t]"
    rb"|\ncontent-length:[^\n]*,"
    rb"|\n(content-length|transfer-encoding):.*\n(content-length|transfer-encoding):"
    rb"|^[^\n]*HTTP/1\.0\r?\n.*\ntransfer-encoding:",
    re.IGNORECASE | re.DOTALL,
)


class _Parser(h11.Connection):
    """h11's parser; also refuses ambiguous heads, and requests with much beside their body.

    h11 itself limits what it buffers, not what comes in one piece (measured with 0.16).
    """

    _overhead = 0

    def next_event(self) -> Any:
        """Return the next event; head, chunk heads and trailers count towards one limit."""
        before, _ = self.trailing_data
        event = super().next_event()
        taken = before[: len(before) - len(self.trailing_data[0])]
        is_head = isinstance(event, h11.Request)
        body_bytes = len(event.data) if isinstance(event, h11.Data) else 0
        self._overhead = (0 if is_head else self._overhead) + len(taken) - body_bytes
        if self._overhead > _MAX_HEADER_BYTES or (is_head and _AMBIGUOUS.search(taken)):
            raise h11.RemoteProtocolError("too long, or ambiguous")
        return event


class Protocol(H11Protocol):
    """uvicorn's protocol; no peer holds a connection for long, or all connections.

    uvicorn itself waits forever for heads, and for responses to be read (measured with 0.54).
    """

    longest_s = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _peer, _made_at = "", 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept; at the limit, drop a connection without a complete request."""
        super().connection_made(transport)
        self.conn = _Parser(h11.SERVER, _MAX_HEADER_BYTES)
        self._peer, self._made_at = self.client[0] if self.client else "", self.loop.time()
        self._limit()
        if len(self.connections) > _CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse in small steps, since our parser copies the rest at each event."""
        before = self.cycle
        for start in range(0, len(data), _STEP_BYTES):
            super().data_received(data[start : start + _STEP_BYTES])
        if self.cycle is not before:
            self._limit()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; a response that has begun is cut off."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        with suppress(h11.LocalProtocolError):  # uvicorn would log each with its traceback
            super().send_400_response(msg)
        self.transport.close()

    def _limit(self) -> None:
        """Bound the wait for a head, or for a body and until its answer is read."""
        if self._deadline is not None:
            self._deadline.cancel()
        waits = 1 if self.cycle is None or self.cycle.response_complete else 2
        self._deadline = self.loop.call_later(waits * self.longest_s, self.transport.abort)

    def _make_room(self) -> None:
        """Drop the oldest unanswered connection of the peer that has the most."""
        places = [one for one in self.connections if isinstance(one, Protocol)]
        held = Counter(one._peer for one in places)
        found = [one for one in places if not one._is_being_answered()] or [self]
        dropped = min(found, key=lambda one: (-held[one._peer], one._made_at))
        self.connections.discard(dropped)
        dropped.transport.abort()

    def _is_being_answered(self) -> bool:
        asked = self.cycle is not None and not self.cycle.more_body
        return asked and not self.cycle.response_complete and not self.flow.write_paused
