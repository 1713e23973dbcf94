"""A table of pictures in the embedded database, searched in SQL."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oml_mlflow.commands.table import SUFFIXES
from oml_mlflow.names import IMG, TXT, model_name

if TYPE_CHECKING:
    from oml_mlflow.targets.embedded.connection import Connection

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo_model"))

import drawings

HELD_OUT = 200


@dataclass(frozen=True)
class Entry:
    """A picture with what it shows, and another picture of the same where there is one."""

    caption: str
    picture: bytes
    another: bytes | None = None


@dataclass(frozen=True)
class Hit:
    """A picture that was found."""

    caption: str
    picture: bytes
    distance: float


def table(name: str) -> str:
    """Return the table of an export name's pictures: each name has its own."""
    return f"gallery.{re.sub(r'[^a-z0-9_]', '_', name.lower())}"


def column(name: str) -> str:
    """Return the column of an export name's vectors."""
    return f"{table(name)}.embedding"


def held_out_entries() -> list[Entry]:
    """Return drawn pictures whose combinations of shape, colour, … the demo model never saw."""
    return [
        Entry(drawing.caption, drawing.jpeg(), drawings.draw(drawing.scene, seed=977).png())
        for drawing in drawings.held_out(HELD_OUT)
    ]


def folder_entries(folder: str) -> list[Entry]:
    """Return the pictures of a folder, their file names as captions."""
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
    return [Entry(path.stem.replace("_", " "), path.read_bytes()) for path in paths]


def fill(connection: Connection, name: str, dims: int, entries: list[Entry]) -> None:
    """Make the tables anew and embed the pictures in SQL with the live image pipeline."""
    img = model_name(name, IMG)
    connection.execute("CREATE SCHEMA IF NOT EXISTS gallery")
    connection.execute(
        f"CREATE OR REPLACE TABLE {table(name)} "
        f"(id INTEGER PRIMARY KEY, caption VARCHAR, picture BLOB, embedding FLOAT[{dims}])"
    )
    connection.execute(f"CREATE OR REPLACE TABLE {table(name)}_queries (id INTEGER, picture BLOB)")
    rows = [(i, entry.caption, entry.picture) for i, entry in enumerate(entries)]
    insert = f"INSERT INTO {table(name)} (id, caption, picture) VALUES (?, ?, ?)"
    connection.executemany(insert, rows)
    others = [(i, entry.another) for i, entry in enumerate(entries) if entry.another]
    if others:
        connection.executemany(f"INSERT INTO {table(name)}_queries VALUES (?, ?)", others)
    connection.execute(f"UPDATE {table(name)} SET embedding = {img}(picture)")


def search_text(connection: Connection, name: str, query: str, count: int) -> list[Hit]:
    """Return the pictures nearest to a text."""
    return _search(connection, name, TXT, query, count)


def search_picture(connection: Connection, name: str, query: bytes, count: int) -> list[Hit]:
    """Return the pictures nearest to a picture."""
    return _search(connection, name, IMG, query, count)


def text_recall(connection: Connection, name: str) -> float:
    """Return the share of captions whose nearest picture is their own."""
    asked = f"SELECT id, {model_name(name, TXT)}(caption) AS v FROM {table(name)}"
    return _recall(connection, name, asked)


def picture_recall(connection: Connection, name: str) -> float:
    """Return the share of second drawings whose nearest picture shows the same scene."""
    asked = f"SELECT id, {model_name(name, IMG)}(picture) AS v FROM {table(name)}_queries"
    return _recall(connection, name, asked)


def _search(
    connection: Connection, name: str, side: str, value: str | bytes, count: int
) -> list[Hit]:
    vector = f"{model_name(name, side)}(?)"
    rows = connection.execute(
        f"SELECT caption, picture, array_cosine_distance(embedding, {vector}) AS distance "
        f"FROM {table(name)} ORDER BY distance LIMIT {int(count)}",
        [value],
    ).fetchall()
    return [Hit(caption, bytes(picture), distance) for caption, picture, distance in rows]


def _recall(connection: Connection, name: str, queries: str) -> float:
    [(recall,)] = connection.execute(
        f"""
        WITH queries AS MATERIALIZED ({queries}),
        nearest AS (
            SELECT q.id AS wanted, arg_min(p.id, array_cosine_distance(p.embedding, q.v)) AS found
            FROM queries q CROSS JOIN {table(name)} p GROUP BY q.id
        )
        SELECT avg(CASE WHEN wanted = found THEN 1.0 ELSE 0.0 END) FROM nearest
        """
    ).fetchall()
    return float(recall)
