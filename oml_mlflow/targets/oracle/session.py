"""A session on an Oracle schema, for one promotion or verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oml_mlflow.errors import InputError, TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import IMG
from oml_mlflow.pair.texts import prepare_text
from oml_mlflow.planning.records import (
    Dependant,
    Grant,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Note,
    Work,
    refuse_unplanned,
)
from oml_mlflow.promotion.target import EMBED_TIMEOUT_S
from oml_mlflow.targets.oracle import catalog, preflight, swap
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.load import drop, load
from oml_mlflow.targets.oracle.lock import lock

if TYPE_CHECKING:
    from oml_mlflow.planning.capabilities import CapabilityTable
    from oml_mlflow.planning.checks import Check

# A bound text is a VARCHAR2. Its first 4000 bytes hold more than the 77 tokens that CLIP reads.
_TEXT_BYTES = 4000


class OracleSession:
    """An Oracle schema, held open.

    Args:
        db: The open connection.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    @property
    def version(self) -> str:
        """Version of the database, such as ``23.26.1.0.0``."""
        return self._db.version

    def list_models(self) -> list[LoadedModel]:
        """Return every model of the schema. Read-only."""
        return catalog.list_models(self._db)

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        return catalog.read_ledger(self._db, name)

    def live_state(self, name: str) -> LiveState:
        """Return what is live under an export name. Read-only."""
        return catalog.live_state(self._db, name)

    def lock(self, name: str, purpose: str) -> AbstractContextManager[None]:
        """Keep other promoters away from an export name; see `lock.lock`."""
        return lock(self._db, name.upper(), purpose)

    def begin(self, work: Work) -> None:
        """Write work into the journal. Commits."""
        swap.begin(self._db, work)

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Load the bytes of a file under a free name. Writes a model; commits."""
        load(self._db, model, path, on_event)

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, one query a value. Read-only.

        Texts are made safe for the tokenizer here, as `oracle_text_expression` does it in SQL.
        """
        statement, step = sql.embed(model), f"embedding with {model}"
        vectors = []
        for value in values:
            with self._db.giving_up(EMBED_TIMEOUT_S, step):
                data = self._picture(value) if side == IMG else _text(value)
                [(vector,)] = self._db.rows(statement, step, {"data": data})
            if vector is None:
                raise TargetError(f"{step} in {self._db.uri} gave NULL. Nothing was changed.")
            vectors.append(np.asarray(vector, np.float32))
        return np.stack(vectors)

    def swap(self, work: Work) -> None:
        """Give incoming models the live names, and record it. Writes; commits."""
        swap.swap(self._db, work)

    def end(self, work: Work) -> None:
        """Clear the journal. Commits."""
        swap.end(self._db, work)

    def drop(self, names: Sequence[str]) -> None:
        """Drop models by name; missing ones are skipped. Writes; commits."""
        refuse_unplanned(names, self.live_state)
        drop(self._db, list(names))

    def grants(self, names: Sequence[str]) -> tuple[Grant, ...]:
        """Return privileges on models that others were given. Read-only."""
        return catalog.grants(self._db, names)

    def geometries(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Return vectors that stand for each geometry of an export name, by id. Read-only."""
        return catalog.geometries(self._db, name)

    def save_geometry(self, name: str, geometry: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep the vectors that stand for a geometry, unless there are some. Commits."""
        catalog.save_geometry(self._db, name, geometry, vectors)

    def dependants(self, name: str) -> list[Dependant]:
        """Return what is known to depend on an export name's live models. Read-only."""
        return catalog.dependants(self._db, name)

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits."""
        catalog.register_column(self._db, name, column)

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""
        return catalog.forget_column(self._db, name, column)

    def notes(self, name: str | None = None) -> list[Note]:
        """Return the notes about an export name, or about all. Read-only."""
        return catalog.notes(self._db, name)

    def write_note(self, note: Note) -> None:
        """Write a note about an export name, in place of one of its kind. Commits."""
        catalog.write_note(self._db, note)

    def forget_note(self, name: str, kind: str) -> bool:
        """Forget a note about an export name; return whether there was one. Commits."""
        return catalog.forget_note(self._db, name, kind)

    def capabilities(self) -> CapabilityTable | None:
        """Return the answers to capability probes, if they ever ran here. Read-only."""
        return catalog.capabilities(self._db)

    def save_capabilities(self, table: CapabilityTable) -> None:
        """Keep the answers to capability probes. Commits."""
        catalog.save_capabilities(self._db, table)

    def checks(self, size_bytes: int) -> list[Check]:
        """Return Oracle's own checks, for so many bytes to load. Read-only."""
        return preflight.checks(self._db, size_bytes)

    def loaded_fingerprint(self, name: str) -> str:
        """Return the sha256 recorded when a model was loaded, once the catalogue's size agrees.

        Oracle does not give the bytes of a model back.
        """
        for model in self.list_models():
            if model.name == name.upper() and not model.foreign:
                return model.fingerprint
        raise TargetError(
            f"no model {name} of ours is loaded in {self._db.uri}.", hint="run `oml-mlflow status`."
        )

    def _picture(self, value: bytes | str) -> object:
        if not isinstance(value, bytes) or not value:
            raise InputError(
                "a picture is bytes, and not none: an empty BLOB would be NULL.",
                hint="pass the bytes of a file.",
            )
        return self._db.blob(value)


def _text(value: bytes | str) -> str:
    if not isinstance(value, str):
        raise InputError("a text is a str.", hint="pass text for the txt side.")
    return prepare_text(value).encode()[:_TEXT_BYTES].decode(errors="ignore")
