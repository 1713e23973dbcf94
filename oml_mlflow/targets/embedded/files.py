"""Model files of an embedded database: written atomically, checked before use.

A file is named after the sha256 of its bytes, which proves nothing about later changes. So a
process hashes it before its first use, and again once device, inode, size or ctime differs: ctime
can't be set, and whoever writes or replaces a file changes one of them. Changes beneath the file
system are seen by the next process that runs the model.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from oml_mlflow.errors import TargetError
from oml_mlflow.events import Event, Listener
from oml_mlflow.files import fingerprint_file, fingerprint_open
from oml_mlflow.planning.records import LoadedModel

LOADING_PREFIX = ".loading-"
_COPY_BYTES = 4 * 2**20
# a second write within one tick of the file system's clock does not change ctime
_TICK_NS = 20_000_000
_hashed: dict[str, str] = {}


def identity(path: Path) -> str:
    """Return an identity that differs once a file's bytes may have changed.

    Raises:
        OSError: If it can't be read, or is no regular file.
    """
    return _identity(path.stat())


def hashed_identity(path: Path, fingerprint: str) -> str:
    """Return the identity of a file if this process found these bytes in it, else nothing."""
    try:
        found = identity(path)
    except OSError:
        return ""
    return found if _hashed.get(found) == fingerprint else ""


def find_damage(path: Path, fingerprint: str, noted: str = "") -> str:
    """Return what happened to a stored file, to follow "was"; empty if it holds its bytes.

    Args:
        path: The file.
        fingerprint: sha256 of its bytes.
        noted: Identity with which another process found them in it; then it is not hashed.
    """
    try:
        found = identity(path)
        if found == noted:
            return ""
        sha256 = _hashed.get(found) or read_fingerprint(path)
    except FileNotFoundError:
        return f"dropped: its file {path} is gone"
    except OSError as error:
        return f"made unreadable: its file {path} can't be read ({error.strerror})"
    if sha256 == fingerprint:
        return ""
    return f"altered: its file {path} has sha256 {sha256[:12]}… instead of {fingerprint[:12]}…"


def read_fingerprint(path: Path) -> str:
    """Return the sha256 of a stored file, read anew, and remember it.

    Raises:
        OSError: If it can't be read, or is no regular file.
    """
    begun = time.time_ns()
    # without O_NONBLOCK, a FIFO would be waited for
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        before = _identity(found)
        sha256 = fingerprint_open(file)
        if before == _identity(os.fstat(handle)) and abs(begun - found.st_ctime_ns) > _TICK_NS:
            _hashed[before] = sha256
    return sha256


def as_found(
    models: Iterable[LoadedModel], path_of: Callable[[str], Path], noted: Mapping[str, str]
) -> list[LoadedModel]:
    """Return listed models with the damage of their files; see `find_damage`."""
    return [
        replace(m, damage=find_damage(path_of(f), f, noted.get(f, "")))
        for m in models
        for f in (m.fingerprint,)
    ]


def copy_whole(path: Path, stored: Path, model: LoadedModel, on_event: Listener) -> None:
    """Copy a file to its place, atomically: a reader never sees a part of it.

    Raises:
        TargetError: If the bytes are not those of the model.
        OSError: If they can't be written.
    """
    done, total = 0, path.stat().st_size
    handle, aside = tempfile.mkstemp(prefix=LOADING_PREFIX, dir=stored.parent)
    try:
        with path.open("rb") as source, os.fdopen(handle, "wb") as copy:
            while chunk := source.read(_COPY_BYTES):
                copy.write(chunk)
                done += len(chunk)
                on_event(Event("upload", model.name, done, total))
            copy.flush()
            os.fsync(copy.fileno())
        found = fingerprint_file(Path(aside))
        if found != model.fingerprint:
            raise TargetError(
                f"{model.name}: {path.name} has sha256 {found[:12]}…, wanted "
                f"{model.fingerprint[:12]}…. Nothing was loaded.",
                hint="log the pair again.",
            )
        os.replace(aside, stored)
    finally:
        Path(aside).unlink(missing_ok=True)


def _identity(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no file")
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_ctime_ns}"
