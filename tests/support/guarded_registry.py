"""MLflow's real server in a thread of this process, behind something that refuses or breaks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

# what MLflow 3.17 with `--app-name basic-auth` answers; neither is JSON
LOGIN = "You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html"
DENIED = "Permission denied"


@dataclass(frozen=True)
class Answer:
    """What is answered in the server's place.

    Attributes:
        status: HTTP status.
        body: Its text.
        kind: Its content type.
    """

    status: int
    body: str
    kind: str = "text/html; charset=utf-8"


@dataclass
class Guard:
    """What stands before the server.

    Attributes:
        uri: Its address.
        answer: What it answers; None lets all through.
        only: Whether a request, by method and path, gets that answer.
        stopped: Requests that got it.
    """

    uri: str = ""
    answer: Answer | None = None
    only: Callable[[str, str], bool] = lambda method, path: True
    stopped: list[tuple[str, str]] = field(default_factory=list)

    def stops(self, method: str, path: str) -> bool:
        """Return whether a request gets the answer."""
        is_stopped = self.answer is not None and self.only(method, path)
        if is_stopped:
            self.stopped.append((method, path))
        return is_stopped

    @contextlib.contextmanager
    def answering(
        self, answer: Answer, only: Callable[[str, str], bool] = lambda method, path: True
    ) -> Iterator[None]:
        """Answer so until the block ends."""
        self.answer, self.only = answer, only
        self.stopped.clear()
        yield
        self.answer = None


def is_write(method: str, path: str) -> bool:
    """Return whether a request changes anything."""
    return method != "GET" and not path.endswith("/search")


@contextlib.contextmanager
def guarded_registry(store_uri: str, artifacts: Path) -> Iterator[Guard]:
    """Serve an MLflow store until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", store_uri)
        patch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", store_uri)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(artifacts))
        from mlflow.server import app, handlers

        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        guard = Guard()

        def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            answer = guard.answer
            if not guard.stops(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
                return app(environ, start)
            assert answer is not None
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{answer.status} SAID", [("Content-Type", answer.kind)])
            return [answer.body.encode()]

        server = make_server("127.0.0.1", 0, guarded, threaded=True)
        guard.uri = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield guard
        server.shutdown()
        thread.join()
