# ruff: noqa: T201 -- the figures belong in the log
"""What an outsider without the secret can send a webhook receiver: odd HTTP, and slow sockets."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from receiving import (
    Running,
    alias_body,
    chunked,
    head,
    read_answer,
    receiver,
    signed,
    some,
    wait_for,
)

LIMIT = 16_384
BODY = alias_body()
N = len(BODY)
HEALTH = head([], length=0, path="/health", method="GET")
DROPPED = 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with receiver(tmp_path_factory.mktemp("attacked")) as found:
        yield found
        assert ask(found, head(signed(BODY), length=N) + BODY)[0] == 202
        # nothing of all this is worth a line
        assert not re.search("Traceback|ERROR|\x1b", found.log())


def ask(running: Running, raw: bytes, *, size: int = 0) -> tuple[int, bytes]:
    """Return status and head of the only answer; `DROPPED` if the connection just ended."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=15) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for start in range(0, len(raw), size or len(raw)):
                connection.sendall(raw[start : start + (size or len(raw))])
            answer = b""
            while b"\r\n\r\n" not in answer:  # its body is nothing that HEAD would have
                answer += some(connection)
        except ConnectionError:
            return DROPPED, b""
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[0]


def framed(*lines: str, version: str = "1.1") -> bytes:
    headers = [f"{name}: {value}" for name, value in signed(BODY)]
    top = [f"POST /webhook HTTP/{version}", "Host: r", *headers, *lines]
    return "\r\n".join(top).encode() + b"\r\n\r\n"


