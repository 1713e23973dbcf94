"""ONNX files written and read without holding their weights in memory.

An ONNX file is one protobuf message, ``ModelProto``, whose field ``graph`` holds the nodes and,
nearly all of the bytes, the initializers. Here everything but the initializers is an ordinary
``onnx.ModelProto`` (the *header*), and initializers pass through one at a time. Field numbers:
onnx.proto, ``ModelProto.graph = 7``, ``GraphProto.initializer = 5``, ``TensorProto.raw_data = 9``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from oml_mlflow.errors import PackageError

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
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
        """Return an initializer whose values are at hand."""
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
        return head + _tag(_RAW_DATA, self.size_bytes)


def write_model(
    path: Path,
    header: onnx.ModelProto,
    initializers: Sequence[Initializer],
    on_bytes: Callable[[int, int], None] | None = None,
) -> str:
    """Write an ONNX file, one initializer in memory at a time, and return its fingerprint.

    Args:
        path: File to create; it must not exist.
        header: The model without initializers.
        initializers: The model's initializers.
        on_bytes: Called with (bytes written, bytes in all).

    Returns:
        Lower-case sha256 of the file. The same arguments give the same bytes.
    """
    prefixes = [item._prefix() for item in initializers]
    sizes = [len(p) + item.size_bytes for p, item in zip(prefixes, initializers, strict=True)]
    graph = header.graph.SerializeToString(deterministic=True)
    graph_size = len(graph) + sum(len(_tag(_INITIALIZER, size)) + size for size in sizes)
    outer = onnx.ModelProto()
    outer.CopyFrom(header)
    outer.ClearField("graph")

    digest, written = hashlib.sha256(), 0
    start = outer.SerializeToString(deterministic=True) + _tag(_GRAPH, graph_size)
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
            put(_tag(_INITIALIZER, size))
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

    Initializers whose values are not in ``raw_data`` (strings, external data) have an empty
    `Initializer.dtype` of object and can't be loaded; their names and shapes are right.

    Raises:
        PackageError: If the file is no ONNX model.
    """
    stored: list[Initializer] = []
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            outer, graph = bytearray(), bytearray()
            for field, raw, length in _fields(file, size):
                if field != _GRAPH:
                    outer += raw + _take(file, length)
                    continue
                for inner, inner_raw, inner_length in _fields(file, file.tell() + length):
                    if inner == _INITIALIZER:
                        stored.append(_read_initializer(file, path, inner_length))
                    else:
                        graph += inner_raw + _take(file, inner_length)
        header = onnx.ModelProto.FromString(bytes(outer))
        header.graph.MergeFromString(bytes(graph))
    except (DecodeError, ValueError, EOFError) as error:
        raise _no_model(path) from error
    if not header.graph.node:
        raise _no_model(path)
    return header, stored


def _read_initializer(file: IO[bytes], path: Path, length: int) -> Initializer:
    """Return the initializer at the file's position, which is moved behind it."""
    end = file.tell() + length
    head, raw_at, raw_size = bytearray(), None, 0
    for field, raw, size in _fields(file, end):
        if field == _RAW_DATA:
            raw_at, raw_size = file.tell(), size
            file.seek(size, 1)
        elif size <= _HEADER_LIMIT_BYTES:
            head += raw + _take(file, size)
    tensor = onnx.TensorProto.FromString(bytes(head))
    shape = tuple(tensor.dims)
    if raw_at is None:
        if tensor.data_type == onnx.TensorProto.STRING or tensor.external_data:
            return Initializer(tensor.name, shape, np.dtype(object), _unreadable)
        return Initializer.constant(tensor.name, onnx.numpy_helper.to_array(tensor))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    offset = raw_at

    def load() -> np.ndarray:
        with path.open("rb") as again:
            again.seek(offset)
            return np.frombuffer(again.read(raw_size), dtype).reshape(shape)

    return Initializer(tensor.name, shape, dtype, load)


def _unreadable() -> np.ndarray:
    raise ValueError("the tensor's values are not in the file as raw data")


def _no_model(path: Path) -> PackageError:
    return PackageError(
        f"{path} is no ONNX model: its bytes are not the protobuf message ModelProto. "
        "Nothing was changed.",
        hint="export the pair again, or name the right file.",
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, length: int) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(length)


def _take(file: IO[bytes], length: int) -> bytes:
    if length > _HEADER_LIMIT_BYTES:
        raise ValueError("a field outside the initializers is too large")
    data = file.read(length)
    if len(data) != length:
        raise EOFError
    return data


def _read_varint(file: IO[bytes]) -> tuple[int, bytes]:
    value, raw = 0, bytearray()
    while True:
        byte = _take(file, 1)
        raw += byte
        value |= (byte[0] & 0x7F) << 7 * (len(raw) - 1)
        if byte[0] < 0x80:
            return value, bytes(raw)
        if len(raw) == 10:
            raise ValueError("varint too long")


def _fields(file: IO[bytes], end: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield (field number, bytes of tag and length, bytes that follow) up to offset `end`."""
    while file.tell() < end:
        key, raw = _read_varint(file)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, more = _read_varint(file)
            raw, length = raw + more, 0
        elif kind == _BYTES:
            length, more = _read_varint(file)
            raw += more
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if file.tell() + length > end:
            raise EOFError
        yield field, raw, length
    if file.tell() != end:
        raise EOFError
