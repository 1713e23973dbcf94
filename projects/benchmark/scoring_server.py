# ruff: noqa: E402 -- the tests' modules are found by path
"""HTTP: `mlflow models serve` beside the same pair in this process; latency with many clients.

Batching across requests is not built; what it could give at most is the rate of requests with 8 or
32 rows beside that of 8 or 32 clients with a row each.

    python projects/benchmark/main.py --cache FOLDER --only scoring_server
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from embedding import SIZES, export, jpegs, medians
from serving import post, served, worker_pids

from oml_mlflow import save_model

CLIENTS, SECONDS, ROWS = (1, 8, 32), 15.0, 32


def measure(cache: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure requests; return the figures by number of clients, and of batches."""
    pair, pictures = export(cache, "clip"), jpegs(SIZES["0.3 MP"], ROWS)
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(pair, folder / "model")
        program = Path(shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow")
        with served(folder / "model", program, folder / "serve.log") as url:
            embedder = pair.embedder()
            seconds = medians(
                {
                    "in process": lambda: embedder.embed_image(pictures),
                    "HTTP, 32 rows": lambda: send(url, pictures),
                    "HTTP, 8 rows": lambda: [
                        send(url, pictures[n : n + 8]) for n in (0, 8, 16, 24)
                    ],
                },
                rounds,
            )
            rates = {key: ROWS / taken for key, taken in seconds.items()}
            ratio = rates["HTTP, 32 rows"] / rates["in process"]
            result["pictures a second"] = {**rates, "HTTP / in process": ratio}
            for clients in CLIENTS:
                result[f"{clients} clients, a row each"] = load(url, pictures, clients)
            [worker] = worker_pids(url)
            status = Path(f"/proc/{worker}/status").read_text()
            taken = {line.split()[0][:-1]: line.split()[1:2] for line in status.splitlines()}
            result["MB of a worker with both sides"] = {
                "files": pair.size_bytes / 1e6,
                "at rest": int(taken["VmRSS"][0]) * 1024 / 1e6,
                "at most": int(taken["VmHWM"][0]) * 1024 / 1e6,
            }
    return result


def send(url: str, pictures: list[bytes]) -> None:
    """Send a request with a row for each picture."""
    records = [{"image": base64.b64encode(picture).decode()} for picture in pictures]
    status, answer = post(url, {"dataframe_records": records})
    assert status == 200, answer


def load(url: str, pictures: list[bytes], clients: int) -> dict[str, float]:
    """Return what some clients see that send a picture at a time, for a while."""
    taken: list[float] = []
    begun = time.monotonic()

    def client(number: int) -> None:
        while time.monotonic() - begun < SECONDS:
            start = time.monotonic()
            send(url, pictures[number : number + 1])
            taken.append(time.monotonic() - start)

    threads = [threading.Thread(target=client, args=(n % ROWS,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p99 = np.percentile(taken, [50, 99])
    rate = len(taken) / (time.monotonic() - begun)
    return {"a second": rate, "p50 ms": 1000 * p50, "p99 ms": 1000 * p99}
