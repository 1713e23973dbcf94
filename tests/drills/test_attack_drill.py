"""A running server is attacked: it lives, gives no wrong vector, and keeps no memory."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import attacks
import numpy as np
import pytest
from attacks import Attack
from PIL import Image
from serving import served
from transformers.image_transforms import convert_to_rgb

import oml_mlflow
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.reference import ReferenceModel

FIDELITY = Path(__file__).resolve().parents[2] / "projects" / "fidelity"
THREADS, CHUNK, TIMEOUT_S = 8, 200, 600
# pictures of 62 MP, eight at once, wait for each other longer than MLflow's own 60 s
MLFLOWS_TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"
VECTOR_LIMIT = 1e-5
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PIXEL_LIMIT, ASPECT_LIMIT = 65_000_000, 1_000
# why a picture may be refused that Pillow would decode
LIMITED = ("not decoded here", "parts overlap", "pixels")
# these fail before the model is asked: the server's log shows that no line of ours is reached
MLFLOWS_OWN = {
    "no content type": "AttributeError: MLflow splits the header, which isn't there",
    "JSON nested 100,000 deep": "RecursionError of json.loads, which MLflow doesn't catch",
    "number of 5,000 digits": "ValueError of json.loads: more than 4,300 digits",
}
# MLflow says so where a model raised what is none of its own exceptions
FOREIGN = "unexpected error while evaluating the model"
# memory: pictures take 25 bytes per pixel in work, at most `PIXEL_LIMIT` of them at once; requests
# are held by MLflow as bytes, JSON, table and text of the error
KEPT_MB, PICTURES_MB, PER_REQUEST_BYTE = 200, 25 * PIXEL_LIMIT / 1e6, 20

Answer = tuple[int, str, float]


def send(url: str, attack: Attack) -> Answer:
    """Return status, content and seconds of an answer; status 0 and the reason without one."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection, start = HTTPConnection(host, timeout=TIMEOUT_S), time.monotonic()
    try:
        connection.putrequest("POST", f"/{path}")
        connection.putheader("Content-Length", str(len(attack.body)))
        if attack.kind:
            connection.putheader("Content-Type", attack.kind)
        connection.endheaders()
        if attack.dropped:
            connection.send(attack.body[: int(len(attack.body) * attack.dropped)])
            return 0, "dropped", 0
        connection.send(attack.body)
        response = connection.getresponse()
        return response.status, response.read().decode(), time.monotonic() - start
    except (OSError, HTTPException) as error:
        return 0, repr(error), time.monotonic() - start
    finally:
        connection.close()


class Truth:
    """What vectors have to be, without the code that serves.

    Of texts what transformers gives. Of pictures what the pair's graph makes of the pixels that
    Pillow decodes: how near it is to transformers is measured elsewhere.
    """

    def __init__(self, model: ReferenceModel, img: Path) -> None:
        self._model, self._img = model, open_session(img)
        self.vector = lru_cache(512)(self._vector)

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
                    png = attacks.encoded(convert_to_rgb(opened), "PNG", compress_level=0)
        except Exception:  # whatever Pillow and transformers raise, there is no vector
            return None
        return run(self._img, np.frombuffer(png, np.uint8))[0]

    def fault(self, attack: Attack, answer: Answer) -> str | None:
        """Return what is wrong with an answer."""
        status, content, _ = answer
        if attack.dropped or (status == 500 and attack.name in MLFLOWS_OWN):
            return None
        if status == 200:
            return self._difference(attack.rows, json.loads(content)["predictions"])
        if not 400 <= status < 500 or FOREIGN in content:
            return f"{status}: {content[-1000:]}"
        if attack.either or any(reason in content for reason in LIMITED):
            return None
        known = attack.rows is not None and all(self.vector(r) is not None for r in attack.rows)
        return f"refused: {content[-300:]}" if known else None

    def _difference(self, rows: tuple[bytes | str, ...] | None, found: list[Any]) -> str | None:
        if rows is None or any(self.vector(row) is None for row in rows):
            return "embedded, though it has to be refused"
        if len(found) != len(rows):
            return f"{len(found)} vectors for {len(rows)} rows"
        for row, given in zip(rows, found, strict=True):
            distance = np.abs(np.array(given["embedding"], np.float32) - self.vector(row)).max()
            if not distance <= VECTOR_LIMIT:
                return f"vector {distance:.1e} off, of {row[:80]!r}"
        return None


