"""Pictures that were made to hurt: what they may cost, and what is left as it was afterwards."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import EpsImagePlugin, Image, ImageFile

from oml_mlflow import PipelinePair
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import ConfigError, InputError
from oml_mlflow.pair import pictures
from oml_mlflow.pair.limits import MAX_PIXELS
from oml_mlflow.pair.pictures import as_pixels, in_work, prepare_picture

TAKEN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# no picture here may take longer than this to be refused, on a busy machine
SOON_S = 3.0
BYTES_PER_PIXEL = 25


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def plain(width: int, height: int, kind: str = "PNG", mode: str = "1", **options: Any) -> bytes:
    return encoded(Image.new(mode, (width, height)), kind, **options)


def photograph() -> Image.Image:
    return clip_folders.photographs()[0][1].resize((80, 60))


def run_python(script: str, *arguments: object, **environment: str) -> Any:
    """Return what a script prints last, as JSON, from a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, check=True, capture_output=True, env=os.environ | environment, timeout=240
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TAKEN)
def test_more_pixels_than_are_allowed_are_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_PIXELS.variable, "10000")
    prepare_picture(plain(100, 100, kind, "RGB"))
    with pytest.raises(InputError, match=r"cat: 101 x 100 are more than 10,000 pixels") as err:
        prepare_picture(plain(101, 100, kind, "RGB"), "cat")
    assert err.value.code == "input-invalid"
    assert MAX_PIXELS.variable in err.value.hint


def test_a_photograph_of_48_megapixels_is_taken() -> None:
    with in_work(plain(8064, 6048, "JPEG", "RGB"), "photograph", as_pixels) as pixels:
        assert pixels.shape == (6048, 8064, 3)


@pytest.mark.parametrize("value", ["many", "0", "-5", "1.5", "9" * 30, "nan"])
def test_a_wrong_limit_is_told_before_a_picture_comes(
    value: str, monkeypatch: pytest.MonkeyPatch, tiny_pair: PipelinePair
) -> None:
    monkeypatch.setenv(MAX_PIXELS.variable, value)
    with pytest.raises(ConfigError, match=f"{MAX_PIXELS.variable} must be .*{value}") as err:
        tiny_pair.embedder()
    assert err.value.code == "config-invalid"


def test_the_limit_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for value, origin in (("", "default"), ("12345", "environment")):
        monkeypatch.setenv(MAX_PIXELS.variable, value)
        shown = json.loads(CliRunner().invoke(cli, ["config", "show", "--json"]).stdout)
        wanted = {
            "key": MAX_PIXELS.variable,
            "value": value or str(MAX_PIXELS.default),
            "origin": origin,
        }
        assert wanted in shown["values"]


BOMBS = """
import io, json, sys, threading, warnings
from PIL import Image, ImageFile
out = io.BytesIO()
Image.new("1", (9400, 9400)).save(out, "PNG")
host = sys.argv[1]
if host == "ignores": warnings.simplefilter("ignore")
if host == "errors": warnings.simplefilter("error")
if host == "unlimited": Image.MAX_IMAGE_PIXELS = None
if host == "low": Image.MAX_IMAGE_PIXELS = 1000
from oml_mlflow.errors import InputError
from oml_mlflow.pair.pictures import prepare_picture
def state():
    return (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
small = io.BytesIO()
Image.new("RGB", (64, 64)).save(small, "PNG")
before, found, start = state(), [], threading.Barrier(16)
def send():
    start.wait()
    for _ in range(25):
        prepare_picture(small.getvalue())
        try:
            prepare_picture(out.getvalue())
            found.append("slipped")
        except InputError as error:
            found.append("right" if "9,400 x 9,400 are more than" in error.message else str(error))
threads = [threading.Thread(target=send) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([len(found), sorted(set(found)), state() == before]))
"""


