"""The embedded target: a folder with a DuckDB database and content-addressed ONNX files.

DuckDB, because it stores ``FLOAT[n]``, has a cosine distance, runs Python functions over columns
in bulk, and needs no server. ONNX bytes stay beside it: 350 MB in a BLOB took 5 to 7 seconds, 1.9
GB of memory and a database six times that size (measured with DuckDB 2.0).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import numpy as np

from oml_mlflow.embedder import PairEmbedder
from oml_mlflow.errors import ConfigError, TargetError, TargetLocked
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.fingerprint import fingerprint_file
from oml_mlflow.names import IMG, SIDES, TXT, model_name, slot_name
from oml_mlflow.runtime import Ends
from oml_mlflow.targets.base import LedgerEntry, LoadedModel

CATALOG = "catalog.duckdb"
_MODELS_FOLDER = "models"
_POLL_S = 0.1
_COPY_BYTES = 4 * 2**20
_HOLDER = re.compile(r"Conflicting lock is held in (.*?)\.?(?: See also|$)", re.DOTALL)
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS oml;
CREATE TABLE IF NOT EXISTS oml.models (
    name VARCHAR PRIMARY KEY,
    side VARCHAR NOT NULL,
    fingerprint VARCHAR NOT NULL,
    dims INTEGER NOT NULL,
    size_bytes BIGINT NOT NULL,
    metadata JSON NOT NULL,
    loaded_at TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS oml.ledger (
    name VARCHAR NOT NULL,
    generation INTEGER NOT NULL,
    registered_model VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    img_fingerprint VARCHAR NOT NULL,
    txt_fingerprint VARCHAR NOT NULL,
    dims INTEGER NOT NULL,
    parity JSON NOT NULL,
    promoted_at TIMESTAMP NOT NULL,
    PRIMARY KEY (name, generation)
);
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS verification VARCHAR DEFAULT 'verified';
"""


