"""Run one ONNX file on inputs, one by one, whatever that does to a process.

Stands alone, for environments without oml_mlflow. The session is opened once; a fork of the
process answers the inputs, and when one of them kills it, or hangs it, that is noted and the next
fork goes on behind it.

    python runner.py GRAPH INPUTS OUTPUT LIMIT_S

INPUTS has one JSON value a line: ``{"text": ...}`` or ``{"file": ...}``. OUTPUT gets one a line:
``{"values": [...]}``, ``{"error": ...}``, ``{"crash": exit status}`` or ``{"hang": LIMIT_S}``.
"""

import ctypes
import json
import os
import signal
import sys
import time

import numpy as np
import onnxruntime
import onnxruntime_extensions

POLL_S = 0.02


def main(graph: str, inputs: str, output: str, limit_s: float) -> None:
    """Answer all inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # a fork has none of its parent's threads, so that there must be none to miss
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with open(inputs, encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    handle = os.open(output, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC)
    answered = 0
    while answered < len(entries):
        process = os.fork()
        if process == 0:
            answer(session, entries[answered:], handle)
            os._exit(0)
        end = watch(process, handle, limit_s)
        answered = count_lines(output)
        if answered < len(entries):
            os.write(handle, (json.dumps(end) + "\n").encode())
            answered += 1


def answer(session: onnxruntime.InferenceSession, entries: list, handle: int) -> None:
    """Append each answer at once."""
    # a decoder that calls exit() would hang in handlers that count on their parent's threads
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)
    for entry in entries:
        try:
            values = session.run(None, {"input": value_of(entry)})[0]
            found = {"values": values.ravel().tolist()}
        except Exception as error:
            found = {"error": str(error)[:300]}
        os.write(handle, (json.dumps(found) + "\n").encode())


def value_of(entry: dict) -> np.ndarray:
    """Return what the graph takes."""
    if "text" in entry:
        return np.array([entry["text"]], dtype=object)
    return np.fromfile(entry["file"], dtype=np.uint8)


def watch(process: int, handle: int, limit_s: float) -> dict:
    """Wait for the end; end the process itself when no answer came for the limit."""
    size, since = 0, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return {"crash": os.waitstatus_to_exitcode(status)}
        grown = os.fstat(handle).st_size
        if grown > size:
            size, since = grown, time.monotonic()
        if time.monotonic() - since > limit_s:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return {"hang": limit_s}
        time.sleep(POLL_S)


def count_lines(path: str) -> int:
    """Return how many answers there are."""
    with open(path, "rb") as file:
        return sum(1 for _ in file)


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
