# ruff: noqa: T201, S311 -- the counts belong in the log; requests are drawn by a fixed seed
"""Many clients of `mlflow models serve` while one of its workers is killed: no wrong vector."""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from receiving import wait_for
from serving import post, served, worker_pids

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.parity.probes import golden_probes

# between a vector alone and beside others; see test_front_ends
LIMIT = 1e-6
INPUTS = [probe.value for probe in golden_probes()]


@dataclass
class Load:
    """What the clients have seen.

    Attributes:
        right: Rows with the right vector.
        wrong: Rows with another one.
        refused: Requests that were answered with an error.
        broken: Begin and end of requests that were not answered.
    """

    right: int = 0
    wrong: int = 0
    refused: list[str] = field(default_factory=list)
    broken: list[tuple[float, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def client(url: str, seed: int, wanted: np.ndarray, until: float, load: Load) -> None:
    chosen = random.Random(seed)
    while time.monotonic() < until:
        some = chosen.choices(range(len(INPUTS)), k=chosen.choice((1, 1, 2, 8)))
        records = [
            {"image": base64.b64encode(value).decode()}
            if isinstance(value := INPUTS[i], bytes)
            else {"text": value}
            for i in some
        ]
        begun = time.monotonic()
        try:
            status, answer = post(url, {"dataframe_records": records})
        except OSError:
            with load.lock:
                load.broken.append((begun, time.monotonic()))
            continue
        with load.lock:
            load.seconds.append(time.monotonic() - begun)
            if status != 200:
                load.refused.append(str(answer)[:200])
                continue
            for i, row in zip(some, answer["predictions"], strict=True):
                off = np.abs(np.array(row["embedding"], np.float32) - wanted[i]).max()
                load.right += bool(off <= LIMIT)
                load.wrong += bool(off > LIMIT)


def load_drill(pair: PipelinePair, folder: Path, clients: int, seconds: float) -> None:
    oml_mlflow.save_model(pair, folder / "model")
    embedder = pair.embedder()
    wanted = np.concatenate(
        [
            embedder.embed_image(value) if isinstance(value, bytes) else embedder.embed_text(value)
            for value in INPUTS
        ]
    )
    del embedder
    program = Path(shutil.which("mlflow", path=Path(sys.executable).parent) or "")
    with served(folder / "model", program, folder / "serve.log", "--workers", "2") as url:
        until, load = time.monotonic() + seconds, Load()
        threads = [
            threading.Thread(target=client, args=(url, seed, wanted, until, load), daemon=True)
            for seed in range(clients)
        ]
        for thread in threads:
            thread.start()
        threads[0].join(seconds / 3)
        first = worker_pids(url)
        assert len(first) == 2
        killed_at = time.monotonic()
        os.kill(first[0], signal.SIGKILL)
        for thread in threads:
            thread.join(seconds + 120)
            assert not thread.is_alive()
        # one is started in the place of the killed one, in the seconds that this takes
        wait_for(lambda: len(worker_pids(url)) == 2, 120)
        last = worker_pids(url)
    slow = np.percentile(load.seconds, [50, 99]) if load.seconds else ()
    print(
        f"{clients} clients, {seconds:g} s: {load.right} rows right, {load.wrong} wrong, "
        f"{len(load.refused)} requests refused, {len(load.broken)} broken by the kill; "
        f"p50 and p99 {slow} s"
    )
    assert load.wrong == 0
    assert load.refused == []
    assert load.right > clients
    for begun, ended in load.broken:
        assert begun <= killed_at <= ended + 1, "a request broke that the killed worker had not"
    assert first[0] not in last
    assert len(last) == 2


def test_one_of_two_workers_is_killed(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    load_drill(tiny_pair, tmp_path, 8, 6)


@pytest.mark.drill
def test_one_of_two_workers_is_killed_in_three_minutes(
    full_pair: PipelinePair, tmp_path: Path
) -> None:
    load_drill(full_pair, tmp_path, 32, 180)
