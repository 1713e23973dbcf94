"""A proxy before an MLflow server: for chosen files it answers with an error page."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAGE = b"<html><body>502 Bad Gateway: the store is away for a moment</body></html>"
_HOP_BY_HOP = {"transfer-encoding", "connection", "content-length", "content-encoding", "host"}


@dataclass
class FaultyStore:
    """What the proxy does.

    Attributes:
        uri: Its address.
        wrong: How many more downloads of a file get the page, by the end of the file's path.
        asked: Paths of downloads.
        status: HTTP status of the page.
    """

    uri: str
    wrong: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200

    def answers_wrong(self, path: str) -> bool:
        """Return whether this download gets the page."""
        self.asked.append(path)
        for end, left in self.wrong.items():
            if path.endswith(end) and left:
                self.wrong[end] -= 1
                return True
        return False


@contextlib.contextmanager
def faulty_store(server_uri: str) -> Iterator[FaultyStore]:
    """Run the proxy until the block ends."""
    upstream = urlsplit(server_uri).netloc

    class Proxy(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            path = urlsplit(self.path).path
            is_download = self.command == "GET" and "/mlflow-artifacts/artifacts/" in path
            if is_download and store.answers_wrong(path):
                return self._answer(store.status, {"Content-Type": "text/html"}, PAGE)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            headers["Accept-Encoding"] = "identity"
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                connection.request(self.command, self.path, body, headers)
                given = connection.getresponse()
                return self._answer(given.status, dict(given.getheaders()), given.read())
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        store = FaultyStore(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield store
        server.shutdown()
        thread.join()
