"""Files that were exchanged in the artifact store, against what the registry says of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from fleets import changed, live_versions, move, reconcile, states, two_targets, unanchor
from oracle_fixtures import Oracle

import oml_mlflow
from oml_mlflow import PipelinePair, dry_run, promote
from oml_mlflow.errors import PackageError
from oml_mlflow.flavor.save import SIGNATURE
from oml_mlflow.promotion.target import Target
from oml_mlflow.promotion.verify import trace_bytes, verify
from oml_mlflow.registry.versions import MANIFEST_TAG
from oml_mlflow.targets import open_target

Pairs = tuple[PipelinePair, ...]


@pytest.fixture(params=["embedded", "oracle"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "oracle":
        found: Target = request.getfixturevalue("oracle").target()
        return found
    return open_target(f"embedded:///{tmp_path / 'database'}")


def artifacts(version: int) -> Path:
    """Return the folder of the artifact store that holds a version's files."""
    found = mlflow.MlflowClient().get_model_version_download_uri("clip", str(version))
    if found.startswith("models:/m-"):
        model = mlflow.get_logged_model(found.removeprefix("models:/"))
        found = model.artifact_location
    return Path(found.removeprefix("file://"))


def exchange(version: int, by: int) -> None:
    """Put all files of one version, MLmodel too, in the place of another's."""
    shutil.rmtree(artifacts(version))
    shutil.copytree(artifacts(by), artifacts(version))


def live(target: Target) -> list[tuple[str, str]]:
    with target.session("look", create=False) as session:
        return sorted((model.name, model.fingerprint) for model in session.models.list())


def test_exchanged_files_are_refused_everywhere_and_named(versions: Pairs, target: Target) -> None:
    promote("models:/clip/1", target)
    before = live(target)
    exchange(2, by=3)
    ways: list[Callable[[], Any]] = [
        lambda: promote("models:/clip/2", target, accept_new_geometry=True),
        lambda: dry_run("models:/clip/2", target),
        lambda: verify("models:/clip/2", target),
        lambda: trace_bytes("models:/clip/2", target),
        lambda: oml_mlflow.load_model("models:/clip/2"),
        lambda: oml_mlflow.relog("models:/clip/2"),
    ]
    for way in ways:
        with pytest.raises(PackageError, match="not the files that were logged") as err:
            way()
        assert err.value.code == "package-corrupt"
        # one pair is called tiny_*, the other one clip_*
        for name in ("profiles/oracle-23.7/tiny_img.onnx", "profiles/oracle-23.7/clip_img.onnx"):
            assert name in err.value.message
        for name in ("MLmodel", "golden/pair-oracle-23.7.npz"):
            assert name in err.value.details["changed"]
    assert live(target) == before
    assert verify("models:/clip/1", target).ok


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("golden/png-small.png", "changed"),
        ("golden/pair-oracle-23.7.npz", "missing"),
        ("source/special_tokens_map.json", "added"),
        ("requirements.txt", "changed"),
    ],
)
def test_one_file_is_named(versions: Pairs, tmp_path: Path, name: str, word: str) -> None:
    path = artifacts(1) / name
    if word == "missing":
        path.unlink()
    else:
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n")
    with pytest.raises(PackageError, match=f"logged; {word}: {name}. The registry") as err:
        promote("models:/clip/1", open_target(f"embedded:///{tmp_path / 'database'}"))
    assert err.value.details[word] == [name]


def test_exchanged_code_is_seen_where_it_is_fetched(versions: Pairs, tmp_path: Path) -> None:
    """A database needs no code, and promoting fetches none, wherever the artifacts are."""
    code = artifacts(1) / "code" / "oml_mlflow" / "flavor" / "scoring.py"
    code.write_text("raise SystemExit('not ours')\n")
    assert promote("models:/clip/1", open_target(f"embedded:///{tmp_path / 'database'}")).report.ok
    for load in (oml_mlflow.load_model, oml_mlflow.relog):
        with pytest.raises(PackageError, match=r"changed: code\. "):
            load("models:/clip/1")


def test_what_mlflow_and_promotions_add_is_no_change(versions: Pairs) -> None:
    folder = artifacts(1)
    (folder / "oml_mlflow" / "dev").mkdir(parents=True)
    (folder / "oml_mlflow" / "dev" / "parity.csv").write_text("probe\n")
    (folder / "environment_variables.txt").write_text("# by MLflow\n")
    (folder / "code" / "oml_mlflow" / "__pycache__").mkdir(exist_ok=True)
    (folder / "code" / "oml_mlflow" / "__pycache__" / "names.cpython-310.pyc").write_bytes(b"\0")
    model_id = folder.parent.name
    mlflow.models.set_signature(f"models:/{model_id}", SIGNATURE)
    assert len(oml_mlflow.load_model("models:/clip/1").embed_text(["a cat"])) == 1


