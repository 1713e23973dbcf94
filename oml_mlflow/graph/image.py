"""The image pipeline: bytes of one encoded picture in, one unit vector out."""

from __future__ import annotations

import numpy as np
import onnx

from oml_mlflow.graph.bilinear import bilinear
from oml_mlflow.graph.cut import PIXEL_VALUES, PLANES
from oml_mlflow.graph.encoder import vision_encoder
from oml_mlflow.graph.ops import GraphBuilder, make_graph_model, tensor_info
from oml_mlflow.graph.wire import Initializer
from oml_mlflow.source.description import (
    BILINEAR,
    NEAREST,
    RESIZE_ATTRIBUTES,
    ImagePreparation,
    Tower,
    Weights,
)

# Resize has `antialias` from opset 18 on; without it vectors differ from Pillow's.
OPSET = 18


def image_head(
    preparation: ImagePreparation, decoder: tuple[str, str] | None
) -> tuple[GraphBuilder, onnx.ValueInfoProto]:
    """Return the nodes from ``input`` to ``pixel_values``, and the input's type.

    Args:
        preparation: What the model's image processor does.
        decoder: ``(domain, name)`` of the decode operator: then the input is uint8 ``(n_bytes,)``,
            the bytes of one encoded picture. None for the raw variant: uint8
            ``(height, width, 3)``, RGB.
    """
    g = GraphBuilder("prepare")
    if decoder:
        cropped = _decode(g, decoder, preparation)
    else:
        pixels = _as_batch(g, "input")
        cropped = _resize_and_crop(g, pixels, _resized(g, pixels, preparation), preparation)
    _normalise(g, cropped, preparation)
    shape: list[int | str] = ["n_bytes"] if decoder else ["height", "width", 3]
    return g, tensor_info("input", np.uint8, shape)


def image_pipeline(
    weights: Weights,
    tower: Tower,
    preparation: ImagePreparation,
    patch_px: int,
    decoder: tuple[str, str] | None,
    properties: dict[str, str],
) -> tuple[onnx.ModelProto, list[Initializer]]:
    """Return the image graph and its initializers.

    The graph takes ``input``, one picture as `image_head` says, and gives ``embedding``, float32
    ``(1, dims)``, L2-normalised. The encoder starts at ``pixel_values``, float32
    ``(batch, 3, h, w)``, and can be cut there. Behind a decoder the picture is there as ``planes``,
    uint8 ``(1, 3, height, width)``, BGR, and can be cut there, too.
    """
    head, graph_input = image_head(preparation, decoder)
    g = GraphBuilder("encode")
    raw = vision_encoder(g, weights, tower, patch_px, PIXEL_VALUES, out="image_embeds")
    g.op("LpNormalization", raw, name="embedding", axis=-1, p=2)
    height, width = preparation.output_px or (0, 0)
    planes = tensor_info(PLANES, np.uint8, [1, "channels", "rows", "columns"])
    model = make_graph_model(
        "clip_img",
        OPSET,
        [*head.nodes, *g.nodes],
        graph_input,
        tensor_info("embedding", np.float32, ["batch", tower.dims]),
        [
            *([planes] if decoder else []),
            tensor_info(PIXEL_VALUES, np.float32, ["batch", 3, height, width]),
            tensor_info("image_embeds", np.float32, ["batch", tower.dims]),
        ],
        properties,
    )
    return model, [*head.initializers, *g.initializers]


def _decode(g: GraphBuilder, decoder: tuple[str, str], preparation: ImagePreparation) -> str:
    """Append the decoder, resize and crop; return uint8 (1, 3, height, width), RGB.

    A picture of three channels comes as BGR. It is resized as it comes, since whatever else is done
    to all its pixels takes longer than the resize, and changes to RGB after the crop. Others are
    repaired first. Both ways are taken, the other one by a single row, and end in rows: all of one,
    none of the other. There is no branch in the graph.
    """
    domain, name = decoder
    pixels = _as_batch(g, g.op(name, "input", domain=domain), name=PLANES)
    three = g.op("Cast", g.op("Equal", g.dim(pixels, 1), g.constant([3])), to=7)
    other = g.op("Sub", g.constant([1]), three)
    rows = g.op("Max", g.op("Mul", g.dim(pixels, 2), other), g.constant([1]))
    some = g.op("Slice", pixels, g.constant([0]), rows, g.constant([2]))
    repaired = _repair(g, _as_pixels(g, some))
    after = _resized(g, pixels, preparation)
    bgr = _resize_and_crop(g, pixels, after, preparation)
    last = g.op("Sub", g.dim(bgr, 1), g.constant([1]))
    rgb = g.op("Gather", bgr, g.op("Min", g.constant([2, 1, 0]), last), axis=1)
    found = []
    for way, is_it in ((rgb, three), (_resize_and_crop(g, repaired, after, preparation), other)):
        end = g.op("Mul", g.dim(way, 2), is_it)
        found.append(g.op("Slice", way, g.constant([0]), end, g.constant([2])))
    return g.op("Concat", *found, axis=2)


