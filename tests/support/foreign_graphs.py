"""ONNX files as others make them, built by hand. No genuine file of OML4Py could be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIMS = 128
# invented: the domain and name of Oracle's own decode operator are not public
DECODER_DOMAIN, DECODER = "oracle.invented", "DecodeJpeg"
FLOAT, INT64, STRING, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.UINT8,
)


def info(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: Any, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return constant(name, np.random.default_rng(7).standard_normal(shape))


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto],
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
    name: str = "g_8_torch_jit_torch_jit",
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", opset)]
    versions = {"ai.onnx.ml": 3}
    opsets += [helper.make_opsetid(domain, versions.get(domain, 1)) for domain in domains]
    return helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, initializers),
        producer_name="onnx.compose.merge_models",
        opset_imports=opsets,
        ir_version=ir_version,
    )


def text_model(**settings: Any) -> onnx.ModelProto:
    """Return a text pipeline with the ends that Oracle documents: string[1] to float32[?,128]."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["input"],
            ["numbers"],
            "look_up",
            domain="ai.onnx.ml",
            keys_strings=["a cat", "a dog"],
            values_floats=[1.0, 2.0],
            default_float=3.0,
        ),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["column"], "column"),
        helper.make_node("Sin", ["column"], ["sin"], "sin"),
        helper.make_node("Cos", ["column"], ["cos"], "cos"),
        helper.make_node("Concat", ["sin", "cos"], ["both"], "both", axis=1),
        helper.make_node("MatMul", ["both", "table"], ["raw"], "project"),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], "normalise", axis=-1, p=2),
    ]
    return model(
        nodes,
        [info("input", STRING, [1])],
        [info("embedding", FLOAT, [None, DIMS])],
        [constant("last", [1], np.int64), weights("table", 2, DIMS)],
        **{"domains": ("ai.onnx.ml",)} | settings,
    )


def image_model(graph_input: str = "data", kind: int = UINT8) -> onnx.ModelProto:
    """Return an image pipeline with an operator that only its database has."""
    nodes = [
        helper.make_node(DECODER, [graph_input], ["pixels"], "decode", domain=DECODER_DOMAIN),
        helper.make_node("Cast", ["pixels"], ["values"], "cast", to=FLOAT),
        helper.make_node("ReduceMean", ["values"], ["mean"], "mean", axes=[0], keepdims=1),
        helper.make_node("MatMul", ["mean", "table"], ["raw"], "project"),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], "normalise", axis=-1, p=2),
    ]
    return model(
        nodes,
        [info(graph_input, kind, ["n_bytes"])],
        [info("embedding", FLOAT, [None, DIMS])],
        [weights("table", 3, DIMS)],
        domains=(DECODER_DOMAIN,),
    )


def optimum_model() -> onnx.ModelProto:
    """Return a graph with inputs and outputs as `optimum-cli export onnx` gives a CLIP model."""
    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["token_embeds"], "gather", axis=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "mask", to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"], "mask_3d"),
        helper.make_node("Mul", ["token_embeds", "mask_3d"], ["masked"], "masked"),
        helper.make_node("ReduceMean", ["masked"], ["text_embeds"], "pool", axes=[1], keepdims=0),
        helper.make_node("ReduceMean", ["pixel_values"], ["mean"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "patches"], ["image_embeds"], "patches"),
        helper.make_node("Transpose", ["text_embeds"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["image_embeds", "turned"], ["logits_per_image"], "logits"),
        helper.make_node("Transpose", ["logits_per_image"], ["logits_per_text"], "t", perm=[1, 0]),
    ]
    text = ["text_batch_size", "sequence_length"]
    picture = ["image_batch_size", "num_channels", "height", "width"]
    return model(
        nodes,
        [
            info("input_ids", INT64, text),
            info("pixel_values", FLOAT, picture),
            info("attention_mask", INT64, text),
        ],
        [
            info("logits_per_image", FLOAT, ["image_batch_size", "text_batch_size"]),
            info("logits_per_text", FLOAT, ["text_batch_size", "image_batch_size"]),
            info("text_embeds", FLOAT, ["text_batch_size", DIMS]),
            info("image_embeds", FLOAT, ["image_batch_size", DIMS]),
        ],
        [
            constant("last", [2], np.int64),
            weights("tokens", 100, DIMS),
            weights("patches", 3, DIMS),
        ],
        opset=14,
        ir_version=7,
        name="main_graph",
    )


def hidden_operator(domain: str = "somebody.else", name: str = "Secret") -> onnx.ModelProto:
    """Return `text_model` with a custom operator in the branch of an If."""
    found = text_model(domains=("ai.onnx.ml", domain))
    then = helper.make_graph(
        [helper.make_node(name, ["raw"], ["other"], "secret", domain=domain)],
        "then",
        [],
        [info("other", FLOAT, None)],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["raw"], ["same"])], "else", [], [info("same", FLOAT, None)]
    )
    nodes = list(found.graph.node)
    del found.graph.node[:]
    choose = helper.make_node(
        "If", ["is_so"], ["chosen"], "choose", then_branch=then, else_branch=otherwise
    )
    nodes[-1].input[0] = "chosen"
    found.graph.node.extend([*nodes[:-1], choose, nodes[-1]])
    found.graph.initializer.append(constant("is_so", False, np.bool_))
    return found


def with_external_data(location: str) -> onnx.ModelProto:
    """Return `text_model` with its weights in another file."""
    found = text_model()
    tensor = found.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return found


def rename(path: Path, to: Path, **names: str) -> Path:
    """Copy a model with tensors under other names."""
    found = onnx.load(path)
    for node in found.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in [*found.graph.input, *found.graph.output]:
        tensor.name = names.get(tensor.name, tensor.name)
    return save(found, to)


def save(found: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(found.SerializeToString())
    return path


def endless(path: Path, to: Path) -> Path:
    """Copy a pipeline with a loop before its output that does not end in our lifetime."""
    found = onnx.load(path)
    (output,) = found.graph.output
    for node in found.graph.node:
        node.output[:] = ["embedding_once" if n == output.name else n for n in node.output]
    flag, carried = info("going", TensorProto.BOOL, []), info("vector", FLOAT, None)
    ends = [info("still_going", TensorProto.BOOL, []), info("same_vector", FLOAT, None)]
    nodes = [
        helper.make_node("Identity", ["going"], ["still_going"]),
        helper.make_node("Identity", ["vector"], ["same_vector"]),
    ]
    body = helper.make_graph(nodes, "again", [info("turn", INT64, []), flag, carried], ends)
    again = ["turns", "yes", "embedding_once"]
    found.graph.node.append(helper.make_node("Loop", again, [output.name], "loop", body=body))
    found.graph.initializer.extend(
        [constant("turns", 2**62, np.int64), constant("yes", True, np.bool_)]
    )
    return save(found, to)