def test_every_uri_finds_its_manifest(mlflow_store: Path, tiny_pair: PipelinePair) -> None:
    with mlflow.start_run() as run:
        logged = oml_mlflow.log_model(tiny_pair, name="clip")
    mlflow.register_model(logged.model_uri, "clip")  # as from the UI: without tags
    client = mlflow.MlflowClient()
    client.copy_model_version("models:/clip/1", "copy")
    client.create_registered_model("clicked")  # as the UI's "Promote model" does
    client.create_model_version("clicked", "models:/clip/1")
    client.set_registered_model_alias("copy", "prod", "1")
    (artifacts(1) / "golden" / "probes.json").write_text("{}")
    uris = ["models:/clip/1", "models:/clip/latest", "models:/copy@prod", "models:/clicked/1"]
    for uri in [*uris, logged.model_uri, f"runs:/{run.info.run_id}/clip"]:
        with pytest.raises(PackageError, match=r"changed: golden/probes\.json"):
            oml_mlflow.load_model(uri)
    assert len(oml_mlflow.load_model(str(artifacts(1))).embed_text(["a cat"])) == 1


@pytest.mark.parametrize("value", ["", "0" * 64, "prod", "{}"])
def test_a_damaged_tag_is_no_missing_one(versions: Pairs, tmp_path: Path, value: str) -> None:
    mlflow.MlflowClient().set_model_version_tag("clip", "1", MANIFEST_TAG, value)
    with pytest.raises(PackageError, match=r"tag oml\.manifest of the version is damaged"):
        promote("models:/clip/1", open_target(f"embedded:///{tmp_path / 'database'}"))


def test_the_tag_is_as_sha256sum_writes_it(versions: Pairs) -> None:
    tags = mlflow.MlflowClient().get_model_version("clip", "1").tags
    assert len(tags[MANIFEST_TAG]) < 5000
    assert "  profiles/oracle-23.7/tiny_img.onnx\n" in tags[MANIFEST_TAG]
    listed = "".join(
        line
        for line in tags[MANIFEST_TAG].splitlines(keepends=True)
        if "  MLmodel" not in line and "  code" not in line
    )
    subprocess.run(["sha256sum", "-c"], input=listed, text=True, cwd=artifacts(1), check=True)
    assert tags["oml.code"] == oml_mlflow.__version__


def test_unanchored_is_said_and_not_refused(versions: Pairs, target: Target) -> None:
    unanchor(1)
    planned = dry_run("models:/clip/1", target)
    assert not planned.anchored
    assert planned.to_json()["anchored"] is False
    assert dry_run("models:/clip/2", target).anchored
    assert promote("models:/clip/1", target).report.ok
    exchanged = artifacts(1) / "profiles" / "oracle-23.7" / "tiny_img.onnx"
    exchanged.write_bytes(exchanged.read_bytes() + b"\0")
    with pytest.raises(PackageError, match="these are not the bytes that were logged"):
        verify("models:/clip/1", target)


def test_all_targets_refuse_remember_and_show_it(
    versions: Pairs, tmp_path: Path, oracle: Oracle
) -> None:
    config = two_targets(tmp_path, oracle)
    move(1)
    assert set(states(reconcile(config)).values()) == {"in sync"}
    kept = tmp_path / "kept"
    shutil.copytree(artifacts(2), kept)
    exchange(2, by=3)
    move(2)
    done = reconcile(config)
    assert {outcome.error.code for outcome in done.outcomes if outcome.error} == {"package-corrupt"}
    again = reconcile(config)
    assert not again.outcomes
    refused = [s for s in again.statuses if s.state == "degraded"]
    assert refused
    assert all("golden/pair-oracle-23.7.npz" in status.text for status in refused)
    assert live_versions(config) == {"small": "1", "big": "1"}
    shutil.rmtree(artifacts(2))
    shutil.copytree(kept, artifacts(2))
    from oml_mlflow.promotion.options import Options

    assert set(states(reconcile(config, options=Options(retry=True))).values()) == {"in sync"}
    assert live_versions(config) == {"small": "2", "big": "2"}


def test_status_and_page_say_unanchored(versions: Pairs, tmp_path: Path, oracle: Oracle) -> None:
    from oml_mlflow.reconciler.fleet import Fleet
    from oml_mlflow.reconciler.remarks import with_remarks

    config = changed(two_targets(tmp_path, oracle), "big", paused=True)
    unanchor(1)
    move(1)
    reconcile(config)
    page = mlflow.MlflowClient().get_model_version("clip", "1").description
    assert "; unanchored" in page
    shown = {s.target: s.remarks for s in with_remarks(Fleet(config).look()).statuses}
    assert shown["big"] == ()
    unanchored, code = shown["small"]
    assert unanchored.startswith("clip 1 is unanchored: the registry does not say")
    assert "before 0.2.0, which has known faults" in code
    assert "`oml-mlflow relog models:/clip/1`" in code
    move(2)
    [small] = [s for s in with_remarks(Fleet(config).look()).statuses if s.target == "small"]
    assert small.remarks == shown["small"]  # of what is live; of what is to be there is nothing
    reconcile(config)
    assert not any(s.remarks for s in with_remarks(Fleet(config).look()).statuses)
    assert "unanchored" not in mlflow.MlflowClient().get_model_version("clip", "2").description
