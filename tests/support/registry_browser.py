"""Click in a real MLflow UI, with a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "browser" / "set_alias.mjs"


@dataclass(frozen=True)
class Clicked:
    """What a browser did.

    Attributes:
        clicked_at: When ``Save aliases`` was clicked, in seconds since 1970; 0 if nothing was.
        shown_at: When the page showed the text; 0 if none was waited for.
    """

    clicked_at: float = 0.0
    shown_at: float = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds from the click until the page showed the text."""
        return self.shown_at - self.clicked_at


def require_browser() -> tuple[str, str, str]:
    """Return node, Chromium and playwright's folder; skip the test where one is missing.

    ``OML_MLFLOW_PLAYWRIGHT`` names a ``node_modules`` folder that holds ``playwright-core``.
    """
    node = shutil.which("node")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    modules = os.environ.get("OML_MLFLOW_PLAYWRIGHT", "")
    if node is None or chromium is None:
        pytest.skip("no node or no chromium here")
    if not modules or not (Path(modules) / "playwright-core").is_dir():
        pytest.skip("OML_MLFLOW_PLAYWRIGHT names no node_modules folder with playwright-core")
    return node, chromium, str(Path(modules).resolve())


def click_alias(
    server: str,
    model: str,
    version: str,
    alias: str = "",
    *,
    text: str = "",
    times: int = 1,
    timeout_s: float = 30.0,
    screenshot: Path | None = None,
) -> Clicked:
    """Set an alias on a version's page by clicking; wait until the page shows a text.

    Args:
        server: Address of the MLflow server.
        model: Registered model.
        version: Version whose page it is.
        alias: Alias to set; none: nothing is clicked.
        text: What the page must show, in description or tags; it is loaded again until it does.
        times: How often it must be there.
        timeout_s: For how long.
        screenshot: Where the picture of the page is written, if anywhere.
    """
    node, chromium, modules = require_browser()
    asked = {
        "server": server,
        "model": model,
        "version": version,
        "alias": alias,
        "text": text,
        "times": times,
        "timeout_s": timeout_s,
        "screenshot": str(screenshot) if screenshot else None,
        "chromium": chromium,
    }
    done = subprocess.run(
        [node, str(SCRIPT), json.dumps(asked)],
        env={**os.environ, "OML_MLFLOW_PLAYWRIGHT": modules},
        capture_output=True,
        text=True,
        timeout=timeout_s + 90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Clicked(**json.loads(done.stdout))
