"""The embedded target: a folder with a DuckDB database and content-addressed ONNX files.

DuckDB, because it stores ``FLOAT[n]``, has a cosine distance, runs Python functions over columns
in bulk, and needs no server. ONNX bytes stay beside it: 350 MB in a BLOB took 5 to 7 seconds, 1.9
GB of memory and a database six times that size (measured with DuckDB 2.0).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import numpy as np

from oml_mlflow.errors import ConfigError, TargetError
from oml_mlflow.flavor.package import PREFERRED_PROFILE
from oml_mlflow.graph.runtime import Ends
from oml_mlflow.names import IMG
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.parity.policy import ParityPolicy
from oml_mlflow.planning.records import Dependant, LoadedModel
from oml_mlflow.promotion.target import KEPT_GENERATIONS
from oml_mlflow.targets.embedded_catalog import alone, make_file, open_file, private_log
from oml_mlflow.targets.embedded_files import find_damage, identity
from oml_mlflow.targets.embedded_schema import SCHEMA, loaded_model

if TYPE_CHECKING:
    from oml_mlflow.graph.profiles import Profile
    from oml_mlflow.parity.probes import Probe
    from oml_mlflow.planning.observed import Survey
    from oml_mlflow.planning.plan import Plan
    from oml_mlflow.targets.embedded_session import EmbeddedSession

CATALOG = "catalog.duckdb"
MODELS_FOLDER = "models"


class EmbeddedTarget:
    """A folder as a database: ``catalog.duckdb``, and ``models/<sha256>.onnx`` beside it.

    The database is held open for one `sql` call, or while a `session` or `connect` context is
    open, never longer; models, catalogue and tables are there when the folder is opened again.

    Args:
        folder: The folder; created by the first thing that writes.
        timeout_s: How long to wait for another process to let go of the database.
        keep: How many generations before the live one stay loaded.
        policy: How close vectors must be to their references.

    Attributes:
        refusal: Why a model's function refused in the statement that runs, or ran last.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        timeout_s: float = 30.0,
        keep: int = KEPT_GENERATIONS,
        policy: ParityPolicy | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.timeout_s, self.keep = timeout_s, keep
        self.policy = policy or ParityPolicy()
        self.refusal: TargetError | None = None
        self._embedders: dict[str, PairEmbedder] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_uri(cls, uri: str, *, timeout_s: float = 30.0) -> EmbeddedTarget:
        """Return the target of an ``embedded:///folder`` URI."""
        prefix = "embedded:///"
        if not uri.startswith(prefix) or len(uri) == len(prefix) or "?" in uri or "@" in uri:
            raise ConfigError(
                "that is no URI of an embedded target.",
                hint="use embedded:///folder, or embedded:////absolute/folder.",
            )
        return cls(unquote(uri.removeprefix(prefix)), timeout_s=timeout_s)

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"embedded:///{self.folder}"

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
        can change our own tables in the schema ``oml``. Never put text of others in it: give that
        as a parameter, or have the statement run as `untrusted`.

        Every loaded model is a SQL function of its own name: ``CLIP_TXT(text)`` and
        ``CLIP_IMG(blob)`` give ``FLOAT[dims]``, NULL for NULL.

        Args:
            statement: SQL of DuckDB.
            parameters: Values for ``?`` in it.
            untrusted: Only read what is in this database, whoever wrote the statement: no files, no
                network, no extensions, no settings, and nothing is changed. It can read all that is
                in it, our own tables too, and neither its time nor its memory is bounded.

        Raises:
            TargetLocked: If another process holds the database for longer than the timeout.
            TargetError: If DuckDB refuses the statement, or the file of a model that it calls does
                not hold its bytes.
        """
        with self.connect("a statement", untrusted=untrusted) as connection:
            return connection.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def connect(
        self, purpose: str = "a connection", *, create: bool = True, untrusted: bool = False
    ) -> Iterator[Connection]:
        """Hold the database open, with every loaded model as a SQL function.

        Args:
            purpose: What for, as an error would say it.
            create: Make the database if there is none.
            untrusted: For statements of others; see `sql`. Nothing is made then.
        """
        with self._open(purpose, create, untrusted) as raw:
            connection = Connection(raw, self)
            try:
                yield connection
            finally:
                connection.forget_functions()

    @contextlib.contextmanager
    def session(
        self, purpose: str, *, create: bool = True, missing_ok: bool = False
    ) -> Iterator[EmbeddedSession]:
        """Hold the database open for a promotion or a verification.

        Args:
            purpose: What for, as an error would say it.
            create: Make the database if there is none.
            missing_ok: Without `create`, an empty one in memory stands for one that is not there.
        """
        from oml_mlflow.targets.embedded_session import EmbeddedSession

        if missing_ok and not create and not (self.folder / CATALOG).is_file():
            with contextlib.closing(duckdb.connect(":memory:")) as raw:
                raw.execute(SCHEMA)
                yield EmbeddedSession(self, Connection(raw, self))
            return
        with self.connect(purpose, create=create) as connection:
            session = EmbeddedSession(self, connection)
            yield session
            if create:
                session.note_identities()

    def survey(self) -> Survey:
        """Return what is held under all export names, with one query. Read-only.

        A database that is not there holds nothing, and is not made. A model's file is read only if
        it is another than the one that was hashed last, by this process or by a promotion.

        Raises:
            TargetLocked: If another process holds the database for longer than the timeout.
        """
        from oml_mlflow.targets.embedded_survey import read_survey

        return read_survey(self)

    @property
    def is_probed(self) -> bool:
        """Return False: this process runs the models, and knows what it can."""
        return False

    @property
    def window(self) -> str:
        """What a reader may see while a pair is swapped."""
        return "     both models change in one transaction; no other process reads meanwhile"

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
        """Return nothing: pictures of every kind are prepared before a graph sees them."""
        return ""

    def reembedding(self, dependant: Dependant) -> str:
        """Return the SQL that embeds a registered column anew."""
        table, _, column = dependant.name.rpartition(".")
        return (
            f"UPDATE {table} SET {column} = {dependant.model}({dependant.source}) "  # noqa: S608
            f"WHERE {dependant.source} IS NOT NULL;"
        )

    def model_path(self, fingerprint: str) -> Path:
        """Return where the bytes of a fingerprint are kept."""
        return self.folder / MODELS_FOLDER / f"{fingerprint}.onnx"

    def embedder(self, model: LoadedModel) -> PairEmbedder:
        """Return what runs a loaded model; sessions are kept while this target is.

        Its file is looked at each time: one that was exchanged is refused even where a session has
        the right bytes still, so that all processes answer alike.

        Raises:
            TargetError: If its file does not hold its bytes.
        """
        path, fingerprint = self.model_path(model.fingerprint), model.fingerprint
        with self._lock:
            damage = find_damage(path, fingerprint)
            if not damage and fingerprint not in self._embedders:
                before = identity(path)
                ends = {model.side: Ends(**model.metadata.get("ends", {}))}
                made = PairEmbedder(path, path, model.dims, ends)
                made.open(model.side)
                self._embedders[fingerprint] = made
                # onnxruntime opens the file by its name, once more
                if identity(path) != before:
                    del self._embedders[fingerprint]
                    damage = f"changed: its file {path} is another than before it was loaded"
            if damage:
                self.refusal = TargetError(
                    f"{model.name} was {damage}. Nothing was embedded.",
                    hint="promote its version again, or run `oml-mlflow apply --heal`: the file is "
                    "written anew.",
                )
                raise self.refusal
            return self._embedders[fingerprint]

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
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                (self.folder / MODELS_FOLDER).mkdir(mode=0o700, exist_ok=True)
                make_file(self.folder / CATALOG)
            except OSError as error:
                raise TargetError(
                    f"folder {self.folder} can't be made ({error.strerror}).",
                    hint="give another folder, or change its permissions.",
                ) from error
            with self.open_file(purpose) as connection, private_log(self.folder / CATALOG):
                connection.execute(SCHEMA)
                yield connection

    def alone(self, purpose: str) -> AbstractContextManager[None]:
        """Keep other threads of this process away; see `embedded_catalog.alone`."""
        return alone(self.folder / CATALOG, purpose, self.timeout_s)

    def open_file(
        self, purpose: str, *, untrusted: bool = False
    ) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Hold the database's file open; see `embedded_catalog.open_file`."""
        return open_file(self.folder / CATALOG, purpose, self.timeout_s, untrusted=untrusted)


