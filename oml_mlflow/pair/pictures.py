"""Encoded pictures made safe for the decoder inside the graph, and for this process.

The decoder of onnxruntime-extensions ends or hangs the whole process on bytes that are neither PNG
nor a sound JPEG, and reads some wrongly: a JPEG with a few flipped bits, which Pillow decodes
without a word, gave vectors 0.5 off. So Pillow decodes every picture in full, and the graph gets
its pixels or, run whole, an RGB PNG of them, which every release reads as Pillow does.
Source: microsoft/onnxruntime-extensions issues 1094 and 1096; measured with 0.12.0 to 0.15.2 by
projects/fidelity.

A picture is judged by its header, and its pixels count against one allowance of the process,
`limits.MAX_PIXELS`, until its vector is there. Pictures add at most 25 bytes times that to a
process, whatever is sent (measured: 7 to 25 by format; see tests/pair/test_picture_limits.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from oml_mlflow.errors import InputError
from oml_mlflow.pair.limits import MAX_PIXELS

Picture = bytes | bytearray | memoryview | str | Path | Image.Image | np.ndarray
_SMALLER = f"scale it down first, or set {MAX_PIXELS.variable} where the model runs."
# CLIP resizes the short edge before it crops, so that the work grows with the aspect ratio: at
# 1,000 the graph takes seconds and 300 MB for one picture, transformers twice that (measured)
ASPECT_LIMIT = 1000

# What cameras, browsers and scanners write, and C decodes in a time that follows the pixels; MPO is
# JPEG. Not AVIF, HEIF or JPEG 2000: large decoders, which not every build of Pillow has. Plugins
# are called directly, since Image.open warns, and asks whatever the application has registered.
FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_PLUGINS: dict[bytes, type[ImageFile.ImageFile]] = {
    rb"\xff\xd8\xff": JpegImageFile,
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile,
    rb"BM": BmpImageFile,
    rb"II[*+]\0|MM\0[*+]": TiffImageFile,
}
# formats that Pillow does not recognise, though people send them
_OTHERS = {rb"%PDF": "PDF", rb"....ftyp(hei[cx]|hev[cx]|mif1)": "HEIF"}
# not those that trust a dictionary size in the file, nor those that nobody uses
_TIFF_CODINGS = {
    *("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg"),
    *("tiff_ccitt", "group3", "group4"),
}
# A scan of 48 million pixels takes 0.1 s, and 73 bytes; a million EXIF segments took minutes. What
# encoders write has up to 20 scans, and a segment for each 64 kB of notes.
_JPEG_SCANS, _JPEG_SEGMENTS = 50, 1000
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_ARITHMETIC = b"\xc9\xca\xcb\xcd\xce\xcf"
# not for smaller pictures: mapping each block anew made an export a tenth longer (measured)
_LARGE_PIXELS, _LARGE_BYTES = 1_000_000, 2**20
# below that, so that strips share a block, and no shorter: each band of one costs a lock of Python
_STRIP_BYTES = _LARGE_BYTES * 3 // 4
# of 16 MB, by thread: more than are used at a time are never there
_BLOCKS_KEPT = 8
# a TIFF with planes of their own has one part per channel
_MOST_LAYERS = 8


class _Allowance:
    """The pixels in memory at once, over all threads of this process; first come, first served.

    A picture that waits keeps later ones waiting, so that small ones never shut a large one out.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._queue: deque[object] = deque()
        self.taken = 0

    @contextlib.contextmanager
    def hold(self, pixels: int, limit: int) -> Iterator[None]:
        """Wait until `limit` has room for some pixels, and hold them until the context ends."""
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            try:
                self._change.wait_for(
                    lambda: self._queue[0] is ticket and self.taken + pixels <= limit
                )
                self.taken += pixels
            finally:
                self._queue.remove(ticket)
                self._change.notify_all()
        try:
            yield
        finally:
            with self._change:
                self.taken -= pixels
                self._change.notify_all()


_allowance = _Allowance()


