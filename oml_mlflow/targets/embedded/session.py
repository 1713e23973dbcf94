"""A session on an embedded database: catalogue, ledger and journal in DuckDB.

DuckDB lets one process open the file at a time, and its transactions cover renames and records
alike: a swap is one transaction, and the file's own lock keeps two promoters apart.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oml_mlflow.errors import ConfigError, PlanStale, TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import SIDES, check_column, check_export_name, model_name
from oml_mlflow.planning.checks import FAILED, OK, Check
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import (
    CLEANING,
    LOADING,
    SWAPPING,
    WHOLE,
    Dependant,
    Grant,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Note,
    Work,
    refuse_unplanned,
    this_process,
)
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.files import (
    LOADING_PREFIX,
    as_found,
    copy_whole,
    find_damage,
    hashed_identity,
    read_fingerprint,
)
from oml_mlflow.targets.embedded.folder import MODELS_FOLDER, EmbeddedFolder
from oml_mlflow.targets.embedded.schema import (
    LEDGER_COLUMNS,
    ledger_entry,
    ledger_row,
    naive_now,
    note_from,
)

if TYPE_CHECKING:
    from oml_mlflow.planning.capabilities import CapabilityTable


class EmbeddedSession:
    """The embedded target, held open for one promotion or verification."""

    def __init__(self, target: EmbeddedFolder, connection: Connection) -> None:
        self._target, self._connection = target, connection

    @property
    def version(self) -> str:
        """Version of DuckDB."""
        [(version,)] = self._connection.execute("SELECT version()").fetchall()
        return str(version).removeprefix("v")

    def list_models(self) -> list[LoadedModel]:
        """Return the catalogue, each model with the damage of its file. Read-only."""
        return as_found(self._connection.models(), self._target.model_path, self._noted())

    def _noted(self) -> dict[str, str]:
        read = "SELECT fingerprint, identity FROM oml.files"
        return dict(self._connection.execute(read).fetchall())

    def note_identities(self) -> None:
        """Record the files that this process has hashed, for others' surveys. Commits.

        Before it runs a model, each process still hashes the file itself.
        """
        noted = self._noted()
        for fingerprint in {model.fingerprint for model in self._connection.models()}:
            found = hashed_identity(self._target.model_path(fingerprint), fingerprint)
            if found and found != noted.get(fingerprint):
                self._connection.execute(
                    "INSERT OR REPLACE INTO oml.files VALUES (?, ?)", [fingerprint, found]
                )

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        rows = self._connection.execute(
            f"SELECT {', '.join(LEDGER_COLUMNS)} FROM oml.ledger "  # noqa: S608
            "WHERE ? IS NULL OR name = ? ORDER BY promoted_at, generation",
            [name, name and name.upper()],
        ).fetchall()
        return [ledger_entry(row) for row in rows]

    def live_state(self, name: str) -> LiveState:
        """Return what is live under an export name. Read-only."""
        name = name.upper()
        rows = self._connection.execute(
            "SELECT generation, phase, work FROM oml.live WHERE name = ?", [name]
        ).fetchall()
        if not rows:
            promoted = self.ledger(name)
            return LiveState(name, promoted[-1].generation if promoted else 0)
        [(generation, phase, work)] = rows
        return LiveState(name, generation, phase, Work.from_json(work) if work else None)

    @contextlib.contextmanager
    def lock(self, name: str, purpose: str) -> Iterator[None]:
        """Do nothing: while this session is open, no other process opens the file."""
        yield

    def begin(self, work: Work) -> None:
        """Write work into the journal. Commits."""
        name = work.entry.name
        state = self.live_state(name)
        if state.phase != WHOLE or state.generation != work.before:
            raise _stale(name, work, state)
        self._connection.execute(
            "INSERT OR REPLACE INTO oml.live VALUES (?, ?, ?, ?)",
            [name, work.before, LOADING, work.to_json()],
        )

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Copy the bytes and list them under a free name; a damaged model is rewritten. Commits."""
        stored = self._target.model_path(model.fingerprint)
        if model.damage:
            try:
                copy_whole(path, stored, model, on_event)
            except OSError as error:
                raise TargetError(
                    f"{model.name}: {stored} can't be written ({error.strerror}). What is live is "
                    "as it was.",
                    hint="move away what is there, or make room; then try again.",
                ) from error
            return
        if any(loaded.name == model.name for loaded in self._connection.models()):
            raise TargetError(
                f"{model.name} is taken. Nothing was loaded.", hint="run `oml-mlflow status`."
            )
        if find_damage(stored, model.fingerprint):
            copy_whole(path, stored, model, on_event)
        self._connection.execute(
            "INSERT INTO oml.models VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                model.name,
                model.side,
                model.fingerprint,
                model.dims,
                model.size_bytes,
                json.dumps(model.metadata),
                naive_now(),
            ],
        )
        self._connection.offer_functions()

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, one SQL statement a value. Read-only."""
        rows = []
        for value in values:
            [(vector,)] = self._connection.execute(f'SELECT "{model}"(?)', [value]).fetchall()
            rows.append(np.asarray(vector, np.float32))
        return np.stack(rows)

    def swap(self, work: Work) -> None:
        """Give incoming models the live names and record it, all in one transaction."""
        entry, execute = work.entry, self._connection.execute
        state = self.live_state(entry.name)
        if state.generation == entry.generation and state.phase == CLEANING:
            return
        if state.generation != work.before or state.phase not in (LOADING, SWAPPING):
            raise _stale(entry.name, work, state)
        execute("BEGIN TRANSACTION")
        try:
            for side, slot in work.incoming.items():
                live = model_name(entry.name, side)
                if side in work.outgoing:
                    self._rename(live, work.outgoing[side])
                self._rename(slot, live)
            execute(
                f"INSERT INTO oml.ledger ({', '.join(LEDGER_COLUMNS)}) "  # noqa: S608
                f"VALUES ({', '.join('?' * len(LEDGER_COLUMNS))})",
                ledger_row(entry),
            )
            execute(
                "UPDATE oml.live SET generation = ?, phase = ?, work = ? WHERE name = ?",
                [entry.generation, CLEANING, work.to_json(), entry.name],
            )
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise
        self._connection.offer_functions()

    def _rename(self, old: str, new: str) -> None:
        done = self._connection.execute(
            "UPDATE oml.models SET name = ? WHERE name = ?", [new, old]
        ).fetchall()
        if done != [(1,)]:
            raise TargetError(
                f"{old} is not loaded. The live pair is as it was.", hint="promote again."
            )

    def end(self, work: Work) -> None:
        """Clear the journal. Commits."""
        self._connection.execute(
            "UPDATE oml.live SET phase = ?, work = NULL WHERE name = ?", [WHOLE, work.entry.name]
        )

    def drop(self, names: Sequence[str]) -> None:
        """Remove models from the catalogue, and files that no other name needs. Commits."""
        refuse_unplanned(names, self.live_state)
        for name in names:
            self._connection.execute("DELETE FROM oml.models WHERE name = ?", [name])
        self._connection.offer_functions()
        needed = {model.fingerprint for model in self._connection.models()}
        folder = self._target.folder / MODELS_FOLDER
        for path in folder.glob("*.onnx"):
            if path.stem not in needed:
                path.unlink()
        # left by killed runs: no other process copies while this one has the database
        for path in folder.glob(f"{LOADING_PREFIX}*"):
            path.unlink()

    def grants(self, names: Sequence[str]) -> tuple[Grant, ...]:
        """Return nothing: DuckDB has no privileges."""
        return ()

    def geometries(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Return vectors that stand for each geometry of an export name. Read-only."""
        rows = self._connection.execute(
            "SELECT id, vectors FROM oml.geometry WHERE name = ?", [name.upper()]
        ).fetchall()
        return {key: unpack_vectors(packed) for key, packed in rows}

    def save_geometry(self, name: str, geometry: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep the vectors that stand for a geometry, unless there are some. Commits."""
        self._connection.execute(
            "INSERT OR IGNORE INTO oml.geometry VALUES (?, ?, ?)",
            [name.upper(), geometry, pack_vectors(vectors)],
        )

    def dependants(self, name: str) -> list[Dependant]:
        """Return registered columns, and views that call a live model. Read-only."""
        rows = self._connection.execute(
            "SELECT table_column, model, source FROM oml.columns WHERE name = ? ORDER BY ALL",
            [name.upper()],
        ).fetchall()
        found = [Dependant("column", column, model, source) for column, model, source in rows]
        views = self._connection.execute(
            "SELECT schema_name || '.' || view_name, sql FROM duckdb_views() WHERE NOT internal "
            "ORDER BY ALL"
        ).fetchall()
        for view, text in views:
            for live in (model_name(name, side) for side in SIDES):
                if re.search(rf"\b{re.escape(live)}\b", text, re.IGNORECASE):
                    found.append(Dependant("view", view, live))
        return found

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits."""
        table, stored = check_column(column.name)
        check_column(f"{table}.{column.source}")
        statement = f"SELECT {stored}, {column.source} FROM {table} LIMIT 0"  # noqa: S608
        self._connection.execute(statement)
        self._connection.execute(
            "INSERT OR REPLACE INTO oml.columns VALUES (?, ?, ?, ?)",
            [name.upper(), column.name, column.model, column.source],
        )

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        done = self._connection.execute(
            "DELETE FROM oml.columns WHERE name = ? AND lower(table_column) = lower(?)",
            [name.upper(), column],
        ).fetchall()
        return done != [(0,)]

    def notes(self, name: str | None = None) -> list[Note]:
        """Return the notes about an export name, or about all. Read-only."""
        rows = self._connection.execute(
            "SELECT name, kind, content, written_at, written_by FROM oml.notes "
            "WHERE ? IS NULL OR name = ? ORDER BY name, kind",
            [name, name and name.upper()],
        ).fetchall()
        return [note_from(row) for row in rows]

    def write_note(self, note: Note) -> None:
        """Write a note about an export name, in place of one of its kind. Commits."""
        name = check_export_name(note.name).upper()
        content, by = json.dumps(dict(note.content)), note.written_by or this_process()
        self._connection.execute(
            "INSERT OR REPLACE INTO oml.notes VALUES (?, ?, ?, ?, ?)",
            [name, note.kind, content, naive_now(), by],
        )

    def forget_note(self, name: str, kind: str) -> bool:
        """Forget a note about an export name; return whether there was one. Commits."""
        done = self._connection.execute(
            "DELETE FROM oml.notes WHERE name = ? AND kind = ?", [name.upper(), kind]
        ).fetchall()
        return done != [(0,)]

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
        folder = self._target.folder
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        state = OK if free > size_bytes else FAILED
        message = f"{size_bytes:,} bytes to copy, {free:,} free"
        return [Check("room", state, message, "" if state == OK else f"make room in {folder}.")]

    def loaded_fingerprint(self, name: str) -> str:
        """Return the sha256 of a loaded model's file, read anew."""
        for model in self._connection.models():
            if model.name == name.upper():
                path = self._target.model_path(model.fingerprint)
                try:
                    return read_fingerprint(path)
                except OSError as error:
                    raise TargetError(
                        f"{model.name}: its file {path} can't be read ({error.strerror}).",
                        hint="promote its version again.",
                    ) from error
        raise TargetError(
            f"no model {name} is loaded in {self._target.uri}.", hint="run `oml-mlflow status`."
        )


def _stale(name: str, work: Work, state: LiveState) -> PlanStale:
    return PlanStale(
        f"{name}: generation {work.before} was to be followed, but {state.generation} is live, "
        f"phase {state.phase}. Nothing was changed.",
        hint="run the command again.",
    )
