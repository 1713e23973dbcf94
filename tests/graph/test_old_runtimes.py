# ruff: noqa: T201 -- the figures belong in the log
"""Both graphs run in the oldest runtimes, bare; where vectors differ, in which inputs, and why."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from old_runtimes import ORT, RUN_GRAPH
from PIL import Image

from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel

# one value of 32 x 32 that is rounded to the next level moves a vector by up to 3e-4
TINY_LIMIT, FULL_LIMIT = 1e-3, 1e-4
Inputs = dict[str, dict[str, Any]]

TEXTS = {
    "plain": "a photo of a cat",
    "quotes": "it's the cook's favourite: pasta, isn't it?",
    "digits": "the eclipse of 2019, seen at 17:38",
    "longer than 77": "a quiet village between the hills and the sea " * 12,
    "empty": "",
    "accent inside a word": "naïve façades",
    "accent at a word's end": "un café",
    "Cyrillic": "кошка на окне",
    "Chinese": "一只猫",
    "emoji": "pizza 🍕",
}
NON_ASCII_ENDS = {"accent at a word's end", "Cyrillic", "Chinese", "emoji"}


def pictures() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for name, picture in clip_folders.photographs()[1:12:3]:
        subject = name.split("-")[0]
        jpeg: dict[str, dict[str, Any]] = {
            "4:2:0": {"subsampling": 2},
            "EXIF": {"subsampling": 0, "exif": rotated},
        }
        found[f"PNG {subject}"] = clip_folders.as_png(picture)
        found[f"grey PNG {subject}"] = clip_folders.as_png(picture.convert("L"))
        found[f"JPEG 4:4:4 {subject}"] = clip_folders.as_jpeg_444(picture)
        found[f"grey JPEG {subject}"] = clip_folders.as_jpeg_444(picture.convert("L"))
        for kind, options in jpeg.items():
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=95, **options)
            found[f"{kind} JPEG {subject}"] = out.getvalue()
    return found


def kind_of(name: str) -> str:
    return name.rsplit(" ", 1)[0] if name not in TEXTS else name


def vectors(python: Path | str, pair: PipelinePair, folder: Path) -> Inputs:
    """Return the vectors of a bare pair in the runtime of an environment."""
    inputs, found = folder / "inputs.json", folder / "vectors.json"
    encoded = {name: base64.b64encode(data).decode() for name, data in pictures().items()}
    inputs.write_text(json.dumps({"img": encoded, "txt": TEXTS}), encoding="utf-8")
    command = [str(python), str(RUN_GRAPH), *map(str, (pair.img, pair.txt, inputs, found))]
    subprocess.run(command, check=True, timeout=300)
    loaded: Inputs = json.loads(found.read_text(encoding="utf-8"))
    return loaded


def wanted(model: ReferenceModel) -> dict[str, np.ndarray]:
    images = {name: model.embed_image([data])[0] for name, data in pictures().items()}
    return images | {name: model.embed_text([text])[0] for name, text in TEXTS.items()}


def compared(found: Inputs, right: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the largest difference from transformers by kind of input; inf: an error."""
    worst: dict[str, float] = {}
    for name, vector in (found["img"] | found["txt"]).items():
        off = float("inf")
        if isinstance(vector, list):
            off = float(np.abs(np.array(vector) - right[name]).max())
        worst[kind_of(name)] = max(worst.get(kind_of(name), 0.0), off)
    return worst


def check(
    extensions: str,
    python: Path,
    pair: PipelinePair,
    model: ReferenceModel,
    limit: float,
    folder: Path,
) -> None:
    old, new = vectors(python, pair, folder), vectors(sys.executable, pair, folder)
    assert old["versions"]["onnxruntime"] == ORT
    assert old["versions"]["extensions"] == extensions
    assert old["versions"]["numpy"] < "2"
    right = wanted(model)
    differences = {"old": compared(old, right), "new": compared(new, right)}
    print(f"\n{'':24} extensions {extensions:8} {new['versions']['extensions']}")
    for kind in differences["old"]:
        print(f"{kind:24} {differences['old'][kind]:19.1e} {differences['new'][kind]:8.1e}")
    off = {
        age: {kind for kind, worst in found.items() if worst > limit}
        for age, found in differences.items()
    }
    assert off == {"old": OFF[extensions], "new": OFF["new"]}


# Up to 0.12 a word's last byte is looked up raw if it is not ASCII; up to 0.13 pictures are rotated
# as EXIF says, which transformers does not do. The newest swaps bytes of a grey JPEG, which the
# graph undoes. Subsampled chroma is interpolated as Pillow does it in 0.9, and otherwise later.
OFF = {
    "0.9.0": NON_ASCII_ENDS | {"EXIF JPEG", "empty"},
    "0.12.0": NON_ASCII_ENDS | {"EXIF JPEG", "4:2:0 JPEG"},
    "new": {"4:2:0 JPEG"},
}


def test_tiny_pair_in_the_oldest_pin(
    environment: Callable[[str], Path],
    tiny_pair: PipelinePair,
    tiny_reference: ReferenceModel,
    tmp_path: Path,
) -> None:
    check("0.12.0", environment("0.12.0"), tiny_pair, tiny_reference, TINY_LIMIT, tmp_path)


@pytest.mark.drill
def test_tiny_pair_in_the_oldest_that_loads(
    environment: Callable[[str], Path],
    tiny_pair: PipelinePair,
    tiny_reference: ReferenceModel,
    tmp_path: Path,
) -> None:
    check("0.9.0", environment("0.9.0"), tiny_pair, tiny_reference, TINY_LIMIT, tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize("extensions", ["0.9.0", "0.12.0"])
def test_full_pair_in_old_runtimes(
    extensions: str,
    environment: Callable[[str], Path],
    full_pair: PipelinePair,
    full_reference: ReferenceModel,
    tmp_path: Path,
) -> None:
    python = environment(extensions)
    check(extensions, python, full_pair, full_reference, FULL_LIMIT, tmp_path)
