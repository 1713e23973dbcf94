"""MLflow stores made once: a test that needs versions works with a copy, in a moment."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from fleets import MODEL
from mlflow.tracking._tracking_service import utils

import oml_mlflow
from oml_mlflow.pair.pipeline_pair import PipelinePair

VERSIONS, USED = 4, 3
# where MLflow writes down where artifacts lie; `MLmodel` says it too
PLACES = {
    "experiments": "artifact_location",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@dataclass(frozen=True)
class Registry:
    """An MLflow store with versions of a registered model; a sequence works on a copy.

    Attributes:
        database: Its SQLite file.
        fingerprints: sha256 by side, by version.
    """

    database: Path
    fingerprints: Mapping[str, Mapping[str, str]]

    @contextlib.contextmanager
    def copied(self, folder: Path) -> Iterator[str]:
        """Work with a copy; give its URI."""
        shutil.copy(self.database, folder / "mlflow.db")
        with using(uri := f"sqlite:///{folder / 'mlflow.db'}"):
            yield uri


@contextlib.contextmanager
def using(uri: str) -> Iterator[None]:
    """Work with an MLflow store or server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_REGISTRY_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def relocate(store: Path, old: str) -> None:
    """Tell a store that was copied where its artifacts lie now.

    Args:
        store: Folder with `mlflow.db` and `mlruns`.
        old: The folder where they lay, as it is written in them.
    """
    connection = sqlite3.connect(store / "mlflow.db")
    with connection:
        for table, column in PLACES.items():
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"  # noqa: S608
            connection.execute(change, (old, str(store)))
    connection.close()
    for mlmodel in store.glob("mlruns/*/models/*/artifacts/MLmodel"):
        mlmodel.write_text(mlmodel.read_text(encoding="utf-8").replace(old, str(store)))


def log_versions(folder: Path, pairs: Iterable[PipelinePair]) -> None:
    """Log pairs as the versions of `clip` into the fresh store in a folder, `mlflow.db`."""
    with pytest.MonkeyPatch.context() as patch, using(f"sqlite:///{folder / 'mlflow.db'}"):
        patch.chdir(folder)
        for pair in pairs:
            oml_mlflow.log_model(pair, name=MODEL, registered_model_name=MODEL)


def copy_store(store: Path, folder: Path) -> None:
    """Put a copy of a store, its artifacts too, into a folder."""
    shutil.copy(store / "mlflow.db", folder / "mlflow.db")
    shutil.copytree(store / "mlruns", folder / "mlruns")
    relocate(folder, str(store))
    # MLflow remembers by id where artifacts lie, and copies have the same ids
    utils._artifact_repos_cache.clear()


def make_registry(folder: Path, pair: PipelinePair) -> Registry:
    """Log versions of `clip` that have other bytes than a pair, and its vectors.

    Args:
        folder: Where a fresh store is, `mlflow.db`, and artifacts will be.
        pair: The pair.
    """
    import onnx

    pairs = []
    for number in range(1, VERSIONS + 1):
        copies = folder / str(number)
        copies.mkdir()
        for path in (pair.img, pair.txt):
            model = onnx.load(str(path))
            model.doc_string = f"saved for version {number}"
            onnx.save(model, str(copies / path.name))
        pairs.append(PipelinePair.from_files(copies / pair.img.name, copies / pair.txt.name))
    log_versions(folder, pairs)
    fingerprints = {str(number): saved.fingerprints for number, saved in enumerate(pairs, 1)}
    return Registry(folder / "mlflow.db", fingerprints)
