"""A session on an Oracle schema, for one promotion or verification."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime

from oml_mlflow.errors import OmlMlflowError, TargetError
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import Check
from oml_mlflow.planning.records import now, this_process
from oml_mlflow.promotion.target import Journal, Models, Notes, Vectors
from oml_mlflow.targets.oracle import preflight
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.errors import locked
from oml_mlflow.targets.oracle.journal import OracleJournal
from oml_mlflow.targets.oracle.models import OracleModels
from oml_mlflow.targets.oracle.notes import OracleNotes
from oml_mlflow.targets.oracle.vectors import OracleVectors

_log = logging.getLogger(__name__)


class OracleSession:
    """An Oracle schema, held open; see `Session`.

    Args:
        db: The open connection.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.journal: Journal = OracleJournal(db)
        self.models: Models = OracleModels(db)
        self.notes: Notes = OracleNotes(db)
        self.vectors: Vectors = OracleVectors(db)

    @property
    def version(self) -> str:
        """Version of the database, such as ``23.26.1.0.0``."""
        return self._db.version

    def is_wanted(self, since: float) -> bool:
        """Return False: others have their own sessions."""
        return False

    @contextlib.contextmanager
    def lock(self, name: str, purpose: str) -> Iterator[None]:
        """Hold the lock row of an export name. Writes: the row; commits.

        A row whose session is gone is taken over, by DBMS_SESSION.IS_SESSION_ALIVE, which everybody
        may call. Source: DBMS_SESSION, PL/SQL Packages and Types Reference.
        """
        name = name.upper()
        self._db.ensure_tables()
        self._take(name, purpose)
        try:
            yield
        except BaseException:
            self._db.rollback()
            # must not hide the error being raised; a lost session frees the lock
            with contextlib.suppress(OmlMlflowError):
                self._release(name)
            raise
        self._release(name)

    def _take(self, name: str, purpose: str) -> None:
        mine = {
            "name": name,
            "holder": this_process()[:512],
            "purpose": purpose[:512],
            "since": now().isoformat(timespec="microseconds"),
            "session_id": self._db.session_id,
        }
        step = f"taking the lock of {name}"
        # the row may disappear or change hands between two statements
        for _attempt in range(3):
            held = self._db.rows(sql.READ_LOCK, step, {"name": name})
            if not held:
                if self._db.insert(sql.INSERT_LOCK, step, mine):
                    self._db.commit()
                    return
                continue
            holder, its_purpose, since, session_id = held[0]
            if session_id != self._db.session_id and self._is_alive(session_id):
                raise locked(name, holder, its_purpose, since, _age(since))
            binds = {**mine, "dead_session": session_id, "dead_since": since}
            taken = self._db.write(sql.TAKE_LOCK, step, binds)
            self._db.commit()
            if taken == 1:
                _log.warning("took the lock of %s over from %s, which is gone", name, holder)
                return
        raise TargetError(
            f"{step} in {self._db.uri} failed: others took it each time it was free. Nothing was "
            "changed.",
            hint="run it again.",
        )

    def _release(self, name: str) -> None:
        binds = {"name": name, "session_id": self._db.session_id}
        state = "The lock is free once this session is gone."
        self._db.write(sql.RELEASE_LOCK, f"giving the lock of {name} back", binds, state=state)
        self._db.commit(state)

    def _is_alive(self, session_id: str) -> bool:
        binds = {"session_id": session_id}
        return bool(self._db.ask(sql.IS_ALIVE, "asking whether a session is alive", binds, "alive"))

    def capabilities(self) -> CapabilityTable | None:
        """Return the answers to capability probes, if they ever ran here. Read-only."""
        step = "reading the capabilities"
        rows = self._db.rows(sql.READ_CAPABILITIES, step, of=sql.CAPABILITIES)
        return CapabilityTable.from_json(rows[0][0]) if rows else None

    def save_capabilities(self, table: CapabilityTable) -> None:
        """Keep the answers to capability probes. Commits."""
        self._db.ensure_tables()
        step = "keeping the capabilities"
        self._db.write(sql.FORGET_CAPABILITIES, step)
        self._db.write(sql.INSERT_CAPABILITIES, step, {"content": table.to_json()})
        self._db.commit()

    def checks(self, size_bytes: int) -> list[Check]:
        """Return Oracle's own checks, for so many bytes to load. Read-only."""
        return preflight.checks(self._db, size_bytes)


def _age(since: str) -> str:
    seconds = max(0, int((now() - datetime.fromisoformat(since)).total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    return f"{hours} h" if hours else f"{minutes} min" if minutes else f"{seconds} s"