class EmbeddedTarget:
    """A folder as a database: ``catalog.duckdb``, and ``models/<sha256>.onnx`` beside it.

    The database is held open for one `sql` call, or while a `session` or `connect` context is
    open, never longer; models, catalogue and tables are there when the folder is opened again.

    Args:
        folder: The folder; created by the first thing that writes.
        timeout_s: How long to wait for another process to let go of the database.
    """

    def __init__(self, folder: str | Path, *, timeout_s: float = 30.0) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.timeout_s = timeout_s
        self._embedders: dict[str, PairEmbedder] = {}

    @classmethod
    def from_uri(cls, uri: str, *, timeout_s: float = 30.0) -> EmbeddedTarget:
        """Return the target of an ``embedded:///folder`` URI."""
        prefix = "embedded:///"
        if not uri.startswith(prefix) or len(uri) == len(prefix) or "?" in uri or "@" in uri:
            raise ConfigError(
                f"{uri.split('@')[-1]!r} is no URI of an embedded target.",
                hint="use embedded:///folder, or embedded:////absolute/folder.",
            )
        return cls(unquote(uri.removeprefix(prefix)), timeout_s=timeout_s)

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"embedded:///{self.folder}"

    def __repr__(self) -> str:
        """Return its URI."""
        return f"EmbeddedTarget({self.uri!r})"

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run one or more SQL statements; return the rows of the last. Commits.

        Every loaded model is a SQL function of its own name: ``CLIP_TXT(text)`` and
        ``CLIP_IMG(blob)`` give ``FLOAT[dims]``, NULL for NULL.

        Args:
            statement: SQL of DuckDB.
            parameters: Values for ``?`` in it.

        Raises:
            TargetLocked: If another process holds the database for longer than the timeout.
            TargetError: If DuckDB refuses the statement.
        """
        with self.connect("a statement") as connection:
            return connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def connect(
        self, purpose: str = "a connection", *, create: bool = True
    ) -> Iterator[Connection]:
        """Hold the database open, with every loaded model as a SQL function.

        Args:
            purpose: What for, as an error would say it.
            create: Make the database if there is none.
        """
        with self._open(purpose, create) as raw:
            connection = Connection(raw, self)
            try:
                yield connection
            finally:
                connection.forget_functions()

    @contextlib.contextmanager
    def session(self, purpose: str, *, create: bool = True) -> Iterator[EmbeddedSession]:
        """Hold the database open for a promotion or a verification."""
        with self.connect(purpose, create=create) as connection:
            yield EmbeddedSession(self, connection)

    def model_path(self, fingerprint: str) -> Path:
        """Return where the bytes of a fingerprint are kept."""
        return self.folder / _MODELS_FOLDER / f"{fingerprint}.onnx"

    def embedder(self, model: LoadedModel) -> PairEmbedder:
        """Return what runs a loaded model; sessions are kept while this target is."""
        if model.fingerprint not in self._embedders:
            path = self.model_path(model.fingerprint)
            if not path.is_file():
                raise TargetError(
                    f"{model.name}: its file {path} is gone; the catalogue still lists it. "
                    "Nothing was changed.",
                    hint="promote the version again.",
                )
            ends = {model.side: Ends(**model.metadata.get("ends", {}))}
            self._embedders[model.fingerprint] = PairEmbedder(path, path, model.dims, ends)
        return self._embedders[model.fingerprint]

    @contextlib.contextmanager
    def _open(self, purpose: str, create: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        if not create and not (self.folder / CATALOG).is_file():
            raise TargetError(
                f"there is no embedded database in {self.folder}. Nothing was made.",
                hint="check the target's folder, or promote a version into it first.",
            )
        try:
            (self.folder / _MODELS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"folder {self.folder} can't be made ({error.strerror}).",
                hint="give another folder, or change its permissions.",
            ) from error
        path, deadline = self.folder / CATALOG, time.monotonic() + self.timeout_s
        while True:
            try:
                connection = duckdb.connect(str(path))
                break
            except duckdb.IOException as error:
                holder = _HOLDER.search(str(error))
                if holder is None:
                    raise TargetError(
                        f"{path} can't be opened: {error}", hint="check the file and its folder."
                    ) from error
                if time.monotonic() >= deadline:
                    raise TargetLocked(
                        f"{path} is held by {holder[1].strip()}; waited {self.timeout_s:g} s for "
                        f"{purpose}. Nothing was changed.",
                        hint="close that process's connection, or wait longer (--timeout).",
                        details={"holder": holder[1].strip()},
                    ) from error
                time.sleep(_POLL_S)
        try:
            connection.execute(_SCHEMA)
            yield connection
        except duckdb.Error as error:
            raise TargetError(
                f"the database refused: {_first_lines(error)}",
                hint="correct the statement; `oml-mlflow status` lists the loaded models.",
            ) from error
        finally:
            connection.close()


class Connection:
    """An open connection in which every loaded model is a SQL function."""

    def __init__(self, raw: duckdb.DuckDBPyConnection, target: EmbeddedTarget) -> None:
        self._raw, self._target = raw, target
        self._functions: list[str] = []
        self.offer_functions()

    def execute(self, statement: str, parameters: Sequence[Any] | None = None) -> Connection:
        """Run SQL; fetch the rows with `fetchall`."""
        self._raw.execute(statement, parameters)
        return self

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run one statement for many sets of values."""
        self._raw.executemany(statement, parameters)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows of the last statement; none if it gives none."""
        return self._raw.fetchall() if self._raw.description else []

    @property
    def columns(self) -> list[str]:
        """Names of the last result's columns."""
        return [column[0] for column in self._raw.description or ()]

    def models(self) -> list[LoadedModel]:
        """Return the catalogue, by name."""
        rows = self._raw.execute(
            "SELECT name, side, fingerprint, dims, size_bytes, metadata, loaded_at "
            "FROM oml.models ORDER BY name"
        ).fetchall()
        return [_loaded_model(row) for row in rows]

    def offer_functions(self) -> None:
        """Make the functions those of the catalogue as it is now.

        A model with an operator that no runtime here has is listed, but is no function.
        """
        self.forget_functions()
        for model in self.models():
            if model.metadata.get("unknown_operators"):
                continue
            self._raw.create_function(
                model.name,
                _as_function(self._target, model),
                ["BLOB" if model.side == IMG else "VARCHAR"],
                f"FLOAT[{model.dims}]",
                type="arrow",
                null_handling="special",
            )
            self._functions.append(model.name)

    def forget_functions(self) -> None:
        """Take the functions away: DuckDB prints leak messages at exit otherwise."""
        while self._functions:
            self._raw.remove_function(self._functions.pop())


