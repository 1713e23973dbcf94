"""Verbs about a database's own data: columns, sql, and embedding in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from oml_mlflow.commands.chosen import choose
from oml_mlflow.config.file import Config
from oml_mlflow.errors import ConfigError, TargetError
from oml_mlflow.names import IMG, check_export_name, model_name
from oml_mlflow.planning.records import Dependant, LedgerEntry
from oml_mlflow.promotion.target import Session, Target


def columns(
    name: str,
    target: Target | str | None = None,
    *,
    add: str | None = None,
    source: str = "",
    side: str = IMG,
    remove: str | None = None,
    config: Config | None = None,
) -> list[Dependant]:
    """Return what depends on an export name; first remember or forget a column of its vectors.

    Args:
        name: Export name.
        target: A target, its URI, or the name of a declared one; the configuration's by default.
        add: Column to remember, ``table.column``.
        source: Column of the same table that was embedded.
        side: Pipeline that embedded it, ``img`` or ``txt``.
        remove: Column to forget, ``table.column``.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.

    Raises:
        TargetError: If a column to remember is not there, or one to forget is not registered.

    Side effects: Writes a row to the target, or removes it; commits.
    """
    export_name = check_export_name(name)
    database, purpose = choose(target, config).database, f"columns of {name}"
    with database.session(purpose, create=bool(add or remove), missing_ok=True) as session:
        if add:
            model = model_name(export_name, side)
            session.vectors.register_column(export_name, Dependant("column", add, model, source))
        if remove and not session.vectors.forget_column(export_name, remove):
            raise TargetError(
                f"{remove} is not registered for {export_name.upper()} in {database.uri}. Nothing "
                "was changed.",
                hint=f"`oml-mlflow columns {name}` lists what is.",
            )
        return session.vectors.dependants(export_name)


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
