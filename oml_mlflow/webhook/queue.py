"""Queue of the webhook receiver: models to reconcile, in one SQLite file.

The id of a delivery and its job are written in one transaction: with huey, whose jobs are in a
file of its own, a process killed between the two would lose the job, or do it twice. An answer of
202 means that both are on disk (write-ahead log, ``synchronous = FULL``). One process at a time
holds the file.

A job only names a model, since the registry is read again before anything is done; so a model has
one job, however many deliveries there are.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oml_mlflow.errors import ConfigError
from oml_mlflow.files import keep_private

_FORMAT = 1
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT PRIMARY KEY, received_at REAL NOT NULL, event TEXT NOT NULL, model TEXT NOT NULL,
    alias TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_by_time ON deliveries (received_at);
CREATE TABLE IF NOT EXISTS jobs (
    model TEXT PRIMARY KEY, revision INTEGER NOT NULL, running INTEGER NOT NULL,
    queued_at REAL NOT NULL, not_before REAL NOT NULL, attempts INTEGER NOT NULL,
    last_error TEXT NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {_FORMAT};
COMMIT;
"""
_KEPT_S, _KEPT_ROWS, _PRUNED_EVERY = 7 * 86_400.0, 100_000, 500


class QueueFull(Exception):
    """Too many recent deliveries are kept; this one was not accepted."""


@dataclass(frozen=True)
class Delivery:
    """An event that MLflow sent.

    Attributes:
        id: Id of the delivery; the same when it is sent again.
        event: Such as ``model_version_alias.created``.
        model: Registered model.
        alias: Its alias.
    """

    id: str
    event: str
    model: str
    alias: str


@dataclass(frozen=True)
class Job:
    """A registered model to reconcile.

    Attributes:
        model: Its name.
        revision: Grows with every delivery.
        attempts: Number of failures.
    """

    model: str
    revision: int
    attempts: int


@dataclass(frozen=True)
class Depth:
    """Length of the queue.

    Attributes:
        jobs: Number of jobs, including the running one.
        oldest_s: Age of the oldest job in seconds.
        failing: Number of jobs that failed the last time.
    """

    jobs: int
    oldest_s: float
    failing: int


