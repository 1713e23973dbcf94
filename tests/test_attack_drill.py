"""A running server is attacked: it lives, gives no wrong vector, and no memory is kept."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attacks
import clip_folders
import numpy as np
import pytest
from attacks import Attack
from PIL import Image
from serving import served

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.reference import ReferenceModel

FIDELITY = Path(__file__).resolve().parents[1] / "projects" / "fidelity"
THREADS, TIMEOUT_S, CHUNK = 8, 120, 200
# of a black and white picture, 1 % of the values that ONNX Runtime resizes are a level off
PICTURE_LIMIT, TEXT_LIMIT = 1e-3, 1e-5
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PIXEL_LIMIT, ASPECT_LIMIT = 64_000_000, 1_000
KEPT_MB = 200
# these fail before the model is asked: the server's log shows that no line of ours was reached
MLFLOWS_OWN = {
    "no content type": "AttributeError: MLflow splits the header, which isn't there",
    "JSON nested 100,000 deep": "RecursionError of json.loads, which MLflow doesn't catch",
    "number of 5,000 digits": "ValueError of json.loads: more than 4,300 digits",
}
# where a model failed with an exception that is none of MLflow's, which would be a fault of ours
UNEXPECTED = "unexpected error while evaluating the model"


@dataclass(frozen=True)
class Answer:
    """What came back: 0 and a reason where nothing did."""

    status: int
    content: bytes
    seconds: float


def send(url: str, attack: Attack) -> Answer:
    """Send one request over a connection of its own."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    start = time.monotonic()
    try:
        connection.putrequest("POST", parts.path)
        connection.putheader("Content-Length", str(len(attack.body)))
        if attack.kind:
            connection.putheader("Content-Type", attack.kind)
        if attack.encoding:
            connection.putheader("Content-Encoding", attack.encoding)
        connection.endheaders()
        if attack.dropped:
            connection.send(attack.body[: int(len(attack.body) * attack.dropped)])
            return Answer(0, b"dropped", 0)
        connection.send(attack.body)
        response = connection.getresponse()
        return Answer(response.status, response.read(), time.monotonic() - start)
    except (OSError, HTTPException) as error:
        return Answer(0, repr(error).encode(), time.monotonic() - start)
    finally:
        connection.close()


class Truth:
    """The vectors that transformers, Pillow and torch give."""

    def __init__(self, model: ReferenceModel) -> None:
        self._model = model
        self.vector = lru_cache(256)(self._vector)

    def _vector(self, row: bytes | str) -> np.ndarray | None:
        """Return a row's vector, or None if it has to be refused."""
        if isinstance(row, str):
            return self._model.embed_text([row])[0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(row), formats=FORMATS) as opened:
                    small, large = sorted(opened.size)
                if small * large > PIXEL_LIMIT or large > ASPECT_LIMIT * small:
                    return None
                return self._model.embed_image([row])[0]
        except Exception:  # whatever Pillow and transformers raise, there is no vector
            return None

    def fault(self, attack: Attack, answer: Answer) -> str | None:
        """Return what is wrong with an answer."""
        said = answer.content[-300:].decode(errors="replace")
        if attack.dropped:
            return None
        if answer.status == 500 and attack.name in MLFLOWS_OWN:
            return None
        if 400 <= answer.status < 500:
            if UNEXPECTED in answer.content.decode(errors="replace"):
                return f"foreign exception: {said}"
            rows = None if attack.rows is None else [self.vector(row) for row in attack.rows]
            if attack.either or rows is None or any(vector is None for vector in rows):
                return None
            return f"refused: {said}"
        if answer.status != 200:
            return f"{answer.status}: {said}"
        if attack.rows is None:
            return "embedded, though it is no text and no picture"
        return self._difference(attack.rows, json.loads(answer.content)["predictions"])

    def _difference(self, rows: tuple[bytes | str, ...], found: list[Any]) -> str | None:
        if len(found) != len(rows):
            return f"{len(found)} vectors for {len(rows)} rows"
        for row, given in zip(rows, found, strict=True):
            wanted = self.vector(row)
            if wanted is None:
                return "embedded, though it has to be refused"
            limit = TEXT_LIMIT if isinstance(row, str) else PICTURE_LIMIT
            distance = float(np.abs(np.array(given["embedding"], np.float32) - wanted).max())
            if not distance <= limit:
                return f"vector {distance:.1e} off, of {row[:80]!r}"
        return None


