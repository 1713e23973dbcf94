"""What a pipeline needs of a database, and the few kilobytes that ask for one such thing.

Every probe model has the ends of a pipeline: ``input``, a text or the bytes of a BLOB, and
``embedding``, float32 ``(batch, k)``. It holds nothing but the thing that is asked about and
operators that ONNX has had since opset 13. Its input is a plain word or a sound three-component
JPEG: nothing that is known to crash any release of onnxruntime-extensions.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto

from oml_mlflow.capability import ANTIALIAS, BYTES, INPUT, INTEGER, OPERATOR, STRING, Capability
from oml_mlflow.graph.ops import GraphBuilder, make_graph_model, tensor_info
from oml_mlflow.graph.rules import model_inputs
from oml_mlflow.graph.text import text_head
from oml_mlflow.graph.walk import Operator, custom_operators, places
from oml_mlflow.graph.wire import read_model
from oml_mlflow.profiles import CLIP_TOKENIZER, JSON_TOKENIZER, STANDARD_DOMAINS, TOKENIZER_DOMAIN
from oml_mlflow.source.description import (
    BICUBIC,
    END_TOKEN,
    RESIZE_ATTRIBUTES,
    START_TOKEN,
    Vocabulary,
)

_REGEX_REPLACE = "StringRegexReplace"
_KNOWN = frozenset(
    f"{TOKENIZER_DOMAIN}:{name}" for name in (CLIP_TOKENIZER, JSON_TOKENIZER, _REGEX_REPLACE)
)
_INTEGER_OPERATORS = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})
# from here on Slice, Squeeze and the like take their axes as inputs, as they are written here
_LOWEST_OPSET = 13
_INPUT_KINDS = {TensorProto.STRING: STRING, TensorProto.UINT8: BYTES}

_WORD, _WORD_IDS = "ab", (260.0, 258.0, 259.0, 0.0)
_NUMBERS = (0.0, 85.0, 170.0, 255.0)
_WEIGHTS = np.array([[1, 2], [3, 4], [-5, -6], [7, 1]], np.int8)
_JPEG_PX, _GREY = (16, 24), 128
_PLANE, _RESIZED = (3, 8, 16), (2, 4)
_ROUNDING = 1e-3


def _tiny_vocabulary() -> Vocabulary:
    """Return a vocabulary of one word, with a letter for each byte as CLIP has them.

    The tokenizer of extensions 0.9 looks every one of them up when it is made (measured).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    tokens = [*letters, "a</w>", "b</w>", "ab</w>", END_TOKEN, START_TOKEN]
    return Vocabulary({t: n for n, t in enumerate(tokens)}, (("a", "b</w>"),), 77)


@dataclass(frozen=True)
class ProbeModel:
    """A model of a few kilobytes that asks for one capability.

    Attributes:
        data: The ONNX file.
        value: What to embed with it.
        dims: Length of what it gives.
        expected: What it gives where that is known.
        tolerance: How far off an element may be.
    """

    data: bytes
    value: bytes | str
    dims: int
    expected: tuple[float, ...] | None
    tolerance: float = _ROUNDING

    def judge(self, vector: np.ndarray) -> str:
        """Return what is wrong with a vector, or nothing."""
        if vector.shape != (self.dims,):
            return f"it gave {vector.shape[-1]} elements instead of {self.dims}"
        if self.expected is None:
            return "" if np.isfinite(vector).all() else "it gave no numbers"
        if np.allclose(vector, self.expected, rtol=0, atol=self.tolerance):
            return ""
        got, wanted = (", ".join(f"{x:g}" for x in row[:4]) for row in (vector, self.expected))
        return f"it runs, but gave {got} instead of {wanted}"


