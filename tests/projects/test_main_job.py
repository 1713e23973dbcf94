from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml
from PIL import Image

from oml_mlflow.cli.main import cli
from oml_mlflow.commands.columns import columns
from oml_mlflow.targets.embedded.target import EmbeddedTarget

ROOT = Path(__file__).resolve().parents[2]


def run_project(store: Path, entry: str, **parameters: str) -> str:
    """Run an entry point of this repository as `mlflow run` does; return what it printed."""
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry]
    command += ["--env-manager", "local"]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=store, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the main job in this process, which has imported everything; returns what it printed."""
    monkeypatch.syspath_prepend(str(ROOT / "projects" / "jobs"))

    def run(**parameters: str) -> str:
        job = runpy.run_path(str(ROOT / "projects" / "jobs" / "main.py"))["main"]
        given = [part for name, value in parameters.items() for part in (f"--{name}", value)]
        job.main(given, standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_main_job_ends_in_a_search_result(mlflow_store: Path, run_here: Callable[..., str]) -> None:
    target = f"embedded:///{mlflow_store}/database"
    printed = run_project(mlflow_store, "main", target=target)
    assert "Searched in SQL" in printed
    assert printed.count("equal") == 6

    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("clip", "prod")
    run = client.get_run(version.run_id)
    assert run.data.metrics["recall_at_1/text_to_image"] >= 0.90
    assert run.data.metrics["recall_at_1/image_to_image"] >= 0.90
    picture = Image.open(
        mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="search.png")
    )
    assert min(picture.size) >= 800
    assert "`demo`" in version.description

    # again: a second version takes over, nothing stands in the way
    run_here(target=target)
    assert client.get_model_version_by_alias("clip", "prod").version in (2, "2")
    found = run_project(mlflow_store, "search", query="three small red stars", target=target)
    assert "Nearest to three small red stars" in found
    promoted = run_project(mlflow_store, "promote", model_uri="models:/clip/1", target=target)
    assert "is now clip version 1 (generation 3)" in promoted


def test_main_job_takes_a_folder_of_pictures(
    mlflow_store: Path, tiny_folder: Path, run_here: Callable[..., str]
) -> None:
    pictures = mlflow_store / "pictures"
    pictures.mkdir()
    for name, colour in (("a red wall", "red"), ("the_sky", "blue")):
        Image.new("RGB", (90, 60), colour).save(pictures / f"{name}.jpg")
    target = EmbeddedTarget(mlflow_store / "database")
    given = {"model": str(tiny_folder), "target": target.uri, "pictures": str(pictures)}
    printed = run_here(name="own", **given)
    assert "the sky" in printed
    assert "recall" not in printed
    # another name has a table of its own, and claims no column of the first
    run_here(name="other", **given)
    for name in ("own", "other"):
        count = f"SELECT count(embedding) FROM gallery.{name}"  # noqa: S608
        assert target.sql(count) == [(2,)]
        [column] = columns(name, target)
        assert (column.name, column.key) == (f"gallery.{name}.embedding", "id")


def test_export_project_keeps_the_files(mlflow_store: Path) -> None:
    printed = run_project(mlflow_store, "export", name="kept", output_dir=str(mlflow_store / "out"))
    assert "Registered models:/kept/1" in printed
    assert sorted(p.name for p in (mlflow_store / "out").iterdir()) == [
        "kept_img.onnx",
        "kept_txt.onnx",
    ]


@pytest.mark.parametrize("path", sorted(ROOT.glob("**/MLproject")), ids=lambda p: p.parent.name)
def test_only_what_is_read_is_a_path_of_the_callers_folder(path: Path) -> None:
    project = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in project["entry_points"].values():
        for name, parameter in entry["parameters"].items():
            kind = parameter if isinstance(parameter, str) else parameter["type"]
            known = {("config", "path"), ("source", "path")}
            assert kind in ("string", "float", "int") or (name, kind) in known


def test_readme_is_short_and_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for name in cli.commands:
        assert f"oml-mlflow {name}" in text
    for line in text.splitlines():
        if "](projects/" in line:
            shown = line.split("](", 1)[1].split(")", 1)[0]
            assert (ROOT / shown).exists(), shown
