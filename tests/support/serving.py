"""Run a real `mlflow models serve`, and talk to it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_S = 120


@contextlib.contextmanager
def served(model: Path, mlflow_program: Path, log: Path, *options: str) -> Iterator[str]:
    """Serve a model folder from the environment that holds `mlflow_program`; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [mlflow_program, "models", "serve", "-m", model, "--env-manager", "local"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PATH": f"{mlflow_program.parent}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port), "--host", "127.0.0.1", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def worker_pids(url: str) -> list[int]:
    """Return the processes that answer at an address: those that uvicorn has started, or itself."""
    port, found = url.rpartition(":")[2].partition("/")[0], []
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if "--multiprocessing-fork" in command:
                found.append((int(folder.name), parent))
            elif port in command and any("uvicorn" in part for part in command):
                parents[int(folder.name)] = command
    return [pid for pid, parent in found if parent in parents] or list(parents)[-1:]


def post(url: str, payload: dict[str, Any]) -> tuple[int, Any]:
    """Return the status and the JSON document of an answer."""
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; ask again every 0.2 s, for a limited time."""
    for _ in range(START_S * 5):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            break
    raise AssertionError(log.read_text())
