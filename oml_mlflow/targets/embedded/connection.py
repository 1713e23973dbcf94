"""An open embedded database, with loaded models as SQL functions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import duckdb
import numpy as np

from oml_mlflow.documents import damaged
from oml_mlflow.errors import InputError, ModelTooSlow, OmlMlflowError, TargetError
from oml_mlflow.names import IMG
from oml_mlflow.planning.records import LoadedModel
from oml_mlflow.targets.embedded.database import first_lines
from oml_mlflow.targets.embedded.folder import EmbeddedFolder
from oml_mlflow.targets.embedded.schema import loaded_model

_MAKES_MACRO = re.compile(r"\b(macro|function)\b", re.IGNORECASE)
# of one schema DuckDB takes a macro before our function, of another only where it is named
_LIST_MACROS = (
    "SELECT database_name, schema_name, function_name FROM duckdb_functions() "
    "WHERE NOT internal AND function_type = 'macro' AND schema_name = 'main' "
    "AND list_contains(?, lower(function_name))"
)
_NUMBER = re.compile(r"^(picture|text) \d+")


class Connection:
    """An open connection in which every loaded model is a SQL function.

    Where that is not possible for one of them, nothing is run but what may mend it.
    """

    def __init__(self, raw: duckdb.DuckDBPyConnection, target: EmbeddedFolder) -> None:
        self._raw, self.target = raw, target
        self._functions: list[str] = []
        self._fault: TargetError | None = None
        self.offer_functions()

    def execute(self, statement: str, parameters: Sequence[Any] | None = None) -> Connection:
        """Run SQL; fetch the rows with `fetchall`.

        Raises:
            TargetError: If DuckDB refuses it, the file of a model that it calls does not hold its
                bytes, or a macro hides a model: one that it made is dropped again.
        """
        with self._own_refusals():
            if self._fault is not None and not self._mends(statement):
                raise self._fault
            self._raw.execute(statement, parameters)
        if _MAKES_MACRO.search(statement):
            self.refuse_macros(self._functions, drop=True)
        return self

    def _mends(self, statement: str) -> bool:
        kinds = (duckdb.StatementType.DROP, duckdb.StatementType.DELETE)
        return all(each.type in kinds for each in self._raw.extract_statements(statement))

    def refuse_macros(self, names: Collection[str], *, drop: bool = False) -> None:
        """Raise TargetError if a macro bears a model's name, and hides it; `drop` it before."""
        # by a cursor, which leaves the result of the last statement alone
        cursor = self._raw.cursor()
        cursor.execute(_LIST_MACROS, [[name.lower() for name in names]])
        for database, schema, name in cursor.fetchall():
            macro = f'"{database}"."{schema}"."{name}"'
            hint, state = "give it another name.", "It was dropped again."
            if drop:
                cursor.execute(f"DROP MACRO {macro}")
            else:
                hint, state = f"oml-mlflow sql 'DROP MACRO {macro}'", "Nothing was changed."
            where = f"macro {name} hides model {name.upper()} in {self.target.uri}"
            raise TargetError(f"{where}. {state}", hint=hint)

    def refuse_open_transaction(self) -> None:
        """Raise TargetError, rolled back, if a statement began a transaction that none ended."""
        with contextlib.suppress(duckdb.TransactionException):
            self._raw.rollback()
            raise TargetError(
                "a transaction was begun and not ended, so that it was rolled back.",
                hint="end it with COMMIT in the same text, or leave out BEGIN.",
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is executed inside together, or nothing of it."""
        self.execute("BEGIN TRANSACTION")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # DuckDB may have ended it itself, and its first error is the one to see
            with contextlib.suppress(duckdb.Error):
                self._raw.execute("ROLLBACK")
            raise

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run one statement for many sets of values."""
        with self._own_refusals():
            self._raw.executemany(statement, parameters)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows of the last statement, if it gives any."""
        with self._own_refusals():
            # an interval of 10,000,000 years is none of Python's
            what, hint = "Python has no such value as is in the result", "CAST it to VARCHAR."
            with damaged(what, TargetError, hint=hint, state="The statement was run."):
                return self._raw.fetchall() if self._raw.description else []

    @contextlib.contextmanager
    def _own_refusals(self) -> Iterator[None]:
        """Raise the error of a model's function itself instead of DuckDB's."""
        self.target.refusal = None
        try:
            yield
        except duckdb.Error:
            if self.target.refusal is not None:
                raise self.target.refusal from None
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
        """Register a function for each model that a runtime here can run."""
        self.forget_functions()
        self._fault = None
        try:
            for model in self.models():
                if not model.metadata.get("unknown_operators"):
                    self._offer(model)
        except TargetError as error:
            self._fault = error

    def _offer(self, model: LoadedModel) -> None:
        try:
            self._raw.create_function(
                model.name,
                _as_function(self.target, model),
                ["BLOB" if model.side == IMG else "VARCHAR"],
                f"FLOAT[{model.dims}]",
                type="arrow",
                null_handling="special",
            )
        except duckdb.Error as error:
            self.refuse_macros([model.name])
            delete = f"DELETE FROM oml.models WHERE name = '{model.name}'"  # noqa: S608 -- to read
            raise TargetError(
                f"model {model.name} can't be called in {self.target.uri}: "
                f"{first_lines(error, 1)}. Nothing was run.",
                hint=f'oml-mlflow sql "{delete}", then promote its version again.',
            ) from error
        self._functions.append(model.name)

    def forget_functions(self) -> None:
        """Remove the functions: DuckDB prints leak messages at exit otherwise."""
        while self._functions:
            with contextlib.suppress(duckdb.Error):  # of a database that it gave up
                self._raw.remove_function(self._functions.pop())


def _as_function(target: EmbeddedFolder, model: LoadedModel) -> Any:
    """Return a function over an Arrow column that embeds what is not NULL."""
    import pyarrow as pa

    def embed(column: Any) -> Any:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(column), model.dims), np.float32)
        if present.any():
            try:
                embedder = target.embedder(model)
                run = embedder.embed_image if model.side == IMG else embedder.embed_text
                # one value at a time, so that a column of pictures is not copied
                vectors[present] = run(value.as_py() for value in column if value.is_valid)
            except TimeoutError as error:
                target.refusal = ModelTooSlow(
                    f"{model.name} was stopped in {target.uri}: {error}. Nothing was changed.",
                    hint="look for a loop without an end in its graph; if the machine was only "
                    "busy, try it again (`oml-mlflow apply --retry`).",
                )
                raise target.refusal from None
            except OmlMlflowError as error:
                target.refusal = _of_statement(error, model.name)
                raise target.refusal from error
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), model.dims, mask=pa.array(~present)
        )

    return embed


def _of_statement(error: OmlMlflowError, model: str) -> TargetError:
    """Return the error for a statement that calls a model."""
    if isinstance(error, TargetError):
        return error
    # numbered within what DuckDB handed over, which is nobody's row
    message, hint = _NUMBER.sub(r"a \1", error.message), error.hint
    if isinstance(error, InputError):
        hint = f"such values v are found by: v IS NOT NULL AND TRY({model}(v)) IS NULL. {hint}"
    return TargetError(f"{model}: {message}", hint=hint)