@pytest.mark.parametrize("host", ["usual", "ignores", "errors", "unlimited", "low"])
def test_bombs_in_16_threads_are_refused_and_the_host_stays_as_it_was(host: str) -> None:
    assert run_python(BOMBS, host) == [16 * 25, ["right"], True]


def test_the_warnings_of_the_host_hear_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for kind in ("JPEG", "PNG", "GIF", "BMP"):
            prepare_picture(plain(10, 9, kind, "RGB"))
    assert heard == []


# --- one allowance for the process --------------------------------------------------------------


def test_threads_and_pairs_share_one_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS.variable, "35000")
    data, inside, most = plain(100, 100), [0], [0]
    guard = threading.Lock()

    def take(_: int) -> None:
        with in_work(data, "picture", as_pixels):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            with guard:
                inside[0] -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(take, range(96)))
    assert most == [3]
    assert pictures._allowance.taken == 0


def test_a_large_picture_is_not_shut_out_by_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS.variable, "10000")
    order: list[str] = []
    threads = []

    def take(name: str, data: bytes) -> None:
        with in_work(data, name, as_pixels):
            order.append(name)

    def start(name: str, data: bytes) -> None:
        threads.append(threading.Thread(target=take, args=(name, data)))
        threads[-1].start()
        while len(pictures._allowance._queue) < len(threads):
            assert threads[-1].is_alive()
            time.sleep(0.001)

    with in_work(plain(90, 100), "held", as_pixels):
        start("large", plain(100, 100))
        for i in range(3):
            start(f"small {i}", plain(10, 10))
    for thread in threads:
        thread.join(20)
    assert order[0] == "large"
    assert len(order) == 4


def test_a_picture_that_fails_gives_its_pixels_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MAX_PIXELS.variable, "5000")
    good = encoded(photograph(), "PNG")
    for bad in (good[:-200], good[:60] + b"\0\0\0\0" + good[64:]):
        with pytest.raises(InputError, match="can't be decoded"):
            prepare_picture(bad)
    prepare_picture(good)
    assert pictures._allowance.taken == 0


