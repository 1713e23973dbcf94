"""Learn and save a small byte-level vocabulary in the format of CLIP's own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizerFast

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"
MAX_LENGTH = 32
MERGES = 256

GENERAL_ENGLISH = """
the quick brown fox jumps over the lazy dog and the five boxing wizards jump quickly
a photo of some things that we can see here with other people and places in the world
this is a picture, an image or a drawing of one object; there are many more like it
please show me all of the pictures which have something above, below, near or between them
what does it look like? it looks bright, dark, round, flat, tall, wide, empty and colourful
"""

Pair = tuple[str, str]


def byte_symbols() -> list[str]:
    """List the printable symbols that stand for the 256 bytes, in CLIP's order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in plain] + [chr(0x100 + k) for k in range(256 - len(plain))]


def learn_merges(texts: Iterable[str], size: int = MERGES) -> list[Pair]:
    """Learn byte pair merges from the words of some texts; ties go to the first in the alphabet.

    Args:
        texts: The texts, of plain letters; everything else in them is left aside.
        size: How many merges to learn at most.

    Returns:
        The merges, in the order that they are applied.
    """
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    words = {word: (*word[:-1], word[-1] + WORD_END) for word in counts}
    merges: list[Pair] = []
    while len(merges) < size:
        pairs: Counter[Pair] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(symbols, best) for word, symbols in words.items()}
    return merges


def save_tokenizer(folder: Path, captions: Iterable[str]) -> CLIPTokenizerFast:
    """Learn a vocabulary from captions and write it as a Hugging Face CLIP tokenizer.

    Args:
        folder: Where vocab.json, merges.txt and the tokenizer's other files go.
        captions: What to learn from, beside a little general English.

    Returns:
        The tokenizer, read back from the folder.
    """
    merges = learn_merges([*captions, GENERAL_ENGLISH])
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols)]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(
        json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    tokenizer = CLIPTokenizerFast.from_pretrained(folder, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    roles = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {**roles, "model_max_length": MAX_LENGTH, "tokenizer_class": "CLIPTokenizer"}
    for name, content in (("special_tokens_map", roles), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return CLIPTokenizerFast.from_pretrained(folder)


def _merged(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)
