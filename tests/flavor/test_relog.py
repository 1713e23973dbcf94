"""A new version of old bytes: what it takes over, what it brings, what it asks of a database."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from fleets import unanchor
from registry_copies import copy_store, using
from test_anchored import artifacts, live, target  # noqa: F401 -- a fixture

import oml_mlflow
from oml_mlflow import PipelinePair, promote
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import PackageError
from oml_mlflow.flavor.package import read_package
from oml_mlflow.promotion.target import Target
from oml_mlflow.targets import open_target

OLD_SCORING = '''"""Takes whatever comes."""
class PyfuncPair:
    def __init__(self, embedder):
        pass
    def predict(self, frame, params=None):
        return "old code took it"
'''
SERVED = (
    "import sys, mlflow, pandas\n"
    "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
    "print(model.predict(pandas.DataFrame({'text': [['no', 'text']]})))\n"
)


@pytest.fixture(scope="module")
def old_store(
    _migrated_database: Path, tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store to copy: `clip` 1 as an early release made it, other code and pins, no manifest."""
    store = tmp_path_factory.mktemp("early")
    shutil.copy(_migrated_database, store / "mlflow.db")
    extra = store / "notes.txt"
    extra.write_text("mine")
    (store / "helper").mkdir()
    (store / "helper" / "mine.py").write_text("MINE = 1\n")
    with pytest.MonkeyPatch.context() as patch, using(f"sqlite:///{store / 'mlflow.db'}"):
        patch.chdir(store)
        oml_mlflow.log_model(
            tiny_pair,
            name="clip",
            registered_model_name="clip",
            profiles=["oracle-23.7", "onnxruntime"],
            metadata={"owner": "me"},
            extra_files=[str(extra)],
            code_paths=["helper"],
            extra_pip_requirements=["requests>=2"],
        )
        folder = artifacts(1)
        unanchor(1)
    (folder / "code" / "oml_mlflow" / "flavor" / "scoring.py").write_text(OLD_SCORING)
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    mlmodel["flavors"]["oml_mlflow"]["oml_mlflow_version"] = "0.1.0"
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    pins = (folder / "requirements.txt").read_text()
    (folder / "requirements.txt").write_text(pins.replace("pillow==", "pillow==1."))
    return store


@pytest.fixture
def old_version(mlflow_store: Path, old_store: Path) -> Path:
    """Files of version 1 in a copy of `old_store`."""
    copy_store(old_store, mlflow_store)
    return artifacts(1)


