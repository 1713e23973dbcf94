"""A builder for ONNX graphs: nodes in order, constants and weights as initializers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from oml_mlflow.graph.wire import Initializer

# ORT 1.15.1, the runtime documented for Oracle Database, reads IR up to 9; OML4Py writes 8.
IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and initializers.

    Args:
        prefix: Start of generated names; keeps those of two builders for one graph apart.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[Initializer] = []
        self._prefix, self._count = prefix, 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(
        self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node with one output and return the output's name."""
        return self.ops(
            kind, *inputs, names=(name or self._fresh(kind),), domain=domain, **attributes
        )[0]

    def ops(
        self, kind: str, *inputs: str, names: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs and return their names."""
        self.nodes.append(
            helper.make_node(kind, list(inputs), list(names), names[0], domain=domain, **attributes)
        )
        return names

    def constant(self, values: Any, dtype: type[np.generic] = np.int64) -> str:
        """Return the name of an initializer with these values; equal ones are shared."""
        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, tuple(array.shape), array.tobytes())
        if key not in self._constants:
            name = self._fresh("const")
            self.initializers.append(Initializer.constant(name, array))
            self._constants[key] = name
        return self._constants[key]

    def strings(self, values: Sequence[str]) -> str:
        """Return the name of a tensor of strings: a node's output, no initializer."""
        tensor = helper.make_tensor(
            "", TensorProto.STRING, [len(values)], [value.encode() for value in values]
        )
        return self.op("Constant", value=tensor)

    def weight(self, name: str, shape: Sequence[int], load: Callable[[], np.ndarray]) -> str:
        """Return the name of a float32 initializer that is loaded when it is written."""
        self.initializers.append(Initializer(name, tuple(shape), np.dtype(np.float32), load))
        return name

    def dim(self, tensor: str, axis: int) -> str:
        """Return a one-element int64 tensor: the size of an axis."""
        shape = self.op("Shape", tensor)
        return self.op("Gather", shape, self.constant([axis]), axis=0)

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}_{self._count}"


def make_graph_model(
    name: str,
    opset: int,
    nodes: Sequence[onnx.NodeProto],
    graph_input: onnx.ValueInfoProto,
    graph_output: onnx.ValueInfoProto,
    marked: Sequence[onnx.ValueInfoProto],
    properties: Mapping[str, str],
) -> onnx.ModelProto:
    """Return a model that lacks only its initializers.

    It has one input and one output. `marked` are the types of inner tensors at which the graph can
    be cut, `properties` is metadata to store in the file.
    """
    domains = sorted({node.domain for node in nodes} - {""})
    graph = helper.make_graph(nodes, name, [graph_input], [graph_output], value_info=list(marked))
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", opset)]
        + [helper.make_opsetid(domain, 1) for domain in domains],
        producer_name="oml_mlflow",
    )
    helper.set_model_props(model, dict(sorted(properties.items())))
    return model


def tensor_info(
    name: str, kind: type[np.generic] | str, shape: Sequence[int | str]
) -> onnx.ValueInfoProto:
    """Return the type of a tensor; a string in `shape` is a symbolic axis."""
    element = (
        TensorProto.STRING if kind == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    )
    return helper.make_tensor_value_info(name, element, shape)
