"""The embedded target's own tables."""

from __future__ import annotations

# run whenever a database is opened for more than a survey; what is there stays as it is
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
CREATE TABLE IF NOT EXISTS oml.notes (
    name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    content JSON NOT NULL,
    written_at TIMESTAMP NOT NULL,
    written_by VARCHAR NOT NULL,
    PRIMARY KEY (name, kind)
);
"""
