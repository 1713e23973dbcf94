"""ONNX files damaged on purpose, as trees of protobuf fields, so that most of them still parse."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_cpp2py_export import inliner

LOCATION = "secret.bin"
VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5
DATA_LOCATION, EXTERNAL_DATA = 14, 13


def tensor(name: str) -> TensorProto:
    return numpy_helper.from_array(np.array([1, 2], np.float32), name)


def sparse(name: str) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0, 1], np.int64), f"{name}_indices")
    return helper.make_sparse_tensor(tensor(name), indices, [4])


def model() -> onnx.ModelProto:
    """Return a model with a tensor in every place where one can be."""

    def graph(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
        own = [helper.make_node("Identity", [f"{name}_w"], ["y"])]
        return helper.make_graph([*own, *nodes], name, [], [end], [tensor(f"{name}_w")])

    nodes = [
        helper.make_node("Constant", [], ["a"], "one", value=tensor("held")),
        helper.make_node("Constant", [], ["b"], "sparse", sparse_value=sparse("held_sparse")),
        helper.make_node("X", [], ["c"], "more", domain="d", tensors=[tensor("t1"), tensor("t2")]),
        helper.make_node("X", [], ["d"], "lists", domain="d", sparse=[sparse("s1")]),
        helper.make_node("X", [], ["e"], "graphs", domain="d", graphs=[graph("g1"), graph("g2")]),
        helper.make_node(
            "If", ["a"], ["f"], "if", then_branch=graph("then"), else_branch=graph("e")
        ),
    ]
    top = graph("top", *nodes)
    top.sparse_initializer.append(sparse("top_sparse"))
    made = helper.make_model(top, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    function = helper.make_function("d", "F", [], ["y"], [nodes[0]], made.opset_import, ["k"])
    function.attribute_proto.append(helper.make_attribute("k", tensor("default")))
    made.functions.append(function)
    made.training_info.add(initialization=graph("init"), algorithm=graph("algorithm"))
    return made


def tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor in a message, found by onnx's own descriptors."""
    if isinstance(message, TensorProto):
        yield message
    for kind, value in message.ListFields():
        if kind.message_type is not None:
            for inner in value if kind.is_repeated else [value]:
                yield from tensors(inner)


def _with_external(place: int | None) -> onnx.ModelProto:
    made = model()
    if place is not None:
        found = list(tensors(made))[place]
        found.ClearField("raw_data")
        found.data_location = TensorProto.EXTERNAL
        found.external_data.add(key="location", value=LOCATION)
    return made


def is_external(data: bytes) -> dict[str, bool]:
    """Return what each of onnx's parsers says; one that refuses the bytes is not in it."""
    found = {}
    with contextlib.suppress(DecodeError):
        found["python"] = _any_external(onnx.ModelProto.FromString(data))
    # its errors share no base class
    with contextlib.suppress(Exception):
        # with no function to put in place it only parses and writes again, in C++
        again = inliner.inline_selected_functions(data, [], False)
        found["C++"] = _any_external(onnx.ModelProto.FromString(again))
    return found


def _any_external(parsed: onnx.ModelProto) -> bool:
    return any(t.data_location == TensorProto.EXTERNAL for t in tensors(parsed))


@dataclass
class Node:
    """A field: of `children` if it is a message that onnx knows, else of `value`.

    Attributes:
        tag: Bytes of its tag; None for the usual ones.
        length: Bytes its length has at least.
    """

    number: int
    wire: int
    kind: str
    value: bytes = b""
    children: list[Node] | None = None
    tag: bytes | None = None
    length: int = 0

    def encode(self) -> bytes:
        tag = varint(self.number << 3 | self.wire) if self.tag is None else self.tag
        if self.wire != BYTES:
            return tag + self.value
        value = self.value if self.children is None else encode(self.children)
        return tag + varint(len(value), self.length) + value


def encode(nodes: list[Node]) -> bytes:
    return b"".join(node.encode() for node in nodes)


def varint(value: int, size: int = 0) -> bytes:
    """Return a number in at least so many bytes."""
    out = bytearray()
    while value > 0x7F or len(out) < size - 1:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tree(message: Message) -> list[Node]:
    """Return a message's fields."""
    return _tree(message.SerializeToString(), message.DESCRIPTOR)


def _tree(data: bytes, kind: Descriptor) -> list[Node]:
    nodes, at = [], 0
    while at < len(data):
        tag, at = _read(data, at)
        number, wire = tag >> 3, tag & 7
        known: FieldDescriptor | None = kind.fields_by_number.get(number)
        inner = known.message_type if known is not None else None
        if wire == BYTES:
            size, at = _read(data, at)
            value, at = data[at : at + size], at + size
            nodes.append(Node(number, wire, inner.name if inner else "", value))
            nodes[-1].children = _tree(value, inner) if inner else None
        else:
            end = _read(data, at)[1] if wire == VARINT else at + (4 if wire == FIXED32 else 8)
            nodes.append(Node(number, wire, "", data[at:end]))
            at = end
    return nodes


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


