"""What a database looks at in an ONNX file, read without its weights.

An independent reader of the file format: the package under test has one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
STRING, UINT8, FLOAT = 8, 2, 1


class NotOnnx(Exception):
    """The bytes are no ONNX model."""


@dataclass
class Tensor:
    """An input or output: its element type, and its dims; None for one that varies."""

    name: str
    type: int = 0
    dims: list[int | None] = field(default_factory=list)


@dataclass
class OnnxFile:
    """The outside of a model."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)
    is_external: bool = False
    initializers: set[str] = field(default_factory=set)


def read_onnx(path: Path) -> OnnxFile:
    """Read a file.

    Raises:
        NotOnnx: If it is none.
    """
    found = OnnxFile()
    try:
        with path.open("rb") as file:
            _read_model(file, path.stat().st_size, found)
    except (IndexError, UnicodeDecodeError) as error:
        raise NotOnnx(str(error)) from error
    if not found.ir_version or not found.opsets or not found.outputs:
        raise NotOnnx("there is no graph in it")
    found.inputs = [t for t in found.inputs if t.name not in found.initializers]
    return found


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, value or length, and end of each field; the file stands at its content."""
    while file.tell() < end:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, stop = _varint(file), file.tell()
        elif kind == _BYTES:
            value = _varint(file)
            stop = file.tell() + value
        elif kind in (_FIXED64, _FIXED32):
            value, stop = 0, file.tell() + (8 if kind == _FIXED64 else 4)
        else:
            raise NotOnnx(f"field of kind {kind}")
        if number == 0 or stop > end:
            raise NotOnnx("a field is cut off")
        yield number, value, stop
        file.seek(stop)


def _varint(file: BinaryIO) -> int:
    value, shift = 0, 0
    while shift < 70:
        byte = file.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
    raise NotOnnx("a number is too long")


def _text(file: BinaryIO, size: int) -> str:
    return file.read(size).decode()


# Numbers of fields are those of onnx.proto, ONNX 1.14.
def _read_model(file: BinaryIO, size: int, found: OnnxFile) -> None:
    for number, value, end in _fields(file, size):
        if number == 1:
            found.ir_version = value
        elif number == 7:
            _read_graph(file, end, found, is_main=True)
        elif number == 8:
            domain, version = "", 0
            for inner, inner_value, _ in _fields(file, end):
                if inner == 1:
                    domain = _text(file, inner_value)
                elif inner == 2:
                    version = inner_value
            found.opsets["" if domain == "ai.onnx" else domain] = version


def _read_graph(file: BinaryIO, end: int, found: OnnxFile, *, is_main: bool) -> None:
    for number, _, stop in _fields(file, end):
        if number == 1:
            _read_node(file, stop, found)
        elif number == 5:
            _read_initializer(file, stop, found, is_main=is_main)
        elif number in (11, 12) and is_main:
            (found.inputs if number == 11 else found.outputs).append(_read_tensor(file, stop))


def _read_node(file: BinaryIO, end: int, found: OnnxFile) -> None:
    name = domain = ""
    for number, value, stop in _fields(file, end):
        if number == 4:
            name = _text(file, value)
        elif number == 7:
            domain = _text(file, value)
        elif number == 5:
            for inner, _, inner_stop in _fields(file, stop):
                if inner in (6, 11):
                    _read_graph(file, inner_stop, found, is_main=False)
    found.operators.add(f"{'' if domain == 'ai.onnx' else domain}:{name}")


def _read_initializer(file: BinaryIO, end: int, found: OnnxFile, *, is_main: bool) -> None:
    for number, value, _ in _fields(file, end):
        if number == 8 and is_main:
            found.initializers.add(_text(file, value))
        elif number == 13 or (number == 14 and value == 1):
            found.is_external = True


def _read_tensor(file: BinaryIO, end: int) -> Tensor:
    tensor = Tensor("")
    for number, value, stop in _fields(file, end):
        if number == 1:
            tensor.name = _text(file, value)
        elif number == 2:
            for kind, _, kind_stop in _fields(file, stop):
                if kind == 1:
                    _read_tensor_type(file, kind_stop, tensor)
    return tensor


def _read_tensor_type(file: BinaryIO, end: int, tensor: Tensor) -> None:
    for number, value, stop in _fields(file, end):
        if number == 1:
            tensor.type = value
        elif number == 2:
            for dim, _, dim_stop in _fields(file, stop):
                if dim == 1:
                    fixed = [v for n, v, _ in _fields(file, dim_stop) if n == 1]
                    tensor.dims.append(fixed[0] if fixed else None)