def _repair(g: GraphBuilder, decoded: str) -> str:
    """Append what makes RGB of pictures that are not decoded as BGR: (1, 3, height, width).

    DecodeImage reverses bytes in threes, one for each pixel. From extensions 0.14 on a grey JPEG
    has one channel and a CMYK one four, and their bytes are reversed in threes all the same, across
    pixels (measured with 0.14.0, 0.15.0 and 0.15.2; earlier releases always give three channels):
    reversing them again gives the channels of all kinds, but for a last grey pixel or two.
    """
    straight = _reverse_threes(g, decoded)
    last = g.op("Sub", g.dim(straight, 2), g.constant([1]))
    is_cmyk = g.op("Cast", g.op("Equal", last, g.constant([3])), to=7)
    # all rows or none: no cost for a picture without a key channel, and no branch in the graph
    cmyk_rows = g.op("Mul", g.dim(straight, 0), is_cmyk)
    end = g.constant([np.iinfo(np.int64).max])
    order = g.op("Min", g.constant([0, 1, 2]), last)
    inked = g.op("Slice", straight, g.constant([0]), cmyk_rows, g.constant([0]))
    plain = g.op("Slice", straight, cmyk_rows, end, g.constant([0]))
    plain = g.op("Gather", plain, order, axis=2)
    return _as_batch(g, g.op("Concat", _from_cmyk(g, inked, order, last), plain, axis=0))


def _reverse_threes(g: GraphBuilder, decoded: str) -> str:
    shape = g.op("Shape", decoded)
    flat = g.op("Reshape", decoded, g.constant([-1]))
    plane = g.op("Slice", shape, g.constant([0]), g.constant([2]), g.constant([0]))
    pixels = g.op("ReduceProd", plane, keepdims=1)
    threes = g.op("Min", g.op("Div", g.op("Size", flat), g.constant(3)), pixels)
    whole = g.op("Mul", threes, g.constant([3]))
    end = g.constant([np.iinfo(np.int64).max])
    triples = g.op("Slice", flat, g.constant([0]), whole, g.constant([0]))
    triples = g.op("Reshape", triples, g.constant([-1, 3]))
    triples = g.op("Gather", triples, g.constant([2, 1, 0]), axis=1)
    triples = g.op("Reshape", triples, g.constant([-1]))
    rest = g.op("Slice", flat, whole, end, g.constant([0]))
    return g.op("Reshape", g.op("Concat", triples, rest, axis=0), shape)


def _from_cmyk(g: GraphBuilder, inked: str, order: str, last: str) -> str:
    """Append Pillow's conversion of CMYK, which comes inverted, as Adobe stores it, to RGB."""
    wide = g.op("Cast", inked, to=6)
    colours = g.op("Gather", wide, order, axis=2)
    key = g.op("Gather", wide, last, axis=2)
    scaled = g.op("Add", g.op("Mul", colours, key), g.constant(127, np.int32))
    return g.op("Cast", g.op("Div", scaled, g.constant(255, np.int32)), to=2)


def _as_batch(g: GraphBuilder, pixels: str, name: str | None = None) -> str:
    """Return (height, width, 3) as (1, 3, height, width), the layout ORT resizes fastest."""
    planes = g.op("Transpose", pixels, perm=[2, 0, 1])
    return g.op("Unsqueeze", planes, g.constant([0]), name=name)


def _as_pixels(g: GraphBuilder, planes: str) -> str:
    """Return (1, channels, height, width) as (height, width, channels).

    Flat, not with perm=[1, 2, 0]: that ONNX Runtime's optimiser takes together with `_as_batch`'s,
    and then infers no sizes for a resize behind them (1.32).
    """
    channels, rest = g.dim(planes, 1), g.constant([-1])
    flat = g.op("Reshape", planes, g.op("Concat", channels, rest, axis=0))
    shape = g.op("Concat", _height_width(g, planes), channels, axis=0)
    return g.op("Reshape", g.op("Transpose", flat, perm=[1, 0]), shape)


