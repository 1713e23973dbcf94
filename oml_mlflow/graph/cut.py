"""A part of a pipeline's graph, between two of its tensors, without a second copy of its weights.

It is an ONNX model of some kilobytes whose large tensors stay where they are in the pipeline's own
file, named by offset; the runtime gets that file's bytes with it. Made without the onnx package,
which serving has not. Field numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from oml_mlflow.errors import PackageError
from oml_mlflow.graph.protobuf import BYTES, VARINT, Field, fields, mapped, tag, varint

# where our pipelines can be cut: all pixels of a picture, uint8 (1, 3, height, width) in BGR;
# prepared pixels; token ids
PLANES, PIXEL_VALUES, INPUT_IDS = "planes", "pixel_values", "input_ids"
# under which name a part refers to its pipeline's file
WEIGHTS = "weights"

_IR_VERSION, _GRAPH, _OPSETS, _PROPERTIES = 1, 7, 8, 14
_NODE, _NAME, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 2, 5, 11, 12, 13
_READS, _WRITES, _ATTRIBUTE, _SUBGRAPH = 1, 2, 5, 6
_TENSOR_NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 8, 9, 13, 14
_EXTERNAL = b"\x01"
# ONNX Runtime wants shapes and other small constants in the model itself
_INLINE_BYTES = 1024


def read_part(path: Path, first: str, last: str) -> bytes | None:
    """Return the model between two tensors of an ONNX file, the file's own metadata included.

    Returns:
        The model, whose external tensors lie in `path`, called `WEIGHTS`; None if the file has none
        of the two, or `last` needs more than `first`.

    Raises:
        PackageError: If the file can't be read as every parser of protobuf reads it.
    """
    try:
        with mapped(path) as data:
            return _read_part(data, first, last)
    except (OSError, ValueError, IndexError) as error:
        raise PackageError(
            f"{path.name} can't be loaded: it is no readable ONNX model ({error}).",
            hint="export the pair again, or name the right file.",
        ) from error


def _read_part(data: mmap.mmap, first: str, last: str) -> bytes | None:
    outer, graphs = b"", []
    for field in fields(data, 0, len(data)):
        if (field.number, field.wire) == (_GRAPH, BYTES):
            graphs.append(field)
        elif field.number in (_IR_VERSION, _OPSETS, _PROPERTIES):
            outer += data[field.start : field.end]
    if len(graphs) != 1:
        return None
    (graph,) = graphs
    nodes: list[Field] = []
    stored: dict[str, Field] = {}
    types: dict[str, bytes] = {}
    for field in fields(data, graph.at, graph.end):
        if field.number == _NODE:
            nodes.append(field)
        elif field.number == _INITIALIZER:
            stored[_names(data, field, _TENSOR_NAME)[0]] = field
        elif field.number in (_INPUT, _OUTPUT, _VALUE_INFO):
            types[_names(data, field, 1)[0]] = data[field.at : field.end]
    needed, chosen = {last}, []
    for node in reversed(nodes):
        written = set(_names(data, node, _WRITES))
        if first not in written and needed & written:
            chosen.append(data[node.start : node.end])
            needed = needed - written | set(_read_by(data, node))
    if not chosen or not {first, last} <= types.keys() or needed - stored.keys() - {first, ""}:
        return None
    inside = b"".join(reversed(chosen)) + _message(_NAME, b"part")
    for name in sorted(needed & stored.keys()):
        inside += _message(_INITIALIZER, _tensor(data, stored[name]))
    inside += _message(_INPUT, types[first]) + _message(_OUTPUT, types[last])
    return outer + _message(_GRAPH, inside)


def _read_by(data: mmap.mmap, node: Field) -> Iterator[str]:
    """Yield the tensors that a node reads, its branches included."""
    yield from _names(data, node, _READS)
    for attribute in fields(data, node.at, node.end):
        if attribute.number == _ATTRIBUTE:
            for graph in fields(data, attribute.at, attribute.end):
                if graph.number == _SUBGRAPH:
                    for inner in fields(data, graph.at, graph.end):
                        if inner.number == _NODE:
                            yield from _read_by(data, inner)


def _names(data: mmap.mmap, message: Field, number: int) -> list[str]:
    found = fields(data, message.at, message.end)
    return [data[f.at : f.end].decode() for f in found if (f.number, f.wire) == (number, BYTES)]


def _tensor(data: mmap.mmap, tensor: Field) -> bytes:
    """Return a tensor whose values stay in the file, or a small one as it is."""
    head, raw = b"", None
    for field in fields(data, tensor.at, tensor.end):
        if (field.number, field.wire) == (_RAW_DATA, BYTES):
            raw = field
        else:
            head += data[field.start : field.end]
    if raw is None or raw.end - raw.at < _INLINE_BYTES:
        return data[tensor.at : tensor.end]
    place = {"location": WEIGHTS, "offset": str(raw.at), "length": str(raw.end - raw.at)}
    for key, value in place.items():
        entry = _message(1, key.encode()) + _message(2, value.encode())
        head += _message(_EXTERNAL_DATA, entry)
    return head + varint(_DATA_LOCATION << 3 | VARINT) + _EXTERNAL


def _message(number: int, value: bytes) -> bytes:
    return tag(number, len(value)) + value
