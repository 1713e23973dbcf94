"""Contents of an Oracle schema: models, ledger, journal, grants, notes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from oml_mlflow.names import SIDES, check_column, check_export_name, model_name, slot_name
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import (
    Dependant,
    Grant,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Note,
    Work,
    now,
    this_process,
)
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.load import FORMAT, is_size

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def list_models(db: Database) -> list[LoadedModel]:
    """Return every model of the schema, by name. Read-only.

    A model is ours if its comment says so and the size agrees; without a comment, if the ledger
    has a model of exactly that size under the name.
    """
    rows = db.rows(sql.LIST_MODELS, "reading the mining models")
    models = [model_from(*row) for row in rows]
    if any(model.foreign for model in models):
        models = recognised(models, _ledger_rows(db))
    return models


def recognised(
    models: Sequence[LoadedModel], ledger: Sequence[tuple[LedgerEntry, dict[str, int]]]
) -> list[LoadedModel]:
    """Return models from `model_from`; those without a comment completed from the ledger."""
    known = _recorded(ledger)
    return [_recognise(model, known) if model.foreign else model for model in models]


def read_ledger(db: Database, name: str | None = None) -> list[LedgerEntry]:
    """Return promotions, oldest first. Read-only."""
    wanted = name and name.upper()
    entries = [entry for entry, _sizes in _ledger_rows(db)]
    if wanted is None:
        return entries
    # not by time, which comes from the promoters' clocks
    return sorted((e for e in entries if e.name == wanted), key=lambda entry: entry.generation)


def live_state(db: Database, name: str) -> LiveState:
    """Return what is live under an export name. Read-only."""
    name = name.upper()
    if sql.LIVE not in db.tables:
        return LiveState(name)
    rows = db.rows(sql.READ_LIVE, f"reading what is live as {name}", {"name": name})
    if not rows:
        return LiveState(name)
    generation, phase, work = rows[0]
    return LiveState(name, int(generation), phase, Work.from_json(work) if work else None)


def grants(db: Database, names: Sequence[str]) -> tuple[Grant, ...]:
    """Return privileges on models that others were given. Read-only."""
    found = set()
    for name in names:
        step = f"reading the grants on {name}"
        for model, grantee, privilege, grantable in db.rows(
            sql.LIST_GRANTS, step, {"model_name": name}
        ):
            found.add(Grant(model, grantee, privilege, grantable == "YES"))
    return tuple(sorted(found, key=lambda g: (g.model, g.grantee, g.privilege)))


def geometries(db: Database, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Return vectors that stand for each geometry of an export name, by id. Read-only."""
    if sql.GEOMETRY not in db.tables:
        return {}
    rows = db.rows(sql.READ_GEOMETRIES, "reading the geometries", {"name": name.upper()})
    return {geometry: unpack_vectors(packed) for geometry, packed in rows}


def save_geometry(
    db: Database, name: str, geometry: str, vectors: Mapping[str, np.ndarray]
) -> None:
    """Keep the vectors that stand for a geometry, unless there are some. Commits."""
    db.ensure_tables()
    if geometry in geometries(db, name):
        return
    blob = db.blob(pack_vectors(vectors))
    binds = {"name": name.upper(), "geometry": geometry, "vectors": blob}
    db.write(sql.INSERT_GEOMETRY, f"keeping geometry {geometry}", binds)
    db.commit()


def dependants(db: Database, name: str) -> list[Dependant]:
    """Return what is known to depend on an export name's live models. Read-only.

    Registered columns, views whose text names a model, and domain indexes, such as hybrid vector
    indexes, whose parameters do.
    """
    found = registered_columns(db, name)
    indexes = db.rows(sql.LIST_DOMAIN_INDEXES, "reading the domain indexes")
    for side in SIDES:
        live = model_name(name, side)
        views = db.rows(sql.LIST_VIEWS, f"looking for views on {live}", {"model_name": live})
        found += [Dependant("view", view, live) for view, text in views if _names(text, live)]
        found += [
            Dependant("hybrid vector index", index, live)
            for index, parameters in indexes
            if _names(parameters, live)
        ]
    return found


def registered_columns(db: Database, name: str) -> list[Dependant]:
    """Return an export name's registered columns. Read-only."""
    if sql.COLUMNS not in db.tables:
        return []
    rows = db.rows(sql.READ_COLUMNS, "reading the registered columns", {"name": name.upper()})
    return [Dependant("column", column, model, source or "") for column, model, source in rows]


def register_column(db: Database, name: str, column: Dependant) -> None:
    """Remember that a table's column holds vectors of a live model. Commits.

    Raises:
        InvalidName: If a name is not valid.
        TargetError: If there is no such table or column.
    """
    table, stored = check_column(column.name)
    _, source = check_column(f"{table}.{column.source}")
    db.rows(sql.look_at_columns(table, [stored, source]), f"looking at {column.name}")
    db.ensure_tables()
    step, key = f"registering {column.name}", {"name": name.upper(), "column_name": column.name}
    db.write(sql.FORGET_COLUMN, step, key)
    db.write(sql.INSERT_COLUMN, step, {**key, "model_name": column.model, "source": column.source})
    db.commit()


