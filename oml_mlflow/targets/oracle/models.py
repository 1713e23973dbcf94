"""The models of an Oracle schema: listed, loaded, embedded with, dropped."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.documents import read_json
from oml_mlflow.errors import ForeignModel, InputError, OmlMlflowError, TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import IMG, model_name, slot_name
from oml_mlflow.pair.texts import prepare_text
from oml_mlflow.planning.records import Grant, LedgerEntry, LoadedModel, refuse_unplanned
from oml_mlflow.promotion.target import EMBED_TIMEOUT_S
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.ledger import OracleLedger
from oml_mlflow.targets.oracle.load import FORMAT, comment_text, is_size, load_metadata, send

# A bound text is a VARCHAR2. Its first 4000 bytes hold more than the 77 tokens that CLIP reads.
_TEXT_BYTES = 4000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_log = logging.getLogger(__name__)


class OracleModels:
    """The models of a schema; see `Models`."""

    def __init__(self, db: Database) -> None:
        self._db, self._ledger = db, OracleLedger(db)

    def list(self) -> Sequence[LoadedModel]:
        """Return every model of the schema, by name. Read-only.

        A model is ours if its comment says so and the size agrees; without a comment, if the ledger
        has a model of exactly that size under the name.
        """
        rows = self._db.rows(sql.LIST_MODELS, "reading the mining models")
        models = [model_from(*row) for row in rows]
        if any(model.foreign for model in models):
            return recognised(models, self._ledger.sized())
        return models

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Load the bytes of a file, read in chunks, under a free name. Writes a model; commits.

        Model and comment are one call: the server finishes it even if this process is killed. A
        session that is killed in between, or an instance that crashes, can still leave a model
        without comment. The journal lists its name, and the next run drops it and loads the file
        again.

        Raises:
            ForeignModel: If the name is taken.
            ModelRefused: If the database does not take the graph.
        """
        db = self._db
        if self._size(model.name) is not None:
            raise ForeignModel(
                f"{model.name} is taken in {db.uri}. Nothing was loaded.",
                hint="`oml-mlflow models` shows what is there; choose another name.",
            )
        db.ensure_tables()
        state = f"No model {model.name} was loaded."
        blob = send(db, model, path, on_event, state)
        binds = {
            "model_name": model.name,
            "model_data": blob,
            "metadata": json.dumps(load_metadata(model)),
            "comment_statement": sql.comment(model.name, comment_text(model)),
        }
        try:
            told = f"{state[:-1]}, or the next run drops it if the connection was lost."
            db.write(sql.LOAD, f"loading {model.name}", binds, state=told)
            del blob, binds
            self._check_size(model)
        except ForeignModel:
            raise
        except BaseException:
            with contextlib.suppress(OmlMlflowError):
                self._drop(model.name)
            raise

    def drop(self, names: Sequence[str]) -> None:
        """Drop models by name; missing ones are skipped. Writes; commits."""
        refuse_unplanned(names, self._ledger.state)
        for name in names:
            self._drop(name)

    def grants(self, names: Sequence[str]) -> tuple[Grant, ...]:
        """Return privileges on models that others were given. Read-only."""
        found = set()
        for name in names:
            step, binds = f"reading the grants on {name}", {"model_name": name}
            for model, grantee, privilege, grantable in self._db.rows(sql.LIST_GRANTS, step, binds):
                found.add(Grant(model, grantee, privilege, grantable == "YES"))
        return tuple(sorted(found, key=lambda g: (g.model, g.grantee, g.privilege)))

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, one query a value. Read-only.

        Texts are made safe for the tokenizer here, as `oracle_text_expression` does it in SQL.
        """
        statement, step = sql.embed(model), f"embedding with {model}"
        vectors = []
        for value in values:
            with self._db.giving_up(EMBED_TIMEOUT_S, step):
                binds = {"data": self._bound(value, side)}
                [(vector,)] = self._db.rows(statement, step, binds)
            if vector is None:
                raise TargetError(f"{step} in {self._db.uri} gave NULL. Nothing was changed.")
            vectors.append(np.asarray(vector, np.float32))
        return np.stack(vectors)

    def fingerprint(self, name: str) -> str:
        """Return the sha256 recorded when a model was loaded, once the catalogue's size agrees.

        Oracle does not give the bytes of a model back.
        """
        for model in self.list():
            if model.name == name.upper() and not model.foreign:
                return model.fingerprint
        raise TargetError(
            f"no model {name} of ours is loaded in {self._db.uri}.", hint="run `oml-mlflow models`."
        )

    def _drop(self, name: str) -> None:
        if self._size(name) is not None:
            state = f"{name} is still there."
            self._db.write(sql.DROP, f"dropping {name}", {"model_name": name}, state=state)

    def _size(self, name: str) -> int | None:
        """Return a model's size in the catalogue, or None if there is no such model."""
        rows = self._db.rows(sql.FIND_MODEL, f"looking for {name}", {"model_name": name})
        return int(rows[0][0] or 0) if rows else None

    def _check_size(self, model: LoadedModel) -> None:
        reported = self._size(model.name)
        if reported is None or not is_size(reported, model.size_bytes):
            raise TargetError(
                f"{model.name}: the database holds {reported} bytes, wanted {model.size_bytes:,}. "
                "The model was dropped again.",
                hint="promote again; if it stays so, tell us the database's version.",
            )
        _log.info("loaded %s, %s bytes, into %s", model.name, model.size_bytes, self._db.uri)

    def _bound(self, value: bytes | str, side: str) -> object:
        if side == IMG:
            if isinstance(value, bytes) and value:
                return self._db.blob(value)
            raise InputError(
                "a picture is bytes, and not none: an empty BLOB would be NULL.",
                hint="pass the bytes of a file.",
            )
        if isinstance(value, str):
            return prepare_text(value).encode()[:_TEXT_BYTES].decode(errors="ignore")
        raise InputError("a text is a str.", hint="pass text for the txt side.")


