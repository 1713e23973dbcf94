"""Environments with the oldest releases that are supported, made by pip once in a session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RUN_GRAPH = Path(__file__).with_name("run_graph.py")

ORT = "1.15.1"
OLDEST_EXTENSIONS = "0.12.0"
OLDEST_DRIVER = "4.0.2"
TRANSFORMERS_4 = ("transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0")


def _install(python: Path | str, *packages: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip has no {', '.join(packages)} here: {done.stderr[-200:]}")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes an environment with an old runtime, once."""
    made: dict[str, Path] = {}

    def make(extensions: str) -> Path:
        if extensions not in made:
            folder = tmp_path_factory.mktemp("environments") / extensions
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            python = folder / "bin" / "python"
            _install(
                python, f"onnxruntime=={ORT}", f"onnxruntime-extensions=={extensions}", "numpy<2"
            )
            made[extensions] = python
        return made[extensions]

    return make


@pytest.fixture(scope="session")
def oldest_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest python-oracledb, to be put first on the path."""
    folder = tmp_path_factory.mktemp("oldest_driver")
    _install(sys.executable, "--no-deps", "--target", str(folder), f"oracledb=={OLDEST_DRIVER}")
    return folder


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the last transformers 4, to be put first on the path."""
    folder = tmp_path_factory.mktemp("transformers_4")
    _install(sys.executable, "--no-deps", "--target", str(folder), *TRANSFORMERS_4)
    return folder
