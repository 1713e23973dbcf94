"""The lock row that keeps promoters apart, also on different machines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime

from oml_mlflow.errors import OmlMlflowError, TargetError
from oml_mlflow.planning.records import now, this_process
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.errors import locked

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(db: Database, name: str, purpose: str) -> Iterator[None]:
    """Hold the lock row of an export name. Writes: the row; commits.

    A row whose session is gone is taken over, by DBMS_SESSION.IS_SESSION_ALIVE, which everybody may
    call. Source: DBMS_SESSION, PL/SQL Packages and Types Reference.

    Raises:
        TargetLocked: If another session, alive, holds it; says who, since when and what for.
    """
    db.ensure_tables()
    _take(db, name, purpose)
    try:
        yield
    except BaseException:
        db.rollback()
        # must not hide the error being raised; a lost session frees the lock
        with contextlib.suppress(OmlMlflowError):
            _release(db, name)
        raise
    _release(db, name)


def _take(db: Database, name: str, purpose: str) -> None:
    mine = {
        "name": name,
        "holder": this_process()[:512],
        "purpose": purpose[:512],
        "since": now().isoformat(timespec="microseconds"),
        "session_id": db.session_id,
    }
    step = f"taking the lock of {name}"
    # the row may disappear or change hands between two statements
    for _attempt in range(3):
        held = db.rows(sql.READ_LOCK, step, {"name": name})
        if not held:
            if db.insert(sql.INSERT_LOCK, step, mine):
                db.commit()
                return
            continue
        holder, its_purpose, since, session_id = held[0]
        if session_id != db.session_id and _is_alive(db, session_id):
            raise locked(name, holder, its_purpose, since, _age(since))
        binds = {**mine, "dead_session": session_id, "dead_since": since}
        taken = db.write(sql.TAKE_LOCK, step, binds)
        db.commit()
        if taken == 1:
            _log.warning("took the lock of %s over from %s, which is gone", name, holder)
            return
    raise TargetError(
        f"{step} in {db.uri} failed: others took it each time it was free. Nothing was changed.",
        hint="run it again.",
    )


def _release(db: Database, name: str) -> None:
    binds = {"name": name, "session_id": db.session_id}
    state = "The lock is free once this session is gone."
    db.write(sql.RELEASE_LOCK, f"giving the lock of {name} back", binds, state=state)
    db.commit(state)


def _is_alive(db: Database, session_id: str) -> bool:
    binds = {"session_id": session_id}
    return bool(db.ask(sql.IS_ALIVE, "asking whether a session is alive", binds, "alive"))


def _age(since: str) -> str:
    seconds = max(0, int((now() - datetime.fromisoformat(since)).total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    return f"{hours} h" if hours else f"{minutes} min" if minutes else f"{seconds} s"