def recognised(
    models: Sequence[LoadedModel], ledger: Sequence[tuple[LedgerEntry, dict[str, int]]]
) -> list[LoadedModel]:
    """Return models from `model_from`; those without a comment completed from the ledger."""
    known, found = _recorded(ledger), []
    for model in models:
        recorded = known.get((model.name, model.size_bytes)) if model.foreign else None
        found.append(replace(recorded, loaded_at=model.loaded_at) if recorded else model)
    return found


def model_from(name: str, size: Any, created: Any, comments: str | None) -> LoadedModel:
    """Return the model of a row; foreign unless its comment is ours."""
    reported = int(size or 0)
    identity = _identity(comments)
    if identity and is_size(reported, identity["size_bytes"]):
        return LoadedModel(
            name,
            identity["side"],
            identity["sha256"],
            identity["dims"],
            identity["size_bytes"],
            identity["metadata"],
            datetime.fromisoformat(identity["loaded_at"]),
        )
    at = created.replace(tzinfo=timezone.utc) if isinstance(created, datetime) else _EPOCH
    return LoadedModel(name, "", "", 0, reported, {}, at, foreign=True)


def _identity(comments: str | None) -> dict[str, Any] | None:
    """Return the content of a comment if it is ours and complete."""
    try:
        found = read_json(comments or "")
        datetime.fromisoformat(found["loaded_at"])
    except (ValueError, TypeError, LookupError):
        return None
    wanted = {
        "oml_mlflow": int,
        "side": str,
        "sha256": str,
        "dims": int,
        "size_bytes": int,
        "loaded_at": str,
        "metadata": dict,
    }
    if not isinstance(found, dict) or found.get("oml_mlflow") != FORMAT:
        return None
    is_whole = all(isinstance(found.get(key), kind) for key, kind in wanted.items())
    return found if is_whole else None


def _recorded(
    rows: Sequence[tuple[LedgerEntry, dict[str, int]]],
) -> dict[tuple[str, int], LoadedModel]:
    """Return by name and size the models that the ledger has, the newest of each."""
    found = {}
    newest = {entry.name: entry.generation for entry, _sizes in rows}
    for entry, sizes in rows:
        kept = ("registered_model", "version", "run_id", "profile")
        origin, at = {key: getattr(entry, key) for key in kept}, entry.promoted_at or _EPOCH
        for side in sizes.keys() & entry.fingerprints.keys():
            names = {
                slot_name(entry.name, side, entry.generation),
                slot_name(entry.name, side, entry.restores or entry.generation),
            }
            if entry.generation == newest[entry.name]:
                names.add(model_name(entry.name, side))
            sha256, size = entry.fingerprints[side], sizes[side]
            for name in names:
                found[name, size] = LoadedModel(
                    name, side, sha256, entry.dims, size, dict(origin), at
                )
    return found