class Server:
    """The processes that answer at an address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started_as = self._processes()

    def check_alive(self) -> None:
        """Demand that the processes are those of the start, and that they answer."""
        assert self._processes() == self._started_as
        ping = self.url.replace("invocations", "ping")
        with urllib.request.urlopen(ping, timeout=TIMEOUT_S) as answer:  # noqa: S310
            assert answer.status == 200

    def memory_mb(self, figure: str = "VmRSS") -> float:
        """Return the memory of all processes; with `VmHWM` the sum of their peaks."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self._started_as]
        return sum(int(re.findall(rf"{figure}:\s+(\d+) kB", text)[0]) for text in texts) / 1e3

    def _processes(self) -> set[str]:
        port = self.url.split(":")[2].split("/")[0]
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended meanwhile
                continue
            if port in words and "--port" in words:
                found.add(path.parent.name)
        return found


def attack_all(server: Server, truth: Truth, every: Iterable[Attack]) -> list[str]:
    """Send attacks from `THREADS` threads; return the faults, and print what was done."""
    faults, statuses, slowest = [], Counter[int](), (0.0, "")
    left = iter(every)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(itertools.islice(left, CHUNK)):
            answers = pool.map(send, [server.url] * len(chunk), chunk)
            for attack, answer in zip(chunk, answers, strict=True):
                statuses[answer[0]] += 1
                slowest = max(slowest, (answer[2], attack.name))
                if fault := truth.fault(attack, answer):
                    faults.append(f"{attack.name}: {fault}")
            server.check_alive()
    print(f"{statuses}; slowest {slowest[0]:.1f} s, {slowest[1]}")  # noqa: T201
    return faults


def pillows(cache: Path) -> list[Attack]:
    """Return Pillow's test images, which its source distribution holds."""
    sys.path.insert(0, str(FIDELITY))
    try:
        paths = importlib.import_module("corpora").pillow_pictures(cache)
    except subprocess.CalledProcessError as error:
        print(f"0 of Pillow's test images, which can't be fetched: {error}")  # noqa: T201
        return []
    finally:
        sys.path.remove(str(FIDELITY))
    return [attacks.ask(f"Pillow's {path.name}", path.read_bytes()) for path in paths]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("count", [100, pytest.param(20_000, marks=pytest.mark.drill)])
def test_an_attacked_server(
    count: int,
    tiny_folder: Path,
    tiny_reference: ReferenceModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MLFLOWS_TIMEOUT, str(TIMEOUT_S))
    every = [*attacks.named(), *attacks.drawn(count, seed=1)]
    if count > CHUNK:
        every += [*pillows(Path(os.environ.get("OML_TEST_CACHE", tmp_path))), *attacks.heavy()]
    # of the profiles' tokenizers, this one differs from transformers' in control characters only
    pair = ONNXPipeline(str(tiny_folder)).export2file("tiny", tmp_path, profile="onnxruntime")
    oml_mlflow.save_model(pair, tmp_path / "model")
    program, log = Path(sys.executable).with_name("mlflow"), tmp_path / "serve.log"
    with served(tmp_path / "model", program, log) as url:
        server, truth = Server(url), Truth(tiny_reference, pair.img)
        # ordinary use, before and afterwards: with a picture of a size that people send
        photograph = attacks.encoded(Image.effect_noise((1200, 1000), 50), "JPEG")
        rows = (*attacks.SOUND, photograph)
        sound = [attacks.ask("sound", *rows, form=form) for form in attacks.FORMS * 2]
        assert attack_all(server, truth, sound) == []
        before_mb = server.memory_mb()
        faults = attack_all(server, truth, every)
        print(f"MB: {server.memory_mb():.0f} right after the attacks")  # noqa: T201
        faults += attack_all(server, truth, sound)
        deadline = time.monotonic() + 120
        while server.memory_mb() > before_mb + KEPT_MB and time.monotonic() < deadline:
            time.sleep(0.5)
        after_mb, peak_mb = server.memory_mb(), server.memory_mb("VmHWM")
    largest = sorted(len(attack.body) for attack in every)[-THREADS:]
    requests_mb = PER_REQUEST_BYTE * sum(largest) / 1e6
    print(  # noqa: T201
        f"MB: {before_mb:.0f} before, {after_mb:.0f} after; peak {peak_mb:.0f}, bounded by "
        f"{before_mb:.0f} + {PICTURES_MB:.0f} for pictures + {requests_mb:.0f} for requests"
    )
    raised = log.read_text(errors="replace").split("Exception in ASGI application")[1:]
    assert not [part for part in raised if re.search(r"/oml_mlflow/[\w/]+\.py", part)]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    assert after_mb <= before_mb + KEPT_MB
    assert peak_mb <= before_mb + PICTURES_MB + requests_mb