class WebhookQueue:
    """Accepted deliveries and their jobs. Thread-safe.

    Args:
        path: SQLite file; created if missing.
        window_s: How long a delivery can be sent again; its id is kept at least twice as long.
        kept_rows: Number of ids to keep.

    Raises:
        ConfigError: If the file is in use, or is no such queue.
    """

    def __init__(
        self, path: str | Path, *, window_s: float = 300.0, kept_rows: int = _KEPT_ROWS
    ) -> None:
        self._path, self._window_s, self._kept_rows = Path(path), window_s, kept_rows
        self._lock, self._accepted = threading.Lock(), 0
        self._connection = self._open()
        self._count = self._connection.execute("SELECT count(*) FROM deliveries").fetchone()[0]

    def _open(self) -> sqlite3.Connection:
        try:
            # SQLite gives its log the mode of the file
            keep_private(self._path)
            connection = sqlite3.connect(
                self._path, timeout=2.0, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            # held until it is closed, or this process dies
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > _FORMAT:
                raise sqlite3.DatabaseError(f"format {found} of a newer release")
            connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            connection.close()
            raise self._unusable(error) from error
        return connection

    def _unusable(self, error: Exception) -> ConfigError:
        if "locked" in str(error):
            return ConfigError(
                f"another receiver has the queue {self._path}. Nothing was changed.",
                hint="stop that one, or give this one a file of its own: database in [webhook].",
            )
        return ConfigError(
            f"{self._path} can't be used as a queue ({error}). It was left as it is.",
            hint="move it away; a new one is made, and the first pass covers every model.",
        )

    def close(self) -> None:
        """Close the file; what is in it stays."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def recover(self) -> int:
        """Queue jobs again that ran when the process died; return their number. Commits."""
        with self._transaction() as connection:
            return connection.execute("UPDATE jobs SET running = 0 WHERE running").rowcount

    def accept(self, delivery: Delivery, now: float | None = None) -> bool:
        """Keep a delivery's id and put its model in the queue, both or neither. Commits.

        Returns:
            False if the id was there: nothing was written.

        Raises:
            QueueFull: Nothing was written.
        """
        at = time.time() if now is None else now
        d = delivery
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM deliveries WHERE id = ?", (d.id,)).fetchone():
                return False
            if self._accepted % _PRUNED_EVERY == 0 or self._count >= self._kept_rows:
                self._prune(connection, at)
            if self._count >= self._kept_rows:
                raise QueueFull
            connection.execute(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?)",
                (d.id, at, d.event, d.model, d.alias),
            )
            # a new delivery ends the wait of a failed job
            connection.execute(
                "INSERT INTO jobs VALUES (?, 1, 0, ?, 0, 0, '') ON CONFLICT (model) DO UPDATE "
                "SET revision = revision + 1, not_before = 0",
                (d.model, at),
            )
            self._accepted += 1
            self._count += 1
        return True

    def _prune(self, connection: sqlite3.Connection, now: float) -> None:
        """Forget old ids, and the oldest beyond the limit, but none that can be sent again."""
        oldest = now - _KEPT_S
        spare = self._kept_rows // 10
        row = connection.execute(
            "SELECT received_at FROM deliveries ORDER BY received_at DESC LIMIT 1 OFFSET ?",
            (self._kept_rows - spare - 1,),
        ).fetchone()
        if row is not None:
            oldest = max(oldest, row[0])
        # a timestamp may be one window ahead, and is then good for two
        oldest = min(oldest, now - 2 * self._window_s)
        connection.execute("DELETE FROM deliveries WHERE received_at < ?", (oldest,))
        self._count = connection.execute("SELECT count(*) FROM deliveries").fetchone()[0]

    def take(self, now: float | None = None) -> Job | None:
        """Mark the oldest job that is due as running and return it; None if none is. Commits."""
        at = time.time() if now is None else now
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT model, revision, attempts FROM jobs WHERE NOT running AND not_before <= ? "
                "ORDER BY queued_at LIMIT 1",
                (at,),
            ).fetchone()
            if row is None:
                return None
            connection.execute("UPDATE jobs SET running = 1 WHERE model = ?", row[:1])
        return Job(*row)

    def done(self, job: Job, now: float | None = None) -> None:
        """Remove a job; keep it queued if a delivery came while it ran. Commits."""
        at = time.time() if now is None else now
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM jobs WHERE model = ? AND revision = ?", (job.model, job.revision)
            )
            connection.execute(
                "UPDATE jobs SET running = 0, queued_at = ?, not_before = 0, attempts = 0, "
                "last_error = '' WHERE model = ?",
                (at, job.model),
            )

    def fail(self, job: Job, code: str, retry_after_s: float, now: float | None = None) -> None:
        """Delay a job by some seconds; not at all if a delivery came while it ran. Commits."""
        at = time.time() if now is None else now
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET running = 0, attempts = attempts + 1, last_error = ?, "
                "not_before = CASE WHEN revision = ? THEN ? ELSE 0 END WHERE model = ?",
                (code, job.revision, at + retry_after_s, job.model),
            )

    def next_due(self) -> float | None:
        """Return when the next waiting job is due, in seconds since 1970. Read-only."""
        with self._lock:
            row = self._connection.execute(
                "SELECT min(not_before) FROM jobs WHERE NOT running"
            ).fetchone()
        return None if row[0] is None else float(row[0])

    def depth(self, now: float | None = None) -> Depth:
        """Return the length of the queue. Read-only."""
        at = time.time() if now is None else now
        with self._lock:
            jobs, oldest, failing = self._connection.execute(
                "SELECT count(*), min(queued_at), total(attempts > 0) FROM jobs"
            ).fetchone()
        return Depth(jobs, max(0.0, at - oldest) if jobs else 0.0, int(failing))
