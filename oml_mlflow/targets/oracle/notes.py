"""Notes about export names in an Oracle schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from oml_mlflow.documents import build, read_json
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.records import Note, damaged_record, now, this_process
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database


class OracleNotes:
    """The notes of a schema; see `Notes`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def list(self, name: str | None = None) -> Sequence[Note]:
        """Return the notes about an export name, or about all. Read-only."""
        rows = self._db.rows(sql.READ_NOTES, "reading the notes", inline=True, of=sql.NOTES)
        found = [note_from(*row) for row in rows if name is None or row[0] == name.upper()]
        return sorted(found, key=lambda note: (note.name, note.kind))

    def write(self, note: Note) -> None:
        """Write a note in place of one of its kind, in one transaction. Commits."""
        db = self._db
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
        while not db.write(sql.CHANGE_NOTE, step, binds):
            if db.insert(sql.INSERT_NOTE, step, binds):
                break
        db.commit()

    def forget(self, name: str, kind: str) -> bool:
        """Forget a note; return whether there was one. Commits."""
        binds, step = (
            {"name": name.upper(), "kind": kind},
            f"forgetting the {kind} of {name.upper()}",
        )
        return self._db.forget(sql.NOTES, sql.FORGET_NOTE, step, binds)


def note_from(name: str, kind: str, content: str, written_at: str, written_by: Any) -> Note:
    """Return the note of a row."""
    with damaged_record(f"of the {kind} of {name}"):
        at = datetime.fromisoformat(written_at)
        return build(Note, vars(Note(name, kind, read_json(content), at, written_by or "")))
