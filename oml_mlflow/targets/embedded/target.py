"""The embedded target: a DuckDB database and content-addressed ONNX files.

DuckDB, because it stores ``FLOAT[n]``, has a cosine distance, runs Python functions over columns
in bulk, and needs no server. ONNX bytes stay beside it: 350 MB in a BLOB took 5 to 7 seconds, 1.9
GB of memory and a database six times that size (measured with DuckDB 2.0).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from oml_mlflow.documents import damaged
from oml_mlflow.errors import ConfigError, TargetError
from oml_mlflow.flavor.package import PREFERRED_PROFILE
from oml_mlflow.graph.profiles import Profile
from oml_mlflow.parity.policy import ParityPolicy
from oml_mlflow.parity.probes import Probe
from oml_mlflow.planning.observed import Survey
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import Dependant
from oml_mlflow.promotion.target import KEPT_GENERATIONS
from oml_mlflow.targets.embedded.connection import Connection
from oml_mlflow.targets.embedded.database import make_file, private_log, translated
from oml_mlflow.targets.embedded.folder import MODELS_FOLDER, EmbeddedFolder
from oml_mlflow.targets.embedded.models import EmbeddedModels
from oml_mlflow.targets.embedded.schema import SCHEMA
from oml_mlflow.targets.embedded.session import EmbeddedSession
from oml_mlflow.targets.embedded.settings import CATALOG, folder_of
from oml_mlflow.targets.embedded.survey import read_survey


class EmbeddedTarget(EmbeddedFolder):
    """A folder as a database: ``catalog.duckdb``, and ``models/<sha256>.onnx`` beside it.

    The database is held open for one `sql` call, or while a `session` or `connect` context is
    open, never longer; models, catalogue and tables are there when the folder is opened again.

    Args:
        folder: The folder; created by the first write.
        timeout_s: How long to wait for another process to let go of the database.
        keep: How many generations before the live one stay loaded.
        policy: How close vectors must be to their references.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        timeout_s: float = 30.0,
        keep: int = KEPT_GENERATIONS,
        policy: ParityPolicy | None = None,
    ) -> None:
        super().__init__(folder, timeout_s)
        self.keep, self.policy = keep, policy or ParityPolicy()

    @classmethod
    def from_uri(cls, uri: str, *, timeout_s: float = 30.0) -> EmbeddedTarget:
        """Return the target of an ``embedded:///folder`` URI."""
        return cls(folder_of(uri), timeout_s=timeout_s)

    def __repr__(self) -> str:
        """Return its URI."""
        return f"EmbeddedTarget({self.uri!r})"

    def sql(
        self,
        statement: str,
        parameters: Sequence[Any] | None = None,
        *,
        untrusted: bool = False,
    ) -> list[tuple[Any, ...]]:
        """Run one or more SQL statements; return the rows of the last. Commits.

        A statement may do all that this process may: DuckDB reads and writes files (``COPY``,
        ``ATTACH``, ``read_text``), loads extensions, and through them reaches the network, and it
        can change our own tables in the schema ``oml``. Never put untrusted text in it: pass that
        as a parameter, or run the statement as `untrusted`.

        Every loaded model is a SQL function of its own name: ``CLIP_TXT(text)`` and
        ``CLIP_IMG(blob)`` give ``FLOAT[dims]``, NULL for NULL.

        Args:
            statement: SQL of DuckDB.
            parameters: Values for ``?`` in it.
            untrusted: Only read this database, whoever wrote the statement: no files, no network,
                no extensions, no settings, no changes. It can read every table, our own too, and
                neither its time nor its memory is bounded.

        Raises:
            TargetLocked: If another process holds the database for longer than the timeout.
            TargetError: If DuckDB refuses the statement, a model that it calls can't embed a value,
                a model's file does not hold its bytes, a macro hides a model, or a transaction is
                begun and not ended.
        """
        with self.connect("a statement", untrusted=untrusted) as connection:
            return connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def connect(
        self, purpose: str = "a connection", *, create: bool = True, untrusted: bool = False
    ) -> Iterator[Connection]:
        """Hold the database open, with every loaded model as a SQL function.

        Args:
            purpose: What for, as errors show it.
            create: Create a missing database, unless `untrusted`.
            untrusted: See `sql`.
        """
        with self._open(purpose, create, untrusted) as raw:
            connection = Connection(raw, self)
            try:
                yield connection
                connection.refuse_open_transaction()
            finally:
                connection.forget_functions()

    @contextlib.contextmanager
    def session(
        self, purpose: str, *, create: bool = True, missing_ok: bool = False
    ) -> Iterator[EmbeddedSession]:
        """Hold the database open; `missing_ok` gives an empty one in memory. See `Target`."""
        if missing_ok and not create and not (self.folder / CATALOG).is_file():
            nowhere = contextlib.closing(duckdb.connect(":memory:"))
            with translated(self.folder / CATALOG), nowhere as raw:
                raw.execute(SCHEMA)
                yield EmbeddedSession(Connection(raw, self))
            return
        with self.connect(purpose, create=create) as connection:
            yield EmbeddedSession(connection)
            if create:
                EmbeddedModels(connection).note_identities()

    def survey(self) -> Survey:
        """Return what is held under all export names, with one query; see `Target.survey`.

        A model's file is only read if it is not the one that this process or a promotion hashed.
        """
        return read_survey(self)

    @property
    def is_probed(self) -> bool:
        """Return False: this process runs the models, and knows what it can."""
        return False

    @property
    def swaps_columns(self) -> bool:
        """Return True: columns are renamed in the transaction that renames models."""
        return True

    @property
    def window(self) -> str:
        """What a reader may see while a pair is swapped."""
        return (
            "     both models, and columns with them, change in one transaction: a query sees all\n"
            "     old or all new vectors; no other process reads meanwhile"
        )

    def script(self, plan: Plan) -> str:
        """Refuse: there is no DBA here."""
        raise ConfigError(
            "an embedded database is only changed by this package: there is no SQL to run by hand.",
            hint="leave out --sql.",
        )

    def rank_profiles(self, stored: Sequence[str], version: str) -> list[str]:
        """Return the stored profiles, that of this process's own runtime first."""
        return sorted(stored, key=lambda name: name != PREFERRED_PROFILE)

    def skip_reason(self, probe: Probe, profile: Profile) -> str:
        """Return nothing: every kind of picture is converted before a graph gets it."""
        return ""

    def reembedding(self, dependant: Dependant) -> str:
        """Return the SQL that re-embeds a registered column."""
        table, _, column = dependant.name.rpartition(".")
        return (
            f"UPDATE {table} SET {column} = {dependant.model}({dependant.source}) "  # noqa: S608
            f"WHERE {dependant.source} IS NOT NULL;"
        )

    @contextlib.contextmanager
    def _open(
        self, purpose: str, create: bool, untrusted: bool
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        if not (create and not untrusted) and not (self.folder / CATALOG).is_file():
            raise TargetError(
                f"there is no embedded database in {self.folder}. Nothing was made.",
                hint="check the target's folder, or promote a version into it first.",
            )
        if untrusted:
            with self.alone(purpose), self.open_file(purpose, untrusted=True) as connection:
                yield connection
            return
        with self.alone(purpose):
            hint = "give another folder, or change its permissions."
            with damaged(f"folder {self.folder} can't be made", TargetError, hint=hint):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.folder / MODELS_FOLDER).mkdir(mode=0o700, exist_ok=True)
                make_file(self.folder / CATALOG)
            with self.open_file(purpose) as connection, private_log(self.folder / CATALOG):
                connection.execute(SCHEMA)
                yield connection