class EmbeddedSession:
    """The embedded target, held open for one promotion or verification."""

    def __init__(self, target: EmbeddedTarget, connection: Connection) -> None:
        self._target, self._connection = target, connection

    def list_models(self) -> list[LoadedModel]:
        """Return the catalogue. Read-only."""
        return self._connection.models()

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        rows = self._connection.execute(
            "SELECT name, generation, registered_model, version, run_id, img_fingerprint, "
            "txt_fingerprint, dims, parity, promoted_at, verification FROM oml.ledger "
            "WHERE ? IS NULL OR name = ? ORDER BY promoted_at, generation",
            [name, name and name.upper()],
        ).fetchall()
        return [_ledger_entry(row) for row in rows]

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Copy the bytes beside the database and list them under a slot name. Commits."""
        stored = self._target.model_path(model.fingerprint)
        if not stored.is_file() or fingerprint_file(stored) != model.fingerprint:
            _copy_whole(path, stored, model, on_event)
        self._connection.execute(
            "INSERT OR REPLACE INTO oml.models VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                model.name,
                model.side,
                model.fingerprint,
                model.dims,
                model.size_bytes,
                json.dumps(model.metadata),
                _now(),
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

    def swap(self, entry: LedgerEntry) -> None:
        """Move a generation's slots to the live names and record it, in one transaction."""
        execute = self._connection.execute
        execute("BEGIN TRANSACTION")
        try:
            for side in SIDES:
                live = model_name(entry.name, side)
                kept = slot_name(entry.name, side, entry.generation - 1)
                slot = slot_name(entry.name, side, entry.generation)
                self._rename(live, kept)
                if not self._rename(slot, live):
                    raise TargetError(
                        f"slot {slot} is not loaded. The live pair is as it was.",
                        hint="promote again.",
                    )
            execute(
                "INSERT INTO oml.ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    entry.name,
                    entry.generation,
                    entry.registered_model,
                    entry.version,
                    entry.run_id,
                    *(entry.fingerprints[side] for side in SIDES),
                    entry.dims,
                    json.dumps(entry.parity),
                    _now(),
                    entry.verification,
                ],
            )
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise
        self._connection.offer_functions()

    def _rename(self, old: str, new: str) -> bool:
        done = self._connection.execute(
            "UPDATE oml.models SET name = ? WHERE name = ?", [new, old]
        ).fetchall()
        return done == [(1,)]

    def drop(self, names: Sequence[str]) -> None:
        """Take slots off the catalogue, and files that no other name needs. Commits."""
        if any(re.search(r"_S\d+$", name) is None for name in names):
            raise TargetError(
                f"{', '.join(names)}: only slots are dropped here. Nothing was changed."
            )
        for name in names:
            self._connection.execute("DELETE FROM oml.models WHERE name = ?", [name])
        self._connection.offer_functions()
        needed = {model.fingerprint for model in self.list_models()}
        for path in (self._target.folder / _MODELS_FOLDER).glob("*.onnx"):
            if path.stem not in needed:
                path.unlink()

    def loaded_fingerprint(self, name: str) -> str:
        """Return the sha256 of a loaded model's file, read anew."""
        for model in self.list_models():
            if model.name == name.upper():
                return fingerprint_file(self._target.model_path(model.fingerprint))
        raise TargetError(
            f"no model {name} is loaded in {self._target.uri}.", hint="run `oml-mlflow status`."
        )


def _as_function(target: EmbeddedTarget, model: LoadedModel) -> Any:
    """Return a function over an Arrow column that embeds what is not NULL."""
    import pyarrow as pa

    def embed(column: Any) -> Any:
        values = column.to_pylist()
        present = [i for i, value in enumerate(values) if value is not None]
        vectors = np.zeros((len(values), model.dims), np.float32)
        if present:
            embedder = target.embedder(model)
            run = embedder.embed_image if model.side == IMG else embedder.embed_text
            vectors[present] = run([values[i] for i in present])
        missing = np.ones(len(values), bool)
        missing[present] = False
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), model.dims, mask=pa.array(missing)
        )

    return embed


def _copy_whole(path: Path, stored: Path, model: LoadedModel, on_event: Listener) -> None:
    """Copy a file under its content's name; a reader never sees part of it."""
    done, total = 0, path.stat().st_size
    handle, aside = tempfile.mkstemp(prefix=".loading-", dir=stored.parent)
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


def _loaded_model(row: tuple[Any, ...]) -> LoadedModel:
    name, side, fingerprint, dims, size_bytes, metadata, loaded_at = row
    return LoadedModel(name, side, fingerprint, dims, size_bytes, json.loads(metadata), loaded_at)


def _ledger_entry(row: tuple[Any, ...]) -> LedgerEntry:
    name, generation, registered, version, run_id, img, txt, dims, *rest = row
    parity, promoted_at, verification = rest
    return LedgerEntry(
        name=name,
        generation=generation,
        registered_model=registered,
        version=version,
        run_id=run_id,
        fingerprints={IMG: img, TXT: txt},
        dims=dims,
        parity=json.loads(parity),
        promoted_at=promoted_at,
        verification=verification,
    )


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)


def _first_lines(error: Exception) -> str:
    return "\n".join(str(error).splitlines()[:4])
