"""The folder of an embedded database, and what runs its model files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb

from oml_mlflow.errors import TargetError
from oml_mlflow.graph.runtime import Ends
from oml_mlflow.pair.embedder import GRAPH, HOST, PairEmbedder
from oml_mlflow.planning.records import LoadedModel
from oml_mlflow.promotion.target import EMBED_TIMEOUT_S
from oml_mlflow.targets.embedded.database import alone, open_file
from oml_mlflow.targets.embedded.files import find_damage, identity
from oml_mlflow.targets.embedded.settings import CATALOG

MODELS_FOLDER = "models"


class EmbeddedFolder:
    """The folder of an embedded database: paths, opening and locking, models in memory.

    Args:
        folder: The folder.
        timeout_s: How long to wait for another process to let go of the database.

    Attributes:
        refusal: Error of a model's function in the current or last statement.
        front_end: How models run; see `PairEmbedder`. ``graph`` while they are verified.
    """

    def __init__(self, folder: str | Path, timeout_s: float) -> None:
        self.folder, self.timeout_s = Path(folder).expanduser().absolute(), timeout_s
        self.refusal: TargetError | None = None
        self.front_end = HOST
        self._embedders: dict[tuple[str, str], PairEmbedder] = {}
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"embedded:///{self.folder}"

    def model_path(self, fingerprint: str) -> Path:
        """Return where the bytes of a fingerprint are kept."""
        return self.folder / MODELS_FOLDER / f"{fingerprint}.onnx"

    def embedder(self, model: LoadedModel) -> PairEmbedder:
        """Return the embedder of a loaded model; its session is cached in this object.

        Its file is checked each time: a replaced one is refused even if a session still has the
        right bytes, so that all processes answer alike.

        Raises:
            TargetError: If its file does not hold its bytes.
        """
        path, key = self.model_path(model.fingerprint), (model.fingerprint, self.front_end)
        with self._lock:
            damage = find_damage(path, model.fingerprint)
            if not damage and key not in self._embedders:
                before = identity(path)
                ends = {model.side: Ends(**model.metadata.get("ends", {}))}
                made = PairEmbedder(path, path, model.dims, ends, front_end=self.front_end)
                made.timeout_s = EMBED_TIMEOUT_S
                made.open(model.side)
                self._embedders[key] = made
                # onnxruntime opened the path again: was it still the checked file?
                if identity(path) != before:
                    del self._embedders[key]
                    damage = f"changed: its file {path} was replaced while it was loaded"
            if damage:
                raise TargetError(
                    f"{model.name} was {damage}. Nothing was embedded.",
                    hint="promote its version again, or run `oml-mlflow apply --heal`: the file is "
                    "written anew.",
                )
            return self._embedders[key]

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Run models as any database does: each value through the whole graph, alone."""
        self.front_end = GRAPH
        try:
            yield
        finally:
            self.front_end = HOST

    def alone(self, purpose: str) -> AbstractContextManager[None]:
        """Lock out other threads of this process; see `database.alone`."""
        return alone(self.folder / CATALOG, purpose, self.timeout_s)

    def open_file(
        self, purpose: str, *, untrusted: bool = False
    ) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Hold the database's file open; see `database.open_file`."""
        return open_file(self.folder / CATALOG, purpose, self.timeout_s, untrusted=untrusted)
