"""Walk all nodes and tensors of a model, subgraphs and functions included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from oml_mlflow.graph.profiles import STANDARD_DOMAINS


@dataclass(frozen=True, order=True)
class Operator:
    """An operator, by domain and name."""

    domain: str
    name: str

    def __str__(self) -> str:
        """Return ``domain:Name``."""
        return f"{self.domain}:{self.name}"


@dataclass(frozen=True)
class Place:
    """A node and its place in the model.

    Attributes:
        where: Its path, such as ``choose/then_branch/decode``.
        node: The node.
    """

    where: str
    node: onnx.NodeProto

    @property
    def operator(self) -> Operator:
        """Return the node's operator."""
        return _operator(self.node.domain, self.node.op_type)


def places(model: onnx.ModelProto) -> Iterator[Place]:
    """Yield every node of a model."""
    yield from _in_nodes(model.graph.node, "")
    for function in model.functions:
        yield from _in_nodes(function.node, f"function {function.domain}:{function.name}/")


def custom_operators(model: onnx.ModelProto) -> dict[Operator, list[str]]:
    """Return the places of operators outside the standard domains, the model's functions aside."""
    defined = {_operator(function.domain, function.name) for function in model.functions}
    found: dict[Operator, list[str]] = {}
    for place in places(model):
        if place.node.domain not in STANDARD_DOMAINS and place.operator not in defined:
            found.setdefault(place.operator, []).append(place.where)
    return found


def held_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the tensors in attributes and subgraphs with their places; no initializers."""
    for place in places(model):
        for attribute in place.node.attribute:
            where = f"{place.where}/{attribute.name}"
            for tensor in ([attribute.t] if attribute.HasField("t") else []) + [*attribute.tensors]:
                yield where, tensor
            for graph in _graphs(attribute):
                for tensor in graph.initializer:
                    yield f"{where}/{tensor.name}", tensor


def _operator(*parts: str | bytes) -> Operator:
    """Return an operator; protobuf gives names that are not UTF-8 as bytes."""
    return Operator(*(p.decode("utf-8", "replace") if isinstance(p, bytes) else p for p in parts))


def _in_nodes(nodes: Iterable[onnx.NodeProto], prefix: str) -> Iterator[Place]:
    for number, node in enumerate(nodes):
        where = f"{prefix}{node.name or f'{node.op_type} number {number}'}"
        yield Place(where, node)
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _in_nodes(graph.node, f"{where}/{attribute.name}/")


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]
