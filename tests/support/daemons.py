"""Programs that run until they are killed: MLflow's server, and the webhook receiver."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.fernet import Fernet

RECEIVER = [sys.executable, "-c", "from oml_mlflow.cli.main import main; main()", "serve-webhook"]
_LOOKED = re.compile(r"looked at everything")


@dataclass
class Daemon:
    """A program that can be killed and started again.

    Attributes:
        command: What is run.
        log: What it writes is added here; it runs in that folder.
        port: Where it answers.
        environment: What it is told besides ours.
    """

    command: list[str]
    log: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.is_running:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                cwd=self.log.parent,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Return whether it answers."""
        return self.is_running and bool(fetch(f"{self.uri}/health"))

    def kill(self) -> None:
        """Kill it and its children, unless it is dead."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)

    def stop(self) -> int | None:
        """Ask it to stop, wait for that, and return its exit code; None if it never ran."""
        if self._process is not None and self.is_running:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(60)
            finally:
                self.kill()
        return self._process and self._process.returncode

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self) -> list[str]:
        """Return its log, line by line."""
        return self.text().splitlines()

    def looks(self) -> int:
        """Return how often a receiver has looked at everything."""
        return len(_LOOKED.findall(self.text()))


def mlflow_server(folder: Path) -> Daemon:
    """Return MLflow's server, not started, of the store in a folder; it delivers to this machine.

    One process, which starts sooner; it knows of new webhooks after a second.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    settings = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "1",
    }
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    return Daemon([*command, *store], folder / "server.log", port, settings)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def fetch(url: str, timeout_s: float = 5.0) -> str:
    """Return what answers; nothing if nobody does."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError:
        return ""
