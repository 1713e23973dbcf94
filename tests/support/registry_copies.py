"""A store with four versions of one model, made once; every sequence of a drill has a copy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from fleets import MODEL

import oml_mlflow
from oml_mlflow.pair.pipeline_pair import PipelinePair

VERSIONS, USED = 4, 3


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


def make_registry(folder: Path, pair: PipelinePair) -> Registry:
    """Log versions of `clip` that have other bytes than a pair, and its vectors.

    Args:
        folder: Where a fresh store is, `mlflow.db`, and artifacts will be.
        pair: The pair.
    """
    import onnx

    fingerprints = {}
    with pytest.MonkeyPatch.context() as patch, using(f"sqlite:///{folder / 'mlflow.db'}"):
        patch.chdir(folder)
        for number in range(1, VERSIONS + 1):
            copies = folder / str(number)
            copies.mkdir()
            for path in (pair.img, pair.txt):
                model = onnx.load(str(path))
                model.doc_string = f"saved for version {number}"
                onnx.save(model, str(copies / path.name))
            saved = PipelinePair.from_files(copies / pair.img.name, copies / pair.txt.name)
            oml_mlflow.log_model(saved, name=MODEL, registered_model_name=MODEL)
            fingerprints[str(number)] = saved.fingerprints
    return Registry(folder / "mlflow.db", fingerprints)
