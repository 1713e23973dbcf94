"""Smaller encoders: weights stored in fewer bits, one tensor at a time.

onnxruntime's own quantiser is not used: it holds the whole tower in memory, its result depends on
the installed release, and it can't store INT8 weights for computing in float32. Here nodes and
initializers are changed before the file is written: no more memory is needed, and the same model
gives the same bytes.

The weights are expanded by Cast and Mul rather than DequantizeLinear: onnxruntime folds them when
it loads the graph, so that it computes exactly as fast as with float32, whereas DequantizeLinear is
run anew for every picture by 1.15.1 (3 to 6 times slower) and replaced by integer arithmetic by
1.32.0. float16 is not used for computing: onnxruntime has no such kernels for x86-64 and casts
to and fro (no faster in 1.32.0), and 1.15.1 refuses LayerNormalization in float16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from oml_mlflow.errors import GraphError
from oml_mlflow.graph.precision import FLOAT16, FLOAT32, INT8, INT8_DYNAMIC
from oml_mlflow.graph.wire import Initializer

# which input is the weight, and over which of its axes one scale is shared
_WEIGHTS = {"MatMul": (1, (0,)), "Gather": (0, (1,)), "Conv": (1, (1, 2, 3))}
_SMALLEST_BYTES = 4096
_INT8_TOP = 127
# Weights of integer products are stored as uint8 around this zero: with int8 ones, onnxruntime adds
# pairs of products in 16 bits where the processor has no VNNI, and cuts off what is larger.
# Source: onnxruntime's "Quantize ONNX Models"; measured: vectors 0.4 off on AVX2 alone.
_UINT8_ZERO = 128
_ZERO = "int8-dynamic/zero"


def shrink(
    model: onnx.ModelProto, initializers: Sequence[Initializer], precision: str
) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return a graph whose large weights are stored in a precision, and its initializers.

    Weights of MatMul, Conv and the token embedding are changed: over 99.8 % of ViT-B/32. INT8 is
    symmetric with one scale per output channel (per row of the embedding). Input, output and the
    tensors at which the graph can be cut stay as they are.

    Args:
        model: The model without initializers; it is not changed.
        initializers: Its initializers; they are loaded when the result is written.
        precision: ``float32``, ``float16``, ``int8`` or ``int8-dynamic``.
    """
    if precision == FLOAT32:
        return model, list(initializers)
    if precision not in (FLOAT16, INT8, INT8_DYNAMIC):
        raise ValueError(precision)
    uses = Counter(name for node in model.graph.node for name in node.input)
    stored = {item.name: item for item in initializers}
    smaller = _SmallerGraph(precision)
    for node in model.graph.node:
        at, axes = _WEIGHTS.get(node.op_type, (0, ()))
        weight = stored.get(node.input[at]) if axes else None
        if weight is not None and _is_large(weight) and uses[weight.name] == 1:
            smaller.replace(node, at, axes, stored.pop(weight.name))
        else:
            smaller.nodes.append(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(smaller.nodes)
    return result, [*stored.values(), *smaller.initializers]


def estimated_size_bytes(initializers: Iterable[Initializer]) -> int:
    """Return the approximate size of a file with these initializers."""
    return sum(item.size_bytes for item in initializers)


def _is_large(weight: Initializer) -> bool:
    return weight.dtype == np.float32 and weight.size_bytes >= _SMALLEST_BYTES


class _SmallerGraph:
    """Collects the nodes and initializers of the smaller graph."""

    def __init__(self, precision: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[Initializer] = []
        self._precision = precision
        self._rounded: set[str] = set()

    def replace(
        self, node: onnx.NodeProto, at: int, axes: tuple[int, ...], weight: Initializer
    ) -> None:
        """Append nodes that compute what `node` does from the smaller weight."""
        name, out = weight.name, node.output[0]
        scale = "" if self._precision == FLOAT16 else f"{name}/scale"
        is_product = node.op_type == "MatMul" and self._precision == INT8_DYNAMIC
        if scale:
            shape = tuple(1 if axis in axes else n for axis, n in enumerate(weight.shape))
            zero, kind = (_UINT8_ZERO, np.uint8) if is_product else (0, np.int8)
            self.initializers += [
                Initializer(name, weight.shape, np.dtype(kind), _rounded(weight, axes, zero)),
                Initializer(scale, shape, np.dtype(np.float32), lambda: _scale(weight, axes)),
            ]
        else:
            half = np.dtype(np.float16)
            self.initializers.append(Initializer(name, weight.shape, half, _halved(weight)))
        if node.op_type == "Gather":
            # rows are expanded after they are looked up, so that the table stays small in memory
            rows = self._op("Gather", [name, node.input[1]], f"{out}/rows", axis=0)
            scale = scale and self._op("Gather", [scale, node.input[1]], f"{out}/scale", axis=0)
            self._expand(rows, scale, out)
        elif is_product:
            self._integer_product(node.input[0], name, scale, out)
        else:
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            changed.input[at] = self._expand(name, scale, f"{name}/float32")
            self.nodes.append(changed)

    def _expand(self, small: str, scale: str, out: str) -> str:
        if not scale:
            return self._op("Cast", [small], out, to=TensorProto.FLOAT)
        wide = self._op("Cast", [small], f"{out}/unscaled", to=TensorProto.FLOAT)
        return self._op("Mul", [wide, scale], out)

    def _integer_product(self, hidden: str, weight: str, scale: str, out: str) -> str:
        """Append the form that onnxruntime fuses into DynamicQuantizeMatMul or its halves."""
        rounded, step, zero = (f"{hidden}/{part}" for part in ("uint8", "step", "zero"))
        if not self._rounded:
            self.initializers.append(Initializer.constant(_ZERO, np.array(_UINT8_ZERO, np.uint8)))
        if hidden not in self._rounded:
            self._rounded.add(hidden)
            self.nodes.append(
                helper.make_node("DynamicQuantizeLinear", [hidden], [rounded, step, zero], rounded)
            )
        product = self._op("MatMulInteger", [rounded, weight, zero, _ZERO], f"{out}/int32")
        product = self._op("Cast", [product], f"{out}/unscaled", to=TensorProto.FLOAT)
        both = self._op("Mul", [step, scale], f"{out}/scale")
        return self._op("Mul", [product, both], out)

    def _op(self, kind: str, inputs: list[str], out: str, **attributes: int) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
        return out


def _scale(weight: Initializer, axes: tuple[int, ...]) -> np.ndarray:
    largest = np.abs(weight.load()).max(axis=axes, keepdims=True)
    scale: np.ndarray = np.where(largest > 0, largest / _INT8_TOP, 1).astype(np.float32)
    return scale


def _rounded(weight: Initializer, axes: tuple[int, ...], zero: int) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        steps = np.rint(weight.load() / _scale(weight, axes))
        values = np.clip(steps, -_INT8_TOP, _INT8_TOP) + zero
        rounded: np.ndarray = values.astype(np.uint8 if zero else np.int8)
        return rounded

    return load


def _halved(weight: Initializer) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        values = weight.load()
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise GraphError(
                f"weight {weight.name} holds values that float16 can't. Nothing was written.",
                hint="leave out use_float16, or use quantize_model for that side.",
            )
        half: np.ndarray = values.astype(np.float16)
        return half

    return load
