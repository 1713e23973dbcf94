"""The DuckDB file: created private, held by one process and thread at a time."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from oml_mlflow.errors import TargetError, TargetLocked
from oml_mlflow.files import keep_private
from oml_mlflow.planning.records import refuse_newer
from oml_mlflow.targets.embedded.schema import READ_VERSION, SCHEMA_VERSION

_POLL_S = 0.1
# settings that a statement can't undo (measured with DuckDB 1.2.0 and 2.0.1)
_UNTRUSTED = {
    "access_mode": "READ_ONLY",
    "enable_external_access": "false",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",
}
_guard = threading.Lock()
_owners: dict[str, threading.RLock] = {}
_HOLDER = re.compile(r"Conflicting lock is held in (.*?)\.?(?: See also|$)", re.DOTALL)


def make_file(path: Path) -> None:
    """Create a database that only its owner can read, or make an existing one private.

    DuckDB itself would create it by the umask, and refuses an empty file. Where this fails, as
    without hard links, DuckDB creates it after all, or says why not.
    """
    with contextlib.suppress(OSError, duckdb.Error):
        if path.exists():
            keep_private(path)
            return
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as aside:
            made = Path(aside) / path.name
            duckdb.connect(str(made)).close()
            made.chmod(0o600)
            os.link(made, path)


@contextlib.contextmanager
def private_log(path: Path) -> Iterator[None]:
    """Keep the log that DuckDB writes beside an open database readable by its owner only.

    DuckDB removes an empty log when it opens the database, and creates one after a checkpoint.
    """
    log = _log_of(path)
    with contextlib.suppress(OSError):
        keep_private(log)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not log.stat().st_size:
                log.unlink()


@contextlib.contextmanager
def alone(path: Path, purpose: str, timeout_s: float) -> Iterator[None]:
    """Lock out other threads of this process; the file's own lock does so for processes.

    DuckDB has one set of functions for all connections of a process: registering the same models
    twice would fail (measured with 2.0). A survey registers none, and needs no lock.

    Raises:
        TargetLocked: If another thread holds the database for longer than the timeout.
    """
    real = os.path.realpath(path)
    with _guard:
        owner = _owners.setdefault(real, threading.RLock())
    is_ours = owner.acquire(blocking=False)
    if not is_ours:
        _mark_wanted(path)
        is_ours = owner.acquire(timeout=timeout_s)
    if not is_ours:
        raise TargetLocked(
            f"{real} is held by another thread of this process; waited {timeout_s:g} s for "
            f"{purpose}. Nothing was changed.",
            hint="wait for it, or wait longer (--timeout).",
            details={"holder": "another thread of this process"},
        )
    try:
        yield
    finally:
        owner.release()


@contextlib.contextmanager
def open_file(
    path: Path, purpose: str, timeout_s: float, *, untrusted: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Hold a database's file open, once no other process does.

    Args:
        path: The file.
        purpose: What for, as errors show it.
        timeout_s: How long to wait.
        untrusted: For untrusted statements; see `EmbeddedTarget.sql`.

    Raises:
        TargetLocked: If another process holds it for longer than the timeout.
        SchemaNewer: If a newer release made its tables.
        TargetError: If it can't be opened, or DuckDB refuses what is done inside.
    """
    options = _UNTRUSTED if untrusted else {}
    with translated(path), contextlib.closing(_connect(path, purpose, timeout_s, options)) as raw:
        # else an unknown table name would be looked up among Python variables
        raw.execute("SET python_enable_replacements = false")
        # DuckDB's own goes to stdout, between the lines of a result
        raw.execute("SET enable_progress_bar = false")
        if untrusted:
            raw.execute("SET lock_configuration = true")
        with contextlib.suppress(duckdb.CatalogException):  # no tables, or without a version
            [(version,)] = raw.execute(READ_VERSION).fetchall()
            refuse_newer(str(path.parent), version, SCHEMA_VERSION)
        yield raw


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what DuckDB raises about a database, or its file, as TargetError."""
    try:
        yield
    except duckdb.Error as error:
        told, log = first_lines(error), _log_of(path)
        message = f"the database refused: {told}"
        hint = "correct the statement; `oml-mlflow models` lists the loaded models."
        # a log has the class of whatever it can't do again, a damaged block none of its own
        if "replaying WAL" in told:
            message = f"{log} holds what was written last, and can't be replayed: {told}"
            hint = f"restore {path.parent} from a backup, or move {log.name} away, which gives up "
            hint += "what was written last."
        elif type(error) in (duckdb.Error, duckdb.FatalException) or str(path) in told:
            message = f"{path} can't be read or written, or is damaged: {told}"
            hint = f"check {path.parent}: its permissions, room and backups."
        raise TargetError(message, hint=hint) from error


def _connect(
    path: Path, purpose: str, timeout_s: float, options: dict[str, str]
) -> duckdb.DuckDBPyConnection:
    deadline, has_waited = time.monotonic() + timeout_s, False
    while True:
        try:
            opened = duckdb.connect(str(path), config=options)
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            holder = _holder(str(error))
            if not holder:
                raise
            if time.monotonic() >= deadline:
                raise TargetLocked(
                    f"{path} is held by {holder}; waited {timeout_s:g} s for {purpose}. Nothing "
                    "was changed.",
                    hint="close that process's connection, or wait longer (--timeout).",
                    details={"holder": holder},
                ) from error
            has_waited = True
            _mark_wanted(path)
            time.sleep(_POLL_S)
        else:
            if has_waited:
                with contextlib.suppress(OSError):
                    # others who wait mark it again
                    _mark_of(path).unlink()
            return opened


def is_wanted(path: Path, since: float) -> bool:
    """Return whether others have waited for a database since a time of `time.time`."""
    try:
        return _mark_of(path).stat().st_mtime >= since
    except OSError:
        return False


def _mark_wanted(path: Path) -> None:
    """Tell whoever holds a database that others wait; who may not write there, just waits."""
    with contextlib.suppress(OSError):
        _mark_of(path).touch(0o600)


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.wanted")


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _holder(refusal: str) -> str:
    """Return who holds the file that DuckDB can't open; empty if nobody does."""
    if "different configuration" in refusal:
        return "another thread of this process"
    found = _HOLDER.search(refusal)
    return found[1].strip() if found else ""


def first_lines(error: duckdb.Error, count: int = 4) -> str:
    """Return the beginning of what DuckDB says; suggestions follow."""
    return "\n".join(str(error).splitlines()[:count])