class Server:
    """The processes that answer at an address."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log, self._port = url, log, str(urlsplit(url).port)
        self._started_as = self._processes()

    def check_alive(self) -> None:
        """Demand that the processes are those of the start, and that they answer."""
        assert self._processes() == self._started_as
        connection = HTTPConnection("127.0.0.1", int(self._port), timeout=TIMEOUT_S)
        connection.request("GET", "/ping")
        assert connection.getresponse().status == 200
        connection.close()

    def memory_mb(self, figure: str = "VmRSS") -> float:
        """Return the sum over the processes; `VmHWM` is each one's peak."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self._started_as]
        return sum(int(re.search(rf"{figure}:\s+(\d+)", t)[1]) for t in texts) / 1024  # type: ignore[index]

    def _processes(self) -> set[int]:
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            if self._port in words and any("mlflow" in word for word in words):
                found.add(int(path.parent.name))
        return found


@pytest.fixture(scope="module")
def server(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("attacked")
    oml_mlflow.save_model(tiny_pair, folder / "model")
    log = folder / "serve.log"
    with served(folder / "model", Path(sys.executable).with_name("mlflow"), log) as url:
        yield Server(url, log)


def attack_all(server: Server, truth: Truth, every: Iterable[Attack]) -> list[str]:
    """Send attacks from `THREADS` threads; return the faults, and print what was done."""
    faults, statuses, slowest = [], Counter[str](), (0.0, "")
    left = iter(every)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(itertools.islice(left, CHUNK)):
            answers = pool.map(send, [server.url] * len(chunk), chunk)
            for attack, answer in zip(chunk, answers, strict=True):
                statuses[str(answer.status or "no answer")] += 1
                slowest = max(slowest, (answer.seconds, attack.name))
                if fault := truth.fault(attack, answer):
                    faults.append(f"{attack.name}: {fault}")
            server.check_alive()
    print(f"{dict(statuses)}; slowest {slowest[0]:.1f} s, {slowest[1]}")  # noqa: T201
    return faults


def photographs() -> Iterator[Attack]:
    """Give sound requests, after which a server holds all that it keeps."""
    pictures = [clip_folders.as_png(picture) for _, picture in clip_folders.photographs()]
    for form in attacks.FORMS * 2:
        yield attacks.ask("photographs", *pictures[:4], form=form)
        yield attacks.ask("texts", *attacks.STRINGS[:8], form=form)


def pillows(cache: Path) -> list[Attack]:
    """Return Pillow's test images, which its source distribution holds."""
    sys.path.insert(0, str(FIDELITY))
    try:
        paths = importlib.import_module("corpora").pillow_pictures(cache)
    except subprocess.CalledProcessError as error:
        print(f"Pillow's test images are left out: {error}")  # noqa: T201
        return []
    finally:
        sys.path.remove(str(FIDELITY))
    return [attacks.ask(f"Pillow's {path.name}", path.read_bytes()) for path in paths]


def check_afterwards(server: Server, before_mb: float, faults: list[str]) -> None:
    """Demand that nothing is left of the attacks."""
    for _ in range(40):
        if server.memory_mb() <= before_mb + KEPT_MB:
            break
        time.sleep(0.5)
    after_mb, peak_mb = server.memory_mb(), server.memory_mb("VmHWM")
    print(f"memory: {before_mb:.0f} MB before, {after_mb:.0f} after, peak {peak_mb:.0f}")  # noqa: T201
    raised = re.split(r"^.*Exception in ASGI application", server.log.read_text(), flags=re.M)[1:]
    ours = [part for part in raised if re.search(r"/oml_mlflow/\w+\.py", part)]
    assert not ours, ours[0]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    assert after_mb <= before_mb + KEPT_MB


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("count", "seed"), [(150, 1), pytest.param(20_000, 2, marks=pytest.mark.drill)]
)
def test_an_attacked_server(
    count: int, seed: int, server: Server, tiny_reference: ReferenceModel, tmp_path: Path
) -> None:
    truth = Truth(tiny_reference)
    assert attack_all(server, truth, photographs()) == []
    before_mb = server.memory_mb()
    every = itertools.chain(
        attacks.named(), itertools.islice(attacks.drawn(random.Random(seed)), count)
    )
    faults = attack_all(server, truth, every)
    if count > CHUNK:
        cache = Path(os.environ.get("OML_TEST_CACHE", tmp_path))
        faults += attack_all(server, truth, pillows(cache))
        faults += attack_all(server, truth, attacks.heavy())
    check_afterwards(server, before_mb, faults)
