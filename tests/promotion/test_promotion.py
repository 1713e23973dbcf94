from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from fleets import unanchor
from registry_copies import copy_store, log_versions, using

from oml_mlflow import PipelinePair, promote
from oml_mlflow.errors import (
    ApplyError,
    InvalidName,
    PackageError,
    ParityError,
    RegistryError,
    TargetError,
)
from oml_mlflow.promotion.verify import trace_bytes, verify
from oml_mlflow.registry.versions import fetch_version, get_version, register_alias
from oml_mlflow.targets.embedded.target import EmbeddedTarget


@pytest.fixture(scope="module")
def two_versions(
    _migrated_database: Path,
    tiny_pair: PipelinePair,
    second_pair: PipelinePair,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store to copy: two versions of registered model `clip`; alias `prod` on the first."""
    folder = tmp_path_factory.mktemp("versions")
    shutil.copy(_migrated_database, folder / "mlflow.db")
    log_versions(folder, (tiny_pair, second_pair))
    with using(f"sqlite:///{folder / 'mlflow.db'}"):
        register_alias(get_version("models:/clip/1"), "prod")
    return folder


@pytest.fixture
def versions(
    mlflow_store: Path, two_versions: Path, tiny_pair: PipelinePair, second_pair: PipelinePair
) -> tuple[PipelinePair, PipelinePair]:
    copy_store(two_versions, mlflow_store)
    return tiny_pair, second_pair


@pytest.fixture
def target(tmp_path: Path) -> EmbeddedTarget:
    return EmbeddedTarget(tmp_path / "database", timeout_s=1)


def live(target: EmbeddedTarget) -> dict[str, str]:
    """Return fingerprints by model name, as the catalogue has them."""
    with target.session("a test", create=False) as session:
        return {model.name: model.fingerprint for model in session.models.list()}


def test_promote_by_alias_and_back(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    first, second = versions
    done = promote("models:/clip@prod", target)
    assert (done.changed, done.entry.generation, done.entry.version) == (True, 1, "1")
    assert done.report.ok
    assert len(done.report.rows) == 35  # 24 golden ones, 11 of the model
    text = "a photo of a cat"
    [(vector,)] = target.sql("SELECT CLIP_TXT(?)", [text])
    np.testing.assert_allclose(vector, first.embedder().embed_text([text])[0], atol=1e-6)

    register_alias(get_version("models:/clip/2"), "prod")
    done = promote("models:/clip@prod", target, accept_new_geometry=True)
    assert (done.entry.generation, done.entry.version) == (2, "2")
    [(vector,)] = target.sql("SELECT CLIP_TXT(?)", [text])
    np.testing.assert_allclose(vector, second.embedder().embed_text([text])[0], atol=1e-6)
    assert live(target) == {
        "CLIP_IMG": second.fingerprints["img"],
        "CLIP_TXT": second.fingerprints["txt"],
        "CLIP_IMG_S1": first.fingerprints["img"],
        "CLIP_TXT_S1": first.fingerprints["txt"],
    }

    events = []
    done = promote("models:/clip/1", target, accept_new_geometry=True, on_event=events.append)
    assert done.entry.generation == 3
    assert not [event for event in events if event.stage == "upload"]
    assert live(target)["CLIP_IMG"] == first.fingerprints["img"]
    assert set(live(target)) == {"CLIP_IMG", "CLIP_TXT", "CLIP_IMG_S2", "CLIP_TXT_S2"}
    with target.session("a test") as session:
        assert [(e.generation, e.version) for e in session.journal.ledger("clip")] == [
            (1, "1"),
            (2, "2"),
            (3, "1"),
        ]
        assert all(entry.parity["max_abs"] <= 1e-4 for entry in session.journal.ledger())


def test_promoting_what_is_live_writes_nothing(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    first = promote("models:/clip@prod", target)
    again = promote("models:/clip@prod", target)
    assert not again.changed
    assert again.entry == first.entry
    assert again.report.ok


def test_a_failed_comparison_leaves_the_old_pair_live(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget, tmp_path: Path
) -> None:
    promote("models:/clip/1", target)
    before = live(target)
    golden = fetch_version(get_version("models:/clip/2")) / "golden" / "pair-oracle-23.7.npz"
    vectors = dict(np.load(golden))
    vectors["png-portrait"] = vectors["png-portrait"] + np.float32(2e-4)
    np.savez(golden, **vectors)
    unanchor(2)  # else the manifest alone would refuse it
    with pytest.raises(ParityError, match=r"1 of 35 .* worst png-portrait .* as it was") as err:
        promote("models:/clip/2", target, accept_new_geometry=True)
    assert err.value.exit_code == 3
    assert live(target) == before
    assert verify("models:/clip/1", target).ok
    with target.session("a test") as session:
        assert [entry.version for entry in session.journal.ledger()] == ["1"]


def test_an_interrupted_promotion_leaves_the_old_pair_live(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    before = live(target)

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as err:
        promote("models:/clip/2", target, accept_new_geometry=True, on_event=interrupt)
    assert err.value.__cause__ is None
    assert live(target) == before
    again = promote("models:/clip/2", target, accept_new_geometry=True)
    assert again.entry.generation == 2


@pytest.mark.parametrize(
    ("cause", "error", "state"),
    [
        (OSError(28, "No space left on device"), TargetError, "What is live is as it was"),
        (RuntimeError("No space left in a listener"), ApplyError, "The live pair is as it was"),
    ],
)
def test_a_step_that_fails_is_reported_with_the_state_that_was_left(
    versions: tuple[PipelinePair, PipelinePair],
    target: EmbeddedTarget,
    cause: Exception,
    error: type[Exception],
    state: str,
) -> None:
    promote("models:/clip/1", target)
    before = live(target)

    def fail(event: object) -> None:
        raise cause

    with pytest.raises(error, match=f"No space left.* {state}"):
        promote("models:/clip/2", target, accept_new_geometry=True, on_event=fail)
    assert live(target) == before


def test_damaged_artifacts_are_not_loaded(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    [txt] = fetch_version(get_version("models:/clip/1")).glob("profiles/*/*_txt.onnx")
    with txt.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PackageError, match=r"not the files that were logged; changed: profiles/"):
        promote("models:/clip/1", target)
    assert not target.folder.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/clip@nobody", "no such version or alias"),
        ("models:/clip/9", "no such version or alias"),
        ("models:/nothing@prod", "no such registered model"),
        ("runs:/abc/clip", "names no model version"),
    ],
)
def test_a_version_that_is_not_there(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget, uri: str, message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        promote(uri, target)
    assert not target.folder.exists()


def test_an_illegal_export_name_is_refused_first(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    with pytest.raises(InvalidName, match="no legal export name"):
        promote("models:/clip/1", target, "my clip")
    assert not target.folder.exists()


def test_the_same_bytes_everywhere(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    first, _ = versions
    promote("models:/clip/1", target, "other_name")
    traces = trace_bytes("models:/clip/1", target, "other_name", [first.img, first.txt])
    assert len(traces) == 6
    assert all(trace.ok for trace in traces)
    assert {t.sha256 for t in traces} == set(first.fingerprints.values())
    stored = target.model_path(first.fingerprints["img"])
    shutil.copyfile(first.txt, stored)
    wrong = [t.place for t in trace_bytes("models:/clip/1", target, "other_name") if not t.ok]
    assert len(wrong) == 1
    assert wrong[0].endswith("OTHER_NAME_IMG")


def test_verify_sees_a_file_that_was_replaced(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    first, second = versions
    promote("models:/clip/1", target)
    shutil.copyfile(second.txt, target.model_path(first.fingerprints["txt"]))
    report = verify("models:/clip/1", EmbeddedTarget(target.folder))
    assert not report.ok
    assert {row.probe.side for row in report.rows if not row.ok} == {"txt"}


def test_download_folder_of_a_registry_is_not_changed(
    versions: tuple[PipelinePair, PipelinePair], target: EmbeddedTarget
) -> None:
    folder = fetch_version(get_version("models:/clip/1"))
    # MLflow itself rewrites registered_model_meta whenever it looks a version up
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "registered_model_meta"]
    before = {path: path.stat().st_mtime_ns for path in files}
    promote("models:/clip/1", target)
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert mlflow.MlflowClient().get_model_version("clip", "1").aliases == ["prod"]
