"""Notes about export names in an embedded database."""

from __future__ import annotations

import json
from collections.abc import Sequence

from oml_mlflow.names import check_export_name
from oml_mlflow.planning.records import Note, this_process
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.schema import naive_now, note_from


class EmbeddedNotes:
    """The notes of a database; see `Notes`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def list(self, name: str | None = None) -> Sequence[Note]:
        """Return the notes about an export name, or about all. Read-only."""
        rows = self._db.execute(
            "SELECT name, kind, content, written_at, written_by FROM oml.notes "
            "WHERE ? IS NULL OR name = ? ORDER BY name, kind",
            [name, name and name.upper()],
        ).fetchall()
        return [note_from(row) for row in rows]

    def write(self, note: Note) -> None:
        """Write a note about an export name, in place of one of its kind. Commits."""
        name = check_export_name(note.name).upper()
        content, by = json.dumps(dict(note.content)), note.written_by or this_process()
        self._db.execute(
            "INSERT OR REPLACE INTO oml.notes VALUES (?, ?, ?, ?, ?)",
            [name, note.kind, content, naive_now(), by],
        )

    def forget(self, name: str, kind: str) -> bool:
        """Forget a note about an export name; return whether there was one. Commits."""
        done = self._db.execute(
            "DELETE FROM oml.notes WHERE name = ? AND kind = ?", [name.upper(), kind]
        ).fetchall()
        return done != [(0,)]
