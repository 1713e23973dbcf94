"""Tables with registered columns of vectors in an embedded database, and whose vectors they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from oml_mlflow import PipelinePair
from oml_mlflow.commands.columns import columns, fill
from oml_mlflow.names import TXT
from oml_mlflow.targets.embedded.target import EmbeddedTarget

COLUMN = "docs.embedding"
# of an element, between the vectors of two ways to run one model
LIMIT = 1e-5


def write_docs(target: EmbeddedTarget, rows: int, dims: int) -> None:
    """Make the table ``docs`` with texts, and register its column, filled by the live model."""
    target.sql(f"CREATE TABLE docs (id INTEGER PRIMARY KEY, body VARCHAR, embedding FLOAT[{dims}])")
    target.sql(
        "INSERT INTO docs (id, body) SELECT i, 'text number ' || i FROM range(?) r(i)", [rows]
    )
    columns("clip", target, add=COLUMN, source="body", side=TXT, key="id")
    fill("clip", target)


def rows_of(target: EmbeddedTarget, column: str = "embedding") -> dict[int, tuple[str, Any]]:
    """Return source and vector by key."""
    found = target.sql(f"SELECT id, body, {column} FROM docs ORDER BY id")  # noqa: S608
    return {key: (body, vector) for key, body, vector in found}


def strangers(pair: PipelinePair, rows: dict[int, tuple[str | None, Any]]) -> Iterator[int]:
    """Yield the keys of rows whose vector is not that of their source by a pair."""
    embedded = {key: body for key, (body, _vector) in rows.items() if body is not None}
    wanted = dict(zip(embedded, pair.embedder().embed_text([*embedded.values()]), strict=True))
    for key, (body, vector) in rows.items():
        if body is None or vector is None:
            if (body is None) != (vector is None):
                yield key
        elif np.abs(np.asarray(vector, np.float32) - wanted[key]).max() > LIMIT:
            yield key


def change_rows(target: EmbeddedTarget, drawn: random.Random, count: int) -> None:
    """Insert, update and delete rows as an application does, which knows nothing of models."""
    for _ in range(count):
        keys = [key for (key,) in target.sql("SELECT id FROM docs ORDER BY id")]
        kind, key = drawn.randrange(4), drawn.choice(keys)
        text = f"changed {drawn.randrange(10**6)}"
        if kind == 0:
            target.sql("INSERT INTO docs (id, body) VALUES (?, ?)", [keys[-1] + 1, text])
        elif kind == 1:
            target.sql("UPDATE docs SET body = ? WHERE id = ?", [text, key])
        elif kind == 2:
            target.sql("UPDATE docs SET body = NULL WHERE id = ?", [key])
        elif len(keys) > 2:
            target.sql("DELETE FROM docs WHERE id = ?", [key])