def _resized(g: GraphBuilder, pixels: str, preparation: ImagePreparation) -> str:
    """Append the (height, width) to which (1, channels, height, width) is resized."""
    before = _height_width(g, pixels)
    if preparation.resize_px:
        return g.constant(preparation.resize_px)
    if preparation.shortest_edge_px:
        short = g.op("ReduceMin", before, keepdims=1)
        # whole-number division cuts as int(size * long / short) does in transformers
        return g.op("Div", g.op("Mul", before, g.constant([preparation.shortest_edge_px])), short)
    return before


def _resize_and_crop(
    g: GraphBuilder, pixels: str, after: str, preparation: ImagePreparation
) -> str:
    if preparation.resize_px or preparation.shortest_edge_px:
        pixels = _resize(g, pixels, after, preparation)
    return _centre_crop(g, pixels, preparation)


def _resize(g: GraphBuilder, pixels: str, after: str, preparation: ImagePreparation) -> str:
    """Append Pillow's resize, on uint8: on float32, ORT's result is up to 7 levels off."""
    before = _height_width(g, pixels)
    if preparation.resample == NEAREST:
        return _pick_nearest(g, pixels, before, after)
    vertical = _vertical_first(g, before, after) if preparation.vertical_first else g.constant([0])
    if preparation.resample == BILINEAR:
        window = _crop_window(g, after, preparation)
        return bilinear(g, pixels, before, after, window, vertical)
    sizes = [after]
    if preparation.vertical_first:
        # the size after the first pass, which changes one axis
        passes = g.op("Concat", vertical, g.op("Sub", g.constant([1]), vertical), axis=0)
        lost = g.op("Mul", g.op("Sub", before, after), passes)
        sizes = [g.op("Sub", before, lost), after]
    channels = g.dim(pixels, 1)
    for size in sizes:
        pixels = g.op(
            "Resize",
            pixels,
            "",
            "",
            g.op("Concat", g.constant([1]), channels, size, axis=0),
            coordinate_transformation_mode="half_pixel",
            **RESIZE_ATTRIBUTES[preparation.resample],
        )
    return pixels


def _vertical_first(g: GraphBuilder, before: str, after: str) -> str:
    """Append nodes that give 1 if Pillow 13 resizes vertically first, else 0.

    Each of its two passes rounds to whole levels, so that their order shows. The vertical one comes
    first where the height loses anything, and more than twice what the width loses. Source: Pillow
    13.0.0, src/libImaging/Resample.c, ImagingResampleInner.
    """
    lost = g.op("Sub", before, after)
    height, width = (g.op("Gather", lost, g.constant([axis]), axis=0) for axis in (0, 1))
    bound = g.op("Max", g.op("Mul", width, g.constant([2])), g.constant([0]))
    return g.op("Cast", g.op("Greater", height, bound), to=7)


def _crop_window(g: GraphBuilder, size: str, preparation: ImagePreparation) -> tuple[str, str]:
    """Append start and (height, width) of what the centre crop leaves of a size."""
    if preparation.crop_px is None:
        return g.constant([0, 0]), size
    left = g.op("Min", size, g.constant(preparation.crop_px))
    return g.op("Div", g.op("Sub", size, left), g.constant([2, 2])), left


def _pick_nearest(g: GraphBuilder, pixels: str, before: str, after: str) -> str:
    """Append Pillow's nearest: positions summed up in double, as its ImagingScaleAffine does.

    A position between two pixels falls to either by the error of that sum, which Resize lacks: it
    took another pixel for up to a third of the values (measured).
    """
    steps = g.op("Div", *(g.op("Cast", size, to=11) for size in (before, after)))
    zero, one = g.constant(0), g.constant(1)
    for axis in (zero, one):
        step, count = (g.op("Gather", of, axis, axis=0) for of in (steps, after))
        is_first = g.op("Equal", g.op("Range", zero, count, one), zero)
        half = g.op("Mul", step, g.constant(0.5, np.float64))
        summed = g.op("CumSum", g.op("Where", is_first, half, step), zero)
        nearest = g.op("Cast", summed, to=7)
        pixels = g.op("Gather", pixels, nearest, axis=2 if axis == zero else 3)
    return pixels


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
    return g.op("Identity", values, name=PIXEL_VALUES)


def _height_width(g: GraphBuilder, pixels: str) -> str:
    shape = g.op("Shape", pixels)
    return g.op("Slice", shape, g.constant([2]), g.constant([4]), g.constant([0]))
