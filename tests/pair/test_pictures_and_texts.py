"""What is done to pictures and texts before a graph sees them never changes what they mean."""

from __future__ import annotations

import base64
import io
import re
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizerFast
from transformers.image_transforms import convert_to_rgb

from oml_mlflow.errors import InputError
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.pair.pictures import prepare_picture
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel, exactness
from oml_mlflow.pair.texts import prepare_text
from oml_mlflow.parity.compare import DEFAULT_LIMIT
from oml_mlflow.parity.probes import References, embed_probes, golden_probes
from oml_mlflow.source.tokenizer import read_tokenizer

# one value of 32 x 32 that is rounded to the next level moves a vector by up to 3e-4
TINY_LIMIT = 1e-3
WIDTH, HEIGHT = 133, 97


def photograph() -> Image.Image:
    return clip_folders.photographs()[0][1].crop((140, 30, 140 + WIDTH, 30 + HEIGHT))


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    depth: int, colour: int, rows: list[bytes], *, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """Return a PNG picture put together by hand: Pillow writes only some kinds."""
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def interlaced_png() -> bytes:
    pixels = np.asarray(photograph())
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    starts.append((1, 0, 2, 1))
    rows = [row.tobytes() for y, x, dy, dx in starts for row in pixels[y::dy, x::dx]]
    return png(8, 2, rows, interlaced=1)


def with_orientation(kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(), kind, exif=exif, **options)


def translucent() -> Image.Image:
    layer = photograph().convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    return layer


