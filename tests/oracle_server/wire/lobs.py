"""LOBs of a session and the locators that stand for them."""

from __future__ import annotations

import itertools
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

from oracle_server.statement import BLOB, CLOB, OraError

MEMORY_BYTES = 4 << 20
FILE_BUFFER_BYTES = 1 << 16  # measured: 1 MB writes take three times the system's time
LOCATOR_BYTES = 40
UTF16 = "utf-16-be"


class Readable(ABC):
    """A LOB as the engine reads it.

    ``size`` and ``read_at`` count bytes of a BLOB and UTF-16 units of a CLOB, as python-oracledb
    does; ``bytes_held`` and ``read_bytes`` count bytes of either.

    Args:
        kind: ``BLOB`` or ``CLOB``.
    """

    bytes_held: int

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.unit = 2 if kind == CLOB else 1

    @abstractmethod
    def read_bytes(self, offset: int, count: int) -> bytes:
        """Return bytes from a byte offset on, fewer at the end."""

    @property
    def size(self) -> int:
        """How long it is."""
        return self.bytes_held // self.unit

    def read_at(self, offset: int, count: int) -> Any:
        """Return bytes of a BLOB or text of a CLOB from an offset on, fewer at the end."""
        raw = self.read_bytes(offset * self.unit, count * self.unit)
        return raw if self.kind == BLOB else raw.decode(UTF16, "surrogatepass")

    def value(self) -> Any:
        """Return all of it: bytes of a BLOB, text of a CLOB."""
        return self.read_at(0, self.size)

    def contents(self) -> bytes:
        """Return all of it as bytes, text in UTF-8."""
        value = self.value()
        return value if isinstance(value, bytes) else value.encode()


class Lob(Readable):
    """A LOB whose bytes are kept in memory, or in a file once there are many.

    Writes go where they say: a gap is refused, not filled.

    Args:
        kind: ``BLOB`` or ``CLOB``.
        path: Where the file would be.
    """

    def __init__(self, kind: int, path: Path) -> None:
        super().__init__(kind)
        self.bytes_held = 0
        self._path = path
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._at = 0

    @property
    def path(self) -> Path:
        """A file with all of its bytes; it goes when the client frees the LOB."""
        self._spill().flush()
        return self._path

    def _spill(self) -> BinaryIO:
        if self._file is None:
            self._file = self._path.open("w+b", buffering=FILE_BUFFER_BYTES)
            self._file.write(self._memory)
            self._at = len(self._memory)
            self._memory = bytearray()
        return self._file

    def write_bytes(self, offset: int, data: memoryview) -> None:
        """Write bytes at a byte offset.

        Raises:
            OraError: If the offset lies behind the end.
        """
        if offset > self.bytes_held:
            # The code is a guess at what a real database answers.
            raise OraError(22993, "specified input amount is greater than actual source amount")
        end = offset + len(data)
        if self._file is None and end <= MEMORY_BYTES:
            self._memory[offset:end] = data
        else:
            file = self._spill()
            if offset != self._at:
                file.seek(offset)
            file.write(data)
            self._at = end
        self.bytes_held = max(self.bytes_held, end)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Return bytes from a byte offset on, fewer at the end."""
        if self._file is None:
            return bytes(self._memory[offset : offset + count])
        self._file.seek(offset)
        data = self._file.read(count)
        self._at = offset + len(data)
        return data

    def trim(self, size: int) -> None:
        """Cut it to a size.

        Raises:
            OraError: If it is not that long.
        """
        if size > self.size:
            raise OraError(
                22926, "specified trim length is greater than current LOB value's length"
            )
        self.bytes_held = size * self.unit
        if self._file is None:
            del self._memory[self.bytes_held :]
        else:
            self._file.truncate(self.bytes_held)

    def close(self) -> None:
        """Forget its bytes and remove its file."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)


class FetchedLob(Readable):
    """A LOB that a statement returned: read only, its value kept where the engine has it.

    Args:
        kind: ``BLOB`` or ``CLOB``.
        value: bytes or str, or an object with ``size`` and ``read_at(offset, count)`` in bytes.
    """

    def __init__(self, kind: int, value: Any) -> None:
        super().__init__(kind)
        self._value = value.encode(UTF16) if kind == CLOB and isinstance(value, str) else value

    @property
    def bytes_held(self) -> int:  # type: ignore[override]
        """How many bytes it has."""
        held = self._value
        return len(held) if isinstance(held, (bytes, bytearray, memoryview)) else int(held.size)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Return bytes from a byte offset on, fewer at the end."""
        held = self._value
        if isinstance(held, (bytes, bytearray, memoryview)):
            return bytes(held[offset : offset + count])
        return bytes(held.read_at(offset, count))


def as_lob(kind: int, value: Any) -> Readable:
    """Return a value of an engine as a LOB."""
    return value if isinstance(value, (Lob, FetchedLob)) else FetchedLob(kind, value)


class LobStore:
    """The LOBs of one session by their locators.

    A client frees temporary LOBs. It never says that it is done with one that it fetched: those
    stay until the session ends, though only as a reference to the engine's value.

    Args:
        folder: Takes the files of large temporary LOBs.
    """

    _numbers = itertools.count(1)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lobs: dict[bytes, Readable] = {}

    def create(self, kind: int) -> bytes:
        """Make an empty temporary LOB and return its locator."""
        if kind not in (BLOB, CLOB):
            raise OraError(3001, f"temporary LOBs of type {kind} are not implemented")
        return self.add(Lob(kind, self._folder / f"lob_{next(self._numbers)}"), is_temporary=True)

    def add(self, lob: Readable, is_temporary: bool) -> bytes:
        """Take a LOB and return its locator."""
        kind_flag, charset_flag = (1, 0) if lob.kind == BLOB else (0, 0x80)
        flags = bytes([kind_flag, 8, charset_flag, 1 if is_temporary else 0])
        number = next(self._numbers).to_bytes(8, "big")
        locator = struct.pack(">HH", LOCATOR_BYTES - 2, 4) + flags + number + bytes(24)
        self._lobs[locator] = lob
        return locator

    def find(self, locator: bytes) -> Readable:
        """Return the LOB of a locator.

        Raises:
            OraError: If there is none (any more).
        """
        lob = self._lobs.get(locator)
        if lob is None:
            raise OraError(22275, "invalid LOB locator specified")
        return lob

    def free(self, locator: bytes) -> None:
        """Forget a LOB."""
        lob = self._lobs.pop(locator, None)
        if isinstance(lob, Lob):
            lob.close()

    def close(self) -> None:
        """Forget them all."""
        for locator in list(self._lobs):
            self.free(locator)
