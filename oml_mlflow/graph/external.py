"""Tensors of an ONNX file whose values are in other files, found without the onnx package.

Serving has no onnx, and ONNX Runtime would read whatever file is named, wherever it is. Field
numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from oml_mlflow.errors import PackageError
from oml_mlflow.graph.protobuf import BYTES, VARINT, fields, mapped

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

    Subgraphs, functions and attributes are searched too; weights are skipped. A message that is
    there twice, which protobuf merges, is searched twice: half a tensor that says it is external
    is enough.

    Raises:
        PackageError: If the file can't be read, or its bytes are not what every parser of
            protobuf reads alike.
    """
    try:
        with mapped(path) as data:
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
    for field in fields(data, start, end):
        if field.wire == BYTES and field.number in nested:
            yield from _search(data, field.at, field.end, nested[field.number], depth + 1)


def _external(data: mmap.mmap, start: int, end: int) -> tuple[str, str] | None:
    name, location, is_external = "", "", False
    for field in fields(data, start, end):
        value = slice(field.at, field.end)
        if (field.number, field.wire) == (_TENSOR_NAME, BYTES):
            name = data[value].decode("utf-8", "replace")
        elif (field.number, field.wire) == (_DATA_LOCATION, VARINT):
            # any other value, since parsers keep 32 bits of it: 2^32 + 1 is read as 1
            is_external = is_external or data[value] != b"\0"
        elif (field.number, field.wire) == (_EXTERNAL_DATA, BYTES):
            is_external = True
            entry = {f.number: data[f.at : f.end] for f in fields(data, field.at, field.end)}
            if entry.get(_ENTRY_KEY) == b"location":
                location = entry.get(_ENTRY_VALUE, b"").decode("utf-8", "replace")
    return (name, location) if is_external else None
