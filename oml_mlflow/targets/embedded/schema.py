"""The embedded target's own tables and their rows."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.records import LedgerEntry, LoadedModel, Note

# run whenever a database is opened for more than a survey; adds what is missing
SCHEMA = """
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
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS action VARCHAR DEFAULT 'promote';
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS restores INTEGER DEFAULT 0;
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS geometry VARCHAR DEFAULT '';
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS profile VARCHAR DEFAULT '';
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS promoted_by VARCHAR DEFAULT '';
ALTER TABLE oml.ledger ADD COLUMN IF NOT EXISTS registry VARCHAR DEFAULT '';
CREATE TABLE IF NOT EXISTS oml.live (
    name VARCHAR PRIMARY KEY,
    generation INTEGER NOT NULL,
    phase VARCHAR NOT NULL,
    work JSON
);
CREATE TABLE IF NOT EXISTS oml.geometry (
    name VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    vectors BLOB NOT NULL,
    PRIMARY KEY (name, id)
);
CREATE TABLE IF NOT EXISTS oml.columns (
    name VARCHAR NOT NULL,
    table_column VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    PRIMARY KEY (name, table_column)
);
CREATE TABLE IF NOT EXISTS oml.files (
    fingerprint VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS oml.notes (
    name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    content JSON NOT NULL,
    written_at TIMESTAMP NOT NULL,
    written_by VARCHAR NOT NULL,
    PRIMARY KEY (name, kind)
);
"""
LEDGER_COLUMNS = (
    *("name", "generation", "registered_model", "version", "run_id", "img_fingerprint"),
    *("txt_fingerprint", "dims", "parity", "promoted_at", "verification", "action", "restores"),
    *("geometry", "profile", "promoted_by", "registry"),
)


def ledger_row(entry: LedgerEntry) -> list[Any]:
    """Return the row of a new entry, in the order of LEDGER_COLUMNS."""
    return [
        entry.name,
        entry.generation,
        entry.registered_model,
        entry.version,
        entry.run_id,
        entry.fingerprints.get(IMG, ""),
        entry.fingerprints.get(TXT, ""),
        entry.dims,
        json.dumps(entry.parity),
        naive_now(),
        entry.verification,
        entry.action,
        entry.restores,
        entry.geometry,
        entry.profile,
        entry.promoted_by,
        entry.registry,
    ]


def ledger_entry(row: tuple[Any, ...]) -> LedgerEntry:
    """Return the entry of a row in the order of LEDGER_COLUMNS."""
    name, generation, registered, version, run_id, img, txt, dims, parity, promoted_at, *rest = row
    verification, action, restores, geometry, profile, promoted_by, registry = rest
    return LedgerEntry(
        name=name,
        generation=generation,
        registered_model=registered,
        version=version,
        run_id=run_id,
        fingerprints={IMG: img, TXT: txt} if img or txt else {},
        dims=dims,
        parity=json.loads(parity),
        promoted_at=promoted_at.replace(tzinfo=timezone.utc),
        verification=verification,
        action=action,
        restores=restores,
        geometry=geometry,
        profile=profile,
        promoted_by=promoted_by,
        registry=registry,
    )


def loaded_model(row: tuple[Any, ...]) -> LoadedModel:
    """Return the model of a row of the catalogue."""
    name, side, fingerprint, dims, size_bytes, written, loaded_at = row
    metadata = json.loads(written)
    # every promotion records an origin, even if it is no registry
    foreign = "registered_model" not in metadata
    return LoadedModel(name, side, fingerprint, dims, size_bytes, metadata, loaded_at, foreign)


def note_from(row: tuple[Any, ...]) -> Note:
    """Return the note of a row."""
    name, kind, content, written_at, written_by = row
    at = written_at.replace(tzinfo=timezone.utc)
    return Note(name, kind, json.loads(content), at, written_by)


def naive_now() -> datetime:
    """Return the time, UTC, as the tables hold it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
