"""A real webhook receiver whose reconciler only writes down what it is asked to look at.

A job waits while there is a file `gate` beside the queue; it raises where there is a file `error`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from oml_mlflow.config.file import Config
from oml_mlflow.config.webhook import WebhookConfig
from oml_mlflow.errors import ERRORS_BY_CODE
from oml_mlflow.webhook.receiver import serve


def main(folder: Path, settings: dict[str, float], poll_s: float) -> None:
    def reconcile(models: Collection[str] | None) -> Any:
        with (folder / "calls").open("a") as calls:
            calls.write(json.dumps(None if models is None else sorted(models)) + "\n")
        while models is not None and (folder / "gate").exists():
            time.sleep(0.01)
        if (folder / "error").exists():
            code = (folder / "error").read_text()
            raise ERRORS_BY_CODE[code]("as told") if code in ERRORS_BY_CODE else OSError(code)
        # a pass without anything; the real class imports MLflow, which takes seconds
        return SimpleNamespace(
            statuses=(), outcomes=(), warnings=(), ok=True, to_retry="", is_filling=False
        )

    ours = replace(WebhookConfig(port=0, database=folder / "queue.db"), **settings)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = Config(webhook=ours, poll_s=poll_s)
    is_finished = serve(config, reconcile, on_start=(folder / "address").write_text)
    logging.getLogger("stub").info("finished: %s", is_finished)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3]))
