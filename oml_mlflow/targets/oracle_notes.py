"""What an Oracle schema remembers about export names, besides what is live."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import oracledb

from oml_mlflow.errors import TargetError
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.records import Note, now, this_process
from oml_mlflow.targets import oracle_statements as sql
from oml_mlflow.targets.oracle_database import Database


def notes(db: Database, name: str | None = None) -> list[Note]:
    """Return what is remembered about an export name, or about all. Read-only."""
    if sql.NOTES not in db.tables:
        return []
    rows = db.rows(sql.READ_NOTES, "reading the notes", inline=True)
    found = [note_from(*row) for row in rows if name is None or row[0] == name.upper()]
    return sorted(found, key=lambda note: (note.name, note.kind))


def note_from(name: str, kind: str, content: str, written_at: str, written_by: Any) -> Note:
    """Return a row of the notes."""
    at = datetime.fromisoformat(written_at)
    return Note(name, kind, json.loads(content), at, written_by or "")


def write_note(db: Database, note: Note) -> None:
    """Remember something about an export name, instead of what its kind was. Commits.

    One transaction: a reader sees the old note or the new one.
    """
    db.ensure_tables()
    name = check_export_name(note.name).upper()
    step = f"noting the {note.kind} of {name}"
    binds = {
        "name": name,
        "kind": note.kind,
        "content": json.dumps(dict(note.content)),
        "written_at": now().isoformat(timespec="microseconds"),
        "written_by": (note.written_by or this_process())[:512],
    }
    while db.write(sql.CHANGE_NOTE, step, binds) == 0 and not _insert(db, step, binds):
        pass
    db.commit()


def _insert(db: Database, step: str, binds: dict[str, Any]) -> bool:
    """Insert a note; return False if somebody else just did."""
    try:
        db.write(sql.INSERT_NOTE, step, binds)
    except TargetError as error:
        if isinstance(error.__cause__, oracledb.IntegrityError):
            db.rollback()
            return False
        raise
    return True


def forget_note(db: Database, name: str, kind: str) -> bool:
    """Forget something about an export name; return whether there was one. Commits."""
    if sql.NOTES not in db.tables:
        return False
    binds = {"name": name.upper(), "kind": kind}
    gone = db.write(sql.FORGET_NOTE, f"forgetting the {kind} of {name.upper()}", binds)
    db.commit()
    return gone > 0
