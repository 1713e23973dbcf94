"""The embedded target: a folder with a DuckDB database."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import the target when it is first asked for: its settings are read without DuckDB."""
    if name == "EmbeddedTarget":
        from oml_mlflow.targets.embedded.target import EmbeddedTarget

        return EmbeddedTarget
    raise AttributeError(name)
