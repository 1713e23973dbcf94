"""Fingerprints: lower-case sha256 of exact bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path


def fingerprint_file(path: Path, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """Return the lower-case sha256 of a file, read in chunks."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done, total)
    return digest.hexdigest()
