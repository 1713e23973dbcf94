"""The text pipeline: strings in, one unit vector each out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from oml_mlflow.errors import GraphError, UnsupportedSource
from oml_mlflow.graph.cut import INPUT_IDS
from oml_mlflow.graph.encoder import text_encoder
from oml_mlflow.graph.ops import GraphBuilder, make_graph_model, tensor_info
from oml_mlflow.graph.profiles import CLIP_TOKENIZER, JSON_TOKENIZER, TOKENIZER_DOMAIN
from oml_mlflow.graph.wire import Initializer
from oml_mlflow.source.description import (
    BYTE_SYMBOLS,
    END_TOKEN,
    START_TOKEN,
    WORD_END,
    Tower,
    Vocabulary,
    Weights,
)

# The opset that OML4Py writes. Source: ONNX Pipeline Models : Text Embedding, Oracle.
OPSET = 17
# Unicode White_Space; RE2's own \s is ASCII only
_WHITE_SPACE = (
    r"[\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
)
_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# CLIPTokenizer wants a merge; this one is never carried out, as both are taken out of texts first
_NO_MERGE = (END_TOKEN, END_TOKEN)
_TOKENIZER_CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "add_prefix_space": False,
    "bos_token": START_TOKEN,
    "eos_token": END_TOKEN,
    "pad_token": END_TOKEN,
    "unk_token": END_TOKEN,
}


def text_head(vocabulary: Vocabulary, tokenizer: str) -> tuple[GraphBuilder, onnx.ValueInfoProto]:
    """Return the nodes from ``input``, string ``(batch,)``, to ``input_ids``, and its type.

    `tokenizer` is the operator to use: ``CLIPTokenizer``, or ``HfJsonTokenizer`` for added tokens.
    """
    g = GraphBuilder("tokenise")
    append_ids = _json_ids if tokenizer == JSON_TOKENIZER else _clip_ids
    _cut(g, append_ids(g, vocabulary), vocabulary)
    return g, tensor_info("input", "string", ["batch"])


def text_pipeline(
    weights: Weights,
    tower: Tower,
    vocabulary: Vocabulary,
    eos_token_id: int,
    tokenizer: str,
    properties: dict[str, str],
) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return the text graph and its initializers.

    The graph takes ``input``, string ``(batch,)``, and gives ``embedding``, float32
    ``(batch, dims)``, L2-normalised. Longer texts are cut to the vocabulary's maximum length,
    end token kept. The encoder starts at ``input_ids``, int64 ``(batch, sequence)``, and can be
    cut there.
    """
    head, graph_input = text_head(vocabulary, tokenizer)
    g = GraphBuilder("encode")
    raw = text_encoder(g, weights, tower, eos_token_id, INPUT_IDS, out="text_embeds")
    g.op("LpNormalization", raw, name="embedding", axis=-1, p=2)
    model = make_graph_model(
        "clip_txt",
        OPSET,
        [*head.nodes, *g.nodes],
        graph_input,
        tensor_info("embedding", np.float32, ["batch", tower.dims]),
        [
            tensor_info(INPUT_IDS, np.int64, ["batch", "sequence"]),
            tensor_info("text_embeds", np.float32, ["batch", tower.dims]),
        ],
        properties,
    )
    return model, [*head.initializers, *g.initializers]


def read_vocabulary(nodes: Iterable[onnx.NodeProto], max_length: int) -> Vocabulary:
    """Return the vocabulary that a tokenizer node holds.

    Raises:
        GraphError: If there is no tokenizer node that this module could have written.
    """
    for node in nodes:
        held = {a.name: a.s.decode() for a in node.attribute if a.type == a.STRING}
        added: dict[str, int] = {}
        if node.op_type == CLIP_TOKENIZER and {"vocab", "merges"} <= held.keys():
            merges = [line.split(" ") for line in held["merges"].split("\n") if line]
            ids = _digits_within(json.loads(held["vocab"]))
        elif node.op_type == JSON_TOKENIZER and "tokenizer_vocab" in held:
            whole = json.loads(held["tokenizer_vocab"])
            added = {token["content"]: token["id"] for token in whole["added_tokens"]}
            ids, merges = whole["model"]["vocab"], whole["model"]["merges"]
        else:
            continue
        pairs = tuple((pair[0], pair[1]) for pair in merges if len(pair) == 2)
        pairs = () if pairs == (_NO_MERGE,) else pairs
        added = {token: number for token, number in added.items() if token not in ids}
        return Vocabulary(ids, pairs, max_length, added=added)
    raise GraphError(
        "the text graph holds no CLIPTokenizer or HfJsonTokenizer node with a vocabulary.",
        hint="export the pair from its model for that profile.",
    )


def _clip_ids(g: GraphBuilder, vocabulary: Vocabulary) -> str:
    """Append the tokenizer that Oracle documents; it pads with the end token, adds none."""
    if vocabulary.added:
        raise UnsupportedSource(
            f"the tokenizer has added tokens ({', '.join(list(vocabulary.added)[:3])}), and the "
            f"operator {CLIP_TOKENIZER} takes none. Nothing was written.",
            hint='export for profile="onnxruntime", whose operator does.',
        )
    merges = vocabulary.merges or (_NO_MERGE,)
    ids, _ = g.ops(
        CLIP_TOKENIZER,
        "input",
        names=("token_ids", "token_mask"),
        domain=TOKENIZER_DOMAIN,
        vocab=json.dumps(_digits_alone(_looked_up(vocabulary)), ensure_ascii=False),
        merges="".join(f"{left} {right}\n" for left, right in merges),
        padding_length=-1,
    )
    return ids


