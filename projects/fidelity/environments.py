"""Environments with other releases of onnxruntime-extensions, and runs in them that may crash."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("runner.py")
# extensions release: onnxruntime of its time; the database is documented to embed 1.15.1
RELEASES = {
    "0.10.1": "1.15.1",
    "0.12.0": "1.15.1",
    "0.13.0": "1.15.1",
    "0.14.0": "1.20.1",
    "0.15.2": "1.32.0",
}


def environment(cache: Path, release: str) -> Path:
    """Return the Python of an environment with this release; make it if `cache` lacks it."""
    folder = cache / "environments" / release
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        packages = [f"onnxruntime-extensions=={release}", f"onnxruntime=={RELEASES[release]}"]
        old_numpy = ["numpy<2"] if RELEASES[release] < "1.20" else []
        command = [python, "-m", "pip", "install", "-q", *packages, *old_numpy]
        subprocess.run(command, check=True)
        done.touch()
    return python


def run_each(
    python: str | Path,
    graph: Path,
    entries: Sequence[dict[str, str]],
    work: Path,
    *,
    limit_s: float = 20,
) -> list[dict[str, Any]]:
    """Return an answer for every entry, whatever happens to the process that gives it.

    Args:
        python: Interpreter of an environment.
        graph: ONNX file.
        entries: What `runner` takes.
        work: Folder for the run's files.
        limit_s: Seconds without an answer after which a process is ended.

    Returns:
        ``{"values": ...}``, ``{"error": ...}``, ``{"crash": exit status}`` or ``{"hang": limit}``.

    Raises:
        RuntimeError: If the graph can't be loaded there.
    """
    work.mkdir(parents=True, exist_ok=True)
    inputs, output = work / "inputs.jsonl", work / "output.jsonl"
    inputs.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    command = [python, RUNNER, graph, inputs, output, str(limit_s)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{graph.name}: {done.stderr.strip()[-300:]}")
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
