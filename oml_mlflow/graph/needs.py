"""The capabilities that a pipeline needs of a database, read from its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.numpy_helper
from onnx import TensorProto

from oml_mlflow.graph.profiles import (
    CLIP_TOKENIZER,
    JSON_TOKENIZER,
    STANDARD_DOMAINS,
    TOKENIZER_DOMAIN,
)
from oml_mlflow.graph.rules import model_inputs
from oml_mlflow.graph.walk import Operator, custom_operators, places
from oml_mlflow.graph.wire import read_model

OPERATOR, ANTIALIAS, INTEGER, INPUT = "operator", "antialias", "integer", "input"
STRING, BYTES = "string", "uint8"
REGEX_REPLACE = "StringRegexReplace"
_KNOWN = frozenset(
    f"{TOKENIZER_DOMAIN}:{name}" for name in (CLIP_TOKENIZER, JSON_TOKENIZER, REGEX_REPLACE)
)
_INTEGER_OPERATORS = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})
# from this opset on Slice, Squeeze and the like take axes as inputs, as probe models have them
_LOWEST_OPSET = 13
_INPUT_KINDS = {TensorProto.STRING: STRING, TensorProto.UINT8: BYTES}


@dataclass(frozen=True, order=True)
class Capability:
    """A capability that a pipeline needs of a database.

    Attributes:
        kind: ``operator``: a custom operator; ``antialias``: Resize with antialias on uint8;
            ``integer``: matrix products of integers, as int8-dynamic has them; ``input``: an
            input type, and the version of the standard operators.
        input: ``string`` for texts (VARCHAR2), ``uint8`` for bytes (BLOB).
        opset: Version of the standard operators.
        ir: IR version.
        operator: ``domain:Name`` of a custom operator.
        has_probe: Whether a probe model can be made for it: not if an operator's attributes or
            inputs are unknown.
    """

    kind: str
    input: str
    opset: int
    ir: int
    operator: str = ""
    has_probe: bool = True

    def __str__(self) -> str:
        """Return it for people, such as ``ai.onnx.contrib:CLIPTokenizer (string, opset 17)``."""
        what = {
            OPERATOR: self.operator,
            ANTIALIAS: "Resize with antialias on uint8",
            INTEGER: "MatMulInteger",
            INPUT: "texts (VARCHAR2)" if self.input == STRING else "bytes (BLOB)",
        }[self.kind]
        return f"{what}, opset {self.opset}, IR {self.ir}"


def needs(path: Path) -> tuple[Capability, ...]:
    """Return the capabilities that a pipeline needs of a database.

    They are read from nodes and types; weights are skipped, so that memory stays small.

    Raises:
        PackageError: If the file is no ONNX model.
    """
    model, stored = read_model(path)
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = max(opsets, default=0)
    inputs = model_inputs(model, stored)
    element = inputs[0].type.tensor_type.elem_type if inputs else TensorProto.UNDEFINED
    kind = _INPUT_KINDS.get(element, TensorProto.DataType.Name(element).lower())
    is_plain = opset >= _LOWEST_OPSET and kind in (STRING, BYTES)

    def need(what: str, operator: str = "", has_probe: bool = True) -> Capability:
        return Capability(what, kind, opset, model.ir_version, operator, is_plain and has_probe)

    found = [need(INPUT)]
    names = {tensor.name for tensor in inputs}
    for operator in sorted(custom_operators(model)):
        found.append(need(OPERATOR, str(operator), _has_probe(model, operator, names)))
    if any(_is_antialiased(place.node) for place in places(model)):
        found.append(need(ANTIALIAS, has_probe=kind == BYTES and _resizes_bytes(model)))
    if any(_is_standard(p.node) and p.node.op_type in _INTEGER_OPERATORS for p in places(model)):
        found.append(need(INTEGER))
    return tuple(found)


def _has_probe(model: onnx.ModelProto, operator: Operator, inputs: set[str]) -> bool:
    """Return whether a probe can be made: for a known operator, or one of the input alone."""
    if str(operator) in _KNOWN:
        return True
    return all(
        set(place.node.input) <= inputs
        and len(place.node.input) == len(place.node.output) == 1
        and not place.node.attribute
        for place in places(model)
        if place.operator == operator
    )


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS


def _is_antialiased(node: onnx.NodeProto) -> bool:
    return (
        _is_standard(node)
        and node.op_type == "Resize"
        and any(a.name == "antialias" and a.i for a in node.attribute)
    )


def _resizes_bytes(model: onnx.ModelProto) -> bool:
    """Return whether pixels reach every antialiased Resize as uint8, as a probe's do."""
    makers = {name: node for node in model.graph.node for name in node.output}
    casts = [
        attribute.i
        for resize in model.graph.node
        if _is_antialiased(resize)
        for node in _before(resize, makers)
        for attribute in node.attribute
        if node.op_type == "Cast" and attribute.name == "to"
    ]
    return all(to == TensorProto.UINT8 for to in casts)


def _before(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that a node's first input comes through, up to the first Cast."""
    seen: set[str] = set()
    while node.input and node.input[0] in makers and node.input[0] not in seen:
        seen.add(node.input[0])
        node = makers[node.input[0]]
        yield node
        if node.op_type == "Cast":
            return
