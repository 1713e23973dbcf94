"""The description that graphs are built from: towers, picture preparation, vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

ACTIVATIONS = ("quick_gelu", "gelu", "relu")
# Pillow's resampling filters by number; ONNX's Resize has no Lanczos, box or Hamming, and its
# nearest is not Pillow's.
NEAREST, BILINEAR, BICUBIC = 0, 2, 3
RESIZE_ATTRIBUTES: dict[int, dict[str, Any]] = {
    BILINEAR: {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    BICUBIC: {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}
RESAMPLING = (NEAREST, *RESIZE_ATTRIBUTES)
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# how byte-level tokenizers write the 256 bytes
BYTE_SYMBOLS = tuple(map(chr, [*_PRINTABLE, *range(0x100, 0x200 - len(_PRINTABLE))]))


class Weights(Protocol):
    """Named float32 tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def load(self, name: str) -> np.ndarray:
        """Return a tensor as float32."""


@dataclass(frozen=True)
class Tower:
    """The dimensions of one encoder.

    Attributes:
        prefix: First part of its weights' names, ``vision_model`` or ``text_model``.
        hidden: Width.
        layers: Number of layers.
        heads: Attention heads; they divide `hidden`.
        activation: One of `ACTIVATIONS`.
        epsilon: Added to the variance by layer normalisation.
        projection: Name of the projection's weight.
        dims: Length of the embedding.
    """

    prefix: str
    hidden: int
    layers: int
    heads: int
    activation: str
    epsilon: float
    projection: str
    dims: int


@dataclass(frozen=True)
class ImagePreparation:
    """What a model's image processor does to a decoded picture.

    Attributes:
        shortest_edge_px: Length to which the short edge is resized, keeping the aspect ratio.
        resize_px: (height, width) to which the picture is resized, whatever its aspect ratio.
            At most one of the two is set; with neither, nothing is resized.
        resample: Pillow's number of the filter, one of `RESAMPLING`.
        crop_px: (height, width) of the centre crop, or None for no crop.
        rescale_factor: Factor to pixel values, or None for no rescaling.
        mean: Subtracted per channel, RGB; None for no normalisation.
        std: Divisor per channel, RGB; None for no normalisation.
        vertical_first: Whether pictures that lose most of their height are resized vertically
            first, as Pillow 13 and later do; earlier releases of Pillow, and pairs of earlier
            releases of this package, never do.
    """

    shortest_edge_px: int | None = 224
    resize_px: tuple[int, int] | None = None
    resample: int = BICUBIC
    crop_px: tuple[int, int] | None = (224, 224)
    rescale_factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vertical_first: bool = False

    @classmethod
    def from_metadata(cls, entry: Mapping[str, Any]) -> ImagePreparation:
        """Return the preparation that `to_metadata` wrote."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()
        }
        return cls(**values)

    def to_metadata(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def output_px(self) -> tuple[int, int] | None:
        """(height, width) of every prepared picture, or None if it varies."""
        return self.crop_px or self.resize_px


@dataclass(frozen=True)
class Vocabulary:
    """CLIP's byte-level BPE.

    Attributes:
        ids: Id of every token.
        merges: Pairs to merge, best first.
        max_length: Ids a text may have, start and end included.
        any_case: Special and added tokens that are found in whatever case they are written.
        added: Id of every token that was added to CLIP's own, found in a text before it is split.
    """

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    max_length: int
    any_case: tuple[str, ...] = ()
    added: dict[str, int] = field(default_factory=dict)
