"""What a process that answers HTTP requests for MLflow knows of itself."""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from oml_mlflow.graph.runtime import cores

# MLflow sets it in the process that answers HTTP requests
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


def is_serving() -> bool:
    """Return whether this process answers HTTP requests."""
    return os.environ.get(_SERVING) == "true"


def worker_threads() -> int | None:
    """Return this worker's share of the cores, one at least; None if it is the only one.

    uvicorn's own option or variable says how many there are; each worker inherits both.
    """
    given = [value for name, value in pairwise(sys.argv) if name == "--workers"]
    found = (given or [os.environ.get("WEB_CONCURRENCY", "")])[-1]
    workers = int(found) if found.isdecimal() else 1
    return max(1, cores() // workers) if workers > 1 else None
