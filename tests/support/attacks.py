"""What an outsider may send to a served pair, and which vectors it may be answered with."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import ucd_3_2_0

import clip_folders
import pandas as pd
from PIL import Image

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
RECORDS, SPLIT, INPUTS, INSTANCES = "dataframe_records", "dataframe_split", "inputs", "instances"
FORMS = (RECORDS, SPLIT, INPUTS, INSTANCES)
ODD_TEXTS = json.loads((Path(__file__).parents[1] / "data/odd_texts.json").read_text("utf-8"))
SPECIALS = ("<|startoftext|>", "<|endoftext|>", " <|endoftext|>", "<|ENDOFTEXT|>", "<|EndOfText|>")
PIECES = (*' \n\t\u00a0\u3000\u2028\u0338\u200b\ufeff\u202e\\"_²½ﬁ🙂', "\r\n", "'s", *SPECIALS)
PIECES += ("photo", "cat", "don't", "2019", "café", "北京", "שלום", "مرح", "👩\u200d🚀", "<|", "|>")
LONG_TEXTS = (
    *("a" * 160_000, "a " * 80_000, "cat" * 300, " " * 10_000, "\n" * 10_000, "<|" * 5_000),
    *("e" + "\u0301" * 5_000, "'s " * 5_000, "👩\u200d" * 5_000, "²" * 20_000, "!" * 20_000),
    *(special * 1_000 for special in SPECIALS),
)


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        name: What it is, in words.
        body: Its bytes.
        rows: Pictures and texts whose vectors a 200 must hold, in order. Without any it is to be
            refused; so it is where one of them is no picture that is taken.
        either: It may be refused all the same.
        kind: Content type; none if it is empty.
        dropped: Share of the body after which the connection is closed, no answer read.
    """

    name: str
    body: bytes
    rows: tuple[bytes | str, ...] | None = None
    either: bool = False
    kind: str = JSON
    dropped: float = 0.0