def _json_ids(g: GraphBuilder, vocabulary: Vocabulary) -> str:
    """Append the tokenizer that reads tokenizer.json, after white space has become one space.

    It loses what follows the last ``<`` of a text, as in "I love you <3", while it waits for the
    rest of a special token (measured with extensions 0.15.2). So every text gets an end token of
    its own, whose column is cut off again.
    """
    spaced = g.op(
        "StringRegexReplace",
        "input",
        g.strings([_WHITE_SPACE]),
        g.strings([" "]),
        domain=TOKENIZER_DOMAIN,
        name="spaced",
    )
    ended = g.op(
        "StringRegexReplace",
        spaced,
        g.strings(["$"]),
        g.strings([END_TOKEN]),
        domain=TOKENIZER_DOMAIN,
        name="ended",
    )
    ids, _ = g.ops(
        JSON_TOKENIZER,
        ended,
        names=("token_ids", "token_mask"),
        domain=TOKENIZER_DOMAIN,
        tokenizer_vocab=json.dumps(_tokenizer_json(vocabulary), ensure_ascii=False),
        tokenizer_config=json.dumps(_TOKENIZER_CONFIG),
    )
    return g.op("Slice", ids, g.constant([0]), g.constant([-1]), g.constant([1]))


def _cut(g: GraphBuilder, ids: str, vocabulary: Vocabulary) -> str:
    """Append the cut to the maximum length, end token kept.

    Both operators pad to the longest text of the batch, behind its end token, where nothing
    changes the embedding. So the last column, once cut to the maximum length, may be an end token
    in every row: in one that was cut it has to be, in the others it stands behind the first one.
    CLIPTokenizer's own ``padding_length`` would lose it.
    """
    length = g.op("Min", g.dim(ids, 1), g.constant([vocabulary.max_length]))
    kept = g.op("Sub", length, g.constant([1]))
    ids = g.op("Slice", ids, g.constant([0]), kept, g.constant([1]))
    column = g.op("Concat", g.dim(ids, 0), g.constant([1]), axis=0)
    end = g.op("Expand", g.constant([[vocabulary.ids[END_TOKEN]]]), column)
    return g.op("Concat", ids, end, axis=1, name=INPUT_IDS)


def _tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return CLIP's tokenizer.json. Source: what transformers 5.23 writes for CLIPTokenizer."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    specials = [(vocabulary.ids[token], token) for token in (START_TOKEN, END_TOKEN)]
    specials += [(number, token) for token, number in vocabulary.added.items()]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for number, token in sorted(specials)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _SPLIT},
                    "behavior": "Removed",
                    "invert": True,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END_TOKEN, vocabulary.ids[END_TOKEN]],
            "cls": [START_TOKEN, vocabulary.ids[START_TOKEN]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END_TOKEN,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _looked_up(vocabulary),
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }


def _looked_up(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the tokens that an operator may find.

    It looks for whole words first, even for those that no merge makes, and which CLIP's tokenizer
    never gives. For a byte without symbol that gives the unknown token, an operator no token's id.
    """
    symbols = [symbol + end for end in ("", WORD_END) for symbol in BYTE_SYMBOLS]
    made = {*symbols, START_TOKEN, END_TOKEN, *map("".join, vocabulary.merges)}
    known = {token: number for token, number in vocabulary.ids.items() if token in made}
    # no id may be missing: where the highest one is the number of tokens, operators write it beyond
    # their table, and the process ends. White space is in no token that a text can have.
    missing = set(range(max(known.values()))) - set(known.values())
    fill = {f" {number}": number for number in sorted(missing)}
    return {**dict.fromkeys(symbols, vocabulary.ids[END_TOKEN]), **fill, **known}


def _digits_alone(ids: dict[str, int]) -> dict[str, int]:
    """Return the vocabulary with digits that end no word read as words of their own.

    The operator keeps "2019" as one run of letters; CLIP's tokenizer splits every digit into a
    word. As no merge has a digit, giving ``2`` the id of ``2</w>`` makes both the same. Measured
    with onnxruntime-extensions 0.12.0, 0.13.0 and 0.15.2.
    """
    digits = {d: ids[f"{d}</w>"] for d in "0123456789" if d in ids and f"{d}</w>" in ids}
    return {**ids, **digits}


def _digits_within(ids: dict[str, int]) -> dict[str, int]:
    """Undo `_digits_alone`: in CLIP's vocabulary the ids of digits stand in the digits' order."""
    missing = sorted(set(range(max(ids.values()))) - set(ids.values()))
    end = ids.get(END_TOKEN)
    digits = [d for d in "0123456789" if d in ids and ids[d] == ids.get(d + WORD_END) != end]
    if len(missing) != len(digits):
        return ids
    return {**ids, **dict(zip(digits, missing, strict=True))}
