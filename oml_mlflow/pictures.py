"""Encoded pictures made safe for the decoder inside the graph.

The decoder of onnxruntime-extensions ends or hangs the whole process on bytes that are neither PNG
nor a sound JPEG, and reads some sound ones wrongly. So every picture is decoded in full by Pillow
first; what the decoder reads as Pillow does passes unchanged, the rest is re-encoded as PNG, which
is lossless. Source: microsoft/onnxruntime-extensions issues 1094 and 1096; measured with 0.15.2.
"""

from __future__ import annotations

import io
import warnings

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
        `data` itself where the graph's decoder can be trusted with it, else an RGB PNG of the
        same pixels: transparency on white as transformers 5 has it, first frame only.

    Raises:
        InputError: If Pillow can't decode it in full, or one edge is more than `ASPECT_LIMIT`
            times the other.
    """
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
    if _can_pass(picture, data):
        return data
    return _as_png(picture)


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


def _as_png(picture: Image.Image) -> bytes:
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layer)
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()
