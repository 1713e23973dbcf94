"""An open embedded database, with loaded models as SQL functions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np

from oml_mlflow.errors import ModelTooSlow
from oml_mlflow.names import IMG
from oml_mlflow.planning.records import LoadedModel
from oml_mlflow.targets.embedded.folder import EmbeddedFolder
from oml_mlflow.targets.embedded.schema import loaded_model


class Connection:
    """An open connection in which every loaded model is a SQL function."""

    def __init__(self, raw: duckdb.DuckDBPyConnection, target: EmbeddedFolder) -> None:
        self._raw, self.target = raw, target
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
        """Return all rows of the last statement, if it gives any."""
        with self._own_refusals():
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
        for model in self.models():
            if model.metadata.get("unknown_operators"):
                continue
            self._raw.create_function(
                model.name,
                _as_function(self.target, model),
                ["BLOB" if model.side == IMG else "VARCHAR"],
                f"FLOAT[{model.dims}]",
                type="arrow",
                null_handling="special",
            )
            self._functions.append(model.name)

    def forget_functions(self) -> None:
        """Remove the functions: DuckDB prints leak messages at exit otherwise."""
        while self._functions:
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
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), model.dims, mask=pa.array(~present)
        )

    return embed
