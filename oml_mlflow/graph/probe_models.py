"""Probe models: a few kilobytes each, to ask a database for one capability.

Every probe model has the ends of a pipeline: ``input``, a text or the bytes of a BLOB, and
``embedding``, float32 ``(batch, k)``. It holds nothing but what the capability is about and
operators that ONNX has had since opset 13. Its input is a plain word or a sound three-component
JPEG: nothing that is known to crash any release of onnxruntime-extensions.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper

from oml_mlflow.graph.needs import ANTIALIAS, INPUT, INTEGER, REGEX_REPLACE, STRING, Capability
from oml_mlflow.graph.ops import GraphBuilder, make_graph_model, tensor_info
from oml_mlflow.graph.profiles import CLIP_TOKENIZER, JSON_TOKENIZER, TOKENIZER_DOMAIN
from oml_mlflow.graph.text import text_head
from oml_mlflow.source.description import (
    BICUBIC,
    END_TOKEN,
    RESIZE_ATTRIBUTES,
    START_TOKEN,
    Vocabulary,
)

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
    """A model that asks a database for one capability.

    Attributes:
        data: The ONNX file.
        value: What to embed with it.
        dims: Length of its vector.
        expected: Its vector where that is known.
        tolerance: Largest accepted difference of an element.
    """

    data: bytes
    value: bytes | str
    dims: int
    expected: tuple[float, ...] | None
    tolerance: float = _ROUNDING

    def judge(self, vector: np.ndarray) -> str:
        """Return what is wrong with a vector; empty if nothing."""
        if vector.shape != (self.dims,):
            return f"it gave {vector.shape[-1]} elements instead of {self.dims}"
        if self.expected is None:
            return "" if np.isfinite(vector).all() else "it gave no numbers"
        if np.allclose(vector, self.expected, rtol=0, atol=self.tolerance):
            return ""
        got, wanted = (", ".join(f"{x:g}" for x in row[:4]) for row in (vector, self.expected))
        return f"it runs, but gave {got} instead of {wanted}"


def probe_model(capability: Capability) -> ProbeModel | None:
    """Return the model that asks for a capability; None if `Capability.has_probe` is false."""
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
    if domain == TOKENIZER_DOMAIN and name == REGEX_REPLACE:
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
    """Append nodes that pad ids with zeros and cut them, float32 ``(1, 4)``."""
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
    """Return bytes of three planes that antialias makes a difference to when resized."""
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
