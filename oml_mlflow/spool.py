"""A private temporary folder for a pair on its way into a database."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oml_mlflow.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


@contextlib.contextmanager
def spool() -> Iterator[Path]:
    """Give a folder that only this user can read; it is removed in any case.

    On success and on error when the context ends; after a kill, by the next one: whoever uses a
    folder holds a lock on a file in it, which the operating system lets go of when the process is
    gone.

    Raises:
        ExportError: If the place for it is not this user's alone.
    """
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix="oml_mlflow-") as folder:
            yield Path(folder)
        return
    place = _private_place()
    with _held(place / _LOCK):
        _remove_leftovers(place)
        folder = Path(tempfile.mkdtemp(prefix="pair-", dir=place))
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _private_place() -> Path:
    place = Path(tempfile.gettempdir()) / f"oml_mlflow-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ExportError(
            f"{place} is not a folder of yours alone, so that no model is put there. Nothing was "
            "written.",
            hint="remove it, or set TMPDIR to another folder.",
        )
    return place


def _remove_leftovers(place: Path) -> None:
    """Remove folders whose lock is free: their processes were killed."""
    for folder in place.glob("pair-*"):
        with contextlib.suppress(BlockingIOError, OSError):
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
