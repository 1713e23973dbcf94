"""Address of an embedded target: the folder that a URI names."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import unquote

from oml_mlflow.errors import ConfigError

PREFIX = "embedded:///"
CATALOG = "catalog.duckdb"


def folder_of(uri: str) -> Path:
    """Return the folder of an ``embedded:///folder`` URI, absolute.

    Raises:
        ConfigError: If it is no such URI.
    """
    if not uri.startswith(PREFIX) or len(uri) == len(PREFIX) or "?" in uri or "@" in uri:
        raise ConfigError(
            "that is not the URI of an embedded target.",
            hint="use embedded:///folder, or embedded:////absolute/folder.",
        )
    return Path(unquote(uri.removeprefix(PREFIX))).expanduser().absolute()


def identity(folder: Path) -> object:
    """Return what is equal for all ways to one database, also by links. Read-only."""
    file = folder / CATALOG
    with contextlib.suppress(OSError):
        found = file.stat()
        return found.st_dev, found.st_ino
    return os.path.realpath(file)
