"""Compare a pair's picture vectors with transformers + Pillow, by encoding and release.

    python projects/fidelity/pictures.py --cache FOLDER

Every picture runs through the pair's image file in an environment of its own, bare and after
`oml_mlflow.pair.pictures.prepare_picture`; a process that dies or hangs is counted and
started again.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import corpora
import numpy as np
from environments import environment, run_each
from PIL import Image, ImageCms

from oml_mlflow.errors import InputError
from oml_mlflow.names import IMG
from oml_mlflow.pair.export import export_pair
from oml_mlflow.pair.pictures import prepare_picture
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.source.model import open_source

BARE, OURS = "bare graph", "prepare_picture"
EXACT = 1e-4
RELEASES = ("0.12.0", "0.13.0", "0.15.2")
LIMIT_S = 10.0
_PX = 224
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Sample:
    """One picture: its encoding, in words; its name; its bytes."""

    kind: str
    name: str
    data: bytes


def encodings(picture: Image.Image) -> dict[str, bytes]:
    """Return one RGB picture in every encoding that Pillow writes, and some it only reads."""
    layer = picture.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    palette = picture.quantize(64)
    jpeg = encode(picture, "JPEG", subsampling=0, quality=90)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    kinds = {
        "PNG": encode(picture, "PNG"),
        "PNG, grey": encode(picture.convert("L"), "PNG"),
        "PNG, grey and alpha": encode(layer.convert("LA"), "PNG"),
        "PNG, alpha": encode(layer, "PNG"),
        "PNG, palette": encode(palette, "PNG"),
        "PNG, palette, transparent colour": encode(palette, "PNG", transparency=3),
        "PNG, transparent colour": encode(picture, "PNG", transparency=picture.getpixel((0, 0))),
        "PNG, black and white": encode(picture.convert("1"), "PNG"),
        "PNG, 16-bit grey": encode(
            Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257), "PNG"
        ),
        "PNG, 16-bit RGB": png_by_hand(picture, depth=16),
        "PNG, interlaced": png_by_hand(picture, interlaced=True),
        "PNG, ICC profile": encode(picture, "PNG", icc_profile=profile),
        "JPEG 4:4:4": jpeg,
        "JPEG 4:2:2": encode(picture, "JPEG", subsampling=1, quality=90),
        "JPEG 4:2:0": encode(picture, "JPEG", subsampling=2, quality=90),
        "JPEG 4:4:4, progressive": encode(picture, "JPEG", subsampling=0, progressive=True),
        "JPEG 4:2:0, progressive": encode(picture, "JPEG", subsampling=2, progressive=True),
        "JPEG, grey": encode(picture.convert("L"), "JPEG", quality=90),
        "JPEG, CMYK": encode(picture.convert("CMYK"), "JPEG", quality=90),
        "JPEG, RGB": encode(picture, "JPEG", keep_rgb=True, subsampling=0),
        "JPEG 4:4:4, ICC profile": encode(picture, "JPEG", subsampling=0, icc_profile=profile),
        "JPEG 4:4:4, truncated": jpeg[: len(jpeg) // 2],
        "JPEG 4:4:4, bytes behind it": jpeg + b"more",
        "GIF": encode(picture, "GIF"),
        "WebP": encode(picture, "WEBP", lossless=True),
        "BMP": encode(picture, "BMP"),
        "TIFF": encode(picture, "TIFF"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        name = f"JPEG 4:4:4, EXIF orientation {'1' if orientation == 1 else '2-8'}"
        kinds[f"{name}#{orientation}"] = encode(picture, "JPEG", subsampling=0, exif=exif)
    return kinds


def shapes(picture: Image.Image) -> dict[str, bytes]:
    """Return a picture in odd sizes, as PNG."""
    sizes = {
        "size 1 x 1": (1, 1),
        "size 2 x 3": (2, 3),
        "size 223 x 224": (223, 224),
        "size 225 x 224": (225, 224),
        "aspect 1:10": (50, 500),
        "aspect 10:1": (900, 90),
        "aspect 1:100": (3, 300),
        "aspect 100:1": (3000, 30),
        "aspect 1:3000": (1, 3000),
        "aspect 3000:1": (3000, 1),
        "12 MP": (4000, 3000),
    }
    return {name: encode(picture.resize(size), "PNG") for name, size in sizes.items()}


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture's file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def png_by_hand(picture: Image.Image, *, depth: int = 8, interlaced: bool = False) -> bytes:
    """Return a PNG such as Pillow doesn't write: 16 bits a channel, or interlaced."""
    pixels = np.asarray(picture.convert("RGB"))
    values = pixels if depth == 8 else (pixels.astype(">u2") * 257).astype(">u2")
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row.tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx]]
    data = zlib.compress(b"".join(b"\0" + row for row in rows if row))
    head = struct.pack(">IIBBBBB", *picture.size, depth, 2, 0, 0, int(interlaced))
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def samples(
    photographs: Sequence[tuple[str, Image.Image]], odd: Sequence[Path]
) -> Iterator[Sample]:
    """Give photographs in every encoding, one in odd sizes, and odd files by what they are."""
    for name, picture in photographs:
        for kind, data in encodings(picture).items():
            yield Sample(kind.split("#")[0], f"{name}: {kind}", data)
    name, picture = photographs[0]
    for kind, data in shapes(picture).items():
        yield Sample(kind, f"{name}: {kind}", data)
    for path in odd:
        data = path.read_bytes()
        yield Sample(f"Pillow's: {kind_of(data)}", path.name, data)


