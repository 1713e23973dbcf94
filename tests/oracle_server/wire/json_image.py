"""JSON values as bytes (OSON): the documents of JSON binds and JSON columns.

Dates, intervals and vectors inside a document are not implemented.
"""

from __future__ import annotations

import struct
from typing import Any

from oracle_server.wire.encoding import (
    ProtocolError,
    decode_float,
    decode_number,
    encode_double,
    encode_number,
)

MAGIC = b"\xffJZ"
RELATIVE_OFFSETS, SCALAR = 0x01, 0x10
NAMES_UB2, NAMES_UB4, SEGMENT_UB4, TREE_UB4 = 0x400, 0x08, 0x800, 0x1000
LONG_NAMES_UB2 = 0x100
INLINE_LEAF, HASHED_NAMES = 0x02, 0x100
CONTAINER, ARRAY, WIDE_OFFSETS, SHARED_NAMES = 0x80, 0x40, 0x20, 0x18
NULL, TRUE, FALSE, DOUBLE, FLOAT = 0x30, 0x31, 0x32, 0x36, 0x7F
STRING_LENGTHS = {0x33: 1, 0x37: 2, 0x38: 4}
CHILD_COUNTS = {0x00: 1, 0x08: 2, 0x10: 4}


def decode_json(raw: bytes) -> Any:
    """Return the document of an image, with numbers as int or float.

    Raises:
        ProtocolError: If it is not an image or holds a type that is not implemented.
    """
    return _Image(raw).document()


class _Image:
    def __init__(self, raw: bytes) -> None:
        if raw[:3] != MAGIC:
            raise ProtocolError("not a JSON image")
        self._raw, self._at = raw, 3
        self._names: list[str] = []
        version, flags = self._integer(1), self._integer(2)
        self._relative = bool(flags & RELATIVE_OFFSETS)
        tree_size = 4 if flags & TREE_UB4 else 2
        self._name_size = 4 if flags & NAMES_UB4 else 2 if flags & NAMES_UB2 else 1
        if flags & SCALAR:
            self._integer(tree_size)
        else:
            self._read_names(version, flags, tree_size)
        self._tree = self._at

    def document(self) -> Any:
        self._at = self._tree
        return self._node()

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        part = self._raw[self._at : self._at + size]
        self._at += size
        return part

    def _read_names(self, version: int, flags: int, tree_size: int) -> None:
        short = self._integer(self._name_size)
        offset_size = 4 if flags & SEGMENT_UB4 else 2
        segment = self._integer(offset_size)
        long, long_offset_size, long_segment = 0, 4, 0
        if version == 3:
            long_offset_size = 2 if self._integer(2) & LONG_NAMES_UB2 else 4
            long, long_segment = self._integer(4), self._integer(4)
        self._integer(tree_size)
        self._integer(2)
        self._read_segment(short, 1, offset_size, segment)
        if long:
            self._read_segment(long, 2, long_offset_size, long_segment)

    def _read_segment(self, count: int, head_size: int, offset_size: int, size: int) -> None:
        self._at += count * head_size
        offsets = [self._integer(offset_size) for _ in range(count)]
        base = self._at
        for offset in offsets:
            self._at = base + offset
            self._names.append(self._take(self._integer(head_size)).decode())
        self._at = base + size

    def _node(self) -> Any:
        start = self._at - self._tree
        kind = self._integer(1)
        if kind & CONTAINER:
            return self._container(kind, start)
        if kind in (NULL, TRUE, FALSE):
            return {NULL: None, TRUE: True, FALSE: False}[kind]
        if kind in STRING_LENGTHS:
            return self._take(self._integer(STRING_LENGTHS[kind])).decode()
        if kind in (0x34, 0x74):
            return self._number(self._integer(1))
        if kind in (DOUBLE, FLOAT):
            return decode_float(self._take(8 if kind == DOUBLE else 4))
        if kind & 0xF0 in (0x20, 0x60):
            return self._number((kind & 15) + 1)
        if kind & 0xF0 in (0x40, 0x50):
            return self._number(kind & 15)
        if kind < 0x20:
            return self._take(kind).decode()
        raise ProtocolError(f"JSON node of type {kind:#x} is not implemented")

    def _number(self, size: int) -> int | float:
        number = decode_number(self._take(size))
        return number if isinstance(number, int) else float(number)

    def _child_count(self, kind: int) -> int:
        return self._integer(CHILD_COUNTS[kind & SHARED_NAMES])

    def _container(self, kind: int, start: int) -> Any:
        offset_size, is_object = 4 if kind & WIDE_OFFSETS else 2, not kind & ARRAY
        if kind & SHARED_NAMES == SHARED_NAMES:
            sibling, offsets = self._tree + self._integer(offset_size), self._at
            self._at = sibling
            count, names = self._child_count(self._integer(1)), self._at
        else:
            count, names = self._child_count(kind), self._at
            offsets = names + (self._name_size * count if is_object else 0)
        values, keys = [], []
        for index in range(count):
            if is_object:
                self._at = names + index * self._name_size
                keys.append(self._names[self._integer(self._name_size) - 1])
            self._at = offsets + index * offset_size
            offset = self._integer(offset_size) + (start if self._relative else 0)
            self._at = self._tree + offset
            values.append(self._node())
        return dict(zip(keys, values, strict=True)) if is_object else values