class Connection:
    """An open connection in which every loaded model is a SQL function."""

    def __init__(self, raw: duckdb.DuckDBPyConnection, target: EmbeddedTarget) -> None:
        self._raw, self._target = raw, target
        self._functions: list[str] = []
        self.offer_functions()

    def execute(self, statement: str, parameters: Sequence[Any] | None = None) -> Connection:
        """Run SQL; fetch the rows with `fetchall`.

        Raises:
            TargetError: If the file of a model that it calls does not hold its bytes.
        """
        with self._own_refusals():
            self._raw.execute(statement, parameters)
        return self

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run one statement for many sets of values."""
        with self._own_refusals():
            self._raw.executemany(statement, parameters)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows of the last statement; none if it gives none."""
        with self._own_refusals():
            return self._raw.fetchall() if self._raw.description else []

    @contextlib.contextmanager
    def _own_refusals(self) -> Iterator[None]:
        """Raise what a model's function refused with, instead of DuckDB's account of it."""
        self._target.refusal = None
        try:
            yield
        except duckdb.Error:
            if self._target.refusal is not None:
                raise self._target.refusal from None
            raise

    @property
    def columns(self) -> list[str]:
        """Names of the last result's columns."""
        return [column[0] for column in self._raw.description or ()]

    def models(self) -> list[LoadedModel]:
        """Return the catalogue, by name."""
        rows = self._raw.execute(
            "SELECT name, side, fingerprint, dims, size_bytes, metadata, loaded_at "
            "FROM oml.models ORDER BY name"
        ).fetchall()
        return [loaded_model(row) for row in rows]

    def offer_functions(self) -> None:
        """Make the functions those of the catalogue as it is now.

        A model with an operator that no runtime here has is listed, but is no function.
        """
        self.forget_functions()
        for model in self.models():
            if model.metadata.get("unknown_operators"):
                continue
            self._raw.create_function(
                model.name,
                _as_function(self._target, model),
                ["BLOB" if model.side == IMG else "VARCHAR"],
                f"FLOAT[{model.dims}]",
                type="arrow",
                null_handling="special",
            )
            self._functions.append(model.name)

    def forget_functions(self) -> None:
        """Take the functions away: DuckDB prints leak messages at exit otherwise."""
        while self._functions:
            self._raw.remove_function(self._functions.pop())


def _as_function(target: EmbeddedTarget, model: LoadedModel) -> Any:
    """Return a function over an Arrow column that embeds what is not NULL."""
    import pyarrow as pa

    def embed(column: Any) -> Any:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(column), model.dims), np.float32)
        if present.any():
            embedder = target.embedder(model)
            run = embedder.embed_image if model.side == IMG else embedder.embed_text
            # a value at a time: a column of pictures is not copied
            vectors[present] = run(value.as_py() for value in column if value.is_valid)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), model.dims, mask=pa.array(~present)
        )

    return embed
