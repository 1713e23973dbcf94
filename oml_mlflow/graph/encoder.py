"""CLIP's two encoders as ONNX nodes, written straight from the weights.

Written by hand rather than traced by ``torch.onnx``: CLIP is one fixed architecture, and so the
same folder gives the same bytes whatever torch is installed, no tower is ever held in memory, and
the graph needs no torch at all. Every export is checked against transformers' own CLIPModel.

Source: transformers, ``models/clip/modeling_clip.py`` (4.57 and 5.23 compute the same).
"""

from __future__ import annotations

import numpy as np

from oml_mlflow.graph.ops import GraphBuilder
from oml_mlflow.source.description import Tower, Weights


def vision_encoder(
    g: GraphBuilder, weights: Weights, tower: Tower, patch_px: int, pixel_values: str, out: str
) -> str:
    """Append nodes from `pixel_values` (batch, 3, h, w) to `out` (batch, dims), not normalised."""
    at = f"{tower.prefix}.embeddings"
    patches = g.op(
        "Conv",
        pixel_values,
        _weight(g, weights, f"{at}.patch_embedding.weight"),
        strides=[patch_px, patch_px],
        kernel_shape=[patch_px, patch_px],
    )
    patches = g.op("Reshape", patches, g.constant([0, tower.hidden, -1]))
    patches = g.op("Transpose", patches, perm=[0, 2, 1])
    class_shape = g.op("Concat", g.dim(pixel_values, 0), g.constant([1, tower.hidden]), axis=0)
    class_token = g.op("Expand", _weight(g, weights, f"{at}.class_embedding"), class_shape)
    hidden = g.op("Concat", class_token, patches, axis=1)
    hidden = g.op("Add", hidden, _weight(g, weights, f"{at}.position_embedding.weight"))
    hidden = _norm(g, weights, tower, f"{tower.prefix}.pre_layrnorm", hidden)
    hidden = _layers(g, weights, tower, hidden, mask=None)
    pooled = g.op("Gather", hidden, g.constant(0), axis=1)
    pooled = _norm(g, weights, tower, f"{tower.prefix}.post_layernorm", pooled)
    return _linear(g, weights, tower.projection, pooled, bias=False, name=out)


def text_encoder(
    g: GraphBuilder, weights: Weights, tower: Tower, eos_token_id: int, input_ids: str, out: str
) -> str:
    """Append nodes from `input_ids` (batch, sequence) to `out` (batch, dims), not normalised.

    An `eos_token_id` of 2 stands for the published configurations from before it was set right:
    then the text is pooled at the highest id, as transformers does.
    """
    at = f"{tower.prefix}.embeddings"
    tokens = g.op("Gather", _weight(g, weights, f"{at}.token_embedding.weight"), input_ids)
    length = g.dim(input_ids, 1)
    positions = g.op(
        "Slice",
        _weight(g, weights, f"{at}.position_embedding.weight"),
        g.constant([0]),
        length,
        g.constant([0]),
    )
    hidden = g.op("Add", tokens, positions)
    hidden = _layers(g, weights, tower, hidden, mask=_causal_mask(g, length))

    ids = g.op("Cast", input_ids, to=6)
    if eos_token_id != 2:
        is_end = g.op("Equal", ids, g.constant(eos_token_id, np.int32))
        ids = g.op("Cast", is_end, to=6)
    end = g.op("ArgMax", ids, axis=1, keepdims=1)
    pooled = g.op("GatherND", hidden, end, batch_dims=1)
    pooled = _norm(g, weights, tower, f"{tower.prefix}.final_layer_norm", pooled)
    return _linear(g, weights, tower.projection, pooled, bias=False, name=out)


def _causal_mask(g: GraphBuilder, length: str) -> str:
    # float32's lowest value, not -inf: what transformers adds, and safe in every softmax
    square = g.op("Concat", length, length, axis=0)
    lowest = g.constant(np.finfo(np.float32).min, np.float32)
    full = g.op("Expand", lowest, square)
    return g.op("Trilu", full, g.constant(1), upper=1)


def _layers(g: GraphBuilder, weights: Weights, tower: Tower, hidden: str, mask: str | None) -> str:
    for index in range(tower.layers):
        at = f"{tower.prefix}.encoder.layers.{index}"
        normed = _norm(g, weights, tower, f"{at}.layer_norm1", hidden)
        attended = _attention(g, weights, tower, f"{at}.self_attn", normed, mask)
        hidden = g.op("Add", hidden, attended)
        normed = _norm(g, weights, tower, f"{at}.layer_norm2", hidden)
        inner = _linear(g, weights, f"{at}.mlp.fc1", normed)
        inner = _activation(g, tower.activation, inner)
        hidden = g.op("Add", hidden, _linear(g, weights, f"{at}.mlp.fc2", inner))
    return hidden


def _attention(
    g: GraphBuilder, weights: Weights, tower: Tower, at: str, hidden: str, mask: str | None
) -> str:
    head_dim = tower.hidden // tower.heads
    split = g.constant([0, 0, tower.heads, head_dim])

    def heads(part: str, perm: list[int]) -> str:
        projected = _linear(g, weights, f"{at}.{part}_proj", hidden)
        return g.op("Transpose", g.op("Reshape", projected, split), perm=perm)

    query, key = heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1])
    value = heads("v", [0, 2, 1, 3])
    scores = g.op("MatMul", query, key)
    scores = g.op("Mul", scores, g.constant(head_dim**-0.5, np.float32))
    if mask is not None:
        scores = g.op("Add", scores, mask)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
    mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.constant([0, 0, tower.hidden]))
    return _linear(g, weights, f"{at}.out_proj", mixed)


def _activation(g: GraphBuilder, kind: str, hidden: str) -> str:
    if kind == "quick_gelu":
        gate = g.op("Sigmoid", g.op("Mul", hidden, g.constant(1.702, np.float32)))
        return g.op("Mul", hidden, gate)
    if kind == "gelu":
        erf = g.op("Erf", g.op("Div", hidden, g.constant(np.sqrt(2.0), np.float32)))
        half = g.op("Mul", hidden, g.constant(0.5, np.float32))
        return g.op("Mul", half, g.op("Add", erf, g.constant(1.0, np.float32)))
    return g.op("Relu", hidden)


def _norm(g: GraphBuilder, weights: Weights, tower: Tower, at: str, hidden: str) -> str:
    scale, bias = (_weight(g, weights, f"{at}.{part}") for part in ("weight", "bias"))
    return g.op("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=tower.epsilon)


def _linear(
    g: GraphBuilder,
    weights: Weights,
    at: str,
    hidden: str,
    *,
    bias: bool = True,
    name: str | None = None,
) -> str:
    """Append ``hidden @ weight.T (+ bias)``; torch stores (out, in), MatMul wants (in, out)."""
    source = f"{at}.weight"
    rows, columns = weights.shape(source)
    matrix = g.weight(source, (columns, rows), lambda: weights.load(source).T)
    product = g.op("MatMul", hidden, matrix, name=None if bias else name)
    if not bias:
        return product
    return g.op("Add", product, _weight(g, weights, f"{at}.bias"), name=name)


def _weight(g: GraphBuilder, weights: Weights, name: str) -> str:
    return g.weight(name, weights.shape(name), lambda: weights.load(name))
