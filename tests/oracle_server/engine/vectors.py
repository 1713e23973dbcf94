"""Vectors: how SQLite stores them, and the process that computes embeddings."""

from __future__ import annotations

import atexit
import json
import re
import struct
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from oracle_server.statement import ConnectionDropped, OraError

_WORKER = Path(__file__).with_name("vector_worker.py")
# begins every vector among SQLite's blobs
_MARK = b"\0oracle vector "


def is_vector(value: Any) -> bool:
    """Return whether a value of SQLite is a vector."""
    return isinstance(value, bytes) and value.startswith(_MARK)


def pack_vector(values: array[Any]) -> bytes:
    """Return a vector as SQLite stores it."""
    return _MARK + values.typecode.encode() + values.tobytes()


def unpack_vector(stored: bytes) -> array[Any]:
    """Return what `pack_vector` made."""
    return array(chr(stored[len(_MARK)]), stored[len(_MARK) + 1 :])


def to_vector(value: Any) -> bytes | None:
    """Return a vector from a vector or from text such as ``[1, 2]``: TO_VECTOR of SQL."""
    if value is None or is_vector(value):
        return value if value is None else bytes(value)
    if not isinstance(value, str) or not re.fullmatch(r"\s*\[[^\[\]]*\]\s*", value):
        raise OraError(51805, "Vector is not properly formatted (dimension value is not a number)")
    return pack_vector(array("f", json.loads(value)))


def vector_dims(value: Any) -> int | None:
    """Return how many dimensions a vector has: VECTOR_DIMS of SQL."""
    return len(unpack_vector(value)) if is_vector(value) else None


def vector_distance(one: Any, other: Any, metric: str) -> float | None:
    """Return the distance of two vectors: VECTOR_DISTANCE of SQL."""
    if one is None or other is None:
        return None
    a, b = (np.array(unpack_vector(to_vector(v) or b""), np.float64) for v in (one, other))
    if a.shape != b.shape:
        raise OraError(
            51808,
            f"VECTOR_DISTANCE() is not supported for vectors with different dimension counts "
            f"({len(a)}, {len(b)}).",
        )
    if metric == "COSINE":
        return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    if metric == "DOT":
        return float(-(a @ b))
    if metric == "EUCLIDEAN":
        return float(np.sqrt(np.sum((a - b) ** 2)))
    raise OraError(904, f'"{metric}": invalid identifier')


def shared_worker(python: str) -> VectorWorker:
    """Return this process's worker for a Python executable: its imports take seconds."""
    with _sharing:
        if python not in _shared:
            _shared[python] = VectorWorker(python)
            atexit.register(_shared[python].close)
        return _shared[python]


class VectorWorker:
    """A process that runs models; started when first needed, and anew after it died.

    Args:
        python: Python executable that has numpy, onnxruntime and onnxruntime_extensions.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def open(self, fingerprint: str, path: Path) -> str:
        """Load a model; return the message of the runtime's error, or nothing."""
        found, _ = self._ask({"op": "open", "fingerprint": fingerprint, "path": str(path)}, b"")
        return str(found.get("error", ""))

    def embed(
        self, fingerprint: str, path: Path, ends: tuple[str, str], value: str | bytes
    ) -> np.ndarray:
        """Return the embedding of one input, ``(dims,)`` float32.

        Raises:
            OraError: If the runtime raises.
            ConnectionDropped: If it ends its process, as a decoder may for broken bytes.
        """
        is_text = isinstance(value, str)
        data = value.encode() if isinstance(value, str) else value
        request = {"op": "embed", "fingerprint": fingerprint, "path": str(path)}
        found, vector = self._ask(
            request | {"input": ends[0], "output": ends[1], "is_text": is_text}, data
        )
        if "error" in found:
            # Guess: which code an error of the runtime has is not documented.
            raise OraError(54400, f"ONNX Runtime failed: {found['error']}")
        return np.frombuffer(vector, np.float32)

    def forget(self) -> None:
        """Let go of all models."""
        if self.process is not None:
            self._ask({"op": "forget"}, b"")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self.process is not None:
                self.process.kill()
                self.process.communicate()
                self.process = None

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        text = json.dumps(request | {"bytes": len(data)}).encode()
        with self._lock:
            process = self.process or subprocess.Popen(
                [self.python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self.process = process
            try:
                process.stdin.write(struct.pack(">I", len(text)) + text + data)  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                head = process.stdout.read(4)  # type: ignore[union-attr]
                found = json.loads(process.stdout.read(struct.unpack(">I", head)[0]))  # type: ignore[union-attr]
                return found, process.stdout.read(found["bytes"])  # type: ignore[union-attr]
            except (OSError, struct.error) as error:
                process.kill()
                process.communicate()
                self.process = None
                raise ConnectionDropped(f"the process that runs models ended: {error}") from error


_shared: dict[str, VectorWorker] = {}
_sharing = threading.Lock()
