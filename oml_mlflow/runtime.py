"""ONNX Runtime sessions that know the operators our graphs use."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.errors import PackageError


def open_session(path: Path, *, threads: int | None = None) -> Any:
    """Return an ``onnxruntime.InferenceSession`` for a pipeline.

    Args:
        path: ONNX file.
        threads: Threads within an operator; ONNX Runtime's own choice by default.

    Raises:
        PackageError: If this runtime can't load the graph.
    """
    import onnxruntime
    import onnxruntime_extensions

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise PackageError(
            f"{path.name} can't be loaded by onnxruntime {version('onnxruntime')} with extensions "
            f"{version('onnxruntime-extensions')}: {str(error)[:300]}",
            hint="use a newer onnxruntime, or export the pair again.",
        ) from error


def run(session: Any, values: np.ndarray) -> np.ndarray:
    """Return a pipeline's embeddings, ``(n, dims)`` float32."""
    embeddings: np.ndarray = session.run(["embedding"], {"input": values})[0]
    return embeddings


def runtime_versions() -> dict[str, str]:
    """Return what the vectors of this process depend on."""
    packages = ("onnxruntime", "onnxruntime-extensions", "numpy", "pillow")
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
