"""Bytes of a connection, cut into packets and read as one stream.

A request carries no length: its fields are read one by one, and further packets are pulled in as
they are needed. Whatever was received stays in one buffer; ``views`` hands out pieces of it
without a copy, which is what makes large LOB writes fast.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

from oracle_server.wire.encoding import CHUNK_BYTES, LONG_VALUE, ProtocolError, unsigned

CONNECT, ACCEPT, REFUSE, DATA, MARKER = 1, 2, 4, 6, 12
BREAK_MARKER, RESET_MARKER = 1, 2
END_OF_FILE, END_OF_RESPONSE = 0x0040, 0x2000
MESSAGE_END, MESSAGE_TOKEN = 29, 33
HEADER_BYTES, DATA_HEADER_BYTES = 8, 10
BUFFER_BYTES, LONGEST_PACKET = 1 << 18, 1 << 16
ESCAPE = 253


class Break(Exception):
    """The client interrupts what it asked for."""

    def __init__(self, marker: int) -> None:
        super().__init__(marker)
        self.marker = marker


class PacketStream:
    """One connection's packets.

    Args:
        sock: A connected socket, with or without TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sdu = 8192
        self.has_long_lengths = False  # packets tell their length in four bytes after ACCEPT
        self.token = 0  # of a pipelined request; its answer repeats it
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._head = self._tail = 0  # received, not yet read as packets
        self._at = self._stop = 0  # what is left of the current packet
        self._looked = 0  # packets before it were searched for a marker

    # Receiving

    def _receive(self) -> None:
        """Receive once; called only when the current packet is read to its end."""
        if len(self._buffer) - self._tail < LONGEST_PACKET:
            self._make_room()
        received = self.sock.recv_into(self._view[self._tail :])
        if not received:
            raise EOFError
        self._tail += received

    def _make_room(self) -> None:
        left = self._view[self._head : self._tail]
        if len(left) > len(self._buffer) - 2 * LONGEST_PACKET:
            self._buffer = bytearray(2 * len(self._buffer))
            self._view = memoryview(self._buffer)
        self._view[: len(left)] = left
        self._looked = max(self._looked - self._head, 0)
        self._head, self._tail = 0, len(left)
        self._at = self._stop = 0

    def _packet_size(self, at: int) -> int:
        """Return the size of the packet that begins there, 0 if too little was received."""
        if self._tail - at < HEADER_BYTES:
            return 0
        layout = ">I" if self.has_long_lengths else ">H"
        size: int = struct.unpack_from(layout, self._buffer, at)[0]
        if not HEADER_BYTES <= size <= LONGEST_PACKET:
            raise ProtocolError(f"packet of {size} bytes")
        return size

    def next_packet(self) -> int:
        """Read the next packet's header and return its type; its body is read next."""
        while not (size := self._packet_size(self._head)) or self._tail - self._head < size:
            self._receive()
        kind = self._buffer[self._head + 4]
        self._at, self._stop = self._head + HEADER_BYTES, self._head + size
        self._head = self._stop
        return kind

    def next_data(self) -> None:
        """Read the next packet's header, which has to be one of data.

        Raises:
            Break: If the client interrupts.
            EOFError: If it says farewell.
        """
        kind = self.next_packet()
        if kind == MARKER:
            raise Break(self.body()[2])
        if kind != DATA:
            raise ProtocolError(f"packet of type {kind}")
        if self._buffer[self._at + 1] & END_OF_FILE:
            raise EOFError
        self._at += 2

    def body(self) -> bytes:
        """Return what is left of the current packet."""
        rest = bytes(self._view[self._at : self._stop])
        self._at = self._stop
        return rest

    def unread(self) -> int:
        """Return how many bytes of the current packet are left."""
        return self._stop - self._at

    def look_for_marker(self) -> int | None:
        """Receive once and return the marker, if the client has sent one meanwhile.

        Data packets before it stay for later: a pipelining client runs ahead.
        """
        self._receive()
        self._looked = max(self._looked, self._head)
        while (size := self._packet_size(self._looked)) and self._tail - self._looked >= size:
            start, self._looked = self._looked, self._looked + size
            if self._buffer[start + 4] == MARKER:
                self._head = self._at = self._stop = self._looked
                return self._buffer[start + HEADER_BYTES + 2]
        return None

    # Reading a request

    def views(self, size: int) -> Iterator[memoryview]:
        """Yield that many bytes in pieces, each valid until the next is asked for."""
        while size:
            while self._at == self._stop:
                self.next_data()
            piece = self._view[self._at : min(self._at + size, self._stop)]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        """Read that many bytes."""
        if size <= self._stop - self._at:
            self._at += size
            return bytes(self._view[self._at - size : self._at])
        return b"".join(bytes(piece) for piece in self.views(size))

    def byte(self) -> int:
        """Read one byte."""
        while self._at == self._stop:
            self.next_data()
        self._at += 1
        return self._buffer[self._at - 1]

    def short(self) -> int:
        """Read an integer of two bytes."""
        return int.from_bytes(self.read(2), "big")

    def integer(self) -> int:
        """Read an integer of variable length."""
        size = self.byte()
        if size > 8:
            raise ProtocolError(f"integer of {size} bytes")
        return int.from_bytes(self.read(size), "big") if size else 0

    def skip(self, fields: str) -> None:
        """Read fields that nobody needs: ``b`` a byte, ``i`` an integer of variable length."""
        for field in fields:
            self.byte() if field == "b" else self.integer()

    def counted(self, sink: Callable[[memoryview], None] | None = None) -> bytes | None:
        """Read bytes after their length, None if there are none.

        Args:
            sink: Takes the pieces as they come; nothing is returned then.
        """
        length = self.byte()
        if length == ESCAPE:  # a BOOLEAN that is NULL, and one byte more
            self.byte()
        if length in (0, ESCAPE, 255):
            return None
        if length != LONG_VALUE:
            if sink is None:
                return self.read(length)
            for piece in self.views(length):
                sink(piece)
            return None
        parts = []
        while size := self.integer():
            if sink is None:
                parts.append(self.read(size))
            else:
                for piece in self.views(size):
                    sink(piece)
        return b"".join(parts) if sink is None else None

    def twice_counted(self) -> bytes:
        """Read bytes after two lengths."""
        return (self.counted() or b"") if self.integer() else b""

    # Answering

    def send_packet(self, kind: int, body: bytes) -> None:
        """Send one packet that is not of data."""
        self.sock.sendall(self._header(kind, len(body)) + body)

    def _header(self, kind: int, size: int) -> bytes:
        size += HEADER_BYTES
        lengths = struct.pack(">I", size) if self.has_long_lengths else struct.pack(">HH", size, 0)
        return lengths + bytes([kind, 0, 0, 0])

    def reply(self, *parts: bytes, end: bool = True) -> None:
        """Send one answer; ``end`` marks it as complete, as clients expect after login begins."""
        with Reply(self, end) as reply:
            for part in parts:
                reply.write(part)

    def reset(self) -> None:
        """Forget the current request, after a break or an error in the middle of it."""
        self._at = self._stop
        self.token = 0


