"""Calls of a client about LOBs: make, write, read, measure, trim."""

from __future__ import annotations

from collections.abc import Callable

from oracle_server.statement import OraError
from oracle_server.wire.answers import AL32UTF8, LOB_CHUNK, MESSAGE_PARAMETER, call_status
from oracle_server.wire.encoding import (
    LONG_VALUE,
    LONGEST_SHORT,
    ProtocolError,
    counted,
    signed,
    unsigned,
)
from oracle_server.wire.lobs import LOCATOR_BYTES, Lob, LobStore, Readable
from oracle_server.wire.packets import PacketStream, Reply

MESSAGE_LOB_DATA = 14
LENGTH, READ, TRIM, WRITE, CHUNK_SIZE, CREATE, FREE = 1, 2, 0x20, 0x40, 0x4000, 0x110, 0x111
OPEN, CLOSE, IS_OPEN, SEVERAL = 0x8000, 0x10000, 0x11000, 0x80000
READ_BYTES = 32 * 32767  # whole chunks of a long value

ROW_NOT_LOCKED = (22920, "row containing the LOB value is not locked")


class LobCalls:
    """Answers the LOB calls of one session.

    Args:
        stream: The connection.
        lobs: The session's LOBs.
        take: Told of each piece of LOB data before it is kept.
        in_transaction: Says whether the session has one open.
    """

    def __init__(
        self,
        stream: PacketStream,
        lobs: LobStore,
        take: Callable[[int], None],
        in_transaction: Callable[[], bool],
    ) -> None:
        self._stream, self._lobs = stream, lobs
        self._take, self._in_transaction = take, in_transaction

    def answer(self) -> None:
        """Read one call and answer it.

        Raises:
            OraError: If it cannot be done.
        """
        stream = self._stream
        stream.byte()
        locator_size = stream.integer()
        stream.skip("biii")
        stream.read(3)
        operation = stream.integer()
        stream.read(2)
        source, destination = stream.integer(), stream.integer()
        has_amount = stream.byte()
        stream.read(6)
        locator = stream.read(locator_size)
        error = None
        if operation == WRITE:
            error = self._write(locator, source - 1)
        amount = stream.integer() if has_amount or operation == CREATE else 0
        if error is not None:
            raise error
        if operation == CREATE:
            head = bytes([MESSAGE_PARAMETER]) + self._lobs.create(destination)
            stream.reply(head + unsigned(AL32UTF8) + b"\0", self._status())
            return
        lob = self._lobs.find(locator)
        head = bytes([MESSAGE_PARAMETER]) + locator
        if operation == READ:
            self._read(lob, head, (source - 1) * lob.unit, amount * lob.unit)
            return
        if operation == TRIM:
            self._writable(locator).trim(amount)
        if operation in (TRIM, WRITE, OPEN, CLOSE):
            stream.reply(head + (signed(amount) if has_amount else b""), self._status())
        elif operation in (LENGTH, CHUNK_SIZE):
            size = lob.size if operation == LENGTH else LOB_CHUNK
            stream.reply(head + signed(size), self._status())
        elif operation == IS_OPEN:
            stream.reply(head + b"\0", self._status())
        else:
            raise OraError(3001, f"LOB operation {operation:#x} is not implemented")

    def _status(self) -> bytes:
        return call_status(self._in_transaction())

    def _writable(self, locator: bytes) -> Lob:
        lob = self._lobs.find(locator)
        if not isinstance(lob, Lob):
            raise OraError(*ROW_NOT_LOCKED)
        return lob

    def _write(self, locator: bytes, offset: int) -> OraError | None:
        """Keep the data that follows; what is wrong is told once all of it is read."""
        lob, error = None, None
        try:
            lob = self._writable(locator)
        except OraError as refused:
            error = refused
        at = offset * lob.unit if lob else 0

        def keep(piece: memoryview) -> None:
            nonlocal at, error
            self._take(len(piece))
            if lob is not None and error is None:
                try:
                    lob.write_bytes(at, piece)
                except OraError as refused:
                    error = refused
            at += len(piece)

        if self._stream.byte() != MESSAGE_LOB_DATA:
            raise ProtocolError("LOB data expected")
        self._stream.counted(keep)
        return error

    def _read(self, lob: Readable, head: bytes, offset: int, count: int) -> None:
        count = max(min(count, lob.bytes_held - offset), 0)
        with Reply(self._stream) as reply:
            if count:
                reply.write(bytes([MESSAGE_LOB_DATA]))
            if 0 < count <= LONGEST_SHORT:
                reply.write(counted(lob.read_bytes(offset, count)))
            elif count:
                reply.write(bytes([LONG_VALUE]))
                for start in range(0, count, READ_BYTES):
                    part = min(READ_BYTES, count - start)
                    reply.write_chunks(lob.read_bytes(offset + start, part))
                reply.write(b"\0")
            reply.write(head + signed(count // lob.unit) + self._status())

    def free(self) -> None:
        """Read the list of temporary LOBs that the client is done with, and free them."""
        stream = self._stream
        stream.byte()
        total = stream.integer()
        stream.skip("biii")
        stream.read(3)
        if stream.integer() != FREE | SEVERAL:
            raise ProtocolError("list of freed LOBs expected")
        stream.skip("biiib" + "bi" * 3)
        for _ in range(total // LOCATOR_BYTES):
            self._lobs.free(stream.read(LOCATOR_BYTES))
