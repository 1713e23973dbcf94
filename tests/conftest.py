"""Fixtures: model folders, pipeline pairs and an MLflow store, all made offline."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# eight processes beside each server, for nothing that is used here
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"

# Torch and ONNX Runtime start a thread for every core that they see when they are imported, and the
# threads of two workers that wait for each other on the same cores take two to three times as long.
# So each of several workers has its own.
if (_worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    _workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _cores = sorted(os.sched_getaffinity(0))[int(_worker.removeprefix("gw")) :: _workers]
    os.sched_setaffinity(0, _cores or os.sched_getaffinity(0))

# The collector goes through torch, transformers and MLflow again and again, a tenth of the time of
# tests that promote, and finds nothing in what stays: see `pytest_collection_finish`.
if gc.isenabled():
    gc.disable()

import clip_folders
import oracle_fixtures
from live.options import pytest_addoption, pytest_report_header  # noqa: F401 -- for pytest
from old_runtimes import environment, oldest_driver, transformers_4  # noqa: F401 -- for pytest

from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.source.model import open_source

if TYPE_CHECKING:
    from registry_copies import Registry


def pytest_collection_finish() -> None:
    """Let the collector run again, on what is made from now on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's tokenizer files in a folder of their own."""
    folder = tmp_path_factory.mktemp("vocabulary")
    clip_folders.write_companions(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model. Copy it before changing anything."""
    return clip_folders.write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    """The tiny model's pair, compared with transformers at export."""
    return ONNXPipeline(str(tiny_folder)).export2file("tiny", tmp_path_factory.mktemp("tiny_pair"))


@pytest.fixture(scope="session")
def resaved_pair(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    """Other bytes that give the vectors of `tiny_pair`."""
    import onnx

    folder = tmp_path_factory.mktemp("resaved_pair")
    for path in (tiny_pair.img, tiny_pair.txt):
        model = onnx.load(str(path))
        model.doc_string = "saved again"
        onnx.save(model, str(folder / path.name))
    return PipelinePair.from_files(folder / tiny_pair.img.name, folder / tiny_pair.txt.name)


@pytest.fixture(scope="session")
def tuned_pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    """The tiny model after a short fine-tuning: equal dims, vectors that are almost the same."""
    folder = clip_folders.tune(tiny_folder, tmp_path_factory.mktemp("tuned") / "model")
    return ONNXPipeline(str(folder)).export2file("clip", tmp_path_factory.mktemp("tuned_pair"))


@pytest.fixture(scope="session")
def second_pair(tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    """A pair with other vectors than `tiny_pair`, of the same dims."""
    folder = clip_folders.write_tiny(tmp_path_factory.mktemp("second") / "model", seed=5)
    return ONNXPipeline(str(folder)).export2file("clip", tmp_path_factory.mktemp("second_pair"))


@pytest.fixture(scope="session")
def tiny_reference(tiny_folder: Path) -> ReferenceModel:
    """The tiny model in transformers."""
    return ReferenceModel(open_source(str(tiny_folder)))


@pytest.fixture(scope="session")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of the size of ViT-B/32, 605 MB; removed when the session ends."""
    folder = clip_folders.write_full(tmp_path_factory.mktemp("models") / "full")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def full_pair(
    full_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PipelinePair]:
    """The full-size model's pair, not compared with anything yet."""
    folder = tmp_path_factory.mktemp("full_pair")
    yield ONNXPipeline(str(full_folder)).export2file("full", folder, validate=False)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def full_reference(full_folder: Path) -> ReferenceModel:
    """The full-size model in transformers."""
    return ReferenceModel(open_source(str(full_folder)))


@pytest.fixture(scope="session")
def _migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database right after its migration, which takes seconds, without experiments."""
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    _initialize_tables(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def four_versions(
    _migrated_database: Path, tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory
) -> Registry:
    """A store to copy: versions 1 to 4 of `clip`, other bytes each, the same vectors."""
    from registry_copies import make_registry

    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(_migrated_database, folder / "mlflow.db")
    return make_registry(folder, tiny_pair)


@pytest.fixture
def mlflow_store(
    _migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Work in `tmp_path` with a fresh MLflow store there, `mlflow.db`; give the folder."""
    import mlflow

    shutil.copy(_migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    # the setters write this variable too; set first, so that it is put back
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture(scope="session")
def three_pairs(
    tiny_pair: PipelinePair, resaved_pair: PipelinePair, second_pair: PipelinePair
) -> tuple[PipelinePair, ...]:
    """A pair, one of other bytes with the same vectors, one with other vectors."""
    return tiny_pair, resaved_pair, second_pair


@pytest.fixture(scope="session")
def three_versions(
    _migrated_database: Path,
    three_pairs: tuple[PipelinePair, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store to copy, with `three_pairs` as versions 1 to 3 of `clip`; its folder."""
    from registry_copies import log_versions

    folder = tmp_path_factory.mktemp("versions")
    shutil.copy(_migrated_database, folder / "mlflow.db")
    log_versions(folder, three_pairs)
    return folder


@pytest.fixture
def versions(
    mlflow_store: Path, three_versions: Path, three_pairs: tuple[PipelinePair, ...]
) -> tuple[PipelinePair, ...]:
    """Work in `mlflow_store` with `three_pairs` as versions 1 to 3 of `clip`."""
    from registry_copies import copy_store

    copy_store(three_versions, mlflow_store)
    return three_pairs


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[oracle_fixtures.Oracle]:
    """A running stand-in for Oracle Database, with a user VEC."""
    with oracle_fixtures.running(monkeypatch) as found:
        yield found
