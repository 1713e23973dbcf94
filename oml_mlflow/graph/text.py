"""The text pipeline: strings in, one unit vector each out."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnx

from oml_mlflow.graph.encoder import Tower, Weights, text_encoder
from oml_mlflow.graph.ops import GraphBuilder, tensor_info
from oml_mlflow.graph.wire import Initializer

# The opset that OML4Py writes. Source: ONNX Pipeline Models : Text Embedding, Oracle.
OPSET = 17
TOKENIZER_DOMAIN = "ai.onnx.contrib"
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Vocabulary:
    """CLIP's byte-level BPE.

    Attributes:
        ids: Id of every token.
        merges: Pairs to merge, best first.
        max_length: Ids a text may have, start and end included.
    """

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    max_length: int


def text_pipeline(
    weights: Weights,
    tower: Tower,
    vocabulary: Vocabulary,
    eos_token_id: int,
    properties: dict[str, str],
) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return the text graph and its initializers.

    The graph takes ``input``, string ``(batch,)``, and gives ``embedding``, float32
    ``(batch, dims)``, L2-normalised. Longer texts are cut to the vocabulary's maximum length,
    end token kept. The encoder starts at ``input_ids``, int64 ``(batch, sequence)``, and can be
    cut there.
    """
    g = GraphBuilder()
    input_ids = _tokenise(g, vocabulary)
    raw = text_encoder(g, weights, tower, eos_token_id, input_ids, out="text_embeds")
    g.op("LpNormalization", raw, name="embedding", axis=-1, p=2)
    model = g.model(
        "clip_txt",
        OPSET,
        tensor_info("input", "string", ["batch"]),
        tensor_info("embedding", np.float32, ["batch", tower.dims]),
        [
            tensor_info("input_ids", np.int64, ["batch", "sequence"]),
            tensor_info("text_embeds", np.float32, ["batch", tower.dims]),
        ],
        properties,
    )
    return model, g.initializers


def _tokenise(g: GraphBuilder, vocabulary: Vocabulary) -> str:
    """Append the tokenizer and the cut to the maximum length.

    The operator pads with the end token to the longest text of the batch. So the last column, once
    cut to the maximum length, is an end token in every row that was not cut, and has to be one in
    every row that was: it is replaced. The operator's own ``padding_length`` would lose it.
    """
    ids, _ = g.ops(
        "CLIPTokenizer",
        "input",
        names=("token_ids", "token_mask"),
        domain=TOKENIZER_DOMAIN,
        vocab=json.dumps(_digits_alone(vocabulary.ids), ensure_ascii=False),
        merges="".join(f"{left} {right}\n" for left, right in vocabulary.merges),
        padding_length=-1,
    )
    length = g.op("Min", g.dim(ids, 1), g.constant([vocabulary.max_length]))
    kept = g.op("Sub", length, g.constant([1]))
    ids = g.op("Slice", ids, g.constant([0]), kept, g.constant([1]))
    column = g.op("Concat", g.dim(ids, 0), g.constant([1]), axis=0)
    end = g.op("Expand", g.constant([[vocabulary.ids[END_TOKEN]]]), column)
    return g.op("Concat", ids, end, axis=1, name="input_ids")


def _digits_alone(ids: dict[str, int]) -> dict[str, int]:
    """Return the vocabulary with digits that end no word read as words of their own.

    The operator keeps "2019" as one run of letters; CLIP's tokenizer splits every digit into a
    word. As no merge has a digit, giving ``2`` the id of ``2</w>`` makes both the same. Measured
    with onnxruntime-extensions 0.12.0, 0.13.0 and 0.15.2.
    """
    digits = {d: ids[f"{d}</w>"] for d in "0123456789" if d in ids and f"{d}</w>" in ids}
    return {**ids, **digits}
