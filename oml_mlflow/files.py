"""Fingerprints of files; files and temporary folders that only their owner can read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


def keep_private(path: Path) -> None:
    """Create a file that only its owner can read and write, or restrict an existing one to that.

    A file that its group may write is shared on purpose: the group keeps its rights. Files of other
    users, and what is no regular file, are left as they are. An existing file is not opened:
    closing it would release the locks that this process holds on it (POSIX).

    Raises:
        OSError: If it can't be created.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        found = path.stat()
        wanted = found.st_mode & (0o660 if found.st_mode & stat.S_IWGRP else 0o600)
        is_ours = os.name == "posix" and found.st_uid == os.geteuid()
        if is_ours and stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != wanted:
            path.chmod(wanted)


def fingerprint_file(path: Path, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """Return the lower-case sha256 of a file, read in chunks."""
    with path.open("rb") as file:
        return fingerprint_open(file, on_bytes)


def fingerprint_open(file: BinaryIO, on_bytes: Callable[[int, int], None] | None = None) -> str:
    """Return the lower-case sha256 of the rest of an open file, read in chunks."""
    digest, done, total = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
    while chunk := file.read(2**20):
        digest.update(chunk)
        done += len(chunk)
        if on_bytes:
            on_bytes(done, total)
    return digest.hexdigest()


@contextlib.contextmanager
def spool() -> Iterator[Path]:
    """Yield a folder that only this user can read; it is removed when the context ends.

    After a kill the next call removes it: a process holds a lock on a file in its folder, which the
    operating system releases when the process is gone.
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
    # renamed once it is locked: a folder of the new name without a lock is a leftover
    folder = new.rename(new.with_name(new.name.removeprefix(".")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the operating system lets go of it when this one ends.

    Raises:
        BlockingIOError: If another process holds it.
    """
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(prefix: str) -> None:
    """Remove folders of this user whose lock is free, since their processes were killed."""
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
