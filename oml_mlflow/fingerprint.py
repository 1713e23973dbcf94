"""Fingerprints: lower-case sha256 of exact bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def fingerprint_file(path: Path, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """Return the lower-case sha256 of a file, read in chunks."""
    with path.open("rb") as file:
        return fingerprint_open(file, on_bytes)


def fingerprint_open(file: BinaryIO, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """Return the lower-case sha256 of what an open file holds from here on, read in chunks."""
    digest, done, total = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    while chunk := file.read(2**20):
        digest.update(chunk)
        done += len(chunk)
        if on_bytes:
            on_bytes(done, total)
    return digest.hexdigest()
