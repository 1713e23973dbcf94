"""The interface of any pipeline's file: its input, its output and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from oml_mlflow.documents import read_json
from oml_mlflow.errors import PackageError
from oml_mlflow.graph.rules import EMBEDDING, dims, model_inputs, shown_shape, type_name
from oml_mlflow.graph.runtime import Ends, refuse_external, unknown_operators
from oml_mlflow.graph.walk import custom_operators
from oml_mlflow.graph.wire import read_model
from oml_mlflow.names import IMG, PROPERTY

_EXPORT = "export the pair with ONNXPipeline(...).export2file."


@dataclass(frozen=True)
class Interface:
    """The interface of one pipeline.

    Attributes:
        ends: Names of its input and output.
        dims: Length of its embeddings.
        unknown_operators: Operators, as ``domain:Name``, that this process can't run.
        metadata: Template metadata that this package wrote into the file.
    """

    ends: Ends
    dims: int
    unknown_operators: tuple[str, ...]
    metadata: Mapping[str, Any]


def read_interface(path: Path, side: str) -> Interface:
    """Return the interface of a file. Nothing in it is run.

    Args:
        path: ONNX file.
        side: ``img``: one picture as uint8 bytes, ``(n,)`` or ``(1, n)``, or as RGB pixels
            ``(height, width, 3)``. ``txt``: strings, ``(batch,)`` or ``(batch, 1)``.

    Raises:
        PackageError: If there is no such file, it is no ONNX model, it keeps tensors in other
            files, or it has another input or no such output.
    """
    if not path.is_file():
        raise PackageError(f"there is no file {path}.", hint="export the pair first.")
    refuse_external(path)
    model, stored = read_model(path)
    inputs = model_inputs(model, stored)
    if len(inputs) != 1:
        raise PackageError(
            f"{path.name} has inputs {[tensor.name for tensor in inputs]}, wanted one.",
            hint=_EXPORT,
        )
    unknown = unknown_operators(custom_operators(model))
    _check_input(path, inputs[0], side, bool(unknown))
    output = _embedding(path, model)
    return Interface(
        ends=Ends(inputs[0].name, output.name),
        dims=int(dims(output)[-1] or 0),
        unknown_operators=unknown,
        metadata=_read_metadata(model),
    )


def _check_input(path: Path, tensor: onnx.ValueInfoProto, side: str, is_unknown: bool) -> None:
    wanted, other = TensorProto.STRING, TensorProto.UINT8
    if side == IMG:
        wanted, other = other, wanted
    kind = tensor.type.tensor_type.elem_type
    # the input type of Oracle's own decoder is not public
    if kind != wanted and not (side == IMG and is_unknown):
        swapped = " The two files may be swapped." if kind == other else ""
        raise PackageError(
            f"{path.name} takes {type_name(kind)}, wanted {type_name(wanted)} for the {side} "
            f"side.{swapped}",
            hint="give the image pipeline first, then the text pipeline.",
        )
    shape = dims(tensor)
    if side == IMG:
        fits = len(shape) == 1 or (len(shape) == 2 and shape[0] in (1, None)) or _is_raw(shape)
    else:
        fits = len(shape) < 2 or (len(shape) == 2 and shape[1] == 1)
    if not fits:
        raise PackageError(
            f"{path.name}: input {tensor.name} has shape {shown_shape(tensor)}, which is not "
            f"that of {'the bytes or pixels of a picture' if side == IMG else 'texts'}.",
            hint=_EXPORT,
        )


def _is_raw(shape: list[int | None]) -> bool:
    return len(shape) == 3 and shape[:2] == [None, None] and shape[2] in (3, None)


def _embedding(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the output ``embedding``, else the only output that can be one."""
    outputs = list(model.graph.output)
    named = [tensor for tensor in outputs if tensor.name == EMBEDDING]
    fitting = [tensor for tensor in named or outputs if _is_embedding(tensor)]
    if len(fitting) != 1:
        told = ", ".join(f"{tensor.name} {shown_shape(tensor)}" for tensor in outputs)
        raise PackageError(
            f"{path.name} has outputs {told}: none, or more than one, is float32 of shape (batch, "
            "dims) with fixed dims.",
            hint=_EXPORT,
        )
    return fitting[0]


def _is_embedding(tensor: onnx.ValueInfoProto) -> bool:
    shape = dims(tensor)
    return (
        tensor.type.tensor_type.elem_type == TensorProto.FLOAT
        and 1 <= len(shape) <= 2
        and (shape[-1] or 0) > 0
        and all(dim in (1, None) for dim in shape[:-1])
    )


def _read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    for entry in model.metadata_props:
        if entry.key == PROPERTY:
            try:
                loaded = read_json(entry.value)
            except ValueError:
                break
            return loaded if isinstance(loaded, dict) else {}
    return {}