def kind_of(data: bytes) -> str:
    """Return what Pillow makes of a file: its format, or that there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                known = opened.format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
                return str(opened.format) if known else "other formats"
    except Exception:  # Pillow's plugins raise nearly anything on bad bytes
        return "not decodable"


def reference_vector(model: ReferenceModel, data: bytes) -> np.ndarray | None:
    """Return what transformers and Pillow give, or None if they can't."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.embed_image([data])[0]
    except Exception:  # whatever Pillow and transformers raise, there is no vector
        return None


def prepared(data: bytes) -> bytes | None:
    """Return what our own paths hand to a graph, or None where they refuse."""
    try:
        return prepare_picture(data)
    except InputError:
        return None


def measure(
    every: Sequence[Sample],
    folder: Path,
    python_of: Callable[[str], str | Path],
    work: Path,
    releases: Sequence[str],
    limit_s: float = LIMIT_S,
) -> list[dict[str, Any]]:
    """Return one row per release, way and encoding.

    Args:
        every: Pictures.
        folder: Model.
        python_of: Gives the interpreter of a release's environment.
        work: Folder for the run's files.
        releases: Of onnxruntime-extensions.
        limit_s: Seconds after which a picture without an answer is a hang.
    """
    source = open_source(str(folder))
    graph = export_pair(source, ONNXPipelineConfig(), "odd", work, validate=False).path(IMG)
    model = ReferenceModel(source)
    wanted = [reference_vector(model, sample.data) for sample in every]
    ways = {BARE: [s.data for s in every], OURS: [prepared(s.data) for s in every]}
    files = {
        data: work / f"{number}.bin"
        for number, data in enumerate(
            dict.fromkeys(d for part in ways.values() for d in part if d is not None)
        )
    }
    for data, path in files.items():
        path.write_bytes(data)
    rows = []
    for release in releases:
        entries = [{"file": str(path)} for path in files.values()]
        try:
            answers = run_each(python_of(release), graph, entries, work / release, limit_s=limit_s)
        except RuntimeError as error:
            rows.append({"release": release, "error": str(error)})
            continue
        found = dict(zip(files, answers, strict=True))
        for way, inputs in ways.items():
            given = [None if data is None else found[data] for data in inputs]
            for kind in dict.fromkeys(sample.kind for sample in every):
                chosen = [i for i, sample in enumerate(every) if sample.kind == kind]
                outcomes = [(every[i].name, outcome(given[i], wanted[i])) for i in chosen]
                rows.append({"release": release, "way": way, "kind": kind, **summary(outcomes)})
    return rows


