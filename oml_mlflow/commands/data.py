"""Verbs about a database's own data: sql, and embedding in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from oml_mlflow.commands.chosen import choose
from oml_mlflow.config.file import Config
from oml_mlflow.errors import ConfigError
from oml_mlflow.names import model_name
from oml_mlflow.planning.records import LedgerEntry
from oml_mlflow.promotion.target import Session, Target


def sql(
    statement: str,
    target: Target | str | None = None,
    *,
    untrusted: bool = False,
    config: Config | None = None,
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run SQL in an embedded database; return the columns and rows of the last statement. Commits.

    Loaded models are functions; see `EmbeddedTarget.sql`, also for what `untrusted` keeps out.

    Raises:
        ConfigError: If it is another kind of database.
    """
    from oml_mlflow.targets.embedded.target import EmbeddedTarget

    database = choose(target, config).database
    if not isinstance(database, EmbeddedTarget):
        raise ConfigError(
            f"{database.uri} is no embedded database. Nothing was run.",
            hint="use its own tools, such as SQL*Plus.",
        )
    with database.connect("a statement", untrusted=untrusted) as connection:
        rows = connection.execute(statement).fetchall()
        return connection.columns, rows


@dataclass(frozen=True)
class DatabasePair:
    """A live pair of a database, to be scored like one in this process.

    Attributes:
        session: The database, held open.
        name: Export name, upper-case.
        dims: Length of the embeddings.
    """

    session: Session
    name: str
    dims: int

    def embed_rows(self, side: str, values: Sequence[Any]) -> Iterator[np.ndarray]:
        """Yield the vector of each picture or text, ``(dims,)`` float32, made by the database."""
        yield from self.session.models.embed(model_name(self.name, side), side, values)


@contextmanager
def open_pair(live: LedgerEntry, target: str, config: Config) -> Iterator[DatabasePair]:
    """Hold a database open to embed with a live pair. Read-only."""
    database = choose(target, config).database
    with database.session(f"embed with {live.name}", create=False) as session:
        yield DatabasePair(session, live.name, live.dims)
