"""Webhook receiver: authenticates MLflow's deliveries and queues their models.

A delivery is only a hint: the worker reads the registry again before it acts. So the versions that
a delivery names are not used, and the next full pass makes up for a lost delivery.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from oml_mlflow.config.file import Config
from oml_mlflow.config.webhook import WebhookConfig
from oml_mlflow.documents import read_json
from oml_mlflow.errors import ConfigError, WebhookRejected
from oml_mlflow.secrets import Secret
from oml_mlflow.webhook.metrics import Metrics
from oml_mlflow.webhook.protocol import BACKLOG, Protocol
from oml_mlflow.webhook.queue import Delivery, QueueFull, WebhookQueue
from oml_mlflow.webhook.signature import check_signature, find_secrets, rejected
from oml_mlflow.webhook.worker import Reconcile, Worker

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


class Receiver:
    """Request handlers.

    Args:
        config: Limits.
        secrets: Secrets to accept.
        queue: Queue of accepted deliveries.
        worker: Runs the jobs of the queue.
        metrics: Counters.
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
        """Answer without the reason, so that a sender who can't sign learns nothing."""
        self._metrics.count("refused", reason)
        self._unlogged[reason] += 1
        at = time.monotonic()
        if at - self._logged_at.get(reason, -_LOGGED_EVERY_S) >= _LOGGED_EVERY_S:
            # a flood of bad requests must not fill the log
            _log.warning("%d deliveries refused: %s", self._unlogged.pop(reason), reason)
            self._logged_at[reason] = at
        status = _STATUSES.get(reason, _UNAUTHORIZED)
        # the rest of the body is not read
        headers = {"connection": "close"} if status in (408, 413) else {}
        return Response('{"status": "refused"}', status, headers, "application/json")

    def health(self) -> Response:
        """Answer 200, or 503 and why: the worker or the queue has failed, or a pass hangs."""
        worker, reason = self._worker, self._worker.unhealthy_reason()
        document: dict[str, Any] = {
            "worker_alive": worker.is_alive,
            "last_pass_at": worker.last_pass_at or None,
            "last_success_at": worker.last_success_at or None,
            "last_error": worker.last_error or None,
        }
        try:
            document |= vars(self._queue.depth())
        except sqlite3.Error:
            reason = "the queue can't be read"
        document = {"status": "failing" if reason else "ok", "reason": reason or None, **document}
        return Response(json.dumps(document), 503 if reason else 200, None, "application/json")

    def metrics(self) -> Response:
        """Answer with metrics for Prometheus."""
        worker = self._worker
        gauges = {
            "worker_alive": (float(worker.is_alive), "Whether the worker lives."),
            "last_success_timestamp_seconds": (
                worker.last_success_at,
                "Time of the last pass that succeeded; 0 if there was none.",
            ),
        }
        try:
            depth = self._queue.depth()
        except sqlite3.Error:
            _log.exception("the queue can't be read")
        else:
            gauges |= {
                "jobs": (depth.jobs, "Models that wait to be reconciled."),
                "jobs_failing": (depth.failing, "Those of them that failed the last time."),
                "oldest_job_seconds": (depth.oldest_s, "Age of the oldest of them."),
            }
        text = self._metrics.to_text(gauges)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _read(request: Request, limit: int) -> bytes:
    """Return the body; stop as soon as it is too large."""
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
    """Return the delivery in a signed body; None if the event is not one of ours.

    Raises:
        WebhookRejected: If it is not what MLflow sends.
    """
    try:
        document = read_json(body)
        event = f"{document['entity']}.{document['action']}"
        if event not in EVENTS:
            return None
        model, alias = document["data"]["name"], document["data"]["alias"]
        for text in (model, alias):
            if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_NAME:
                raise rejected(MALFORMED)
            text.encode("utf-8")
    except (ValueError, KeyError, TypeError):
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


def serve(
    config: Config,
    reconcile: Reconcile,
    *,
    on_start: Callable[[str], None] | None = None,
    prepare: Callable[[], None] | None = None,
) -> bool:
    """Receive deliveries until SIGTERM or Ctrl-C. Writes the queue, and whatever reconciling does.

    Args:
        config: Address, limits, and seconds between full passes.
        reconcile: `Reconciler.run`.
        on_start: Called with the address once it listens.
        prepare: Called once by the worker before its first pass.

    Returns:
        False if a promotion was still running at the end of the grace period; the next start
        finishes or undoes it from its journal.

    Raises:
        ConfigError: If there is no secret, or the address or the queue is in use.
    """
    ours = config.webhook
    secrets = find_secrets(ours.secret_file)
    listener = _listen(ours.host, ours.port)
    with listener:
        queue = WebhookQueue(ours.database, window_s=ours.window_s)
        metrics = Metrics()
        worker = Worker(queue, reconcile, metrics, config.poll_s, ours.unhealthy_s, prepare=prepare)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(ours, secrets, queue, worker, metrics),
                http=type("_Limited", (Protocol,), {"longest_s": ours.request_timeout_s}),
                loop="asyncio",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="error",
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
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
    """Leave the block at SIGTERM or Ctrl-C, which uvicorn raises again once it has stopped."""

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
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
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
