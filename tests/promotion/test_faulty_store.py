"""One wrong answer of an artifact store says nothing about a version; the same one again does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_store import FaultyStore, faulty_store
from fleets import ALIAS, ANYTHING, MODEL, NAME, live_versions, move, reconcile, states
from registry_copies import using
from servers import mlflow_server

import oml_mlflow
from oml_mlflow import PipelinePair, dry_run, promote
from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config, TargetConfig
from oml_mlflow.errors import PackageError, RegistryError
from oml_mlflow.targets.embedded.target import EmbeddedTarget

FILES = ("tiny_txt.onnx", "MLmodel", "golden/pair-oracle-23.7.npz", "golden/probes.json")
FOREVER = 1_000


@pytest.fixture(scope="module")
def registry(
    _migrated_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pair: PipelinePair,
    resaved_pair: PipelinePair,
) -> Iterator[FaultyStore]:
    """A server with versions 1 and 2 of `clip`, reached through the proxy."""
    folder = tmp_path_factory.mktemp("server")
    with (
        mlflow_server(_migrated_database, folder, workers=1) as server,
        faulty_store(server.uri) as store,
        using(store.uri),
    ):
        for pair in (tiny_pair, resaved_pair):
            oml_mlflow.log_model(pair, name="clip", registered_model_name=MODEL)
        yield store


@pytest.fixture
def store(registry: FaultyStore) -> FaultyStore:
    registry.wrong.clear()
    registry.asked.clear()
    registry.status = 200
    return registry


def asked(store: FaultyStore, end: str) -> int:
    return sum(path.endswith(end) for path in store.asked)


@pytest.mark.parametrize("file", FILES)
def test_one_error_page_does_not_stop_a_promotion(
    file: str, store: FaultyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.wrong[file] = 1
    done = promote("models:/clip/1", EmbeddedTarget(tmp_path / "database"))
    assert (done.entry.version, done.report.ok) == ("1", True)
    assert asked(store, file) == 2
    [record] = [r for r in caplog.records if r.name == "oml_mlflow.registry.versions"]
    assert "models:/clip/1 is downloaded again" in record.getMessage()


@pytest.mark.parametrize("file", FILES)
def test_the_same_answer_again_is_refused(file: str, store: FaultyStore, tmp_path: Path) -> None:
    store.wrong[file] = 2
    target = EmbeddedTarget(tmp_path / "database")
    with pytest.raises(PackageError):
        promote("models:/clip/1", target)
    assert asked(store, file) == 2
    assert not (tmp_path / "database").exists()
    assert dry_run("models:/clip/1", target).summary


def test_apply_remembers_only_what_came_twice(store: FaultyStore, tmp_path: Path) -> None:
    target = TargetConfig("small", f"embedded:///{tmp_path / 'small'}", ANYTHING)
    config = Config({"small": target}, (Binding("small", NAME, MODEL, ALIAS),))
    move(1)
    store.wrong["tiny_txt.onnx"] = 1
    assert reconcile(config).ok
    assert (live_versions(config), asked(store, "tiny_txt.onnx")) == ({"small": "1"}, 2)

    move(2)
    store.asked.clear()
    store.wrong["tiny_txt.onnx"] = FOREVER
    (failed,) = reconcile(config).outcomes
    assert failed.error is not None
    assert failed.error.code == "package-corrupt"
    assert asked(store, "tiny_txt.onnx") == 2
    store.wrong.clear()
    again = reconcile(config)
    assert (states(again), again.outcomes) == ({"small": "degraded"}, ())
    assert (live_versions(config), asked(store, "tiny_txt.onnx")) == ({"small": "1"}, 2)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "registry-refused"),
        (404, "registry-lookup-failed"),
        (503, "registry-unreachable"),
    ],
)
def test_files_that_are_not_given(
    status: int,
    code: str,
    store: FaultyStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store.status, store.wrong["MLmodel"] = status, FOREVER
    for ask in (
        lambda: promote("models:/clip/1", EmbeddedTarget(tmp_path / "database")),
        lambda: oml_mlflow.relog("models:/clip/1"),
        lambda: oml_mlflow.load_model("models:/clip/1"),
    ):
        with pytest.raises(
            RegistryError, match="the files of models:/clip/1 can't be fetched"
        ) as caught:
            ask()
        assert caught.value.code == code
    assert not (tmp_path / "database").exists()