def wide(channels: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    return values.astype(">u2")


def passing() -> dict[str, bytes]:
    """Return pictures that the graph's decoder reads as Pillow does."""
    plain, rows = photograph(), [row.tobytes() for row in np.asarray(photograph())]
    return {
        "PNG": clip_folders.as_png(plain),
        "PNG, grey": encoded(plain.convert("L"), "PNG"),
        "PNG, 1 pixel": clip_folders.as_png(plain.crop((0, 0, 1, 1))),
        "PNG, gamma": png(8, 2, rows, extra=chunk(b"gAMA", struct.pack(">I", 100000))),
        "PNG, animated": encoded(plain, "PNG", save_all=True, append_images=[plain.rotate(90)]),
        "PNG, trailing bytes": clip_folders.as_png(plain) + b"\xff\xd8\xffmore",
        "PNG, 48-bit": png(16, 2, [row.tobytes() for row in wide(3)]),
        "JPEG 4:4:4": clip_folders.as_jpeg_444(plain),
        "JPEG 4:4:4, progressive": encoded(plain, "JPEG", subsampling=0, progressive=True),
        "JPEG 4:4:4, worst quality": clip_folders.as_jpeg_444(plain, 1),
        "JPEG, RGB": encoded(plain, "JPEG", keep_rgb=True, subsampling=0),
        "JPEG, restarts": encoded(plain, "JPEG", subsampling=0, restart_marker_blocks=3),
        "JPEG, colour profile": encoded(plain, "JPEG", subsampling=0, icc_profile=b"x" * 3000),
        "JPEG, EXIF-rotated": with_orientation("JPEG", subsampling=0),
    }


def encoded_anew() -> dict[str, bytes]:
    """Return pictures that the graph's decoder can't read, or reads otherwise than Pillow."""
    plain, layer = photograph(), translucent()
    palette = plain.quantize(32)
    jpeg = clip_folders.as_jpeg_444(plain)
    return {
        "JPEG 4:2:0": encoded(plain, "JPEG", subsampling=2),
        "JPEG 4:2:2": encoded(plain, "JPEG", subsampling=1),
        "JPEG, grey": encoded(plain.convert("L"), "JPEG"),
        "JPEG, CMYK": encoded(plain.convert("CMYK"), "JPEG"),
        "JPEG, second picture behind it": jpeg + jpeg,
        "JPEG, trailing bytes": jpeg + b"more",
        "JPEG 4:2:0, EXIF-rotated": with_orientation("JPEG", subsampling=2),
        "PNG, palette": encoded(palette, "PNG"),
        "PNG, transparent colour in palette": encoded(palette, "PNG", transparency=3),
        "PNG, transparent colour": encoded(plain, "PNG", transparency=plain.getpixel((3, 3))),
        "PNG, alpha": encoded(layer, "PNG"),
        "PNG, grey and alpha": encoded(layer.convert("LA"), "PNG"),
        "PNG, 16-bit grey": png(16, 0, [row.tobytes() for row in wide(1)]),
        "PNG, 64-bit": png(16, 6, [row.tobytes() for row in wide(4)]),
        "PNG, black and white": encoded(plain.convert("1"), "PNG"),
        "PNG, interlaced": interlaced_png(),
        "GIF": encoded(plain, "GIF"),
        "GIF, animated": encoded(plain, "GIF", save_all=True, append_images=[plain.rotate(90)]),
        "WebP": encoded(plain, "WEBP", lossless=True),
        "WebP, alpha": encoded(layer, "WEBP", lossless=True),
        "BMP": encoded(plain, "BMP"),
        "TIFF": encoded(plain, "TIFF"),
        "TIFF, EXIF-rotated": with_orientation("TIFF"),
        "TIFF, CMYK": encoded(plain.convert("CMYK"), "TIFF"),
    }


PASSING, ENCODED_ANEW = passing(), encoded_anew()


def pixels(data: bytes) -> np.ndarray:
    """Return the pixels that transformers' own conversion gives."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(convert_to_rgb(opened))


@pytest.mark.parametrize("name", [*PASSING, *ENCODED_ANEW])
def test_the_graph_sees_a_png_of_our_own_with_the_same_pixels(name: str) -> None:
    data = (PASSING | ENCODED_ANEW)[name]
    prepared = prepare_picture(data)
    with Image.open(io.BytesIO(prepared)) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(pixels(prepared), pixels(data))
    assert prepare_picture(prepared) == prepared


@pytest.mark.parametrize("name", [*PASSING, *ENCODED_ANEW])
def test_every_picture_embeds_as_in_transformers(
    name: str, tiny_pair: PipelinePair, tiny_reference: ReferenceModel
) -> None:
    data = (PASSING | ENCODED_ANEW)[name]
    ours = tiny_pair.embedder().embed_image([data])
    assert np.abs(ours - tiny_reference.embed_image([data])).max() <= TINY_LIMIT


def test_translucent_pictures_lie_on_white() -> None:
    clear = encoded(Image.new("RGBA", (5, 4), (10, 20, 30, 0)), "PNG")
    assert (pixels(prepare_picture(clear)) == 255).all()


def test_bytes_like_objects_are_bytes() -> None:
    data = clip_folders.as_png(photograph())
    wanted = prepare_picture(data)
    assert prepare_picture(bytearray(data)) == prepare_picture(memoryview(data)) == wanted


JPEG, PNG = clip_folders.as_jpeg_444(photograph()), clip_folders.as_png(photograph())
BAD_PICTURES: dict[str, tuple[Any, str]] = {
    "empty": (b"", "0 bytes can't be decoded"),
    "text": (b"a photo of a cat", "no known picture format"),
    "base64": (base64.b64encode(JPEG), "no known picture format"),
    "vector": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no known picture format"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "can't be decoded"),
    "half a PNG": (PNG[: len(PNG) // 2], "can't be decoded"),
    "JPEG with a damaged header": (JPEG[:2] + b"\xff\xc4\x00\x03" + JPEG[6:], "can't be decoded"),
    "PNG with a damaged chunk": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "can't be decoded"),
    "string": ("picture.jpg", "file picture.jpg can.t be read"),
    "nothing": (None, "got NoneType, wanted an encoded"),
    "400 megapixels": (
        PNG[:16]
        + struct.pack(">II", 20000, 20000)
        + PNG[24:29]
        + struct.pack(">I", zlib.crc32(PNG[12:16] + struct.pack(">II", 20000, 20000) + PNG[24:29]))
        + PNG[33:],
        "20,000 x 20,000 are more than 65,000,000 pixels",
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_refused_by_number(name: str, tiny_pair: PipelinePair) -> None:
    data, message = BAD_PICTURES[name]
    with pytest.raises(InputError, match=f"picture 1: .*{message}") as err:
        tiny_pair.embedder().embed_image([PNG, data])
    assert err.value.code == "input-invalid"
    assert err.value.hint


def test_golden_probes_embed_within_the_limit(
    tiny_pair: PipelinePair, tiny_reference: ReferenceModel
) -> None:
    probes = golden_probes()
    ours = References(embed_probes(tiny_pair.embedder(), probes), {})
    report = exactness(probes, ours, tiny_reference.references(probes))
    print(f"\n{report.to_markdown()}")  # noqa: T201
    assert report.max_abs() <= TINY_LIMIT
    assert report.max_abs("txt") <= DEFAULT_LIMIT


@pytest.fixture(scope="module")
def tokenizer(vocabulary_folder: Path) -> Any:
    return CLIPTokenizerFast.from_pretrained(vocabulary_folder)


@pytest.fixture(scope="module")
def any_case(vocabulary_folder: Path) -> tuple[str, ...]:
    """Special tokens that the installed transformers finds in any case: 5 none, 4.57 both."""
    return read_tokenizer(vocabulary_folder, 77).any_case


@pytest.fixture(scope="module")
def embedder(tiny_pair: PipelinePair) -> PairEmbedder:
    return tiny_pair.embedder()


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("a photo of a cat", "a photo of a cat"),
        ("a\nphoto\r\n of\ta\u00a0cat\u3000", "a photo of a cat "),
        ("cat <|endoftext|>", "cat<|endoftext|>"),
        ("cat \n <|startoftext|> dog", "cat<|startoftext|> dog"),
        ("cat <|EndOfText|>", "cat <| EndOfText|> "),
        ("cafe\u0301", "caf\u00e9"),
        ("<|endoftext|>\u0338", "<|endoftext|>\u0338"),
        ("zero\u200bwidth", "zero\u200bwidth"),
        ("", ""),
    ],
)
def test_prepared_texts(
    text: str, prepared: str, tokenizer: Any, any_case: tuple[str, ...]
) -> None:
    assert prepare_text(text) == prepared
    as_read = prepare_text(text, any_case=any_case)
    assert tokenizer(as_read)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", "holds a NUL"),
        ("a\ud800", "holds a lone surrogate"),
        (b"cat", "got bytes, wanted a string"),
        (None, "got NoneType, wanted a string"),
    ],
)
def test_bad_texts_are_refused_by_number(text: Any, message: str, embedder: PairEmbedder) -> None:
    with pytest.raises(InputError, match=f"text 2: {message}") as err:
        embedder.embed_text(["cat", "dog", text])
    assert err.value.code == "input-invalid"
    assert err.value.hint


SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>"]
PIECES = [
    *SPECIALS,
    "<|",
    "|>",
    " ",
    "\n",
    "\u2009",
    "\x1f",
    "\u0338",
    "'s",
    "'S",
    "!",
    "_",
    "2019",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=8).map("".join),
)


# what goes, since it would end the process: in white space before a special token
LOST = r"(?<=[^\S\x1c-\x1f])\s+(?=<\|(?:start|end)oftext\|>)"


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
@example(text="\r\x1f<|startoftext|>")
def test_preparation_never_changes_the_ids(
    text: str, tokenizer: Any, any_case: tuple[str, ...]
) -> None:
    assume("\0" not in text)
    prepared = prepare_text(text, any_case=any_case)
    kept = re.sub(LOST, " ", text, flags=re.IGNORECASE if any_case else 0)
    assert tokenizer(prepared)["input_ids"] == tokenizer(kept)["input_ids"]
    assert unicodedata.is_normalized("NFC", prepared) or any(s in text for s in SPECIALS)


@pytest.mark.parametrize("before", ["a", "!", "<|", "\x1c", "\u0301", "<|startoftext|>", ""])
@pytest.mark.parametrize(
    "between", [" \x1c", " \x1f\x1e", "\x1d \x1f ", " \x1f\n\x1f", "\x1f", " "]
)
def test_separators_before_a_special_token_do_not_end_the_process(
    before: str, between: str, embedder: PairEmbedder
) -> None:
    for special in ("<|endoftext|>", "<|startoftext|>", "<|EndOfText|>"):
        embedder.embed_text([f"{before}{between}{special}", f"b {before}{between}{special} c"])


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3))
def test_any_text_can_be_embedded(texts: list[str], embedder: PairEmbedder) -> None:
    assume(not any("\0" in text for text in texts))
    vectors = embedder.embed_text(texts)
    assert vectors.shape == (len(texts), clip_folders.TINY_DIMS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
