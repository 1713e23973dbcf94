"""The models of an embedded database: rows of the catalogue, and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oml_mlflow.documents import damaged
from oml_mlflow.errors import TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.planning.records import Grant, LoadedModel, refuse_unplanned
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.files import (
    LOADING_PREFIX,
    as_found,
    copy_whole,
    find_damage,
    hashed_identity,
    read_fingerprint,
)
from oml_mlflow.targets.embedded.folder import MODELS_FOLDER
from oml_mlflow.targets.embedded.journal import EmbeddedJournal
from oml_mlflow.targets.embedded.schema import naive_now


class EmbeddedModels:
    """The models of a database; see `Models`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def list(self) -> Sequence[LoadedModel]:
        """Return the catalogue, each model with the damage of its file. Read-only."""
        return as_found(self._db.models(), self._db.target.model_path, self._noted())

    def _noted(self) -> dict[str, str]:
        read = "SELECT fingerprint, identity FROM oml.files"
        return dict(self._db.execute(read).fetchall())

    def note_identities(self) -> None:
        """Record the files that this process has hashed, for others' surveys. Commits.

        Before it runs a model, each process still hashes the file itself.
        """
        noted = self._noted()
        for fingerprint in {model.fingerprint for model in self._db.models()}:
            found = hashed_identity(self._db.target.model_path(fingerprint), fingerprint)
            if found and found != noted.get(fingerprint):
                self._db.execute(
                    "INSERT OR REPLACE INTO oml.files VALUES (?, ?)", [fingerprint, found]
                )

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Copy the bytes and list them under a free name; a damaged model is rewritten. Commits."""
        stored = self._db.target.model_path(model.fingerprint)
        if not model.damage and any(m.name == model.name for m in self._db.models()):
            raise TargetError(
                f"{model.name} is taken. Nothing was loaded.", hint="run `oml-mlflow models`."
            )
        try:
            if model.damage or find_damage(stored, model.fingerprint):
                copy_whole(path, stored, model, on_event)
        except OSError as error:
            raise TargetError(
                f"{model.name}: {stored} can't be written ({error.strerror}). What is live is as "
                "it was.",
                hint="move away what is there, or make room; then try again.",
            ) from error
        if model.damage:
            return
        row = [model.name, model.side, model.fingerprint, model.dims, model.size_bytes]
        self._db.execute(
            "INSERT INTO oml.models VALUES (?, ?, ?, ?, ?, ?, ?)",
            [*row, json.dumps(model.metadata), naive_now()],
        )
        self._db.offer_functions()

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, one SQL statement a value. Read-only."""
        rows = []
        with self._db.target.verifying():
            for value in values:
                [(vector,)] = self._db.execute(f'SELECT "{model}"(?)', [value]).fetchall()
                rows.append(np.asarray(vector, np.float32))
        return np.stack(rows)

    def drop(self, names: Sequence[str]) -> None:
        """Remove models from the catalogue, and files that no other name needs. Commits."""
        refuse_unplanned(names, EmbeddedJournal(self._db).state)
        for name in names:
            self._db.execute("DELETE FROM oml.models WHERE name = ?", [name])
        self._db.offer_functions()
        needed = {model.fingerprint for model in self._db.models()}
        folder = self._db.target.folder / MODELS_FOLDER
        for path in folder.glob("*.onnx"):
            if path.stem not in needed:
                path.unlink()
        # left by killed runs: no other process copies while this one has the database
        for path in folder.glob(f"{LOADING_PREFIX}*"):
            path.unlink()

    def grants(self, names: Sequence[str]) -> tuple[Grant, ...]:
        """Return nothing: DuckDB has no privileges."""
        return ()

    def fingerprint(self, name: str) -> str:
        """Return the sha256 of a loaded model's file, read anew."""
        for model in self._db.models():
            if model.name == name.upper():
                path = self._db.target.model_path(model.fingerprint)
                what = f"{model.name}: its file {path} can't be read"
                with damaged(what, TargetError, hint="promote its version again."):
                    return read_fingerprint(path)
        raise TargetError(
            f"no model {name} is loaded in {self._db.target.uri}.", hint="run `oml-mlflow models`."
        )
