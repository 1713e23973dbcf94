from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run

import oml_mlflow
from oml_mlflow.pair.pipeline_pair import PipelinePair

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
CONFIG = """\
[targets.dev]
uri = "embedded:///database"
accept = [{ model = "clip", alias = "prod" }]

[targets.off]
uri = "embedded:///other"

[[bindings]]
model = "clip"
alias = "prod"
targets = [TARGETS]
"""


def run(project: str, **parameters: str) -> tuple[int, str, Run]:
    """Run a project as its user does; return exit status, what it printed, and its run."""
    given = [text for key, value in parameters.items() for text in ("-P", f"{key}={value}")]
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECTS / project)]
    done = subprocess.run(
        [*command, "--env-manager", "local", *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    [found, *_] = mlflow.MlflowClient().search_runs(["0"], order_by=["start_time DESC"])
    return done.returncode, done.stdout + done.stderr, found


def table(found: Run, name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = mlflow.load_table(name, run_ids=[found.info.run_id]).to_dict(
        "records"
    )
    return rows


def configure(*targets: str) -> None:
    text = CONFIG.replace("TARGETS", ", ".join(f'"{target}"' for target in targets))
    Path("oml_mlflow.toml").write_text(text, encoding="utf-8")


def test_promote_and_reconcile(mlflow_store: Path, tiny_pair: PipelinePair) -> None:
    oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="clip")
    configure("dev")
    status, said, found = run("promote", model_uri="models:/clip/1")
    assert status == 0, said
    assert "1 of 1  OK    CLIP on dev: clip 1 live (generation 1), verified" in said
    assert str(mlflow.MlflowClient().get_model_version_by_alias("clip", "prod").version) == "1"
    assert found.info.status == "FINISHED"
    assert found.data.tags["oml.outcome"] == "1 changed, 0 failed; 1 of 1 in sync"
    assert found.data.metrics == {"names": 1, "in_sync": 1, "changed": 1, "failed": 0}
    plan = json.loads(mlflow.artifacts.load_text(f"runs:/{found.info.run_id}/plan.json"))
    assert plan["summary"].startswith("Plan: 1 to promote")
    [row] = table(found, "standings.json")
    assert (row["target"], row["live"], row["state"]) == ("dev", "clip 1", "in sync")
    # the configuration's folder counts, not that of the project
    assert (mlflow_store / "database" / "catalog.duckdb").is_file()

    configure("dev", "off")
    status, said, found = run("reconcile", once="true")
    assert status == 1
    assert found.info.status == "FAILED"
    assert (found.data.tags["oml.exit_code"], found.data.metrics["in_sync"]) == ("1", 1), said
    assert {row["target"]: row["state"] for row in table(found, "standings.json")}["dev"] == (
        "in sync"
    )


def test_embed(mlflow_store: Path, tiny_pair: PipelinePair) -> None:
    oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="clip")
    (mlflow_store / "texts.csv").write_text("sku,caption\nx7,a cat\ny8,a dog\n")
    chosen = {"model_uri": "models:/clip/1", "column": "caption", "side": "txt", "id": "sku"}
    status, said, found = run("embed", source="texts.csv", **chosen)
    assert status == 0, said
    assert (found.data.metrics["rows"], found.data.metrics["missing"]) == (2, 0)
    # beside the source, not in the folder of the project
    written = pq.read_table(mlflow_store / "texts.vectors.parquet").to_pylist()
    assert [row["id"] for row in written] == ["x7", "y8"]
    wanted = tiny_pair.embedder().embed_text(["a cat", "a dog"])
    np.testing.assert_allclose([row["embedding"] for row in written], wanted, atol=1e-6)


def test_the_benchmark_s_figures_and_plots_are_logged(
    mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROJECTS / "benchmark"))
    monkeypatch.delitem(sys.modules, "main", raising=False)
    figures = {"0.3 MP, a second": {"host": 13.0, "host / limit": 0.95}}
    part = SimpleNamespace(measure=lambda cache, rounds: figures)
    monkeypatch.setitem(sys.modules, "columns", part)
    main = importlib.import_module("main").main
    assert main.main(["--cache", "x", "--only", "columns"], standalone_mode=False) is None
    [found] = mlflow.MlflowClient().search_runs(["0"])
    assert found.data.metrics == {
        "columns/0.3 MP a second/host": 13.0,
        "columns/0.3 MP a second/host / limit": 0.95,
    }
    files = {f.path for f in mlflow.MlflowClient().list_artifacts(found.info.run_id)}
    assert files == {"columns.json", "columns.png"}


@pytest.mark.parametrize("project", ["promote", "reconcile"])
def test_a_configuration_that_is_not_there_is_named(mlflow_store: Path, project: str) -> None:
    with pytest.raises(mlflow.exceptions.ExecutionException, match=r"oml_mlflow\.toml"):
        mlflow.projects.run(
            str(PROJECTS / project), env_manager="local", parameters={"model_uri": "models:/m/1"}
        )
