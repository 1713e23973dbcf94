"""Run a webhook receiver as a process of its own, and send it what MLflow, or others, would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oml_mlflow.secrets import Secret
from oml_mlflow.webhook.signature import SECRET_ENV, sign

SECRET = Secret("a secret of the tests, long enough")
OTHER_SECRET = Secret("a secret of somebody else, long too")
_STUB = Path(__file__).with_name("webhook_stub.py")

Header = tuple[str, str]


@dataclass
class Running:
    """A receiver that runs.

    Attributes:
        folder: Where its queue is, and what its stub of a reconciler writes and reads.
        port: Where it listens.
        process: Its process.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    _connection: socket.socket | None = field(default=None, repr=False)

    def calls(self) -> list[list[str] | None]:
        """Return what the reconciler was asked to look at."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def rss_mib(self) -> float:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]

    def send(self, raw: Iterable[bytes], *, is_last: bool = False) -> tuple[int, bytes]:
        """Send bytes over a connection that is kept; return status and body of the answer."""
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in raw:
            self._connection.sendall(part)
        status, head, body = read_answer(self._connection)
        if is_last or b"connection: close" in head.lower():
            self._connection.close()
            self._connection = None
        return status, body

    def get(self, path: str) -> tuple[int, bytes]:
        return self.send([f"GET {path} HTTP/1.1\r\nHost: r\r\n\r\n".encode()])

    def deliver(self, headers: Iterable[Header], body: bytes) -> tuple[int, bytes]:
        """Post a delivery."""
        return self.send([head(headers, length=len(body)) + body])

    def metrics(self) -> dict[str, float]:
        """Return its metrics, without the prefix of their names."""
        status, text = self.get("/metrics")
        assert status == 200
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        pairs = (line.removeprefix("oml_mlflow_webhook_").rsplit(" ", 1) for line in lines)
        return {name: float(value) for name, value in pairs}


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return what a condition gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := ask(condition, deadline)):
        assert time.monotonic() < deadline, "waited in vain"
    return found


def ask(condition: Callable[[], Any], deadline: float) -> Any:
    """Return what a condition gives; sleep if it is not true and there is time.

    Nine times as long as it took: what is waited for may run on the same core.
    """
    asked_at = time.monotonic()
    found = condition()
    now = time.monotonic()
    if not found and now < deadline:
        time.sleep(min(max(0.005, 9 * (now - asked_at)), 0.5))
    return found


@contextlib.contextmanager
def receiver(
    folder: Path,
    settings: dict[str, float] | None = None,
    *,
    poll_s: float = 3600.0,
    environment: dict[str, str] | None = None,
) -> Iterator[Running]:
    """Run a receiver with the queue of a folder."""
    (folder / "address").unlink(missing_ok=True)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, _STUB, folder, json.dumps(settings or {}), str(poll_s)],
            stdout=log,
            stderr=log,
            env={**os.environ, SECRET_ENV: SECRET.reveal(), **(environment or {})},
        )
    try:
        address = wait_for(lambda: process.poll() is not None or _read(folder / "address"), 60)
        assert process.poll() is None, (folder / "log").read_text()
        yield Running(folder, urlsplit(address).port or 0, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def alias_body(model: str = "clip", alias: str = "prod", **changed: object) -> bytes:
    """Return what MLflow sends when an alias is set."""
    document = {
        "entity": "model_version_alias",
        "action": "created",
        "timestamp": "2026-11-23T13:15:46.698112+00:00",
        "data": {"name": model, "alias": alias, "version": "1"},
    }
    return json.dumps({**document, **changed}).encode()


def signed(
    body: bytes,
    delivery_id: str | None = None,
    *,
    secret: Secret = SECRET,
    age_s: float = 0,
) -> list[Header]:
    """Return the headers that MLflow gives a delivery."""
    delivery_id = delivery_id or str(uuid.uuid4())
    timestamp = str(int(time.time() - age_s))
    return [
        ("Content-Type", "application/json"),
        ("X-MLflow-Delivery-Id", delivery_id),
        ("X-MLflow-Timestamp", timestamp),
        ("X-MLflow-Signature", sign(secret, delivery_id, timestamp, body)),
    ]


def head(
    headers: Iterable[Header], *, length: int | None, path: str = "/webhook", method: str = "POST"
) -> bytes:
    """Return the head of a request; chunked if its length is None."""
    last = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"{method} {path} HTTP/1.1", "Host: r", *(f"{k}: {v}" for k, v in headers), last]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def chunked(body: bytes, size: int = 8192) -> bytes:
    """Return a body as chunks."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def read_answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Return status, head and body of the next answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    length = int(found[1]) if found else 0
    while len(body) < length:
        body += some(connection)
    return int(head.split(b" ", 2)[1]), head, body


def some(connection: socket.socket) -> bytes:
    """Return what comes next."""
    data = connection.recv(65_536)
    if not data:
        raise ConnectionError("the receiver closed the connection")
    return data
