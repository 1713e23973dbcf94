"""Probes of one model: what its own vocabulary holds and picture size needs, and few others do.

The golden probes are the same for all models, and say whether vectors are comparable. These are
made from a model's folder, the same ones for the same folder.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.probes import Probe
from oml_mlflow.source.description import END_TOKEN, START_TOKEN, WORD_END, Vocabulary
from oml_mlflow.source.model import Source

_MOST_TOKENS, _MOST_WORDS = 5, 12
# every pair of digits once
_DIGITS = "".join(f"{a}" + "".join(f"{a}{b}" for b in range(a + 1, 10)) for a in range(10))
# what CLIP's tokenizer merges: letters, contractions, punctuation
_PLAIN = re.compile(r"[a-z]+|'(s|t|re|ve|m|ll|d)|[^A-Za-z0-9]+")
# printable ASCII, lower case: each is its own symbol in byte-level BPE
_CHARACTERS = [chr(code) for code in (*range(33, 65), *range(91, 127))]
# white space before one of these ends the process of some databases
_SPECIAL = re.compile(r"\s<\|(startoftext|endoftext)\|>", re.IGNORECASE)
# rows of a drawing, which come again, so that it takes few bytes
_ROWS = 13


def model_probes(source: Source, added_tokens: Sequence[str] = ()) -> tuple[Probe, ...]:
    """Return the probes of a model: at most 24.

    Texts: every pair of digits; case; added tokens, characters of which the vocabulary lacks a
    byte's symbol, and merges that cross what CLIP's tokenizer splits, where there are any.
    Pictures: a tall screenshot, 1:20, one pixel, a few, and every layout of channels. Graphs
    without Pillow's preparation read these right but for the last four, whichever release of
    onnxruntime-extensions decodes (measured with 0.12.0 to 0.15.2).

    Args:
        source: The model.
        added_tokens: What its own tokenizer knows beside its vocabulary, such as ``<cat>``.
    """
    texts = {
        "digits-1": _DIGITS[:51],
        "digits-2": f"{_DIGITS[50:]}0",
        "case": "A Photo of THE cat, The CAT and the Cat in NASA's hat",
        "case-accents": "École ÉCOLE, Öl und ÄPFEL, Łódź ŁÓDŹ",
        **_oddities(source.vocabulary),
    }
    own = [token for token in added_tokens if token not in (START_TOKEN, END_TOKEN)]
    for number, token in enumerate(own[:_MOST_TOKENS], 1):
        texts[f"token-{number}"] = f"a photo of {token}, x{token}y {token.upper()}"
    grey, clear = _draw(37, 29).convert("L"), _draw(41, 31).convert("LA")
    clear.putalpha(_draw(41, 31).convert("L"))
    px = min(source.preparation.output_px or (224, 224))
    pictures = {
        "tall": _encode(_draw(px * 5 // 4, px * 9)),
        "wide": _encode(_draw(240, 12)),
        "pixel": _encode(_draw(1, 1)),
        "tiny": _encode(_draw(3, 2)),
        "grey": _encode(grey),
        "palette": _encode(_draw(29, 37).quantize(32)),
        "opaque": _encode(_draw(41, 31).convert("RGBA")),
        "transparent": _encode(clear),
        "16-bit": _encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)),
        "cmyk": _encode(_draw(37, 29).convert("CMYK"), "JPEG"),
        "grey-jpeg": _encode(grey, "JPEG"),
    }
    probes = [Probe(f"own-{name}", IMG, "png", data, False) for name, data in pictures.items()]
    for name, text in texts.items():
        category = "ascii" if text.isascii() else "accents"
        category = "digits" if name.startswith("digit") else category
        if text.isprintable() and not _SPECIAL.search(text):
            probes.append(Probe(f"own-{name}", TXT, category, text, is_golden=False))
    return tuple(probes)


def _oddities(vocabulary: Vocabulary) -> dict[str, str]:
    """Return words that CLIP's vocabulary has none of, and characters that this one lacks."""
    words = sorted({(left + right).removesuffix(WORD_END) for left, right in vocabulary.merges})
    odd = [word for word in words if word.isascii() and not _PLAIN.fullmatch(word)]
    found = {
        "digit-merges": [word for word in odd if re.search("[0-9]", word)],
        "merges": [word for word in odd if not re.search("[0-9]", word)],
        "symbols": [c for c in _CHARACTERS if not {c, c + WORD_END} <= vocabulary.ids.keys()],
    }
    return {name: " ".join(parts[:_MOST_WORDS]) for name, parts in found.items() if parts}


def _encode(picture: Image.Image, encoding: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, encoding)
    return out.getvalue()


def _draw(width: int, height: int) -> Image.Image:
    c, y, x = np.mgrid[:3, : min(height, _ROWS), :width]
    levels = (x * 73856093 ^ y * 19349663 ^ c * 83492791) * 2654435761 >> 16 & 255
    rows = levels.astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(np.tile(rows, (height // len(rows) + 1, 1, 1))[:height])