def cell(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def body(form: str, column: str, *values: Any) -> bytes:
    """Return a request with one row per value."""
    rows: Any = [{column: cell(value)} for value in values]
    if form == SPLIT:
        rows = {"columns": [column], "data": [[cell(value)] for value in values]}
    return json.dumps({form: rows}).encode()


def ask(name: str, *rows: bytes | str, form: str = RECORDS, **options: Any) -> Attack:
    """Return a well-formed request for pictures, or for texts."""
    column = "image" if isinstance(rows[0], bytes) else "text"
    return Attack(f"{name} ({form})", body(form, column, *rows), rows, **options)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def black_png(width: int, height: int) -> bytes:
    """Return a black and white PNG of any size, which takes few bytes and is whole."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
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
    return [
        *(encoded(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")),
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
JPEG, PNG, _, GIF, BMP, *_ = SOUND


def no_pictures() -> dict[str, bytes]:
    """Return what is no picture of a kind that is taken, or too large a one."""
    jpeg, picture = grey_jpeg(8000, 8000), clip_folders.photographs()[0][1].resize((88, 60))
    blp = b"BLP1" + struct.pack("<6I16I", 0, 0, 8000, 8000, 0, 0, 160, *[0] * 15)
    kinds = ("EPS", "PDF", "PPM", "TGA", "ICO", "PCX", "SGI", "IM", "DDS", "JPEG2000")
    return {kind: encoded(picture, kind) for kind in kinds} | {
        "BLP of 64 MP": blp + struct.pack("<17I", len(jpeg), *[0] * 16) + jpeg,
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{1 pop} loop\n",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9000, 9000, 8, 3) + bytes(12),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/hostname'/>",
        "HTML": b"<!doctype html><img src=x>",
        "zip": b"PK\3\4" + bytes(100),
        "gzip": gzip.compress(PNG),
        "base64 twice": base64.b64encode(PNG),
        "nothing": b"",
        "1 byte": b"\xff",
        "PNG of 88 MP": black_png(9400, 9400),
        "PNG of 2^31 - 1 squared": PNG[:16] + b"\x7f\xff\xff\xff" * 2 + PNG[24:],
        "PNG of 2,000,000 x 1": black_png(2_000_000, 1),
        "JPEG of 65,500 squared": grey_jpeg(65_500, 65_500),
        "JPEG of 81 MP": grey_jpeg(9000, 9000),
        "GIF of 65,535 squared": b"GIF89a\xff\xff\xff\xff" + GIF[10:],
        "BMP of 30,000 squared": BMP[:18] + struct.pack("<ii", 30_000, 30_000) + BMP[26:],
    }


def mutated(dice: random.Random) -> bytes:
    """Return a sound picture with some damage."""
    data = bytearray(dice.choice(SOUND))
    at, way = dice.randrange(len(data)), dice.randrange(8)
    if way < 3:
        for _ in range(dice.choice((1, 1, 3, 20))):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif way == 3:
        del data[at:]
    elif way == 4:  # sizes, offsets and counts stand at the head
        at = dice.randrange(60)
        data[at : at + 4] = dice.choice((b"\xff" * 4, bytes(4), b"\x7f\xff", dice.randbytes(4)))
    elif way == 5:
        data[at:] = dice.choice(SOUND)[at:]
    elif way == 6:
        data[at : at + 50] = bytes(50)
    else:
        data[at:at] = dice.randbytes(dice.choice((1, 100, 5_000)))
    return bytes(data)


def text(dice: random.Random) -> str:
    """Return an odd text that can be embedded, without what is known to differ.

    That are control characters, and characters younger than a tokenizer's own tables.
    """
    if dice.random() < 0.3:
        some, category = (
            (dice.randrange(0x20, sys.maxunicode) for _ in range(40)),
            ucd_3_2_0.category,
        )
        return "".join(c for c in map(chr, some) if category(c) not in ("Cn", "Cs", "Co", "Cc"))
    return "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 20)))


def junk_cells() -> Iterator[Attack]:
    """Give cells that are neither a text nor a picture."""
    values = (None, float("nan"), float("inf"), 5, 2.5, True, {}, {"a": 1}, [], [5], 10**30)
    for form in FORMS:
        for column in ("text", "image"):
            for value in (*values, "a\ud800"):
                yield Attack(f"{value!r} as {column} ({form})", body(form, column, value))
        # MLflow makes the same of {"inputs": {"text": ["a", "b"]}}
        yield Attack(f"a list of texts ({form})", body(form, "text", ["a", "b"]), ("a", "b"))
        # beside strings MLflow itself makes strings of numbers there, as `PyfuncPair` says
        rows = ("cat", "5") if form == INSTANCES else None
        yield Attack(f"5 beside a text ({form})", body(form, "text", "cat", 5), rows)
        yield Attack(f"5 beside a picture ({form})", body(form, "image", PNG, 5))
        yield Attack(f"NUL in a text ({form})", body(form, "text", "a\0b"))
        yield Attack(f"no base64 ({form})", body(form, "image", "é#!"))
        yield Attack(f"another column ({form})", body(form, "caption", "cat"))


def data_urls() -> Iterator[Attack]:
    """Give pictures as data: URLs, whole and cut."""
    for start in ("data:image/png;base64,", "data:;base64,", "DATA:IMAGE/PNG;BASE64,"):
        for form in FORMS:
            yield Attack(f"{start} ({form})", body(form, "image", start + cell(PNG)), (PNG,))
        csv = f'image\n"{start}{cell(PNG)}"\n'.encode()
        yield Attack(f"{start} (CSV)", csv, kind=CSV)
    for form in FORMS:
        yield Attack(f"cut data: URL ({form})", body(form, "image", "data:image/png;base64"))
        lines = base64.encodebytes(PNG).decode()
        yield Attack(f"base64 in lines ({form})", body(form, "image", lines), (PNG,), either=True)


def payload_forms() -> Iterator[Attack]:
    """Give requests that are put together wrongly, or oddly."""
    plain = body(RECORDS, "text", "cat")
    yield Attack("no content type", plain, kind="")
    yield Attack("JSON nested 100,000 deep", b'{"inputs":' + b"[" * 100_000)
    yield Attack("number of 5,000 digits", b'{"inputs":[{"text":' + b"9" * 5_000 + b"}]}")
    for kind in ("image/png", f"{JSON}; charset=latin-1", f"{JSON}; x=1", PARQUET):
        yield Attack(f"JSON as {kind}", plain, kind=kind)
    for whole in (
        "",
        "null",
        "5",
        "[]",
        '"a"',
        "{}",
        "{",
        "nan",
        "\0",
        '{"prompt":"cat"}',
        "text\na",
    ):
        yield Attack(f"JSON {whole!r}", whole.encode())
    yield Attack("two forms", b'{"inputs":[{"text":"a"}],"instances":[{"text":"b"}]}')
    yield Attack("JSON nested 900 deep", b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}")
    yield Attack("gzip", gzip.compress(plain))
    yield Attack("no UTF-8", b'{"inputs":[{"text":"\xff\xfe"}]}')
    yield Attack("UTF-16", plain.decode().encode("utf-16"), ("cat",), either=True)
    for form in FORMS:
        contents: list[Any] = [None, 5, True, "a", [None], [1], ["a"], [["a"]], {"a": "b"}]
        both = [{"text": "a", "image": cell(JPEG)}]
        for content in [*contents, {"columns": ["text"]}, {"columns": 5, "data": 5}, both]:
            yield Attack(f"{form}: {content}"[:60], json.dumps({form: content}).encode())
    mixed = {INPUTS: [{"text": "a"}, {"image": cell(JPEG)}], "params": {"text": "dog"}, "z": 5}
    yield Attack("mixed rows, extra keys", json.dumps(mixed).encode(), ("a", JPEG))
    yield Attack("key twice", b'{"inputs":[{"text":"dog","text":"cat"}]}', ("cat",))
    index = {"columns": ["text"], "data": [["a"], ["b"]], "index": ["x", "x"]}
    yield Attack("index twice", json.dumps({SPLIT: index}).encode(), ("a", "b"))
    none = {"columns": ["text"], "data": []}
    yield Attack("no rows", json.dumps({SPLIT: none}).encode(), (), either=True)
    yield ask("2,000 rows", *(f"cat {n % 50}" for n in range(2_000)), either=True)
    yield ask("100,000 rows", *(["cat"] * 100_000), form=INPUTS, either=True)
    yield Attack("CSV", b"text\n5\ntrue\n0012\n", kind=CSV)
    for whole in ("text\nNA\n", 'text\n"a\n', "", "a,b\n1,2\n", "image\n5\n", "text\na\0b\n"):
        yield Attack(f"CSV {whole!r}", whole.encode(), kind=CSV)
    for column, value in (("text", "cat"), ("image", PNG), ("image", cell(PNG))):
        file = pd.DataFrame({column: [value]}).to_parquet()
        row = PNG if column == "image" else "cat"
        yield Attack(f"parquet {type(value)} as {column}", file, (row,), kind=PARQUET)
        for junk in (5, True, ["a", "b"], {"a": 1}, None, b"abc"):
            file = pd.DataFrame({column: [junk]}).to_parquet()
            yield Attack(f"parquet {junk!r} as {column}", file, kind=PARQUET)


def named() -> Iterator[Attack]:
    """Give every attack that is one of its kind."""
    for number, (name, data) in enumerate(no_pictures().items()):
        yield ask(name, data, form=FORMS[number % 4])
    for number, row in enumerate((*SOUND, *ODD_TEXTS, *LONG_TEXTS)):
        if "\a" not in row if isinstance(row, str) else row:  # control characters differ
            yield ask(f"{row[:20]!r} of {len(row)}", row, form=FORMS[number % 4])
    yield ask("a bad picture beside a sound one", JPEG, b"BM")
    yield ask("10 PNG of 88 MP", *[black_png(9400, 9400)] * 10)
    yield from junk_cells()
    yield from data_urls()
    yield from payload_forms()


def heavy() -> Iterator[Attack]:
    """Give pictures that are within the limits, and nearly all that a process should hold."""
    yield ask("photograph of 48 MP", encoded(Image.effect_noise((8000, 6000), 50), "JPEG"))
    for _ in range(8):
        yield ask("331 bytes of 62 MP", grey_jpeg(7900, 7900), either=True)
    yield ask("10 PNG of 62 MP", *[black_png(7900, 7900)] * 10, either=True)


def drawn(count: int, seed: int) -> Iterator[Attack]:
    """Give attacks by chance, until they hold `count` items: pictures, texts and broken bodies."""
    dice = random.Random(seed)  # noqa: S311
    while count > 0:
        form, way = dice.choice(FORMS), dice.random()
        if way < 0.6:
            attack = ask("mutated picture", mutated(dice), form=form)
        elif way < 0.65:
            attack = ask("pictures", *dice.sample(SOUND, 3), form=form)
        elif way < 0.9:
            attack = ask("texts", *(text(dice) for _ in range(dice.randint(1, 12))), form=form)
        elif way < 0.95:
            attack = ask("dropped", dice.choice(SOUND), form=form, dropped=dice.choice((0.5, 1.0)))
        else:
            whole = body(form, "text", text(dice))
            attack = Attack("cut body", whole[: dice.randrange(len(whole))])
        count -= len(attack.rows or [1])
        yield attack