MEMORY = """
import gc, io, json, sys, threading
from pathlib import Path
from PIL import Image
from oml_mlflow.pair.embedder import PairEmbedder
def figure(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) // 1024
path, threads, count, side = Path(sys.argv[1]), *map(int, sys.argv[3:6])
embedders = [PairEmbedder(path, path, int(sys.argv[2])) for _ in range(2)]
out = io.BytesIO()
Image.new("1", (side, side)).save(out, "PNG")
def send(number, side=None):
    embedders[number % 2].embed_image([out.getvalue()] * count)
small = io.BytesIO()
Image.new("1", (64, 64)).save(small, "PNG")
for embedder in embedders: embedder.embed_image([small.getvalue()])
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
start = figure("VmRSS")
senders = [threading.Thread(target=send, args=(i,)) for i in range(threads)]
for sender in senders: sender.start()
for sender in senders: sender.join()
gc.collect()
print(json.dumps([figure("VmHWM") - start, figure("VmRSS") - start]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's figures")
@pytest.mark.parametrize(("threads", "count"), [(1, 12), (12, 1)])
def test_memory_follows_the_limit_and_comes_back(
    threads: int, count: int, tiny_pair: PipelinePair
) -> None:
    side = 1600
    limits = {MAX_PIXELS.variable: str(side * side)}
    grown = run_python(MEMORY, tiny_pair.img, tiny_pair.dims, threads, count, side, **limits)
    peak, kept = grown
    print(f"\n{threads} threads: peak +{peak} MB, afterwards +{kept} MB")  # noqa: T201
    # and, for each thread, its stack and its own part of malloc's heap
    assert peak <= BYTES_PER_PIXEL * side * side / 2**20 + 10 + threads
    assert kept <= 15


# --- formats ------------------------------------------------------------------------------------


def foreign() -> dict[str, bytes]:
    picture = photograph()
    kinds = ["EPS", "PPM", "ICO", "ICNS", "PCX", "SGI", "DDS", "JPEG2000", "PDF", "BLP"]
    found = {kind: encoded(picture.quantize(8), kind) for kind in kinds if kind == "BLP"}
    found |= {kind: encoded(picture, kind) for kind in kinds if kind != "BLP"}
    found |= {"FLI": b"\0\0\1\0\x12\xaf\1\0" + bytes(120), "PSD": b"8BPS\0\1" + bytes(20)}
    found["HEIF"] = b"\0\0\0\x18ftypheic" + bytes(40)
    return found


FOREIGN = foreign()


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_and_no_plugin_is_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    ran: list[str] = []

    def mark(*_: Any) -> Any:
        ran.append(name)
        raise SyntaxError

    for kind, (_, accept) in list(Image.OPEN.items()):
        monkeypatch.setitem(Image.OPEN, kind, (mark, accept))
    with pytest.raises(InputError, match=f"{name} is not decoded here") as err:
        prepare_picture(FOREIGN[name])
    assert "JPEG, PNG, WebP" in err.value.hint
    assert ran == []


def test_plugins_of_the_host_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def accept(head: bytes) -> bool:
        asked.append(head)
        return True

    monkeypatch.setitem(Image.OPEN, "HOST", (lambda *_: asked.append(b"ran"), accept))
    monkeypatch.setattr(Image, "ID", ["HOST", *Image.ID])
    prepare_picture(encoded(photograph(), "JPEG"))
    for data in (b"HOST and more", b""):
        with pytest.raises(InputError, match="no known picture format"):
            prepare_picture(data)
    assert asked == []


def test_postscript_of_a_sender_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(InputError, match="can't be decoded"):
        prepare_picture(FOREIGN["EPS"])
    assert not ran.exists()


# --- small files that make much work ------------------------------------------------------------


def jpeg_scans(count: int) -> bytes:
    data = encoded(photograph(), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * count + b"\xff\xd9"


def jpeg_segments(count: int) -> bytes:
    data = encoded(photograph(), "JPEG", subsampling=0)
    segment = b"\xff\xe1" + struct.pack(">H", 18) + b"Exif\0\0" + b"x" * 10
    return data[:2] + segment * count + data[2:]


def arithmetic_jpeg() -> bytes:
    data = encoded(photograph(), "JPEG")
    return data.replace(b"\xff\xc0", b"\xff\xc9", 1)


def rle_bmp(side: int) -> bytes:
    body, start = b"\x01\x05\x00\x00" * side, 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + bytes(1024) + body


def tiff(size: tuple[int, int], body: bytes, **tags: Any) -> bytes:
    """Return a grey TIFF put together by hand; `body` is at 8, tags are named as ``t273``."""
    values = {256: [size[0]], 257: [size[1]], 258: [8], 259: [1], 262: [1], 277: [1]}
    values |= {int(name[1:]): given for name, given in tags.items()}
    at = 8 + len(body)
    entries, longer = b"", b""
    end = at + 2 + 12 * len(values) + 4
    for tag, given in sorted(values.items()):
        packed = struct.pack(f"<{len(given)}I", *given)
        place = packed if len(given) == 1 else struct.pack("<I", end + len(longer))
        longer += packed if len(given) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(given)) + place
    directory = struct.pack("<H", len(values)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", at) + body + directory + longer


def overlapping_tiff(count: int) -> bytes:
    side = 700
    offsets = [8 + i % 7 for i in range(count)]
    sizes = [side * side] * count
    body = bytes(side * side + 8)
    return tiff((side, side), body, t273=offsets, t278=[side - 1], t279=sizes)


def tiff_of_a_huge_tile() -> bytes:
    body = zlib.compress(bytes(1 << 20))
    tile = {"t322": [40_000], "t323": [40_000], "t324": [8], "t325": [len(body)]}
    return tiff((64, 64), body, t259=[8], **tile)


def png_with(kind: bytes, body: bytes, count: int = 1) -> bytes:
    data = encoded(photograph(), "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body
    return data[:33] + (chunk + struct.pack(">I", zlib.crc32(kind + body))) * count + data[33:]


def huge_webp() -> bytes:
    data = bytearray(encoded(photograph(), "WEBP", exif=b"Exif\0\0" + bytes(8)))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xfe\x3f\0" * 2
    return bytes(data)


def gif_frame_beyond_its_screen() -> bytes:
    data = bytearray(encoded(photograph(), "GIF"))
    data[6:10] = struct.pack("<HH", 1, 1)
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[at + 5 : at + 9] = struct.pack("<HH", 9000, 9000)
    return bytes(data)


BILLION = zlib.compress(bytes(80_000_000), 9)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG, scans": (lambda: jpeg_scans(2000), "more than 50 scans"),
    "JPEG, segments": (lambda: jpeg_segments(100_000), "1,000 segments"),
    "JPEG, arithmetic": (arithmetic_jpeg, "arithmetic coding"),
    "BMP, run lengths": (lambda: rle_bmp(3000), "run lengths"),
    "TIFF, overlapping strips": (lambda: overlapping_tiff(20_000), "overlap"),
    "TIFF, huge tile": (tiff_of_a_huge_tile, "40,000 x 40,000 are more than"),
    "TIFF, unusual coding": (
        lambda: encoded(photograph(), "TIFF", compression="lzma"),
        "compression lzma",
    ),
    "PNG, text": (lambda: png_with(b"zTXt", b"a\0\0" + BILLION), "can't be decoded"),
    "WebP, size": (huge_webp, "16,383 x 16,383 are more than|too many pixels"),
    "GIF, frame": (gif_frame_beyond_its_screen, "9,000 x 9,000 are more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_small_files_that_make_much_work_are_refused_soon(name: str) -> None:
    make, reason = HOSTILE[name]
    data = make()
    began = time.monotonic()
    with pytest.raises(InputError, match=reason) as err:
        prepare_picture(data)
    assert time.monotonic() - began < SOON_S
    assert err.value.hint


FRAMES = [photograph().rotate(i) for i in range(40)]
HARMLESS: dict[str, Callable[[], bytes]] = {
    "GIF, frames": lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "WebP, frames": lambda: encoded(
        FRAMES[0], "WEBP", lossless=True, save_all=True, append_images=FRAMES[1:9]
    ),
    "TIFF, frames": lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES),
    "MPO": lambda: encoded(
        FRAMES[0], "MPO", subsampling=0, quality=95, save_all=True, append_images=FRAMES[1:3]
    ),
    "PNG, profile": lambda: png_with(b"iCCP", b"a\0\0" + BILLION),
    "JPEG, a film behind it": lambda: (
        encoded(FRAMES[0], "JPEG", subsampling=0) + b"\xff\xda" * 5000
    ),
    "JPEG, notes": lambda: jpeg_segments(900),
    "TIFF, in JPEG": lambda: encoded(FRAMES[0], "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_beside_the_first_picture_costs_little(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = HARMLESS[name]()
    began = time.monotonic()
    try:
        pixels = pictures.picture_pixels(data)
    except InputError as error:  # Pillow's own limit
        assert name == "PNG, profile", error  # noqa: PT017
        pixels = np.asarray(photograph())
    assert time.monotonic() - began < SOON_S
    assert np.abs(pixels.astype(int) - np.asarray(photograph())).mean() < 12
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [SyntaxError(), struct.error("short"), RecursionError(), MemoryError(), OverflowError("far")],
)
def test_whatever_pillow_raises_is_an_input_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    reason = str(error) or type(error).__name__
    with pytest.raises(InputError, match=rf"can't be decoded \({reason}\)"):
        prepare_picture(encoded(photograph(), "PNG"))
