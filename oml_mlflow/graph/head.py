"""The part of a pipeline before its encoder, as a graph of its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.numpy_helper

from oml_mlflow.errors import GraphError
from oml_mlflow.graph.image import PIXEL_VALUES
from oml_mlflow.graph.text import INPUT_IDS
from oml_mlflow.graph.wire import read_model


def read_head(path: Path) -> onnx.ModelProto:
    """Return the graph from ``input`` to ``pixel_values`` or ``input_ids``, its only output.

    Raises:
        PackageError: If the file is no ONNX model.
        GraphError: If it has neither tensor.
    """
    header, stored = read_model(path)
    marked = [v for v in header.graph.value_info if v.name in (PIXEL_VALUES, INPUT_IDS)]
    if len(marked) != 1:
        raise GraphError(
            f"{path.name} was not written by this package: it has no tensor {PIXEL_VALUES} or "
            f"{INPUT_IDS} to cut at.",
            hint="export the pair with ONNXPipeline(...).export2file.",
        )
    needed = {marked[0].name}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(header.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _inputs(node)
    head = onnx.ModelProto()
    head.CopyFrom(header)
    for field in ("node", "output", "value_info"):
        head.graph.ClearField(field)
    head.graph.node.extend(nodes[::-1])
    head.graph.output.extend(marked)
    head.graph.initializer.extend(
        onnx.numpy_helper.from_array(item.load(), item.name)
        for item in stored
        if item.name in needed
    )
    return head


def _inputs(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, the graphs of its branches included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _inputs(inner)
    return names