def read_needs(path: Path) -> tuple[Capability, ...]:
    """Return what a pipeline needs of the database that is to run it.

    Read from nodes and types alone: weights are passed over, memory stays small.

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


def probe_model(capability: Capability) -> ProbeModel | None:
    """Return the model that asks for a capability, or None if none can be made."""
    if not capability.has_probe:
        return None
    g = GraphBuilder("probe")
    if capability.kind == INPUT:
        numbers = _numbers(g, capability.input)
        return _finished(g, capability, numbers, _NUMBERS)
    if capability.kind == INTEGER:
        return _finished(g, capability, _integer_product(g, capability.input), _product())
    if capability.kind == ANTIALIAS:
        resized = _resize(g)
        return _finished(g, capability, resized, _resized_by_pillow(), _picture_bytes(), 1.5)
    domain, _, name = capability.operator.rpartition(":")
    if domain == TOKENIZER_DOMAIN and name in (CLIP_TOKENIZER, JSON_TOKENIZER):
        head, _ = text_head(_tiny_vocabulary(), name)
        g.nodes += head.nodes
        g.initializers += head.initializers
        return _finished(g, capability, _first_ids(g, "input_ids"), _WORD_IDS)
    if domain == TOKENIZER_DOMAIN and name == _REGEX_REPLACE:
        pattern, other = g.strings(["b"]), g.strings(["a"])
        changed = g.op(name, "input", pattern, other, domain=domain)
        return _finished(g, capability, _times_size(g, changed), _NUMBERS)
    out = g.op(name, "input", domain=domain)
    if capability.input == STRING:
        return _finished(g, capability, _times_size(g, out), None)
    seen = (*map(float, _JPEG_PX), 3.0, float(_GREY))
    return _finished(g, capability, _shape_and_mean(g, out), seen, _jpeg(), 2.5)


def _finished(
    g: GraphBuilder,
    capability: Capability,
    result: str,
    expected: tuple[float, ...] | None,
    value: bytes | None = None,
    tolerance: float = _ROUNDING,
) -> ProbeModel:
    """Return the model whose embedding is `result`, float32 ``(1, k)``."""
    g.op("Identity", result, name="embedding")
    count = len(expected or _NUMBERS)
    is_text = capability.input == STRING
    model = make_graph_model(
        "probe",
        capability.opset,
        g.nodes,
        tensor_info(
            "input", "string" if is_text else np.uint8, ["batch" if is_text else "n_bytes"]
        ),
        tensor_info("embedding", np.float32, ["batch", count]),
        (),
        {"oml_mlflow": "capability probe; drop it"},
    )
    model.ir_version = capability.ir
    for item in g.initializers:
        model.graph.initializer.append(onnx.numpy_helper.from_array(item.load(), item.name))
    if value is None:
        value = bytes(map(int, _NUMBERS))
    data: bytes = model.SerializeToString(deterministic=True)
    return ProbeModel(data, _WORD if is_text else value, count, expected, tolerance)


def _numbers(g: GraphBuilder, kind: str) -> str:
    """Append nodes that make `_NUMBERS`, float32 ``(1, 4)``, of the input."""
    if kind == STRING:
        return _times_size(g, "input")
    return g.op("Cast", g.op("Reshape", "input", g.constant([1, len(_NUMBERS)])), to=1)


def _times_size(g: GraphBuilder, tensor: str) -> str:
    size = g.op("Reshape", g.op("Size", tensor), g.constant([1, 1]))
    return g.op("Mul", g.op("Cast", size, to=1), g.constant([_NUMBERS], np.float32))


def _first_ids(g: GraphBuilder, ids: str) -> str:
    """Append nodes that fill ids up with zeros and cut them, float32 ``(1, 4)``."""
    count = len(_WORD_IDS)
    filled = g.op("Concat", ids, g.constant([[0] * count]), axis=1)
    cut = g.op("Slice", filled, g.constant([0]), g.constant([count]), g.constant([1]))
    return g.op("Cast", cut, to=1)


def _shape_and_mean(g: GraphBuilder, decoded: str) -> str:
    """Append nodes that give height, width, channels and mean of pixels, float32 ``(1, 4)``."""
    shape = g.op("Reshape", g.op("Cast", g.op("Shape", decoded), to=1), g.constant([1, 3]))
    mean = g.op("ReduceMean", g.op("Cast", decoded, to=1), keepdims=0)
    return g.op("Concat", shape, g.op("Reshape", mean, g.constant([1, 1])), axis=1)


def _resize(g: GraphBuilder) -> str:
    channels, height, width = _PLANE
    pixels = g.op("Reshape", "input", g.constant([1, channels, height, width]))
    resized = g.op(
        "Resize",
        pixels,
        "",
        "",
        g.constant([1, channels, *_RESIZED]),
        coordinate_transformation_mode="half_pixel",
        **RESIZE_ATTRIBUTES[BICUBIC],
    )
    return g.op("Cast", g.op("Reshape", resized, g.constant([1, -1])), to=1)


def _picture_bytes() -> bytes:
    """Return bytes of three planes that look otherwise if resized without antialias."""
    values = np.random.default_rng(0).integers(64, 192, _PLANE, dtype=np.uint8)
    return values.tobytes()


def _resized_by_pillow() -> tuple[float, ...]:
    from PIL import Image

    planes = np.frombuffer(_picture_bytes(), np.uint8).reshape(_PLANE)
    height, width = _RESIZED
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in planes
    ]
    return tuple(float(x) for x in np.concatenate(resized).reshape(-1))


def _jpeg() -> bytes:
    """Return a grey picture as a JPEG of three components, 4:4:4."""
    from PIL import Image

    out, (height, width) = io.BytesIO(), _JPEG_PX
    Image.new("RGB", (width, height), (_GREY,) * 3).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _integer_product(g: GraphBuilder, kind: str) -> str:
    quantised, scale, zero = g.ops(
        "DynamicQuantizeLinear", _numbers(g, kind), names=("quantised", "scale", "zero")
    )
    product = g.op("MatMulInteger", quantised, g.constant(_WEIGHTS, np.int8), zero)
    return g.op("Mul", g.op("Cast", product, to=1), scale)


def _product() -> tuple[float, ...]:
    return tuple(float(x) for x in np.array(_NUMBERS) @ _WEIGHTS)


def _has_probe(model: onnx.ModelProto, operator: Operator, inputs: set[str]) -> bool:
    """Return whether a bare node of the graph's input says all there is to say of an operator."""
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
    """Return whether nothing before an antialiased Resize turned its pixels into other numbers."""
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