def outcome(answer: dict[str, Any] | None, wanted: np.ndarray | None) -> tuple[str, float, float]:
    """Return what became of one picture, and its vector's distance and cosine."""
    nothing = (float("nan"), float("nan"))
    if answer is None:
        return ("refused", *nothing)
    if "values" not in answer:
        return (
            {"error": "refused", "crash": "crash", "hang": "hang"}[next(iter(answer))],
            *nothing,
        )
    if wanted is None:
        return ("answered, no reference", *nothing)
    vector = np.array(answer["values"], np.float32)
    distance = float(np.abs(vector - wanted).max())
    if not np.isfinite(vector).all():
        return ("not finite", *nothing)
    cosine = float(vector @ wanted)
    return ("exact" if distance <= EXACT else "approximate", distance, cosine)


def summary(outcomes: Sequence[tuple[str, tuple[str, float, float]]]) -> dict[str, Any]:
    """Return counts, the largest distance and the smallest cosine."""
    counts = Counter(result[0] for _, result in outcomes)
    distances = [result[1] for _, result in outcomes if np.isfinite(result[1])]
    cosines = [result[2] for _, result in outcomes if np.isfinite(result[2])]
    return {
        "pictures": len(outcomes),
        "outcomes": dict(counts),
        "max_abs": max(distances, default=None),
        "min_cosine": min(cosines, default=None),
        "not_exact": {name: result[:2] for name, result in outcomes if result[0] != "exact"},
    }


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table per way: encodings down, releases across."""
    lines = []
    releases = list(dict.fromkeys(row["release"] for row in rows))
    for way in (BARE, OURS):
        part = {(r["kind"], r["release"]): r for r in rows if r.get("way") == way}
        lines += ["", f"### {way}", "", f"| encoding | files | {' | '.join(releases)} |"]
        lines.append("|---" * (len(releases) + 2) + "|")
        for kind in dict.fromkeys(kind for kind, _ in part):
            cells = [part.get((kind, release)) for release in releases]
            files = next(cell["pictures"] for cell in cells if cell)
            shown = " | ".join(_cell(cell) if cell else "can't be loaded" for cell in cells)
            lines.append(f"| {kind} | {files} | {shown} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    only = len(row["outcomes"]) == 1
    words = ", ".join(
        name if only else f"{number} {name}" for name, number in sorted(row["outcomes"].items())
    )
    if row["max_abs"] is None:
        return words
    return f"{words}; {row['max_abs']:.0e}, {row['min_cosine']:.4f}"


def small_model(cache: Path) -> Path:
    """Return a model with random weights that takes 224 px, as B/32 does.

    Its vectors have 16 dims, so that their values are six times those of 512; with weights twice
    the usual ones it is as strict about pixels as a full model with four times.
    """
    import clip_folders

    folder = cache / "small_224"
    if not folder.exists():
        clip_folders.WEIGHT_FACTOR = 2.0
        clip_folders.write_tiny(folder, image_px=_PX)
    return folder


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="For downloads.")
@click.option("--release", "releases", multiple=True, default=RELEASES)
@click.option("--model", type=click.Path(path_type=Path), help="Folder; a small one by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for all rows.")
def main(cache: Path, releases: tuple[str, ...], model: Path | None, output: Path | None) -> None:
    """Print how far the pair's vectors are from those of transformers + Pillow."""
    sys.path[:0] = [
        str(Path(__file__).resolve().parents[2] / "tests"),
        str(Path(__file__).resolve().parents[2] / "tests" / "support"),
    ]
    import clip_folders

    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    every = list(samples(clip_folders.photographs()[::3], corpora.pillow_pictures(cache)))
    with tempfile.TemporaryDirectory(dir=cache) as work:
        rows = measure(
            every,
            model or small_model(cache),
            lambda release: environment(cache, release),
            Path(work),
            releases,
        )
    if output:
        output.write_text(json.dumps(rows, indent=1))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
