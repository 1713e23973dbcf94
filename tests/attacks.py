"""What an outsider may send to a served pair, and which vectors it may be answered with."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import clip_folders
import pandas as pd
from PIL import Image

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
RECORDS, SPLIT, INPUTS, INSTANCES = FORMS = (
    "dataframe_records",
    "dataframe_split",
    "inputs",
    "instances",
)
PIECES = (
    *(
        "a",
        "photo",
        "of",
        "cat",
        "don't",
        "I'LL",
        "2019",
        "caf\u00e9",
        "cafe\u0301",
        "\u5317\u4eac",
    ),
    *("<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", " <|endoftext|>"),
    *("\U0001f642", "\U0001f469\u200d\U0001f680", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d"),
    *("\u0338", "\u200b", "\ufeff", "\u202e", "\u00b2\u00b3", "\u00bd", "\ufb01", "<|", "|>", "_"),
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "'s", "!?", "...", "\\", '"'),
)
STRINGS = (
    *("", " ", "None", "nan", "null", "5", "true", "NaN", "undefined", "\\x00", "../../etc/passwd"),
    *("' OR 1=1 --", "${jndi:ldap://x}", "<script>alert(1)</script>", "%s%n%d", "{{7*7}}", "0x5"),
    *("a" * 160_000, "a " * 80_000, "cat" * 300, " " * 10_000, "\n" * 10_000, "<|" * 5_000),
    *("<|endoftext|>" * 1_000, " <|endoftext|>" * 1_000, "e" + "\u0301" * 5_000, "'s " * 5_000),
    *("\U0001f469\u200d" * 5_000, "\u0645" * 10_000, "!" * 20_000, "9" * 20_000, "\u00b2" * 20_000),
)


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        name: What it is, in words.
        body: Its bytes.
        rows: Pictures and texts whose vectors a 200 must hold, in order. Without any it is to be
            refused; so it is where one of them is no picture of a listed kind, or no text.
        either: It may be refused all the same.
        kind: Content type; none by default of HTTP where it is empty.
        encoding: Content encoding.
        dropped: Send half, or all of it, and close the connection without reading the answer.
    """

    name: str
    body: bytes
    rows: tuple[bytes | str, ...] | None = None
    either: bool = False
    kind: str = JSON
    encoding: str = ""
    dropped: float = 0.0


