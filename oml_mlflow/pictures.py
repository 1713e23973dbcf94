"""Encoded pictures made safe for the decoder inside the graph.

The decoder of onnxruntime-extensions ends or hangs the whole process on bytes that are neither PNG
nor a sound JPEG, and reads some wrongly: a JPEG with a few flipped bits, which Pillow decodes
without a word, gave vectors 0.5 off. So every picture is decoded in full by Pillow, and the graph
sees nothing but an RGB PNG of its pixels, which is lossless and which every release reads as Pillow
does. Source: microsoft/onnxruntime-extensions issues 1094 and 1096; measured with 0.12.0 to 0.15.2
by projects/fidelity.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from oml_mlflow.errors import InputError

# CLIP resizes the short edge before it crops, so that the work grows with the aspect ratio: at
# 1,000 the graph takes seconds and 300 MB for one picture, transformers twice that (measured)
ASPECT_LIMIT = 1000


def prepare_picture(data: bytes, label: str = "picture") -> bytes:
    """Return bytes that the graph reads as Pillow reads `data`.

    Args:
        data: One encoded picture, in any format that Pillow knows.
        label: How to name it in an error.

    Returns:
        An RGB PNG of the same pixels: transparency on white as transformers 5 has it, first
        frame only.

    Raises:
        InputError: If Pillow can't decode it in full, or one edge is more than `ASPECT_LIMIT`
            times the other.
    """
    out = io.BytesIO()
    _as_rgb(_decode(data, label)).save(out, "PNG", compress_level=0)
    return out.getvalue()


def picture_pixels(data: bytes, label: str = "picture") -> np.ndarray:
    """Return a picture's pixels, uint8 ``(height, width, 3)``, RGB, as Pillow decodes it.

    Args:
        data: One encoded picture, in any format that Pillow knows.
        label: How to name it in an error.

    Raises:
        InputError: See `prepare_picture`.
    """
    return np.asarray(_as_rgb(_decode(data, label)))


def _decode(data: bytes, label: str) -> ImageFile.ImageFile:
    """Return a picture, decoded in full."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(
            f"{label}: got {type(data).__name__}, wanted the bytes of an encoded picture.",
            hint="pass the contents of a JPEG or PNG file.",
        )
    data = bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{label}: more than {Image.MAX_IMAGE_PIXELS:,} pixels.",
            hint="scale it down first.",
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on bad bytes
        reason = "no known picture format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"{label}: {len(data):,} bytes can't be decoded ({reason}).",
            hint="pass the contents of a JPEG or PNG file, whole.",
        ) from error
    if max(picture.size) > ASPECT_LIMIT * min(picture.size):
        raise InputError(
            f"{label}: {picture.width} x {picture.height} pixels, one edge more than "
            f"{ASPECT_LIMIT:,} times the other.",
            hint="crop it first.",
        )
    return picture


def _as_rgb(picture: Image.Image) -> Image.Image:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layer)
    return picture.convert("RGB")
