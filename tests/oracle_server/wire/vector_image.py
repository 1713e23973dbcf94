"""VECTOR values as bytes."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle_server.wire.encoding import ProtocolError

MAGIC = 0xDB
FLOAT32, FLOAT64, INT8, BINARY = 2, 3, 4, 5
TYPECODES = {FLOAT32: "f", FLOAT64: "d", INT8: "b", BINARY: "B"}
HAS_NORM, NORM_RESERVED, SPARSE = 0x02, 0x10, 0x20


@dataclass
class SparseVector:
    """A vector that travels as the places and values of its non-zero numbers."""

    dims: int
    indices: list[int]
    values: array[Any]


def encode_vector(vector: Sequence[float], vector_format: int) -> bytes:
    """Return a vector's image; the numbers may be any sequence, an array or a numpy vector."""
    typecode = TYPECODES[vector_format]
    dims = len(vector) * 8 if vector_format == BINARY else len(vector)
    version, flags = (
        (1, NORM_RESERVED) if vector_format == BINARY else (0, NORM_RESERVED | HAS_NORM)
    )
    head = bytes([MAGIC, version]) + struct.pack(">HBI", flags, vector_format, dims) + bytes(8)
    return head + _encode_numbers(vector, typecode)


def decode_vector(raw: bytes) -> array[Any] | SparseVector:
    """Return a vector's numbers as an array, or a sparse vector as it is.

    Raises:
        ProtocolError: If the image is not one, or not as long as it says.
    """
    if raw[:1] != bytes([MAGIC]):
        raise ProtocolError("not a VECTOR image")
    flags, vector_format, dims = struct.unpack(">HBI", raw[2:9])
    at = 9 + (8 if flags & (NORM_RESERVED | HAS_NORM) else 0)
    count, indices = dims // 8 if vector_format == BINARY else dims, None
    if flags & SPARSE:
        (count,) = struct.unpack_from(">H", raw, at)
        indices = list(struct.unpack_from(f">{count}I", raw, at + 2))
        at += 2 + 4 * count
    values = _decode_numbers(raw[at:], TYPECODES[vector_format])
    if len(values) != count:
        raise ProtocolError(f"VECTOR image holds {len(values)} numbers, {count} announced")
    return values if indices is None else SparseVector(dims, indices, values)


def _encode_numbers(numbers: Sequence[float], typecode: str) -> bytes:
    if typecode in "bB":
        return np.asarray(numbers, np.dtype(typecode)).tobytes()
    bits = np.asarray(numbers, np.dtype(typecode).newbyteorder(">"))
    words = bits.view(f">u{bits.itemsize}")
    sign = words.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(words & sign, ~words, words | sign).astype(words.dtype).tobytes()


def _decode_numbers(raw: bytes, typecode: str) -> array[Any]:
    if typecode in "bB":
        return array(typecode, raw)
    size = np.dtype(typecode).itemsize
    words = np.frombuffer(raw, f">u{size}")
    sign = words.dtype.type(1 << (8 * size - 1))
    bits = np.where(words & sign, words ^ sign, ~words).astype(words.dtype)
    return array(typecode, bits.view(f">f{size}").astype(typecode).tobytes())
