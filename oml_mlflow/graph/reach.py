"""How much of a text a text pipeline can read. Needs no onnx, which serving does not have."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

from oml_mlflow.graph.protobuf import BYTES, fields, mapped
from oml_mlflow.source.description import END_TOKEN, START_TOKEN, WORD_END

# ModelProto.graph, GraphProto.node, NodeProto.attribute; AttributeProto.name and .s
_TO_ATTRIBUTES, _NAME, _STRING = (7, 1, 5), 1, 4
_SPECIAL = (START_TOKEN, END_TOKEN)
_SPECIAL_BYTES = max(map(len, _SPECIAL))
# a cut also changes its own last character, and may fall into a special token or a contraction
_AT_THE_CUT_BYTES = 32


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the merges of a pipeline's tokenizer, best first; none if it has no such tokenizer.

    Raises:
        ValueError: If the file is no ONNX model, or its tokenizer no readable one.
    """
    with mapped(path) as data:
        for at, end in _messages(data, 0, len(data), _TO_ATTRIBUTES):
            parts = {f.number: f for f in fields(data, at, end) if f.wire == BYTES}
            if not {_NAME, _STRING} <= parts.keys():
                continue
            name, value = (data[parts[n].at : parts[n].end] for n in (_NAME, _STRING))
            if name == b"merges":
                pairs = [line.split(" ") for line in value.decode().split("\n")]
                return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
            if name == b"tokenizer_vocab":
                whole = json.loads(value)
                # an added token reaches as far as a merge of all its characters would
                added = [
                    t["content"] for t in whole["added_tokens"] if t["content"] not in _SPECIAL
                ]
                merges = [(left, right) for left, right in whole["model"]["merges"]]
                return [*merges, *((token[:1], token[1:]) for token in added)]
    return []


def reach_bytes(merges: Sequence[tuple[str, str]], tokens: int) -> int | None:
    """Return how many bytes of a text, white space apart, its first tokens can depend on.

    A token covers no more bytes than the longest merge makes. Beyond that, what follows a cut
    decides on a token before it through a chain of merges only: they are carried out by rank, and
    those of one rank from the left, so that with each rank the part which is as it would be
    without the cut loses its last token at most. That is the left half of the merge, whose right
    half begins with the token that was lost before. At most the bytes of the longest such chain are
    lost: 866 with CLIP's vocabulary, where a token has at most 32.

    Args:
        merges: The tokenizer's merges, best first.
        tokens: Tokens that the model reads.

    Returns:
        The bytes, or None if a merge takes what only a later one makes: there is no bound then.
    """
    made = {left + right: rank for rank, (left, right) in enumerate(merges)}
    lost = dict.fromkeys(["", *(left for left, _ in merges)], 0)
    starts: dict[str, list[str]] = {}
    for rank, (left, right) in enumerate(merges):
        if max(made.get(left, -1), made.get(right, -1)) >= rank:
            return None
        if right not in starts:
            whole = right.removesuffix(WORD_END)
            prefixes = [whole[:n] for n in range(len(whole) + 1)]
            starts[right] = [prefix for prefix in prefixes if prefix in lost]
        behind = max([lost[start] for start in starts[right]])
        lost[left] = max(lost[left], len(left) + behind)
    longest = max((len(token.removesuffix(WORD_END)) for token in made), default=0)
    chain = max(lost.values())
    return tokens * max(longest, _SPECIAL_BYTES) + chain + _AT_THE_CUT_BYTES


def _messages(
    data: mmap.mmap, at: int, end: int, path: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """Yield the offsets of the messages that a path of field numbers leads to."""
    if not path:
        yield at, end
        return
    for field in fields(data, at, end):
        if (field.number, field.wire) == (path[0], BYTES):
            yield from _messages(data, field.at, field.end, path[1:])
