"""Tensors of an ONNX file whose values are in other files, found without the onnx package.

Serving has no onnx; and ONNX Runtime would read what the file names, wherever that is. Field
numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from oml_mlflow.errors import PackageError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION, _ENTRY_KEY, _ENTRY_VALUE = 8, 13, 14, 1, 2
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# protobuf's own limit for nested messages
_DEPTH_LIMIT = 100


def external_tensors(path: Path) -> list[tuple[str, str]]:
    """Return (name, location) of every tensor that is kept in another file. Read-only.

    Looks into subgraphs, functions and attributes too; weights are passed over.

    Raises:
        PackageError: If the file can't be read, or its bytes are no protobuf message.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return list(_search(data, 0, len(data), "model", 0))
    except (OSError, ValueError, IndexError) as error:
        raise PackageError(
            f"{path.name} can't be loaded: it is no readable ONNX model ({error}).",
            hint="export the pair again, or name the right file.",
        ) from error


def _search(
    data: mmap.mmap, start: int, end: int, kind: str, depth: int
) -> Iterator[tuple[str, str]]:
    if depth > _DEPTH_LIMIT:
        raise ValueError("messages are nested too deeply")
    if kind == "tensor":
        found = _external(data, start, end)
        if found is not None:
            yield found
        return
    nested = _NESTED[kind]
    for field, wire, at, after in _fields(data, start, end):
        if field in nested and wire == _BYTES:
            yield from _search(data, at, after, nested[field], depth + 1)


def _external(data: mmap.mmap, start: int, end: int) -> tuple[str, str] | None:
    name, location, is_external = "", "", False
    for field, wire, at, after in _fields(data, start, end):
        if field == _TENSOR_NAME and wire == _BYTES:
            name = data[at:after].decode("utf-8", "replace")
        elif field == _DATA_LOCATION and wire == _VARINT:
            is_external = is_external or data[at] != 0
        elif field == _EXTERNAL_DATA and wire == _BYTES:
            is_external = True
            parts = {f: data[a:b] for f, w, a, b in _fields(data, at, after) if w == _BYTES}
            if parts.get(_ENTRY_KEY) == b"location":
                location = parts.get(_ENTRY_VALUE, b"").decode("utf-8", "replace")
    return (name, location) if is_external else None


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, offset of the value, offset behind it)."""
    while at < end:
        key, at = _varint(data, at)
        wire, start = key & 7, at
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field is longer than the file")
        yield key >> 3, wire, start, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= 70:
            raise ValueError("a number is too long")
