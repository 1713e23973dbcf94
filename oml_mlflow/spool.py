"""A private temporary folder for a pair on its way into a database."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    """
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix="oml_mlflow-") as made:
            yield Path(made)
        return
    prefix = f"oml_mlflow-{os.getuid()}-"
    _remove_leftovers(prefix)
    new = Path(tempfile.mkdtemp(prefix=f".{prefix}"))
    handle = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    # named so only now: what has the name and no lock is a leftover
    folder = new.rename(new.with_name(new.name.removeprefix(".")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_leftovers(prefix: str) -> None:
    """Remove folders of this user whose lock is free: their processes were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
