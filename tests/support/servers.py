"""Run MLflow's server, and other programs, as processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet
from receiving import wait_for

PROGRAM = [sys.executable, "-c", "from oml_mlflow.cli.main import main; main()"]


@dataclass(frozen=True)
class Server:
    """A running MLflow server.

    Attributes:
        uri: Its address.
        database: Its SQLite file.
    """

    uri: str
    database: Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fetch(url: str) -> str:
    """Return what an address answers; empty if nothing does."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError:
        return ""


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    """Run a program in the folder of its log until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def mlflow_server(
    migrated: Path, folder: Path, *, workers: int = 4, **environment: str
) -> Iterator[Server]:
    """Run an MLflow server that may deliver to this machine.

    Args:
        migrated: Database that it starts with.
        folder: Where its copy of it, its artifacts and its log are.
        workers: How many processes; 4 are MLflow's default.
        **environment: Settings of it.
    """
    shutil.copy(migrated, folder / "mlflow.db")
    uri = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port)]
    command += ["--workers", str(workers), "--artifacts-destination", str(folder / "artifacts")]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    settings = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        **environment,
    }
    with running(command, folder / "log", **settings):
        wait_for(lambda: fetch(f"{uri}/health"), 120)
        yield Server(uri, folder / "mlflow.db")