def files(folder: Path, *parts: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in parts
        for path in (folder / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def served(folder: Path) -> subprocess.CompletedProcess[str]:
    """Predict with the code that a model carries, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", SERVED, str(folder)], capture_output=True, text=True, check=False
    )


def test_bytes_and_evidence_are_taken_over_and_code_is_new(
    old_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_to_be_run(*_arguments: Any) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr("onnxruntime.InferenceSession", not_to_be_run)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    info = oml_mlflow.relog("models:/clip/1")
    monkeypatch.undo()
    assert str(info.registered_model_version) == "2"
    new = artifacts(2)
    kept = ("profiles", "golden", "source", "extra_files", "code/helper")
    assert files(new, *kept) == files(old_version, *kept)
    package = Path(oml_mlflow.__file__).parent
    assert files(new / "code" / "oml_mlflow", ".") == files(package, ".")
    old, made = (yaml.safe_load((folder / "MLmodel").read_text()) for folder in (old_version, new))
    for key in ("signature", "metadata", "saved_input_example_info"):
        assert made[key] == old[key]
    section = {**old["flavors"]["oml_mlflow"], "oml_mlflow_version": oml_mlflow.__version__}
    assert made["flavors"]["oml_mlflow"] == section
    lines = (new / "requirements.txt").read_text().splitlines()
    assert {*oml_mlflow.get_default_pip_requirements(), "requests>=2"} < set(lines)
    assert len(lines) == len({line.split("=")[0] for line in lines})

    client = mlflow.MlflowClient()
    one, two = (client.get_model_version("clip", version) for version in ("1", "2"))
    manifest = two.tags.pop("oml.manifest")
    assert "  profiles/oracle-23.7/tiny_img.onnx\n" in manifest
    assert two.tags == {**one.tags, "oml.code": oml_mlflow.__version__, "oml.relogged": "1"}
    assert two.description.startswith(one.description.rstrip())
    assert "Relogged from version 1 with oml_mlflow" in two.description


def test_it_is_promoted_without_embedding_anything_again(
    old_version: Path,
    target: Target,  # noqa: F811 -- the fixture
    tiny_pair: PipelinePair,
) -> None:
    first = promote("models:/clip/1", target)
    before = {name: sha for name, sha in live(target) if name in ("CLIP_IMG", "CLIP_TXT")}
    with target.session("embed", create=False) as session:
        vector = session.models.embed("CLIP_TXT", "txt", ["a cat"])
    oml_mlflow.relog("models:/clip/1")
    second = promote("models:/clip/2", target)
    assert second.changed
    assert second.report.ok
    assert second.entry.geometry == first.entry.geometry
    assert second.entry.fingerprints == first.entry.fingerprints
    assert {name: sha for name, sha in live(target) if name in before} == before
    with target.session("embed", create=False) as session:
        assert np.array_equal(session.models.embed("CLIP_TXT", "txt", ["a cat"]), vector)


def test_stored_vectors_stay(old_version: Path, tmp_path: Path) -> None:
    database = open_target(f"embedded:///{tmp_path / 'database'}")
    promote("models:/clip/1", database)
    database.sql("CREATE TABLE texts AS SELECT 'a cat' AS caption, CLIP_TXT('a cat') AS vector")
    stored = database.sql("SELECT vector FROM texts")
    oml_mlflow.relog("models:/clip/1")
    promote("models:/clip/2", database)
    assert str(database.sql("SELECT vector FROM texts")) == str(stored)
    found = database.sql("SELECT array_cosine_distance(vector, CLIP_TXT('a cat')) FROM texts")
    assert "0.0" in str(found)


def test_it_is_served_with_todays_code(old_version: Path) -> None:
    assert "old code took it" in served(old_version).stdout
    oml_mlflow.relog("models:/clip/1")
    done = served(artifacts(2))
    assert done.returncode
    assert "row 0" in done.stderr
    assert "old code took it" not in done.stdout


def test_relogged_once_more_it_is_checked(old_version: Path) -> None:
    oml_mlflow.relog("models:/clip/1")
    oml_mlflow.relog("models:/clip/2")
    assert files(artifacts(3), "profiles", "golden") == files(old_version, "profiles", "golden")
    description = mlflow.MlflowClient().get_model_version("clip", "3").description
    assert description.endswith("Relogged from version 2 with oml_mlflow 0.2.0.\n")
    (artifacts(2) / "golden" / "probes.json").write_text("{}")
    with pytest.raises(PackageError, match=r"changed: golden/probes\.json"):
        oml_mlflow.relog("models:/clip/2")


def test_damaged_files_of_an_old_version_are_not_relogged(old_version: Path) -> None:
    path = old_version / "profiles" / "oracle-23.7" / "tiny_img.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PackageError, match="not the bytes that were logged"):
        oml_mlflow.relog("models:/clip/1")
    assert len(mlflow.search_model_versions(filter_string="name = 'clip'")) == 1


def test_with_a_package_index_the_pin_is_new(mlflow_store: Path, tiny_pair: PipelinePair) -> None:
    index = "https://pypi.example.com/simple"
    oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="clip", package_index=index)
    path = artifacts(1) / "requirements.txt"
    pin = f"oml-mlflow=={oml_mlflow.__version__}"
    path.write_text(path.read_text().replace(pin, "oml-mlflow==0.1.0"))
    unanchor(1)
    oml_mlflow.relog("models:/clip/1")
    assert not (artifacts(2) / "code").exists()
    lines = (artifacts(2) / "requirements.txt").read_text().splitlines()
    assert lines[:2] == [f"--extra-index-url {index}", f"oml-mlflow=={oml_mlflow.__version__}"]
    assert read_package(artifacts(2)).stored_profiles == ("oracle-23.7",)


def test_command_line(old_version: Path) -> None:
    done = CliRunner().invoke(cli, ["relog", "models:/clip/1"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "models:/clip/1 was unanchored" in said
    assert "registered models:/clip/2" in said
    done = CliRunner().invoke(cli, ["relog", "models:/clip/2", "--json"])
    found = json.loads(done.stdout)
    assert found == {
        "source": "models:/clip/2",
        "anchored": True,
        "version": "models:/clip/3",
        "format_version": 1,
    }
