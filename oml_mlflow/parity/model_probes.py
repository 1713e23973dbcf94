"""Probes of one model: what its own vocabulary holds and picture size needs, and few others do.

The golden probes are the same for all models, and say whether vectors are comparable. These are
made from a model's folder, the same ones for the same folder.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from PIL import Image

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.probes import Probe
from oml_mlflow.source.description import END_TOKEN, START_TOKEN, Vocabulary
from oml_mlflow.source.model import Source

_MOST_TOKENS, _MOST_WORDS = 6, 12
_ROWS = 13
# every pair of digits once
_DIGITS = "".join(f"{a}" + "".join(f"{a}{b}" for b in range(a + 1, 10)) for a in range(10))
# what CLIP's tokenizer merges: letters, contractions, punctuation
_PLAIN = re.compile(r"[a-z]+|'(s|t|re|ve|m|ll|d)|[^A-Za-z0-9]+")
_CHARACTERS = "".join(map(chr, [*range(33, 65), *range(91, 127), *range(0xA1, 0x180)])) + "αяא猫🐈"
# white space before one of these ends the process of some databases
_SPECIAL = re.compile(r"\s<\|(startoftext|endoftext)\|>", re.IGNORECASE)


def model_probes(source: Source, added_tokens: Sequence[str] = ()) -> tuple[Probe, ...]:
    """Return the probes of a model: at most 21, all safe for any database's decoder.

    Texts: every pair of digits; case; added tokens, characters of which the vocabulary lacks a
    byte's symbol, and merges that cross what CLIP's tokenizer splits, where there are any.
    Pictures, as PNG: a tall screenshot, 1:20, one pixel, a few, and those layouts of channels that
    a graph reads right without Pillow (measured with onnxruntime-extensions 0.12.0 to 0.15.2).

    Args:
        source: The model.
        added_tokens: What its own tokenizer knows beside its vocabulary, such as ``<cat>``.
    """
    texts = [*_texts(source.vocabulary), *_tokens(added_tokens)]
    found = [
        Probe(f"own-{name}", TXT, _category(name, text), text, is_golden=False)
        for name, text in texts
        if text.isprintable() and not _SPECIAL.search(text)
    ]
    pictures = {
        "wide": _draw(240, 12),
        "pixel": _draw(1, 1),
        "tiny": _draw(3, 2),
        "grey": _draw(37, 29).convert("L"),
        "palette": _draw(29, 37).quantize(32),
        "opaque": _draw(41, 31).convert("RGBA"),
    }
    found += [_picture(name, picture) for name, picture in pictures.items()]
    return tuple(found)


@cache
def prepared_probes() -> tuple[Probe, ...]:
    """Return pictures that only Pillow's preparation makes right; never sent to a database."""
    plain = _draw(37, 29)
    see_through = plain.convert("LA")
    see_through.putalpha(plain.getchannel(1))
    deep = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257)
    return (
        _picture("transparent", see_through),
        _picture("16-bit", deep),
        _picture("cmyk", plain.convert("CMYK"), "JPEG"),
        _picture("grey-jpeg", plain.convert("L"), "JPEG"),
    )


def _texts(vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    yield "digits-1", _DIGITS[:51]
    yield "digits-2", f"{_DIGITS[50:]}0"
    yield "case", "A Photo of THE cat, The CAT and the Cat in NASA's hat"
    yield "case-accents", "École ÉCOLE, Öl und ÄPFEL, Łódź ŁÓDŹ"
    words = sorted({(left + right).removesuffix("</w>") for left, right in vocabulary.merges})
    odd = [word for word in words if word.isascii() and not _PLAIN.fullmatch(word)]
    lacking = [letter for letter in _CHARACTERS if _lacks(vocabulary, letter)]
    lists = {
        "digit-merges": [word for word in odd if any(letter.isdigit() for letter in word)],
        "merges": [word for word in odd if not any(letter.isdigit() for letter in word)],
        "symbols": [letter for letter in lacking if letter.isascii()],
        "symbols-accents": [letter for letter in lacking if not letter.isascii()],
    }
    yield from ((name, " ".join(parts[:_MOST_WORDS])) for name, parts in lists.items() if parts)


def _tokens(added: Sequence[str]) -> Iterator[tuple[str, str]]:
    own = [token for token in added if token not in (START_TOKEN, END_TOKEN)]
    for number, token in enumerate(own[:_MOST_TOKENS], 1):
        yield f"token-{number}", f"a photo of {token}, x{token}y {token.upper()}"


def _category(name: str, text: str) -> str:
    if name.startswith("digit"):
        return "digits"
    return "ascii" if text.isascii() else "accents"


def _lacks(vocabulary: Vocabulary, letter: str) -> bool:
    """Return whether a byte of a letter has no symbol, or none that ends a word."""
    symbols = [_byte_symbols()[byte] for byte in letter.encode()]
    return not {*symbols, f"{symbols[-1]}</w>"} <= vocabulary.ids.keys()


@cache
def _byte_symbols() -> list[str]:
    """Return the symbol that byte-level BPE has for each byte. Source: OpenAI's GPT-2."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _picture(name: str, picture: Image.Image, encoding: str = "PNG") -> Probe:
    out = io.BytesIO()
    picture.save(out, encoding)
    return Probe(f"own-{name}", IMG, "png", out.getvalue(), is_golden=False)


def _draw(width: int, height: int) -> Image.Image:
    """Return a picture of fine detail; its rows come again, so that it takes few bytes."""
    c, y, x = np.mgrid[:3, : min(height, _ROWS), :width]
    levels = (x * 73856093 ^ y * 19349663 ^ c * 83492791) * 2654435761 >> 16 & 255
    rows = levels.astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.tile(rows, (height // len(rows) + 1, 1, 1))[:height])