def forget_column(db: Database, name: str, column: str) -> bool:
    """Forget a registered column; return whether there was one. Commits."""
    if sql.COLUMNS not in db.tables:
        return False
    binds = {"name": name.upper(), "column_name": column}
    gone = db.write(sql.FORGET_COLUMN, f"forgetting {column}", binds)
    db.commit()
    return gone > 0


def capabilities(db: Database) -> CapabilityTable | None:
    """Return the answers to capability probes, if they ever ran here. Read-only."""
    if sql.CAPABILITIES not in db.tables:
        return None
    rows = db.rows(sql.READ_CAPABILITIES, "reading the capabilities")
    return CapabilityTable.from_json(rows[0][0]) if rows else None


def save_capabilities(db: Database, table: CapabilityTable) -> None:
    """Keep the answers to capability probes. Commits."""
    db.ensure_tables()
    step = "keeping the capabilities"
    db.write(sql.FORGET_CAPABILITIES, step)
    db.write(sql.INSERT_CAPABILITIES, step, {"content": table.to_json()})
    db.commit()


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
        found = json.loads(comments or "")
    except ValueError:
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
) -> dict[str, list[tuple[int, LoadedModel]]]:
    """Return by name the models that the ledger has for it, with their sizes."""
    found: dict[str, list[tuple[int, LoadedModel]]] = {}
    newest = {entry.name: entry.generation for entry, _sizes in rows}
    for entry, sizes in rows:
        kept = ("registered_model", "version", "run_id", "profile")
        origin = {key: getattr(entry, key) for key in kept}
        for side in sizes.keys() & entry.fingerprints.keys():
            names = {
                slot_name(entry.name, side, entry.generation),
                slot_name(entry.name, side, entry.restores or entry.generation),
            }
            if entry.generation == newest[entry.name]:
                names.add(model_name(entry.name, side))
            for name in names:
                model = LoadedModel(
                    name,
                    side,
                    entry.fingerprints[side],
                    entry.dims,
                    sizes[side],
                    dict(origin),
                    entry.promoted_at or _EPOCH,
                )
                found.setdefault(name, []).append((sizes[side], model))
    return found


def _recognise(
    model: LoadedModel, known: Mapping[str, Sequence[tuple[int, LoadedModel]]]
) -> LoadedModel:
    for size, recorded in reversed(known.get(model.name, ())):
        if size == model.size_bytes:
            return replace(recorded, loaded_at=model.loaded_at)
    return model


def _ledger_rows(db: Database) -> list[tuple[LedgerEntry, dict[str, int]]]:
    if sql.LEDGER not in db.tables:
        return []
    statement = sql.read_ledger(has_registry=db.has_registry)
    return [ledger_entry(row) for row in db.rows(statement, "reading the ledger")]


def ledger_entry(row: tuple[Any, ...]) -> tuple[LedgerEntry, dict[str, int]]:
    """Return the entry of a row, and the sizes of its models by side."""
    columns = [column.lower() for column in sql.ledger_columns()]
    # Oracle has no empty text but NULL
    known: dict[str, Any] = {c: value or "" for c, value in zip(columns, row, strict=True)}
    hashes = {side: known.pop(f"{side}_sha256") for side in SIDES}
    sizes = {side: int(size) for side in SIDES if (size := known.pop(f"{side}_bytes"))}
    known |= {number: int(known[number] or 0) for number in ("generation", "restores", "dims")}
    known["fingerprints"] = {side: sha256 for side, sha256 in hashes.items() if sha256}
    known["parity"] = json.loads(known["parity"] or "{}")
    known["promoted_at"] = datetime.fromisoformat(known["promoted_at"])
    return LedgerEntry(**known), sizes


def _names(text: str | None, model: str) -> bool:
    """Return whether a text names a model as a word of its own, quoted or not, in any case."""
    pattern = rf"(?<![\w$#]){re.escape(model)}(?![\w$#])"
    return re.search(pattern, text or "", re.IGNORECASE) is not None


def notes(db: Database, name: str | None = None) -> list[Note]:
    """Return the notes about an export name, or about all. Read-only."""
    if sql.NOTES not in db.tables:
        return []
    rows = db.rows(sql.READ_NOTES, "reading the notes", inline=True)
    found = [note_from(*row) for row in rows if name is None or row[0] == name.upper()]
    return sorted(found, key=lambda note: (note.name, note.kind))


def note_from(name: str, kind: str, content: str, written_at: str, written_by: Any) -> Note:
    """Return the note of a row."""
    at = datetime.fromisoformat(written_at)
    return Note(name, kind, json.loads(content), at, written_by or "")


def write_note(db: Database, note: Note) -> None:
    """Write a note in place of one of its kind, in one transaction. Commits."""
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


def forget_note(db: Database, name: str, kind: str) -> bool:
    """Forget a note about an export name; return whether there was one. Commits."""
    if sql.NOTES not in db.tables:
        return False
    binds = {"name": name.upper(), "kind": kind}
    gone = db.write(sql.FORGET_NOTE, f"forgetting the {kind} of {name.upper()}", binds)
    db.commit()
    return gone > 0
