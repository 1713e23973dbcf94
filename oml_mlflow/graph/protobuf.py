"""Fields of a protobuf message, read in place in a file, and what stands before them.

Needs neither onnx nor protobuf.

Protobuf's parsers don't agree on odd bytes: C++, which ONNX Runtime uses, drops a tag's bits above
2^32 where others refuse the message. Only what all of them read alike is accepted here.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VARINT, BYTES = 0, 2
_SIZES = {1: 8, 5: 4}


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Its number.
        wire: Its wire type.
        start: Offset of its tag.
        at: Offset of its value.
        end: Offset after it.
    """

    number: int
    wire: int
    start: int
    at: int
    end: int


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yield the bytes of a file; only those that are read take memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def fields(data: mmap.mmap, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two offsets.

    Raises:
        ValueError, IndexError: If the bytes are no message, hold a group, or a number is not
            written in its shortest form.
    """
    while at < end:
        start = at
        tag, at = _read_varint(data, at)
        number, wire, value = tag >> 3, tag & 7, at
        if not number or tag >> 32:
            raise ValueError(f"field number {number}")
        if wire == VARINT:
            _, at = _read_varint(data, at)
        elif wire == BYTES:
            length, value = _read_varint(data, at)
            at = value + length
        elif wire in _SIZES:
            at += _SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field is longer than its message")
        yield Field(number, wire, start, value, at)


def tag(number: int, length: int) -> bytes:
    """Return what stands before the bytes of a field."""
    return varint(number << 3 | BYTES) + varint(length)


def varint(value: int) -> bytes:
    """Return a number in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
        if shift == 70:  # 64 bits need ten bytes at most
            raise ValueError("a number is too long")
    if value >> 64 or (byte == 0 and shift > 7):
        raise ValueError("a number is not in its shortest form")
    return value, at
