"""Odd pictures never end a process of ours: each gets the right vector, or a refusal."""

from __future__ import annotations

import base64
import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from serving import post, served

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.source.model import open_source

FIDELITY = Path(__file__).resolve().parents[2] / "projects" / "fidelity"
DEMO = FIDELITY.parent / "demo_model" / "demo"
# of a black and white picture, 1 % of the values that ONNX Runtime resizes are a level off
LIMIT = 1e-3
# reasons of our own, for pictures that transformers would take
LIMITED = (
    "more than 65,000,000 pixels",
    "times the other",
    "not decoded here",
    "no known picture format",
)
EMBED_EACH = """
import json, sys
from pathlib import Path
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.errors import InputError
embedder = PairEmbedder(Path(sys.argv[1]), Path(sys.argv[1]), int(sys.argv[2]))
for path in sorted(Path(sys.argv[3]).iterdir()):
    try:
        answer = embedder.embed_image([path.read_bytes()])[0].tolist()
    except InputError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def project() -> Iterator[Any]:
    """Import the project's scripts."""
    sys.path.insert(0, str(FIDELITY))
    try:
        yield importlib.import_module("pictures")
    finally:
        sys.path.remove(str(FIDELITY))
        for name in ("corpora", "environments", "pictures"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    return ONNXPipeline(str(DEMO)).export2file("demo", tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo_reference() -> ReferenceModel:
    return ReferenceModel(open_source(str(DEMO)))


@pytest.fixture(scope="module")
def odd_files(project: Any) -> dict[str, bytes]:
    """Return pictures in every encoding, and the damage that can be done to them."""
    picture = clip_folders.photographs()[0][1].resize((88, 60))
    whole = project.encodings(picture) | {
        kind: data for kind, data in project.shapes(picture).items() if kind != "12 MP"
    }
    dice = random.Random(5)  # noqa: S311
    files = dict(whole)
    for kind in ("PNG", "PNG, interlaced", "JPEG 4:4:4", "JPEG 4:2:0, progressive", "GIF", "TIFF"):
        data = whole[kind]
        for _ in range(5):
            cut = dice.randrange(len(data))
            files[f"{kind}, cut at {cut}"] = data[:cut]
            flipped = bytearray(data)
            for _ in range(dice.choice((1, 8))):
                place = dice.randrange(len(data))
                flipped[place] ^= 1 << dice.randrange(8)
            files[f"{kind}, {place} flipped"] = bytes(flipped)
    for length in (0, 1, 2, 3, 10, 1000):
        files[f"{length} random bytes"] = dice.randbytes(length)
        files[f"{length} random bytes of a JPEG"] = b"\xff\xd8\xff\xe0" + dice.randbytes(length)
        files[f"{length} random bytes of a PNG"] = b"\x89PNG\r\n\x1a\n" + dice.randbytes(length)
    return files


def check(
    project: Any, model: ReferenceModel, files: dict[str, bytes], answers: Sequence[Any]
) -> Counter[str]:
    """Hold every answer, a vector or a reason, to what transformers and Pillow give."""
    counts: Counter[str] = Counter()
    for (name, data), answer in zip(files.items(), answers, strict=True):
        wanted = project.reference_vector(model, data)
        if isinstance(answer, str):
            counts["refused"] += 1
            assert wanted is None or any(reason in answer for reason in LIMITED), (name, answer)
        else:
            counts["embedded"] += 1
            assert wanted is not None, name
            assert np.abs(np.array(answer, np.float32) - wanted).max() <= LIMIT, name
    return counts


def test_a_process_that_embeds_them_lives(
    project: Any,
    odd_files: dict[str, bytes],
    demo_pair: PipelinePair,
    demo_reference: ReferenceModel,
    tmp_path: Path,
) -> None:
    for number, data in enumerate(odd_files.values()):
        (tmp_path / f"{number:04}").write_bytes(data)
    command = [sys.executable, "-c", EMBED_EACH, demo_pair.img, str(demo_pair.dims), tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    counts = check(project, demo_reference, odd_files, answers)
    assert counts["embedded"] >= 40
    assert counts["refused"] >= 30


def ask(url: str, data: bytes) -> Any:
    """Return the vector for a picture, or the reason for which it is refused."""
    picture = base64.b64encode(data).decode()
    status, answer = post(url, {"dataframe_records": [{"image": picture}]})
    if status == 200:
        return answer["predictions"][0]["embedding"]
    assert status == 400, answer
    assert answer["message"]
    return answer["message"]


@pytest.fixture(scope="module")
def url(demo_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("odd")
    oml_mlflow.save_model(demo_pair, folder / "model")
    program = Path(sys.executable).with_name("mlflow")
    with served(folder / "model", program, folder / "serve.log") as address:
        yield address


def test_a_server_that_is_sent_them_lives(
    url: str, project: Any, odd_files: dict[str, bytes], demo_reference: ReferenceModel
) -> None:
    every_third = dict(list(odd_files.items())[::3])
    check(project, demo_reference, every_third, [ask(url, d) for d in every_third.values()])


@pytest.mark.drill
def test_a_server_that_is_sent_pillows_test_images_lives(
    url: str, project: Any, demo_reference: ReferenceModel, tmp_path: Path
) -> None:
    paths = project.corpora.pillow_pictures(tmp_path)
    assert len(paths) >= 700
    files = {str(path): path.read_bytes() for path in paths}
    check(project, demo_reference, files, [ask(url, data) for data in files.values()])