def long_head(kind: str) -> bytes:
    size, good = 4 * LIMIT, signed(BODY)
    if kind == "request line":
        return head(good, length=len(BODY), path="/webhook?" + "x" * size) + BODY
    if kind == "one header":
        return head([*good, ("X-Large", "x" * size)], length=len(BODY)) + BODY
    if kind == "many headers":
        return head([*good, *[("X", "x")] * (size // 6)], length=len(BODY)) + BODY
    if kind == "folded lines":
        return head([*good, ("X", "x" + "\r\n x" * (size // 4))], length=len(BODY)) + BODY
    trailers = b"X: x\r\n" * (size // 6)
    if kind == "trailers":
        return head(good, length=None) + chunked(BODY)[:-2] + trailers + b"\r\n"
    if kind == "one chunk's extension":
        return head(good, length=None) + b"5;" + b"x" * size + b"\r\n" + BODY[:5] + b"\r\n0\r\n\r\n"
    assert kind == "many chunks' extensions"
    parts = b"".join(b"1;%s\r\n%c\r\n" % (b"x" * (size // 100), byte) for byte in BODY)
    return head(good, length=None) + parts + b"0\r\n\r\n"


KINDS_OF_LENGTH = (
    "request line",
    "one header",
    "many headers",
    "folded lines",
    "trailers",
    "one chunk's extension",
    "many chunks' extensions",
)


@pytest.mark.parametrize("size", [0, 1400, 97], ids=["one piece", "segments", "small pieces"])
@pytest.mark.parametrize("kind", KINDS_OF_LENGTH)
def test_what_is_no_body_is_short_however_it_arrives(
    running: Running, kind: str, size: int
) -> None:
    assert ask(running, long_head(kind), size=size)[0] in (400, 431, DROPPED)


@pytest.mark.parametrize("size", [0, 1400, 1])
def test_a_head_of_just_the_limit(running: Running, size: int) -> None:
    bare = head([*signed(BODY), ("X", "")], length=len(BODY))
    # an answer can be lost where the rest of a head is on its way still: that is a reset then
    for longer, statuses in ((0, (202,)), (1, (400, DROPPED))):
        filled = ("X", "x" * (LIMIT - len(bare) + longer))
        raw = head([*signed(BODY), filled], length=len(BODY))
        assert len(raw) == LIMIT + longer
        assert ask(running, raw + BODY, size=size)[0] in statuses


def test_a_long_head_behind_another_request(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=15) as connection:
        connection.sendall(
            head([], length=0, path="/health", method="GET") + long_head("one header")
        )
        received = bytearray()
        with suppress(ConnectionError):  # reset, or closed behind the second answer
            while True:
                received += some(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) in ([b"200"], [b"200", b"400"])


@pytest.mark.parametrize(
    "lines",
    [
        (f"Content-Length: {N}", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", f"Content-Length: {N}"),
        (f"content-LENGTH: {N}", "X: y", "tRANSFER-encoding: Chunked"),
        (f"Content-Length: {N}", f"Content-Length: {N}"),
        (f"Content-Length: {N}", "Content-Length: 1"),
        (f"Content-Length: {N}, {N}",),
        (f"Content-Length: {N},",),
        (f"Content-Length:\r\n {N}",),
        (f"Content-Length: {N}", "X: y\r\n\tz"),
        (f"Content-Length: +{N}",),
        (f"Content-Length: -{N}",),
        (f"Content-Length: {N:#x}",),
        ("Content-Length: " + "0" * 30 + f"{N}",),
        ("Content-Length: ١",),
        ("Content-Length:",),
        (f"Content-Length : {N}",),
        (f" Content-Length: {N}",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: \x0bchunked",),
        ("Transfer-Encoding:\r\n chunked",),
        ("Transfer-Encoding: chunked", "Host: other"),
    ],
)
def test_a_body_whose_end_can_be_seen_in_two_ways(running: Running, lines: tuple[str, ...]) -> None:
    body = chunked(BODY) if "chunked" in "".join(lines).lower() else BODY
    assert ask(running, framed(*lines) + body)[0] == 400
    assert ask(running, framed(*lines) + body, size=11)[0] in (400, DROPPED)


def test_versions_of_http(running: Running) -> None:
    length = f"Content-Length: {N}"
    assert ask(running, framed(length, version="1.0") + BODY)[0] == 202
    te = "Transfer-Encoding: chunked"
    assert ask(running, framed(te, version="1.0") + chunked(BODY))[0] == 400
    assert ask(running, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] in (400, 404)
    assert ask(running, b"POST /webhook HTTP/1.1\r\nContent-Length: 0\r\n\r\n")[0] == 400
    assert ask(running, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        "/webhook/",
        "//webhook",
        "/webhook%2f",
        "/./webhook",
        "/x/../webhook",
        "/webhook;x",
        "/WEBHOOK",
        "/health/",
        "/metrics/",
        "http://elsewhere.example/webhook",
        "http://elsewhere.example/webhook/",
        "*",
        "elsewhere.example:443",
        "/docs",
    ],
)
def test_what_is_not_here_is_not_elsewhere(running: Running, path: str) -> None:
    for method in ("POST", "GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "X"):
        raw = head(signed(BODY), length=N, path=path, method=method) + BODY
        status, answer = ask(running, raw.replace(b"Host: r", b"Host: elsewhere.example"))
        assert status == 404
        assert b"location" not in answer.lower()
        assert b"elsewhere" not in answer


def test_what_is_here(running: Running) -> None:
    for path in ("/webhook?x", "/%77ebhook"):
        assert ask(running, head(signed(BODY), length=N, path=path) + BODY)[0] == 202
    for method in ("GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT"):
        assert ask(running, head(signed(BODY), length=N, method=method) + BODY)[0] == 405
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), *signed(BODY)]
    assert ask(running, head(upgrade, length=N) + BODY)[0] == 202
    expecting = head([*signed(BODY), ("Expect", "100-continue")], length=N)
    assert ask(running, expecting)[0] == 100
    too_large = head([*signed(BODY), ("Expect", "100-continue")], length=10**6)
    assert ask(running, too_large)[0] == 413


@pytest.mark.parametrize(
    "raw",
    [
        head([], length=None, path="/x") + b"no chunk\r\n",
        head([], length=None) + chunked(b"x" * 70_000)[:-5] + b"no chunk\r\n",
        head([], length=None, method="HEAD", path="/health") + b"no chunk\r\n",
        head([("Connection", "close")], length=0, path="/health", method="GET") + b"more",
        head([], length=0, path="/\x1b[31m%0d%0aERROR%1b[0m"),
        head([("X\x1b", "y")], length=0),
        head([("X", "y\x00z")], length=0),
        b"\r\n" * 100,
        b"HEAD  HTTP/1.1\r\n\r\n",
    ],
)
def test_nobody_fills_the_log_with_bad_requests(running: Running, raw: bytes) -> None:
    before = len(running.log())
    for size in (0, len(raw) - 4):
        assert ask(running, raw, size=size)[0] in (DROPPED, 200, 400, 404, 405, 413)
    assert ask(running, HEALTH)[0] == 200
    assert len(running.log()) - before < 400  # a reason may be new, and is told once a minute


def test_who_does_not_read_answers_is_not_waited_for(tmp_path: Path) -> None:
    with receiver(tmp_path, {"request_timeout_s": 0.5}) as running:
        # it listens before its event loop has the sockets by which it is woken
        assert ask(running, HEALTH)[0] == 200

        def sockets() -> set[str]:
            found = set()
            for file in Path(f"/proc/{running.process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    found.add(os.readlink(file))
            return {name for name in found if name.startswith("socket:")}

        # those of whoever asked whether it is ready are among them, and close
        before = sockets()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", running.port))
            wait_for(lambda: sockets() - before)
            connection.settimeout(0.5)
            with pytest.raises(OSError, match=r"timed out|reset|[Bb]roken"):
                connection.sendall(head([], length=0, path="/metrics", method="GET") * 300_000)
            wait_for(lambda: not sockets() - before)


@dataclass
class Slow:
    """Sockets that come again at once when they are dropped.

    Attributes:
        port: Of the receiver.
        first: What each sends at first.
        then: What it sends, again and again, every `every_s` seconds.
        every_s: Seconds.
        dropped: How often one was.
    """

    port: int
    first: bytes
    then: bytes
    every_s: float = 0.5
    dropped: int = 0
    _chosen: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    @contextmanager
    def attack(self, sockets: int) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(sockets, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)
            for key in list(self._chosen.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _connect(self) -> None:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self._chosen.register(connection, selectors.EVENT_READ)
        self._send(connection, self.first)

    def _send(self, connection: socket.socket, data: bytes) -> None:
        with suppress(OSError):  # shows when it is read
            connection.sendall(data)

    def _run(self, sockets: int, over: threading.Event) -> None:
        for _ in range(sockets):
            self._connect()
        due = time.monotonic()
        while not over.is_set():
            for key, _ in self._chosen.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    is_open = bool(key.fileobj.recv(65_536))
                except OSError:
                    is_open = False
                if not is_open:
                    self._chosen.unregister(key.fileobj)
                    key.fileobj.close()
                    self.dropped += 1
                    self._connect()
            if self.then and time.monotonic() >= due:
                due = time.monotonic() + self.every_s
                for key in list(self._chosen.get_map().values()):
                    assert isinstance(key.fileobj, socket.socket)
                    self._send(key.fileobj, self.then)


SLOW = {
    "idle": (b"", b""),
    "heads": (b"POST /webhook HTTP/1.1\r\nX-Half: ", b"x"),
    "bodies": (head(signed(BODY), length=60_000), b"x"),
    "large bodies": (head(signed(BODY), length=65_536) + b"x" * 65_000, b"x"),
    "chunks": (head(signed(BODY), length=None), b"1\r\nx\r\n"),
    "kept": (HEALTH, b""),
    "next heads": (HEALTH, b"G"),
    "asking": (HEALTH, HEALTH),
    "unasked bodies": (head([], length=None, path="/x"), b"1\r\nx\r\n"),
}


def deliver_beside(running: Running, kind: str, sockets: int, seconds: float) -> None:
    """Deliver as MLflow does, head and body in two pieces, while slow sockets take places."""
    slow, took_s, answers = Slow(running.port, *SLOW[kind]), [0.0], Counter[int]()
    with slow.attack(sockets):
        wait_for(lambda: len(slow._chosen.get_map() or ()) >= sockets)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", running.port), timeout=30) as mlflow:
                try:
                    mlflow.sendall(head(signed(BODY), length=N))
                    mlflow.sendall(BODY)
                    answers[read_answer(mlflow)[0]] += 1
                except ConnectionError:
                    answers[DROPPED] += 1
            took_s.append(time.monotonic() - started)
            time.sleep(max(0.0, min(1.0, seconds / 4) - took_s[-1]))
        memory = running.rss_mib()
    print(
        f"\n{kind}: {sockets} sockets, {dict(answers)}, {slow.dropped} dropped, slowest "
        f"delivery {max(took_s):.3f} s, RSS {memory:.0f} MiB"
    )
    assert set(answers) == {202}, kind
    assert "Traceback" not in running.log()


def test_slow_sockets_do_not_shut_mlflow_out(tmp_path: Path) -> None:
    with receiver(tmp_path, {"request_timeout_s": 1.0}) as running:
        for kind in SLOW:
            deliver_beside(running, kind, sockets=150, seconds=2)


@pytest.mark.drill
@pytest.mark.parametrize("kind", SLOW)
def test_slow_sockets_for_longer(tmp_path: Path, kind: str) -> None:
    with receiver(tmp_path) as running:
        deliver_beside(running, kind, sockets=150, seconds=25)


@pytest.mark.parametrize("requests", [500, pytest.param(10_000, marks=pytest.mark.drill)])
def test_bad_requests_leave_no_memory_behind(tmp_path: Path, requests: int) -> None:
    bad = [long_head(kind) for kind in KINDS_OF_LENGTH]
    bad += [framed("Content-Length: 1", "Transfer-Encoding: chunked"), b"\x16\x03\x01", b"\r\n"]
    with receiver(tmp_path) as running:
        for raw in bad * 10:
            ask(running, raw)
        before_mib = running.rss_mib()
        for number in range(requests):
            ask(running, bad[number % len(bad)])
        grown_mib = running.rss_mib() - before_mib
        print(f"\n{requests} bad requests: RSS {before_mib:.1f} MiB, grew by {grown_mib:.1f} MiB")
        assert grown_mib < 10
        assert "Traceback" not in running.log()
