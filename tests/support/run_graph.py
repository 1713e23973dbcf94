"""Run a pair's two files on inputs, with nothing but numpy, onnxruntime and its extensions.

Usage: python run_graph.py IMG.onnx TXT.onnx INPUTS.json VECTORS.json

INPUTS.json: {"img": {name: base64 of a picture}, "txt": {name: text}}. VECTORS.json gets the same
with vectors, or with {"error": message} where the runtime raised.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_extensions


def session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embed(pipeline: Any, values: np.ndarray) -> Any:
    try:
        return pipeline.run(["embedding"], {"input": values})[0][0].tolist()
    except Exception as error:
        return {"error": str(error)[:200]}


def main(img: str, txt: str, inputs: str, vectors: str) -> None:
    given = json.loads(Path(inputs).read_text(encoding="utf-8"))
    found: dict[str, Any] = {"img": {}, "txt": {}}
    pipeline = session(img)
    for name, encoded in given["img"].items():
        data = np.frombuffer(base64.b64decode(encoded), np.uint8)
        found["img"][name] = embed(pipeline, data)
    pipeline = session(txt)
    for name, text in given["txt"].items():
        found["txt"][name] = embed(pipeline, np.array([text], dtype=object))
    found["versions"] = {
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "extensions": onnxruntime_extensions.__version__,
    }
    Path(vectors).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
