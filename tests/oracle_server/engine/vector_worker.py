"""Run ONNX models for the stand-in, one input at a time, in a process of their own.

Only numpy, onnxruntime and onnxruntime-extensions are needed, so that any environment's Python can
run it. Requests and answers are a length (4 bytes), JSON, and as many further bytes as it says.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections import OrderedDict
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime

_KEPT_SESSIONS = 4
# importing the package would import torch and transformers too, where they are installed
_PACKAGE = find_spec("onnxruntime_extensions")
_FOLDERS = (_PACKAGE and _PACKAGE.submodule_search_locations) or ()
_FILES = [Path(f, f"_extensions_pydll{end}") for f in _FOLDERS for end in EXTENSION_SUFFIXES]
_LIBRARY = next(str(file) for file in _FILES if file.is_file())


class Sessions:
    """ONNX Runtime sessions by fingerprint; the least used one goes when there are too many."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Any] = OrderedDict()

    def clear(self) -> None:
        self._sessions.clear()

    def get(self, fingerprint: str, path: str) -> Any:
        if fingerprint not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.register_custom_ops_library(_LIBRARY)
            while len(self._sessions) >= _KEPT_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[fingerprint] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        self._sessions.move_to_end(fingerprint)
        return self._sessions[fingerprint]


def embed(session: Any, request: dict[str, Any], data: bytes) -> np.ndarray:
    """Return the embedding of one text or one picture."""
    tensor = next(t for t in session.get_inputs() if t.name == request["input"])
    if request["is_text"]:
        values = np.array([data.decode("utf-8")], dtype=object)
    else:
        values = np.frombuffer(data, np.uint8)
    if len(tensor.shape) > 1:
        values = values.reshape(1, -1)
    output = session.run([request["output"]], {request["input"]: values})[0]
    return np.asarray(output, np.float32).reshape(-1)


def answer(
    sessions: Sessions, request: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    """Return what a request asks for, or the error that the runtime raised."""
    if request["op"] == "forget":
        sessions.clear()
        return {}, b""
    try:
        session = sessions.get(request["fingerprint"], request["path"])
        if request["op"] == "open":
            return {"types": {t.name: t.type for t in session.get_inputs()}}, b""
        vector = embed(session, request, data)
    except Exception as error:  # onnxruntime's errors share no base class
        return {"error": str(error)[:500]}, b""
    return {}, vector.tobytes()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    sessions = Sessions()
    while head := requests.read(4):
        request = json.loads(requests.read(struct.unpack(">I", head)[0]))
        found, vector = answer(sessions, request, requests.read(request["bytes"]))
        text = json.dumps(found | {"bytes": len(vector)}).encode()
        answers.write(struct.pack(">I", len(text)) + text + vector)
        answers.flush()


if __name__ == "__main__":
    # whatever a library prints must not get between the answers
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, pipe)
