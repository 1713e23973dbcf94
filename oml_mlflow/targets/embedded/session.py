"""A session on an embedded database: catalogue, ledger and journal in DuckDB.

DuckDB lets one process open the file at a time, and its transactions cover renames and records
alike: a swap is one transaction, and the file's own lock keeps two promoters apart.
"""

from __future__ import annotations

import contextlib
import shutil
from contextlib import AbstractContextManager

from oml_mlflow.errors import ConfigError
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import FAILED, OK, Check
from oml_mlflow.promotion.target import Journal, Models, Notes, Vectors
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.database import is_wanted
from oml_mlflow.targets.embedded.journal import EmbeddedJournal
from oml_mlflow.targets.embedded.models import EmbeddedModels
from oml_mlflow.targets.embedded.notes import EmbeddedNotes
from oml_mlflow.targets.embedded.settings import CATALOG
from oml_mlflow.targets.embedded.vectors import EmbeddedVectors


class EmbeddedSession:
    """The embedded target, held open for one promotion or verification."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.journal: Journal = EmbeddedJournal(db)
        self.models: Models = EmbeddedModels(db)
        self.notes: Notes = EmbeddedNotes(db)
        self.vectors: Vectors = EmbeddedVectors(db)

    @property
    def version(self) -> str:
        """Version of DuckDB."""
        [(version,)] = self._db.execute("SELECT version()").fetchall()
        return str(version).removeprefix("v")

    def is_wanted(self, since: float) -> bool:
        """Return whether other processes or threads have waited for the file since a time."""
        return is_wanted(self._db.target.folder / CATALOG, since)

    def lock(self, name: str, purpose: str) -> AbstractContextManager[None]:
        """Do nothing: while this session is open, no other process opens the file."""
        return contextlib.nullcontext()

    def capabilities(self) -> CapabilityTable | None:
        """Return nothing: no capability is probed here."""
        return None

    def save_capabilities(self, table: CapabilityTable) -> None:
        """Refuse: no capability is probed here."""
        raise ConfigError(
            "an embedded database is not probed. Nothing was kept.",
            hint="this process's own runtime runs the models.",
        )

    def checks(self, size_bytes: int) -> list[Check]:
        """Return whether there is room for the files. Read-only."""
        folder = self._db.target.folder
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        state = OK if free > size_bytes else FAILED
        message = f"{size_bytes:,} bytes to copy, {free:,} free"
        return [Check("room", state, message, "" if state == OK else f"make room in {folder}.")]
