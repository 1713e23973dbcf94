"""ONNX files written and read without holding their weights in memory.

An ONNX file is one protobuf message, ``ModelProto``, whose field ``graph`` holds the nodes and,
nearly all of the bytes, the initializers. Here the *header*, an ordinary ``onnx.ModelProto``,
holds everything but the initializers, and these pass through one at a time. Field numbers:
onnx.proto, ``ModelProto.graph = 7``, ``GraphProto.initializer = 5``, ``TensorProto.raw_data = 9``.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from oml_mlflow.errors import PackageError
from oml_mlflow.graph.protobuf import BYTES, Field, fields, mapped, tag

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
# whatever is no initializer is held in memory; a hostile file must not fill it
_HEADER_LIMIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Initializer:
    """A constant tensor whose values are fetched when it is written.

    Attributes:
        name: Name of the tensor in the graph.
        shape: Its shape.
        dtype: Its numpy type.
        load: Returns the values, of that shape and type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @classmethod
    def constant(cls, name: str, values: np.ndarray) -> Initializer:
        """Return an initializer of these values."""
        return cls(name, tuple(values.shape), values.dtype, lambda: values)

    @property
    def size_bytes(self) -> int:
        """Size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def _prefix(self) -> bytes:
        tensor = onnx.TensorProto(
            name=self.name,
            dims=self.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(self.dtype),
        )
        head: bytes = tensor.SerializeToString(deterministic=True)
        return head + tag(_RAW_DATA, self.size_bytes)


def write_model(
    path: Path,
    header: onnx.ModelProto,
    initializers: Sequence[Initializer],
    on_bytes: Callable[[int, int], None] | None = None,
) -> str:
    """Write a new ONNX file, one initializer in memory at a time; return its lower-case sha256.

    The same arguments give the same bytes. `on_bytes` is called with bytes written and bytes in
    all.
    """
    prefixes = [item._prefix() for item in initializers]
    sizes = [len(p) + item.size_bytes for p, item in zip(prefixes, initializers, strict=True)]
    graph = header.graph.SerializeToString(deterministic=True)
    graph_size = len(graph) + sum(len(tag(_INITIALIZER, size)) + size for size in sizes)
    outer = onnx.ModelProto()
    outer.CopyFrom(header)
    outer.ClearField("graph")

    digest, written = hashlib.sha256(), 0
    start = outer.SerializeToString(deterministic=True) + tag(_GRAPH, graph_size)
    total = len(start) + graph_size
    with path.open("xb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal written
            file.write(data)
            digest.update(data)
            written += len(data)

        put(start)
        put(graph)
        for prefix, size, item in zip(prefixes, sizes, initializers, strict=True):
            values = np.asarray(item.load(), dtype=item.dtype, order="C")
            if tuple(values.shape) != item.shape:
                raise ValueError(f"{item.name}: got shape {values.shape}, wanted {item.shape}")
            put(tag(_INITIALIZER, size))
            put(prefix)
            put(values.reshape(-1).view(np.uint8).data)
            if on_bytes:
                on_bytes(written, total)
    return digest.hexdigest()


def read_header(path: Path) -> onnx.ModelProto:
    """Return the model of an ONNX file without its initializers, in little memory.

    Raises:
        PackageError: If the file is no ONNX model.
    """
    return read_model(path)[0]


def read_model(path: Path) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return an ONNX file's model without initializers, and the initializers, not yet read.

    Initializers whose values are not in ``raw_data`` (strings, external data) have the dtype
    object and can't be loaded; their names and shapes are right.

    Raises:
        PackageError: If the file is no ONNX model.
    """
    stored: list[Initializer] = []
    try:
        with mapped(path) as data:
            outer, graph = bytearray(), bytearray()
            for field in fields(data, 0, len(data)):
                if (field.number, field.wire) != (_GRAPH, BYTES):
                    outer += _take(data, field)
                    continue
                for inner in fields(data, field.at, field.end):
                    if (inner.number, inner.wire) == (_INITIALIZER, BYTES):
                        stored.append(_read_initializer(data, path, inner))
                    else:
                        graph += _take(data, inner)
        header = onnx.ModelProto.FromString(bytes(outer))
        header.graph.MergeFromString(bytes(graph))
    # onnx raises KeyError and TypeError for unknown types
    except (DecodeError, ValueError, LookupError, TypeError) as error:
        raise _no_model(path) from error
    if not header.graph.node:
        raise _no_model(path)
    return header, stored


def _read_initializer(data: mmap.mmap, path: Path, message: Field) -> Initializer:
    head, raw = bytearray(), None
    for field in fields(data, message.at, message.end):
        if (field.number, field.wire) == (_RAW_DATA, BYTES):
            raw = field
        elif field.end - field.at <= _HEADER_LIMIT_BYTES:
            head += _take(data, field)
    tensor = onnx.TensorProto.FromString(bytes(head))
    shape = tuple(tensor.dims)
    if raw is None:
        # onnx itself would read the file that an external tensor names
        outside = tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL
        if tensor.data_type == onnx.TensorProto.STRING or outside:
            return Initializer(tensor.name, shape, np.dtype(object), _unreadable)
        return Initializer.constant(tensor.name, onnx.numpy_helper.to_array(tensor))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    offset, size = raw.at, raw.end - raw.at

    def load() -> np.ndarray:
        with path.open("rb") as again:
            again.seek(offset)
            return np.frombuffer(again.read(size), dtype).reshape(shape)

    return Initializer(tensor.name, shape, dtype, load)


def _unreadable() -> np.ndarray:
    raise ValueError("the tensor's values are not in the file as raw data")


def _no_model(path: Path) -> PackageError:
    return PackageError(
        f"{path} is no ONNX model: its bytes are not the protobuf message ModelProto. "
        "Nothing was changed.",
        hint="export the pair again, or name the right file.",
    )


def _take(data: mmap.mmap, field: Field) -> bytes:
    """Return a whole field, its tag included."""
    if field.end - field.at > _HEADER_LIMIT_BYTES:
        raise ValueError("a field outside the initializers is too large")
    return data[field.start : field.end]