class Reply:
    """An answer that is sent while it is written, however long it gets."""

    def __init__(self, stream: PacketStream, end: bool = True) -> None:
        self._stream, self._end = stream, end
        token = bytes([MESSAGE_TOKEN]) + unsigned(stream.token) if stream.token else b""
        self._pending = bytearray(token)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self._end:
                self._pending.append(MESSAGE_END)
            self._send(len(self._pending))

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._pending += data
        if len(self._pending) >= BUFFER_BYTES:
            self._send(len(self._pending) - self._stream.sdu)

    def write_chunks(self, data: bytes) -> None:
        """Add bytes as chunks of a long value, without the marks at its beginning and end."""
        for start in range(0, len(data), CHUNK_BYTES):
            part = data[start : start + CHUNK_BYTES]
            self.write(unsigned(len(part)) + part)

    def _send(self, size: int) -> None:
        """Send whole packets of the pending bytes, the last one only if all of them go."""
        room, at = self._stream.sdu - DATA_HEADER_BYTES, 0
        out: list[bytes | bytearray] = []
        is_last = size == len(self._pending)
        while at < size and (is_last or at + room <= size):
            part = self._pending[at : at + room]
            at += len(part)
            flags = END_OF_RESPONSE if is_last and at == size and self._end else 0
            head = self._stream._header(DATA, len(part) + 2)
            out += [head, struct.pack(">H", flags), part]
        self._stream.sock.sendall(b"".join(out))
        del self._pending[:at]
