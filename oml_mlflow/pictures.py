"""Encoded pictures made safe for the decoder inside the graph.

The decoder of onnxruntime-extensions ends or hangs the whole process on bytes that are neither PNG
nor a sound JPEG, and reads some sound ones wrongly. So every picture is decoded in full by Pillow
first; what the decoder reads as Pillow does passes unchanged, the rest is re-encoded as PNG, which
is lossless. Source: microsoft/onnxruntime-extensions issues 1094 and 1096; measured with 0.15.2.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from oml_mlflow.errors import InputError


def prepare_picture(data: bytes, label: str = "picture") -> bytes:
    """Return bytes that the graph reads as Pillow reads `data`.

    Args:
        data: One encoded picture, in any format that Pillow knows.
        label: How to name it in an error.

    Returns:
        `data` itself where the graph's decoder can be trusted with it, else an RGB PNG of the
        same pixels: transparency on white as transformers 5 has it, first frame only.

    Raises:
        InputError: If Pillow can't decode it in full.
    """
    picture, data = _decode(data, label)
    if _can_pass(picture, data):
        return data
    out = io.BytesIO()
    _as_rgb(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def picture_pixels(data: bytes, label: str = "picture") -> np.ndarray:
    """Return a picture's pixels, uint8 ``(height, width, 3)``, RGB, as Pillow decodes it.

    Args:
        data: One encoded picture, in any format that Pillow knows.
        label: How to name it in an error.

    Raises:
        InputError: If Pillow can't decode it in full.
    """
    return np.asarray(_as_rgb(_decode(data, label)[0]))


def _decode(data: bytes, label: str) -> tuple[ImageFile.ImageFile, bytes]:
    """Return a picture, decoded in full, and its bytes."""
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
    return picture, data


def _can_pass(picture: ImageFile.ImageFile, data: bytes) -> bool:
    if picture.format == "PNG":
        plain = picture.mode in ("RGB", "L") and not picture.info.get("interlace")
        return plain and "transparency" not in picture.info
    if picture.format != "JPEG" or picture.mode != "RGB":
        return False
    # subsampled chroma is interpolated in another way than Pillow's, up to 67 levels off
    if any(layer[1:3] != (1, 1) for layer in picture.layer):  # type: ignore[attr-defined]
        return False
    # anything behind the end marker, as in UltraHDR and MPO files, sends the decoder round a loop
    return data.endswith(b"\xff\xd9") and data.count(b"\xff\xd8\xff") == 1


def _as_rgb(picture: Image.Image) -> Image.Image:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layer)
    return picture.convert("RGB")
