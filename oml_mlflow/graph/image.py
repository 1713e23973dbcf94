"""The image pipeline: bytes of one encoded picture in, one unit vector out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from oml_mlflow.graph.encoder import Tower, Weights, vision_encoder
from oml_mlflow.graph.ops import GraphBuilder, tensor_info
from oml_mlflow.graph.wire import Initializer

# Resize knows `antialias` from opset 18 on; without it vectors differ from Pillow's.
OPSET = 18
DECODE_DOMAIN = "com.microsoft.extensions"

# Pillow's resampling filters by number; ONNX's Resize has no Lanczos, box or Hamming.
NEAREST, BILINEAR, BICUBIC = 0, 2, 3
_RESIZE: dict[int, dict[str, Any]] = {
    NEAREST: {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    BILINEAR: {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    BICUBIC: {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5},
}
RESAMPLING = tuple(_RESIZE)


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
    """

    shortest_edge_px: int | None = 224
    resize_px: tuple[int, int] | None = None
    resample: int = BICUBIC
    crop_px: tuple[int, int] | None = (224, 224)
    rescale_factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def output_px(self) -> tuple[int, int] | None:
        """(height, width) of every prepared picture, or None if it varies."""
        return self.crop_px or self.resize_px


def image_pipeline(
    weights: Weights,
    tower: Tower,
    preparation: ImagePreparation,
    patch_px: int,
    properties: dict[str, str],
) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return the image graph and its initializers.

    The graph takes ``input``, uint8 ``(n_bytes,)``, the bytes of one JPEG or PNG picture, and
    gives ``embedding``, float32 ``(1, dims)``, L2-normalised. The encoder starts at
    ``pixel_values``, float32 ``(batch, 3, h, w)``, and can be cut there.
    """
    g = GraphBuilder()
    pixels = _decode(g)
    pixels = _resize(g, pixels, preparation)
    pixels = _centre_crop(g, pixels, preparation)
    pixel_values = _normalise(g, pixels, preparation)
    raw = vision_encoder(g, weights, tower, patch_px, pixel_values, out="image_embeds")
    g.op("LpNormalization", raw, name="embedding", axis=-1, p=2)
    height, width = preparation.output_px or (0, 0)
    model = g.model(
        "clip_img",
        OPSET,
        tensor_info("input", np.uint8, ["n_bytes"]),
        tensor_info("embedding", np.float32, ["batch", tower.dims]),
        [
            tensor_info("pixel_values", np.float32, ["batch", 3, height, width]),
            tensor_info("image_embeds", np.float32, ["batch", tower.dims]),
        ],
        properties,
    )
    return model, g.initializers


def _decode(g: GraphBuilder) -> str:
    """Append the decoder; return uint8 (1, 3, height, width), RGB.

    DecodeImage gives BGR, and from extensions 0.14 on one channel for grey pictures: the channel
    numbers 2, 1, 0 are cut to those there are. Four channels are BGRA, whose alpha is dropped.
    """
    decoded = g.op("DecodeImage", "input", domain=DECODE_DOMAIN, name="decoded")
    last = g.op("Sub", g.dim(decoded, 2), g.constant([1]))
    order = g.op("Min", g.constant([2, 1, 0]), last)
    rgb = g.op("Gather", decoded, order, axis=2)
    rgb = g.op("Transpose", rgb, perm=[2, 0, 1])
    return g.op("Unsqueeze", rgb, g.constant([0]))


def _resize(g: GraphBuilder, pixels: str, preparation: ImagePreparation) -> str:
    """Append Pillow's resize, on uint8: on float32, ORT's result is up to 7 levels off."""
    if preparation.resize_px:
        height_width = g.constant(preparation.resize_px)
    elif preparation.shortest_edge_px:
        before = _height_width(g, pixels)
        short = g.op("ReduceMin", before, keepdims=1)
        # whole-number division cuts as int(size * long / short) does in transformers
        scaled = g.op("Mul", before, g.constant([preparation.shortest_edge_px]))
        height_width = g.op("Div", scaled, short)
    else:
        return pixels
    sizes = g.op("Concat", g.constant([1, 3]), height_width, axis=0)
    return g.op(
        "Resize",
        pixels,
        "",
        "",
        sizes,
        coordinate_transformation_mode="half_pixel",
        **_RESIZE[preparation.resample],
    )


def _centre_crop(g: GraphBuilder, pixels: str, preparation: ImagePreparation) -> str:
    if preparation.crop_px is None:
        return pixels
    wanted = g.constant(preparation.crop_px)
    if not _covers_crop(preparation):
        # zeros around a picture smaller than the crop, the odd one before, as transformers does
        missing = g.op("Sub", wanted, _height_width(g, pixels))
        missing = g.op("Max", missing, g.constant([0, 0]))
        after = g.op("Div", missing, g.constant([2]))
        before = g.op("Sub", missing, after)
        none = g.constant([0, 0])
        pads = g.op("Concat", none, before, none, after, axis=0)
        pixels = g.op("Pad", pixels, pads, g.constant(0, np.uint8), mode="constant")
    spare = g.op("Sub", _height_width(g, pixels), wanted)
    start = g.op("Div", spare, g.constant([2]))
    end = g.op("Add", start, wanted)
    return g.op("Slice", pixels, start, end, g.constant([2, 3]))


def _covers_crop(preparation: ImagePreparation) -> bool:
    height, width = preparation.crop_px or (0, 0)
    if preparation.resize_px:
        return preparation.resize_px[0] >= height and preparation.resize_px[1] >= width
    return (preparation.shortest_edge_px or 0) >= max(height, width)


def _normalise(g: GraphBuilder, pixels: str, preparation: ImagePreparation) -> str:
    values = g.op("Cast", pixels, to=1)
    if preparation.rescale_factor is not None:
        values = g.op("Mul", values, g.constant(preparation.rescale_factor, np.float32))
    if preparation.mean is not None and preparation.std is not None:
        mean, std = (
            g.constant(np.reshape(part, (1, 3, 1, 1)), np.float32)
            for part in (preparation.mean, preparation.std)
        )
        values = g.op("Div", g.op("Sub", values, mean), std)
    return g.op("Identity", values, name="pixel_values")


def _height_width(g: GraphBuilder, pixels: str) -> str:
    shape = g.op("Shape", pixels)
    return g.op("Slice", shape, g.constant([2]), g.constant([4]), g.constant([0]))
