"""The embedded target's own tables and their rows."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from oml_mlflow.documents import build, read_json
from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.records import LedgerEntry, LoadedModel, Note, damaged_record

# Version of the tables. It rises when a release that knows the one before could misread or damage
# what is written from then on: not for a table or column that others can do without. A database
# without a version is of version 1. The table of versions itself never changes.
SCHEMA_VERSION = 1
# run whenever a database is opened for more than a survey; adds what is missing
SCHEMA = f"""
CREATE SCHEMA IF NOT EXISTS oml;
CREATE TABLE IF NOT EXISTS oml.schema_versions (version INTEGER PRIMARY KEY);
INSERT OR IGNORE INTO oml.schema_versions VALUES ({SCHEMA_VERSION});
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
ALTER TABLE oml.columns ADD COLUMN IF NOT EXISTS key_column VARCHAR DEFAULT '';
ALTER TABLE oml.columns ADD COLUMN IF NOT EXISTS geometry VARCHAR DEFAULT '';
CREATE TABLE IF NOT EXISTS oml.kept_columns (
    name VARCHAR NOT NULL,
    table_column VARCHAR NOT NULL,
    beside VARCHAR NOT NULL,
    geometry VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS oml.embedded (
    table_column VARCHAR NOT NULL,
    geometry VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    source_md5 VARCHAR NOT NULL,
    failure VARCHAR NOT NULL
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
"""  # noqa: S608
_SHA256 = 64
READ_VERSION = "SELECT coalesce(max(version), 1) FROM oml.schema_versions"
LEDGER_COLUMNS = (
    *("name", "generation", "registered_model", "version", "run_id", "img_fingerprint"),
    *("txt_fingerprint", "dims", "parity", "promoted_at", "verification", "action", "restores"),
    *("geometry", "profile", "promoted_by", "registry"),
)


def ledger_row(entry: LedgerEntry) -> list[Any]:
    """Return the row of a new entry, in the order of LEDGER_COLUMNS."""
    known = {
        **vars(entry),
        "img_fingerprint": entry.fingerprints.get(IMG, ""),
        "txt_fingerprint": entry.fingerprints.get(TXT, ""),
        "parity": json.dumps(entry.parity),
        "promoted_at": naive_now(),
    }
    return [known[column] for column in LEDGER_COLUMNS]


def ledger_entry(row: tuple[Any, ...]) -> LedgerEntry:
    """Return the entry of a row in the order of LEDGER_COLUMNS."""
    known = dict(zip(LEDGER_COLUMNS, row, strict=True))
    img, txt = known.pop("img_fingerprint"), known.pop("txt_fingerprint")
    known["fingerprints"] = {IMG: img, TXT: txt} if img or txt else {}
    with damaged_record(f"of {known['name']}, generation {known['generation']},"):
        known["parity"] = read_json(known["parity"])
        known["promoted_at"] = known["promoted_at"].replace(tzinfo=timezone.utc)
        return build(LedgerEntry, known)


def loaded_model(row: tuple[Any, ...]) -> LoadedModel:
    """Return the model of a row of the catalogue."""
    name, side, fingerprint, dims, size_bytes, written, loaded_at = row
    with damaged_record(f"of model {name}"):
        metadata = read_json(written)
        if not isinstance(metadata, dict) or "\0" in fingerprint or len(fingerprint) > _SHA256:
            raise ValueError("no metadata, or no sha256")
    # every promotion records an origin, even if it is no registry
    foreign = "registered_model" not in metadata
    return LoadedModel(name, side, fingerprint, dims, size_bytes, metadata, loaded_at, foreign)


def note_from(row: tuple[Any, ...]) -> Note:
    """Return the note of a row."""
    name, kind, content, written_at, written_by = row
    at = written_at.replace(tzinfo=timezone.utc)
    with damaged_record(f"of the {kind} of {name}"):
        return build(Note, vars(Note(name, kind, read_json(content), at, written_by)))


def naive_now() -> datetime:
    """Return the time, UTC, as the tables hold it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
