"""Webhook receiver: takes MLflow's deliveries, checks them, and has their models looked at.

A delivery is only a hint: the worker reads the registry again before it acts. So what a delivery
says of versions is not used, and one that is lost is made up for by the next look at everything.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from oml_mlflow.config import Config, WebhookConfig
from oml_mlflow.errors import ConfigError, WebhookRejected
from oml_mlflow.settings import Secret
from oml_mlflow.webhook_metrics import Metrics
from oml_mlflow.webhook_queue import Delivery, QueueFull, WebhookQueue
from oml_mlflow.webhook_signature import check_signature, find_secrets, rejected
from oml_mlflow.webhook_worker import Reconcile, Worker

PATH = "/webhook"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
TESTED = '{"status": "test", "receiver": "oml-mlflow"}'

TOO_LARGE, TOO_SLOW, GONE, MALFORMED = "too-large", "too-slow", "disconnected", "malformed"
FULL, BROKEN_QUEUE = "queue-full", "queue-failed"

_log = logging.getLogger(__name__)
_STATUSES = {TOO_LARGE: 413, TOO_SLOW: 408, GONE: 400, MALFORMED: 400, FULL: 503, BROKEN_QUEUE: 503}
_UNAUTHORIZED = 401
_EXAMPLE = ("example_model", "example_alias")
_LONGEST_NAME = 256
_LOGGED_EVERY_S = 60.0
# few at once are accepted, so that who asks at once is not the oldest before it is read
_CONNECTIONS, _BACKLOG = 400, 100
_MAX_HEADER_BYTES, _STEP_BYTES = 16_384, 4_096
# heads whose body another server may take to end elsewhere (RFC 9112, 5.2 and 6)
_AMBIGUOUS = re.compile(
    rb"\n[ \t]"
    rb"|\ncontent-length:[^\n]*,"
    rb"|\n(content-length|transfer-encoding):.*\n(content-length|transfer-encoding):"
    rb"|^[^\n]*HTTP/1\.0\r?\n.*\ntransfer-encoding:",
    re.IGNORECASE | re.DOTALL,
)


class Receiver:
    """The answers to requests.

    Args:
        config: Limits.
        secrets: Any of which may have signed a delivery.
        queue: Where deliveries go.
        worker: Who does what is in the queue.
        metrics: Where it is counted.
    """

    def __init__(
        self,
        config: WebhookConfig,
        secrets: Sequence[Secret],
        queue: WebhookQueue,
        worker: Worker,
        metrics: Metrics,
    ) -> None:
        self._config, self._secrets, self._queue = config, tuple(secrets), queue
        self._worker, self._metrics = worker, metrics
        self._unlogged: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}

    async def receive(self, request: Request) -> Response:
        """Answer a delivery: 202 if it is new, 200 if there is nothing to do."""
        try:
            result = await self._take(request)
        except WebhookRejected as error:
            return self._refuse(error.details["reason"])
        self._metrics.count("deliveries", result)
        body = TESTED if result == "test" else f'{{"status": "{result}"}}'
        status = 202 if result == "accepted" else 200
        return Response(body, status, media_type="application/json")

    async def _take(self, request: Request) -> str:
        try:
            body = await asyncio.wait_for(
                _read(request, self._config.max_body_bytes), self._config.request_timeout_s
            )
        except asyncio.TimeoutError:
            raise rejected(TOO_SLOW) from None
        except ClientDisconnect:
            raise rejected(GONE) from None
        delivery_id = check_signature(
            request.headers.raw, body, self._secrets, time.time(), self._config.window_s
        )
        delivery = to_delivery(delivery_id, body)
        if delivery is None:
            return "ignored"
        if (delivery.model, delivery.alias) == _EXAMPLE:
            return "test"
        try:
            is_new = await run_in_threadpool(self._queue.accept, delivery)
        except QueueFull:
            raise rejected(FULL) from None
        except sqlite3.Error as error:
            _log.error("a delivery can't be kept: %s", error)
            raise rejected(BROKEN_QUEUE) from None
        if not is_new:
            return "repeated"
        _log.info("accepted %s of %r, alias %r", delivery.event, delivery.model, delivery.alias)
        self._worker.wake()
        return "accepted"

    def _refuse(self, reason: str) -> Response:
        """Answer without saying why: a sender who can't sign learns nothing."""
        self._metrics.count("refused", reason)
        self._unlogged[reason] += 1
        at = time.monotonic()
        if at - self._logged_at.get(reason, -_LOGGED_EVERY_S) >= _LOGGED_EVERY_S:
            # whoever sends many must not fill the log
            _log.warning("%d deliveries refused: %s", self._unlogged.pop(reason), reason)
            self._logged_at[reason] = at
        status = _STATUSES.get(reason, _UNAUTHORIZED)
        # what was not read is not waited for
        headers = {"connection": "close"} if status in (408, 413) else {}
        return Response('{"status": "refused"}', status, headers, "application/json")

    def health(self) -> Response:
        """Answer 200, or 503 if nothing gets done any more."""
        worker = self._worker.health()
        document: dict[str, Any] = {
            "worker_alive": worker.is_alive,
            "last_pass_at": worker.last_pass_at or None,
            "last_success_at": worker.last_success_at or None,
            "last_error": worker.last_error or None,
        }
        is_ok = worker.ok
        try:
            document |= vars(self._queue.depth())
        except sqlite3.Error:
            is_ok = False
        document = {"status": "ok" if is_ok else "failing", **document}
        return Response(json.dumps(document), 200 if is_ok else 503, None, "application/json")

    def metrics(self) -> Response:
        """Answer a scraper."""
        worker = self._worker.health()
        gauges = {
            "worker_alive": (float(worker.is_alive), "Whether the worker lives."),
            "last_success_timestamp_seconds": (
                worker.last_success_at,
                "When the registry and the targets were last looked at; 0 if never.",
            ),
        }
        try:
            depth = self._queue.depth()
        except sqlite3.Error:
            _log.exception("the queue can't be read")
        else:
            gauges |= {
                "jobs": (depth.jobs, "Models that are to be looked at."),
                "jobs_failing": (depth.failing, "Those of them that failed the last time."),
                "oldest_job_seconds": (depth.oldest_s, "How long the oldest of them waits."),
            }
        text = self._metrics.to_text(gauges)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _read(request: Request, limit: int) -> bytes:
    """Return the body, or stop as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise rejected(TOO_LARGE)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise rejected(TOO_LARGE)
        body += chunk
    return bytes(body)


def to_delivery(delivery_id: str, body: bytes) -> Delivery | None:
    """Return what a signed body says; None if it is about something that is not ours.

    Raises:
        WebhookRejected: If it is not what MLflow sends.
    """
    try:
        document = json.loads(body.decode("utf-8"))
        event = f"{document['entity']}.{document['action']}"
        if event not in EVENTS:
            return None
        model, alias = document["data"]["name"], document["data"]["alias"]
        for text in (model, alias):
            if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_NAME:
                raise rejected(MALFORMED)
            text.encode("utf-8")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise rejected(MALFORMED) from None
    return Delivery(delivery_id, event, model, alias)


def create_app(
    config: WebhookConfig,
    secrets: Sequence[Secret],
    queue: WebhookQueue,
    worker: Worker,
    metrics: Metrics,
) -> FastAPI:
    """Return the application: ``POST /webhook``, ``GET /health``, ``GET /metrics``."""
    receiver = Receiver(config, secrets, queue, worker, metrics)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for path, method, answer in (
        (PATH, "POST", receiver.receive),
        ("/health", "GET", receiver.health),
        ("/metrics", "GET", receiver.metrics),
    ):
        app.add_api_route(path, answer, methods=[method], response_model=None)
    return app


class _Framing(h11.Connection):
    """h11's parser; it refuses what another server could frame differently, and long overhead.

    By itself it limits what it waits for only, not what comes in one piece (measured with 0.16).
    """

    _overhead = 0

    def next_event(self) -> Any:
        """Return the next event; all of a request but its body counts towards the limit."""
        before, _ = self.trailing_data
        event = super().next_event()
        taken = before[: len(before) - len(self.trailing_data[0])]
        if is_head := isinstance(event, h11.Request):
            self._overhead = 0
        self._overhead += len(taken) - len(getattr(event, "data", b""))
        if self._overhead > _MAX_HEADER_BYTES or (is_head and _AMBIGUOUS.search(taken)):
            raise h11.RemoteProtocolError("too long, or ambiguous")
        return event


class _Protocol(H11Protocol):
    """uvicorn's protocol; no peer can keep a place for long, or all places.

    uvicorn itself waits for ever for heads, and for answers to be read (measured with 0.54).
    """

    longest_s = 10.0
    _deadline: asyncio.TimerHandle | None = None
    _made_at = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Framing(h11.SERVER, _MAX_HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place; if there is none, the one of another that has not asked for anything."""
        super().connection_made(transport)
        self._made_at = self.loop.time()
        self._limit()
        if len(self.connections) > _CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse in small steps: the parser copies what is left with each event."""
        before = self.cycle
        for start in range(0, len(data), _STEP_BYTES):
            super().data_received(data[start : start + _STEP_BYTES])
        if self.cycle is not before:
            self._limit()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; what is being answered already is only cut off."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        with suppress(h11.LocalProtocolError):  # uvicorn lets it out, and a sender fills the log
            super().send_400_response(msg)
        self.transport.close()

    def _limit(self) -> None:
        """Bound the wait for a head, or for a body and for its answer to be read."""
        if self._deadline is not None:
            self._deadline.cancel()
        waits = 1 if self.cycle is None or self.cycle.response_complete else 2
        self._deadline = self.loop.call_later(waits * self.longest_s, self.transport.abort)

    def _make_room(self) -> None:
        """Drop the oldest connection of the peer that has most, but none that is being answered."""
        places = [one for one in self.connections if isinstance(one, _Protocol)]
        held = Counter(one._peer for one in places)
        found = min(
            (one for one in places if not one._is_being_answered),
            key=lambda one: (-held[one._peer], one._made_at),
            default=self,
        )
        self.connections.discard(found)
        found.transport.abort()

    @property
    def _peer(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def _is_being_answered(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self.flow.write_paused:
            return False
        return not cycle.more_body


def serve(
    config: Config,
    reconcile: Reconcile,
    *,
    on_start: Callable[[str], None] | None = None,
    prepare: Callable[[], None] | None = None,
) -> bool:
    """Receive deliveries until SIGTERM or Ctrl-C. Writes the queue, and whatever reconciling does.

    Args:
        config: Where to listen, limits, and how often everything is looked at.
        reconcile: `Reconciler.run`.
        on_start: Called with the address once it listens.
        prepare: Called once, aside, before anything is looked at.

    Returns:
        False if a promotion was still running when the grace period was over; the next start
        finishes it, or takes it back, from its journal.

    Raises:
        ConfigError: If there is no secret, or the address or the queue is in use.
    """
    ours = config.webhook
    secrets = find_secrets(ours.secret_file)
    listener = _listen(ours.host, ours.port)
    with listener:
        queue = WebhookQueue(ours.database, window_s=ours.window_s)
        metrics = Metrics()
        worker = Worker(queue, reconcile, metrics, config.poll_s, prepare=prepare)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(ours, secrets, queue, worker, metrics),
                http=type("_Limited", (_Protocol,), {"longest_s": ours.request_timeout_s}),
                loop="asyncio",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="error",
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=5,
            )
        )
        with _interruptible():
            worker.start()
            if on_start is not None:
                on_start(_shown_address(listener))
            server.run(sockets=[listener])
        _log.info("stopping")
        is_finished = worker.stop(ours.grace_s)
        if is_finished:
            queue.close()
    return is_finished


@contextmanager
def _interruptible() -> Iterator[None]:
    """Go on behind the block at SIGTERM or Ctrl-C: uvicorn raises both again when it is done."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"can't listen on {host} port {port}: {error.strerror or error}. Nothing was started.",
            hint="choose another with --host and --port, or host and port in [webhook].",
        ) from error
    # connections inherit it; without, an answer's two parts are 40 ms apart (measured)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _shown_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