@contextlib.contextmanager
def in_work(
    given: Picture, label: str, encode: Callable[[Image.Image], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield a graph's input for one picture; its pixels are held until the context ends.

    Args:
        given: One picture: encoded, in one of `FORMATS`, as bytes or the path of a file; Pillow's;
            or a uint8 array, ``(height, width)`` or ``(height, width, 3 or 4)``.
        label: How to name it in an error.
        encode: `as_png`, `as_pixels` or `as_planes`.

    Raises:
        InputError: If it is none of these, or of another format, Pillow can't decode it in full, it
            has more than `limits.MAX_PIXELS`, or one edge is more than `ASPECT_LIMIT` times the
            other.
        ConfigError: See `limits.MAX_PIXELS`.
    """
    limit = MAX_PIXELS.read()
    with _decoding(label, given):
        picture = _opened(given, label)
        pixels = _judge(picture, label, limit)
    if pixels >= _LARGE_PIXELS:
        _return_freed_blocks()
    with _allowance.hold(pixels, limit):
        with _decoding(label, given):
            picture = picture.copy() if picture is given else picture
            picture.load()
            _judge(picture, label, pixels)
            values = encode(as_rgb(picture))
        # only the graph's input is kept while it runs
        del picture
        try:
            yield values
        finally:
            del values


@cache
def _return_freed_blocks() -> None:
    """Have this process return large blocks to the system whenever they are freed.

    By default glibc's limit grows with what is freed, up to 32 MB, and each thread's heap keeps
    twice that: twelve threads that embed pictures in turns took 87 MB, and kept up to 52 of them,
    where one picture takes 22 (measured). Numbers: mallopt(3), ``malloc.h``.
    """
    trim_threshold, map_threshold = -1, -3
    with _glibc() as libc:
        libc.mallopt(map_threshold, _LARGE_BYTES)
        libc.mallopt(trim_threshold, _LARGE_BYTES)


class _Blocks:
    """Pillow's memory for pixels, kept from one picture to the next while several are embedded.

    By default Pillow frees each block at once; mapping the 48 MB of 12 million pixels anew took
    threads 5 % of their time (measured). See "Block allocator" in its documentation.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, 0

    @contextlib.contextmanager
    def kept(self, threads: int) -> Iterator[None]:
        """Keep what so many threads need until the context ends; then what was kept before."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = _imaging.get_blocks_max()
                _imaging.set_blocks_max(max(self._before, threads * _BLOCKS_KEPT))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    _imaging.set_blocks_max(self._before)


blocks = _Blocks()


def give_back() -> None:
    """Return to the system what is freed by now, small blocks too."""
    with _glibc() as libc:
        libc.malloc_trim(0)


@contextlib.contextmanager
def _glibc() -> Iterator[Any]:
    """Yield the C library; others have no such functions, and no such habits."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        yield ctypes.CDLL(None)


def as_png(picture: Image.Image) -> np.ndarray:
    """Return a picture's bytes as an RGB PNG, uint8 ``(n_bytes,)``."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=0)
    return np.frombuffer(out.getbuffer(), np.uint8)


def as_pixels(picture: Image.Image) -> np.ndarray:
    """Return a picture's pixels, uint8 ``(height, width, 3)``, RGB."""
    return np.asarray(picture)


def as_planes(picture: Image.Image) -> np.ndarray:
    """Return a picture's pixels as the graph transposes its decoder's: ``(1, 3, h, w)``, BGR."""
    width, height = picture.size
    planes = np.empty((1, 3, height, width), np.uint8)
    # by strips: Pillow's own copy of all pixels takes their memory twice
    rows = max(1, _STRIP_BYTES // (4 * width))
    for top in range(0, height, rows):
        low = min(top + rows, height)
        strip = picture.crop((0, top, width, low))
        for place, band in enumerate("BGR"):
            some = np.frombuffer(strip.tobytes("raw", band), np.uint8)
            planes[0, place, top:low] = some.reshape(-1, width)
    return planes


def prepare_picture(data: bytes, label: str = "picture") -> bytes:
    """Return bytes that the graph reads as Pillow reads `data`; arguments and errors: `in_work`.

    They are an RGB PNG of the same pixels: transparency on white as transformers 5 has it, first
    frame only.
    """
    with in_work(data, label, as_png) as png:
        return png.tobytes()


def picture_pixels(data: bytes, label: str = "picture") -> np.ndarray:
    """Return a picture's pixels, uint8 ``(height, width, 3)``, RGB; see `prepare_picture`."""
    with in_work(data, label, as_pixels) as pixels:
        return pixels


def _opened(given: Picture, label: str) -> Image.Image:
    """Return a picture, not decoded before it is used."""
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, np.ndarray):
        return Image.fromarray(given)
    if isinstance(given, str | Path):
        given = Path(given).expanduser().read_bytes()
    if not isinstance(given, bytes | bytearray | memoryview):
        raise InputError(
            f"{label}: got {type(given).__name__}, wanted an encoded picture.",
            hint="pass the contents of a JPEG or PNG file, its path, a picture of Pillow or a "
            "uint8 array.",
        )
    data = bytes(given)
    plugin = _plugin(data, label)
    _check_jpeg(data)
    picture = plugin(io.BytesIO(data))
    # decoded at one go: after each block a thread would wait for Python's lock again
    picture.decodermaxblock = max(picture.decodermaxblock, len(data))
    return picture


def _plugin(data: bytes, label: str) -> type[ImageFile.ImageFile]:
    """Return Pillow's plugin for a picture, by its first bytes."""
    for start, plugin in _PLUGINS.items():
        if re.match(start, data, re.DOTALL):
            return plugin
    name = _foreign_name(data[:16])
    reason = f"{name} is not decoded here" if name else "no known picture format"
    raise InputError(
        f"{label}: {len(data):,} bytes can't be decoded ({reason}).",
        hint=f"pass the contents of a {FORMATS} file, whole.",
    )


def _foreign_name(head: bytes) -> str:
    """Return a format's name by its first bytes; empty if unknown. No decoder is run."""
    for start, name in _OTHERS.items():
        if re.match(start, head, re.DOTALL):
            return name
    Image.init()
    for name, (_, accept) in list(Image.OPEN.items()):
        # plugins that the application registered are not called
        if accept is not None and accept.__module__.startswith("PIL."):
            with contextlib.suppress(Exception):  # some need more bytes than were sent
                if accept(head) is True:
                    return name
    return ""


@contextlib.contextmanager
def _decoding(label: str, given: Picture) -> Iterator[None]:
    """Raise InputError for whatever Pillow raises."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if not isinstance(given, str | Path) or error.filename is None:
            raise _undecodable(label, given, error) from error
        raise InputError(
            f"{label}: file {given} can't be read ({error.strerror}).", hint="check its path."
        ) from error
    except Image.DecompressionBombError as error:  # some plugins judge for themselves
        raise InputError(f"{label}: too many pixels ({error})", hint=_SMALLER) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on bad bytes
        raise _undecodable(label, given, error) from error


def _undecodable(label: str, given: Picture, error: Exception) -> InputError:
    reason = str(error)[:300] or type(error).__name__
    if isinstance(given, bytes | bytearray | memoryview):
        what = f"{len(given):,} bytes"
    else:
        what = str(given) if isinstance(given, str | Path) else f"a {type(given).__name__}"
    return InputError(
        f"{label}: {what} can't be decoded ({reason}).",
        hint=f"pass the contents of a {FORMATS} file, whole.",
    )


def _judge(picture: Image.Image, label: str, limit: int) -> int:
    """Return how many pixels a picture takes; raise if they, or the work on them, are too many."""
    width, height = picture.size
    if isinstance(picture, TiffImageFile):
        # libtiff decodes whole tiles, which may be larger than the picture
        tile = picture.tag_v2.get(322, 0), picture.tag_v2.get(323, 0)
        width, height = max(picture.size, tile, key=lambda size: size[0] * size[1])
    if width * height > limit:
        raise InputError(
            f"{label}: {width:,} x {height:,} are more than {limit:,} pixels.",
            hint=_SMALLER,
        )
    if max(picture.size) > ASPECT_LIMIT * min(picture.size):
        raise InputError(
            f"{label}: {picture.width} x {picture.height} pixels, one edge more than "
            f"{ASPECT_LIMIT:,} times the other.",
            hint="crop it first.",
        )
    coding = picture.info.get("compression")
    if isinstance(picture, TiffImageFile) and coding not in _TIFF_CODINGS:
        raise ValueError(f"compression {coding} is not decoded here")
    # Pillow decodes run lengths in Python: a BMP of 32 kB took 30 s
    tiles = picture.tile if isinstance(picture, ImageFile.ImageFile) else []
    if any(part[0] in Image.DECODERS for part in tiles):
        raise ValueError("run lengths in a BMP are not decoded here")
    areas = [(right - left) * (low - top) for left, top, right, low in map(_extents, tiles)]
    if sum(areas) > _MOST_LAYERS * picture.width * picture.height:
        raise ValueError("its parts overlap")
    return width * height


def _extents(part: ImageFile._Tile) -> tuple[int, int, int, int]:
    return part[1] or (0, 0, 0, 0)


def _check_jpeg(data: bytes) -> None:
    """Raise ValueError if the structure of a JPEG takes more time than its pixels."""
    at = segments = scans = 0
    while data[:2] == b"\xff\xd8" and (marker := _JPEG_MARKER.search(data, at)):
        code, at = marker[1], marker.end()
        if code == b"\xd9":  # the end; behind it phones keep films
            return
        if code not in b"\x01\xd8":  # those without a length
            at += int.from_bytes(data[at : at + 2], "big")
        segments += 1
        scans += code == b"\xda"
        if scans > _JPEG_SCANS or segments > _JPEG_SEGMENTS or code in _JPEG_ARITHMETIC:
            raise ValueError(
                f"a JPEG with more than {_JPEG_SCANS} scans or {_JPEG_SEGMENTS:,} segments, or "
                "with arithmetic coding, is not decoded here"
            )


def as_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, transparency on white as transformers 5 has it, and 4 has not.

    The given one may be closed, so that only two are in memory.
    """
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        if layer is not picture:
            picture.close()
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        layer.close()
    return picture if picture.mode == "RGB" else picture.convert("RGB")