@dataclass
class Mutations:
    """Damage of many kinds, the same for the same seed.

    Attributes:
        seed: The seed.
        used: How often each kind was used.
    """

    seed: int
    used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311
        count = len(list(tensors(model())))
        # trees of the model as it is, and with each of its tensors in another file
        self._trees = [pickle.dumps(tree(_with_external(place))) for place in (None, *range(count))]

    def next(self) -> bytes:
        """Return one file."""
        place = self._random.randrange(len(self._trees)) if self._random.random() < 0.3 else 0
        nodes = pickle.loads(self._trees[place])  # noqa: S301
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            change = self._random.choice((self._tag, self._splice, self._splice, self._structure))
            change(nodes)
        data = encode(nodes)
        return self._bytes(data) if self._random.random() < 0.1 else data

    def _all(self, nodes: list[Node], kind: str = "") -> list[tuple[list[Node], int]]:
        """Return where every field is, or every message of a kind."""
        found = []
        for place, node in enumerate(nodes):
            if not kind or node.kind == kind:
                found.append((nodes, place))
            found += self._all(node.children or [], kind)
        return found

    def _count_use(self, name: str) -> None:
        self.used[name] = self.used.get(name, 0) + 1

    def _style(self, plain: float = 0.7) -> str:
        """Return how a tag is written."""
        odd = ("long", "above 2^32", "above 2^32", "above 2^35", "ten bytes", "zero")
        return "plain" if self._random.random() < plain else self._random.choice(odd)

    def _odd_tag(self, number: int, wire: int, kind: str) -> bytes:
        """Return a tag, as it should be or in ways that some parsers take and others don't."""
        key, pick = number << 3 | wire, self._random.choice
        self._count_use(f"tag {kind}")
        return {
            "plain": varint(key),
            "long": varint(key, pick((2, 3, 4, 5, 6))),
            "above 2^32": varint(key | pick((1, 2, 5, 7)) << 32),
            "above 2^35": varint(key | 1 << 35),
            "ten bytes": varint(key, 10),
            "zero": varint(wire),
        }[kind]

    def _tag(self, nodes: list[Node]) -> None:
        """Write the tag or the length of a field in another way."""
        where, place = self._random.choice(self._all(nodes))
        if self._random.random() < 0.7:
            where[place].tag = self._odd_tag(
                where[place].number, where[place].wire, self._style(plain=0)
            )
        else:
            where[place].length = self._random.choice((2, 3, 5, 6, 10))
            self._count_use("length")

    def _splice(self, nodes: list[Node]) -> None:
        """Put what makes a tensor external somewhere into one, in one of many ways."""
        where, place = self._random.choice(self._all(nodes, "TensorProto"))
        found = where[place]
        location: Any = TensorProto()
        location.external_data.add(key="location", value=LOCATION)
        entry = tree(location)[0]
        # all in one style: what one reader passes over, it passes over wholly
        style = self._style()
        entry.tag = self._odd_tag(EXTERNAL_DATA, BYTES, style)
        values = [1, 1, 1, 0, 2, 2**32, 2**32 + 1, 2**31, 2**63, 2**64 - 1, 2**64 + 1]
        flags = []
        for _ in range(self._random.choice((1, 1, 2))):
            wire = self._random.choice((VARINT,) * 12 + (BYTES, FIXED32, FIXED64, GROUP))
            value = varint(self._random.choice(values), self._random.choice((0, 0, 0, 5, 10)))
            if wire == GROUP:
                value = varint(DATA_LOCATION << 3) + b"\1" + varint(DATA_LOCATION << 3 | GROUP_END)
            elif wire != VARINT:
                value = (value + bytes(8))[: 4 if wire == FIXED32 else 8]
            flags.append(Node(DATA_LOCATION, wire, "", value))
            flags[-1].tag = self._odd_tag(DATA_LOCATION, wire, style)
        added = [*flags, *([entry] if self._random.random() < 0.7 else [])]
        self._random.shuffle(added)
        assert found.children is not None
        if self._random.random() < 0.4:
            # protobuf merges a message that is there twice; of repeated ones it makes two
            half = Node(found.number, found.wire, found.kind, children=added)
            half.tag = self._odd_tag(found.number, found.wire, self._style(plain=0.9))
            where.insert(self._random.randrange(len(where) + 1), half)
            self._count_use("half a tensor")
        else:
            at = self._random.randrange(len(found.children) + 1)
            found.children[at:at] = added
            self._count_use("whole tensor")

    def _structure(self, nodes: list[Node]) -> None:
        """Repeat, leave out, move, split, renumber or wrap a field."""
        where, place = self._random.choice(self._all(nodes))
        node = where[place]
        kind = self._random.choice(("repeat", "drop", "move", "split", "number", "wire", "wrap"))
        self._count_use(kind)
        if kind == "repeat":
            where.insert(self._random.randrange(len(where) + 1), node)
        elif kind == "drop":
            del where[place]
        elif kind == "move":
            where.insert(self._random.randrange(len(where)), where.pop(place))
        elif kind == "split" and node.children:
            cut = self._random.randrange(len(node.children) + 1)
            rest = Node(node.number, node.wire, node.kind, children=node.children[cut:])
            node.children = node.children[:cut]
            where.insert(place + 1, rest)
        elif kind == "number":
            node.number = self._random.choice((0, 5, 6, 7, 10, 13, 14, 15, 20, 22, 25, 99, 2**28))
        elif kind == "wire":
            node.wire = self._random.choice((VARINT, FIXED64, BYTES, GROUP, FIXED32, 6, 7))
        elif kind == "wrap":
            where[place] = Node(
                self._random.choice((5, 6, 99, node.number)), BYTES, "", b"", [node]
            )

    def _bytes(self, data: bytes) -> bytes:
        """Flip, cut out or put in single bytes."""
        damaged, at = bytearray(data), self._random.randrange(len(data))
        kind = self._random.choice(("flip", "cut", "insert", "end"))
        self._count_use(f"bytes {kind}")
        if kind == "flip":
            damaged[at] ^= 1 << self._random.randrange(8)
        elif kind == "cut":
            del damaged[at : at + self._random.choice((1, 2, 9))]
        elif kind == "insert":
            damaged[at:at] = self._random.randbytes(self._random.choice((1, 2, 9)))
        else:
            del damaged[at:]
        return bytes(damaged)