def encode_json(document: Any) -> bytes:
    """Return the image of a document; names may have 255 bytes at most.

    Raises:
        ProtocolError: If a name is longer.
    """
    if not isinstance(document, (dict, list, tuple)):
        node = _scalar(document)
        flags = INLINE_LEAF | SCALAR | TREE_UB4
        return MAGIC + bytes([1]) + struct.pack(">HI", flags, len(node)) + node
    names: dict[str, int] = {}
    _collect_names(document, names)
    encoded = [name.encode() for name in names]
    if any(len(name) > 255 for name in encoded):
        raise ProtocolError("JSON names longer than 255 bytes are not implemented")
    order = sorted(range(len(encoded)), key=lambda i: (_hash(encoded[i]), encoded[i]))
    segment, offsets = bytearray(), []
    for rank, index in enumerate(order):
        names[encoded[index].decode()] = rank + 1
        offsets.append(len(segment))
        segment += bytes([len(encoded[index])]) + encoded[index]
    tree = bytearray()
    _write_node(document, names, tree)
    flags = INLINE_LEAF | HASHED_NAMES | NAMES_UB4 | SEGMENT_UB4 | TREE_UB4
    head = struct.pack(">HIIIH", flags, len(order), len(segment), len(tree), 0)
    hashes = bytes(_hash(encoded[index]) for index in order)
    places = b"".join(struct.pack(">I", offset) for offset in offsets)
    return MAGIC + bytes([1]) + head + hashes + places + bytes(segment) + bytes(tree)


def _hash(name: bytes) -> int:
    value = 0x811C9DC5
    for byte in name:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value & 0xFF


def _collect_names(document: Any, names: dict[str, int]) -> None:
    if isinstance(document, dict):
        for name, value in document.items():
            names.setdefault(name, 0)
            _collect_names(value, names)
    elif isinstance(document, (list, tuple)):
        for value in document:
            _collect_names(value, names)


def _scalar(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return bytes([NULL if value is None else TRUE if value else FALSE])
    if isinstance(value, float):
        return bytes([DOUBLE]) + encode_double(value)
    if isinstance(value, str):
        raw = value.encode()
        return b"\x38" + struct.pack(">I", len(raw)) + raw
    raw = encode_number(value)
    return bytes([0x34, len(raw)]) + raw


def _write_node(document: Any, names: dict[str, int], tree: bytearray) -> None:
    if not isinstance(document, (dict, list, tuple)):
        tree += _scalar(document)
        return
    is_object = isinstance(document, dict)
    tree.append(CONTAINER | WIDE_OFFSETS | 0x10 | (0 if is_object else ARRAY))
    tree += struct.pack(">I", len(document))
    values = list(document)
    if isinstance(document, dict):
        items = sorted(document.items(), key=lambda item: names[item[0]])
        tree += b"".join(struct.pack(">I", names[name]) for name, _ in items)
        values = [value for _, value in items]
    place = len(tree)
    tree += bytes(4 * len(values))
    for index, value in enumerate(values):
        tree[place + 4 * index : place + 4 * index + 4] = struct.pack(">I", len(tree))
        _write_node(value, names, tree)