def cell(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def body(form: str, column: str, *cells: Any) -> bytes:
    """Return a request with one row per cell."""
    rows: Any = [{column: cell(value)} for value in cells]
    if form == SPLIT:
        rows = {"columns": [column], "data": [[cell(value)] for value in cells]}
    return json.dumps({form: rows}).encode()


def ask(name: str, *rows: bytes | str, form: str = RECORDS, **options: Any) -> Attack:
    """Return a sound request for pictures, or for texts."""
    column = "image" if isinstance(rows[0], bytes) else "text"
    return Attack(name, body(form, column, *rows), rows, **options)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def black_png(width: int, height: int) -> bytes:
    """Return a black and white PNG of any size, which takes few bytes and is whole."""
    rows = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


def grey_jpeg(width: int, height: int) -> bytes:
    """Return 331 bytes that libjpeg decodes to a grey picture of any size."""
    data = encoded(Image.new("L", (8, 8), 128), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def sound_pictures() -> list[bytes]:
    picture = clip_folders.photographs()[0][1].resize((88, 60))
    layer = picture.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    return [
        *(encoded(picture, kind) for kind in kinds),
        encoded(picture, "JPEG", progressive=True),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(layer, "PNG"),
        encoded(picture.quantize(16), "PNG"),
        encoded(picture.convert("1"), "PNG"),
        encoded(layer, "WEBP", lossless=True),
        encoded(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
        encoded(picture, "TIFF", compression="tiff_lzw"),
        encoded(picture, "TIFF", compression="jpeg"),
    ]


SOUND = sound_pictures()


def no_pictures() -> dict[str, bytes]:
    """Return what is no picture of a listed kind, or one that is too large."""
    jpeg, picture = grey_jpeg(8000, 8000), clip_folders.photographs()[0][1].resize((88, 60))
    blp = b"BLP1" + struct.pack("<2I2I2I", 0, 0, 8000, 8000, 0, 0)
    blp += struct.pack("<16I", 160, *[0] * 15) + struct.pack("<16I", len(jpeg), *[0] * 15)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("picture.png", bytes(10**7))
    kinds = ("EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "SGI", "IM", "MSP", "DDS", "JPEG2000")
    return {kind: encoded(picture.convert("1"), kind) for kind in kinds if kind == "MSP"} | {
        **{kind: encoded(picture, kind) for kind in kinds if kind != "MSP"},
        "BLP of 64 MP": blp + struct.pack("<I", 0) + jpeg,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{1 pop} loop\n",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9000, 9000, 8, 3) + bytes(12),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/hostname'/></svg>",
        "HTML": b"<!doctype html><img src=x>",
        "zip": archive.getvalue(),
        "gzip": gzip.compress(SOUND[1]),
        "base64 twice": base64.b64encode(SOUND[1]),
        "nothing": b"",
        "1 byte": b"\xff",
        "text": b"a photo of a cat",
        "PNG of 88 MP": black_png(9400, 9400),
        "PNG of 2^31 - 1 squared": SOUND[1][:16] + b"\x7f\xff\xff\xff" * 2 + SOUND[1][24:],
        "PNG of 1 x 2,000,000": black_png(2_000_000, 1),
        "JPEG of 65,500 squared": grey_jpeg(65_500, 65_500),
        "JPEG of 81 MP": grey_jpeg(9000, 9000),
        "GIF of 65,535 squared": b"GIF89a" + b"\xff\xff\xff\xff" + SOUND[3][10:],
        "BMP of 30,000 squared": SOUND[4][:18] + struct.pack("<ii", 30_000, 30_000) + SOUND[4][26:],
    }


def mutated(dice: random.Random) -> bytes:
    """Return a sound picture with some damage."""
    data = bytearray(dice.choice(SOUND))
    way = dice.choice(("flip", "flip", "flip", "cut", "head", "join", "hole", "grow"))
    at = dice.randrange(len(data))
    if way == "flip":
        for _ in range(dice.choice((1, 1, 3, 20))):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif way == "cut":
        del data[at:]
    elif way == "head":  # sizes, offsets and counts stand there
        at = dice.randrange(60)
        data[at : at + 4] = dice.choice(
            (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff", dice.randbytes(4))
        )
    elif way == "join":
        other = dice.choice(SOUND)
        data[at:] = other[dice.randrange(len(other)) :]
    elif way == "hole":
        data[at : at + 50] = bytes(50)
    else:
        data[at:at] = dice.randbytes(dice.choice((1, 100, 5_000)))
    return bytes(data)


def text(dice: random.Random) -> str:
    """Return an odd text that can be embedded."""
    if dice.random() < 0.3:
        code = (dice.randrange(0x20, sys.maxunicode) for _ in range(dice.randint(1, 20)))
        return "".join(chr(c) for c in code if not 0xD800 <= c < 0xE000 and not 0x7F <= c < 0xA0)
    return "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 20)))


def junk_cells() -> Iterator[Attack]:
    """Give cells that are neither a text nor a picture."""
    values = (None, float("nan"), float("inf"), 5, 2.5, True, {}, {"a": 1}, [], ["a"], 10**30)
    for form in FORMS:
        for column in ("text", "image"):
            for value in values:
                yield Attack(f"{form}: {value} as {column}", body(form, column, value))
            yield Attack(f"{form}: 5 behind others, as {column}", body(form, column, "YWJj", 5))
            yield Attack(f"{form}: lone surrogate as {column}", body(form, column, "a\ud800"))
        yield Attack(f"{form}: NUL in a text", body(form, "text", "a\0b"))
        yield Attack(f"{form}: no base64", body(form, "image", "\u00e9#!"))
        yield Attack(f"{form}: another column", body(form, "caption", "cat"))


def data_urls() -> Iterator[Attack]:
    """Give pictures as data: URLs, which MLflow decodes wrongly in the dataframe forms."""
    picture = SOUND[1]
    for start in ("data:image/png;base64,", "data:;base64,", "DATA:IMAGE/PNG;BASE64,"):
        url, rows = start + cell(picture), (picture,)
        for form in FORMS:
            broken = form.startswith("dataframe") or start.isupper()
            yield Attack(f"{form}: {start}", body(form, "image", url), rows, either=broken)
        csv = f'image\n"{url}"\n'.encode()
        yield Attack(f"CSV: {start}", csv, rows, either=start.isupper(), kind=CSV)
    for form in FORMS:
        yield Attack(f"{form}: cut data: URL", body(form, "image", "data:image/png;base64"))
        spaced = "\r\n".join(cell(picture)[at : at + 76] for at in range(0, 9_000, 76))
        yield Attack(f"{form}: lines", body(form, "image", spaced), (picture,), either=True)


def payload_forms() -> Iterator[Attack]:
    """Give requests that are put together wrongly, or oddly."""
    cat, pngs = ("cat",), (SOUND[1],)
    plain = body(RECORDS, "text", *cat)
    yield Attack("no content type", plain, kind="")
    yield Attack("JSON nested 100,000 deep", b'{"inputs":' + b"[" * 100_000)
    yield Attack("JSON nested 900 deep", b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}")
    yield Attack("number of 5,000 digits", b'{"inputs":[{"text":' + b"9" * 5_000 + b"}]}")
    for kind in ("image/png", "application/json; charset=latin-1", "application/json; x=1", "a/b"):
        yield Attack(f"content type {kind}", plain, kind=kind)
    yield Attack("CSV as JSON", b"text\ncat\n")
    yield Attack("JSON as parquet", plain, kind=PARQUET)
    yield Attack("gzip", gzip.compress(plain), encoding="gzip")
    yield Attack("gzip, unsaid", gzip.compress(plain))
    yield Attack("no UTF-8", b'{"inputs":[{"text":"\xff\xfe"}]}')
    yield Attack("UTF-16", plain.decode().encode("utf-16"), cat, either=True)
    for whole in ("", "null", "5", "[]", '"a"', "{}", "{", "nan", plain.decode() * 2, "\0"):
        yield Attack(f"whole body {whole[:9]!r}", whole.encode())
    for form in FORMS:
        contents: list[Any] = [None, 5, True, "a", [None], [1, 2], ["a"], [["a"]], {"a": "b"}]
        for content in [*contents, {"columns": ["text"]}, {"columns": 5, "data": 5}]:
            yield Attack(f"{form}: {content}", json.dumps({form: content}).encode())
    for form in (RECORDS, INPUTS, INSTANCES):
        both = [{"text": "a", "image": cell(SOUND[0])}]
        yield Attack(f"{form}: both", json.dumps({form: both}).encode())
    mixed = {INPUTS: [{"text": "a"}, {"image": cell(SOUND[0])}]}
    yield Attack("inputs: mixed rows", json.dumps(mixed).encode(), ("a", SOUND[0]))
    extra = {INPUTS: [{"text": "cat", "x": 1}], "params": {"text": "dog"}, "z": 5}
    yield Attack("extra keys", json.dumps(extra).encode(), cat)
    yield Attack("two forms", b'{"inputs":[{"text":"a"}],"instances":[{"text":"b"}]}')
    yield Attack("key twice", b'{"inputs":[{"text":"dog","text":"cat"}]}', cat)
    yield Attack("no form", b'{"messages":[{"role":"user","content":"cat"}]}')
    yield Attack("no rows", b'{"dataframe_split":{"columns":["text"],"data":[]}}', (), either=True)
    index = {"columns": ["text"], "data": [["a"], ["b"]], "index": ["x", "x"]}
    yield Attack("index twice", json.dumps({SPLIT: index}).encode(), ("a", "b"))
    numbers = tuple(f"cat {n}" for n in range(2_000))
    yield ask("2,000 rows", *numbers, either=True)
    yield ask("100,000 rows", *numbers * 50, form=INPUTS, either=True)
    yield Attack("CSV", b"text\n5\ntrue\n0012\n", ("5", "true", "0012"), kind=CSV)
    yield Attack("CSV, no rows", b"text\n", (), either=True, kind=CSV)
    yield Attack("CSV, NA", b"text\nNA\n", kind=CSV)
    yield Attack("CSV, quote", b'text\n"a\n', kind=CSV)
    frames = {
        "text": (pd.DataFrame({"text": ["cat"]}), cat),
        "picture": (pd.DataFrame({"image": list(pngs)}), pngs),
        "base64": (pd.DataFrame({"image": [cell(SOUND[1])]}), pngs),
        **{
            f"{v} as {c}": (pd.DataFrame({c: [v]}), None)
            for c in ("text", "image")
            for v in (5, True)
        },
        "list": (pd.DataFrame({"text": [["a", "b"]]}), None),
        "bytes": (pd.DataFrame({"text": [b"abc"]}), None),
    }
    for name, (frame, rows) in frames.items():
        yield Attack(f"parquet: {name}", frame.to_parquet(), rows, kind=PARQUET)


def named() -> Iterator[Attack]:
    """Give every attack that is one of its kind."""
    for name, data in no_pictures().items():
        yield ask(name, data)
        yield ask(f"{name}, in inputs", data, form=INPUTS)
    for number, data in enumerate(SOUND):
        yield ask(f"sound picture {number}", data, form=FORMS[number % 4])
    yield ask("sound picture beside a bad one", SOUND[0], b"BM")
    yield ask("10 PNG of 88 MP", *[black_png(9400, 9400)] * 10)
    for number, line in enumerate(STRINGS):
        yield ask(f"text {line[:20]!r} of {len(line)}", line, form=FORMS[number % 4])
    yield from junk_cells()
    yield from data_urls()
    yield from payload_forms()


def heavy() -> Iterator[Attack]:
    """Give pictures that are within the limits, and nearly all that a process should hold."""
    yield ask("photograph of 48 MP", encoded(Image.effect_noise((8000, 6000), 50), "JPEG"))
    for number in range(8):
        yield ask(f"331 bytes of 62 MP, {number}", grey_jpeg(7900, 7900), either=True)
    yield ask("10 PNG of 62 MP", *[black_png(7900, 7900)] * 10, either=True)


def drawn(dice: random.Random) -> Iterator[Attack]:
    """Give attacks by chance, without end."""
    while True:
        form, way = dice.choice(FORMS), dice.random()
        if way < 0.6:
            yield ask("mutated picture", mutated(dice), form=form)
        elif way < 0.65:
            yield ask("pictures", *dice.sample(SOUND, 3), form=form)
        elif way < 0.9:
            yield ask("texts", *(text(dice) for _ in range(dice.randint(1, 8))), form=form)
        elif way < 0.95:
            yield ask("dropped", dice.choice(SOUND), form=form, dropped=dice.choice((0.5, 1.0)))
        else:
            whole = body(form, "text", text(dice))
            yield Attack("cut body", whole[: dice.randrange(len(whole))])
