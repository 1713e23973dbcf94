from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from in_process import Run
from oracle_fixtures import PASSWORD, Oracle

from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.targets.embedded.target import EmbeddedTarget

FILE = """
target = "dev"
poll_s = 0.2
[targets.dev]
uri = "embedded:///database"
accept = [{{ model = "clip*", alias = "prod", name = "CLIP" }}]
[targets.prod]
uri = "{uri}"
accept = [{{ model = "clip*", alias = "prod" }}]
after = ["dev"]
[[bindings]]
model = "clip"
alias = "prod"
targets = ["dev", "prod"]
"""


@pytest.fixture
def two(versions: tuple[PipelinePair, ...], oracle: Oracle) -> Path:
    """Three versions of `clip`, and two targets that follow its alias prod; give the file."""
    path = Path("oml_mlflow.toml")
    path.write_text(FILE.format(uri=oracle.uri))
    return path


def point(version: str) -> None:
    mlflow.MlflowClient().set_registered_model_alias("clip", "prod", version)


def live(run: Run) -> dict[str, str]:
    found = json.loads(run("status", "--json"))["standings"]
    return {s["target"]: s["live"]["version"] if s["live"] else "" for s in found}


def test_two_targets_follow_an_alias(two: Path, run: Run) -> None:
    assert "clip has no alias prod; what is live stays" in run("plan", "--detailed-exitcode")
    point("1")
    shown = run("plan", "--detailed-exitcode", "--out", "plan.json", code=2)
    assert "promote CLIP on dev: nothing → clip 1 (clip@prod)" in shown
    assert "waits until dev has it, verified" in shown
    assert "Plan: 1 to promote, 0 to heal, 0 to finish, 0 to drop. 1 more once" in shown
    assert live(run) == {"dev": "", "prod": ""}
    assert json.loads(Path("plan.json").read_text())["format_version"] == 1
    assert "Give --yes" in run("apply", code=64)
    assert "give no other options" in run("apply", "plan.json", "--retry", code=64)

    shown = run("apply", "plan.json")
    assert "1 of 2  OK    CLIP on dev: clip 1 live (generation 1), verified, in" in shown
    assert "2 of 2  OK    CLIP on prod: clip 1 live (generation 1), verified, in" in shown
    assert "2 changed, 0 failed; 2 of 2 in sync." in shown
    assert "error[plan-stale]" in run("apply", "plan.json", code=75)
    assert "Nothing to do." in run("plan", "--detailed-exitcode")
    assert "2 of 2 in sync." in run("status")
    assert "Nothing to do." in run("apply")
    assert "Live in embedded:///" in run("models", "--target", "dev")
    assert "clip 1" in run("history", "--target", "prod")
    shown = run("verify")
    assert "1  OK    CLIP on dev: clip 1 (generation 1), 35 ok" in shown
    assert "CLIP on prod" in shown
    assert json.loads(run("verify", "--target", "prod", "--json"))["ok"]

    point("2")
    one = json.loads(run("plan", "--json", "--target", "prod"))
    assert {s["target"] for s in one["standings"]} == {"prod"}
    document = json.loads(run("apply", "--yes", "--json"))
    assert [o["live"]["version"] for o in document["outcomes"]] == ["2", "2"]
    shown = run("rollback", "CLIP", "--target", "prod")
    told = "clip@prod goes from 2 to 1; with it go CLIP on dev, CLIP on prod."
    assert shown.startswith(told)
    assert "2 changed, 0 failed; 2 of 2 in sync." in shown
    ledger = json.loads(run("history", "clip", "--target", "prod", "--json"))["ledger"]
    assert [(e["action"], e["restores"]) for e in ledger][-1] == ("rollback", 1)
    assert "went back already" in run("rollback", "CLIP", "--target", "prod", code=1)
    assert live(run) == {"dev": "1", "prod": "1"}
    assert mlflow.MlflowClient().get_model_version_by_alias("clip", "prod").version == 1


def test_what_is_pinned_stays(two: Path, run: Run) -> None:
    point("1")
    run("apply", "--yes")
    assert "CLIP on dev is pinned." in run("pin", "clip", "--reason", "sale week")
    point("2")
    shown = run("apply", "--yes", "--target", "dev")
    assert "pinned by" in shown
    assert "sale week" in shown
    assert "oml-mlflow unpin CLIP --target dev" in run("status")
    assert live(run) == {"dev": "1", "prod": "1"}
    assert "follows its alias again" in run("unpin", "CLIP")
    assert "was not pinned" in run("unpin", "CLIP")
    run("apply", "--yes")
    assert live(run) == {"dev": "2", "prod": "2"}
    shown = run("rollback", "CLIP", "--pin", "--reason", "colours")
    assert "CLIP on dev is pinned." in shown
    assert live(run) == {"dev": "1", "prod": "2"}
    assert "name-pinned" in run("promote", "models:/clip/2", code=1)
    assert "binding-refused" in run("promote", "models:/clip/3", "--target", "prod", code=1)
    run("promote", "models:/clip/2", "--pin")
    assert live(run) == {"dev": "2", "prod": "2"}


def test_what_was_changed_behind_our_back_is_named(two: Path, run: Run) -> None:
    point("1")
    run("apply", "--yes")
    assert "0 changes outside this package in 2 of 2 targets." in run("status", "--drift")
    database = EmbeddedTarget("database")
    database.sql("DELETE FROM oml.models WHERE name = 'CLIP_TXT'")
    shown = run("status", "--drift", code=3)
    assert "CLIP_TXT was dropped" in shown
    assert "oml-mlflow apply --heal" in shown
    drifted = json.loads(
        run("status", "--drift", "--json", code=3).partition("\n}\n")[0] + "\n}\n"
    )["drift"]
    assert [(d["target"], d["name"]) for d in drifted] == [("dev", "CLIP")]
    assert "CLIP degraded: CLIP_TXT was dropped" in run("apply", code=1)
    assert "OK" in run("apply", "--heal", "--yes")
    assert "0 changes" in run("status", "--drift")


def test_a_target_that_is_down_is_said(two: Path, run: Run) -> None:
    two.write_text(FILE.format(uri="oracle://vec@127.0.0.1:9/none?connect_timeout=1"))
    point("1")
    for verb in (("plan",), ("plan", "--detailed-exitcode"), ("status",)):
        assert "0 of 2 in sync, 1 out of sync, 1 unreachable." in run(*verb, code=75)
    assert "Not known: prod." in run("plan", code=75)
    shown = run("apply", "--yes", code=75)
    assert "CLIP on dev: clip 1 live" in shown
    assert "CLIP on prod unreachable" in shown
    EmbeddedTarget("database").sql("DELETE FROM oml.models WHERE name = 'CLIP_TXT'")
    for verb in ("plan", "status"):  # whatever else needs attention
        assert "0 of 2 in sync, 1 degraded, 1 unreachable." in run(verb, code=75)
    run("apply", "--heal", "--yes", code=75)
    assert "prod was not checked" in run("status", "--drift", code=75)
    assert "FAIL" in run("verify", code=75)


def test_a_failed_combination_is_tried_again_only_on_request(two: Path, run: Run) -> None:
    point("1")
    artifacts = sorted(Path("mlruns").rglob("*_txt.onnx"))
    assert artifacts
    for path in artifacts:
        path.write_bytes(path.read_bytes() + b"\0")
    shown = run("apply", "--yes", code=1)
    assert "FAIL  CLIP on dev: [package-corrupt]" in shown
    assert "Next: " in shown
    shown = run("apply", "--yes", code=1)
    assert "--retry" in shown
    assert "FAIL" in run("apply", "--yes", "--retry", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("plan",), 1, "there are no targets in oml_mlflow.toml"),
        (("apply", "--yes"), 1, "there are no targets"),
        (("apply", "--watch", "--json"), 64, "writes lines"),
        (("promote", "models:/clip/1", "--sql", "--pin"), 64, "--dry-run and --sql take only"),
        (("verify", "--html", "x"), 64, "one NAME"),
        (("verify", "--bytes"), 64, "one NAME"),
        (("apply", "broken.json"), 1, "is no plan"),
        (("status", "--config", "none.toml"), 1, "none.toml can't be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    mlflow_store: Path, run: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    Path("broken.json").write_text('{"format_version": "0.1"}')
    assert said in run(*arguments, code=code)


def test_watching_ends_after_the_pass_that_is_under_way(two: Path) -> None:
    point("1")
    program = "from oml_mlflow.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "apply", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert "1 of 2  OK    CLIP on dev" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopping after this pass" in err


def test_config_show_says_where_from_and_masks(
    mlflow_store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Path("oml_mlflow.toml")
    two.write_text(FILE.format(uri="oracle://app@db1:1521/FREEPDB1?password_env=PROD_PW"))
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    monkeypatch.setenv("OML_MLFLOW_POLL_S", "7")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://me:{PASSWORD}@host")
    shown = json.loads(run("config", "show", "--json"))
    values = {v["key"]: (v["value"], v["origin"]) for v in shown["values"]}
    assert values["poll_s"] == ("7.0", "environment OML_MLFLOW_POLL_S")
    assert values["targets.dev.uri"] == ("embedded:///database", f"file {two.absolute()}")
    assert values["registry"][0] == "http://***@host"
    assert {"variable": "OML_MLFLOW_PASSWORD", "is_set": True} in shown["secrets"]
    assert {"variable": "PROD_PW", "is_set": False} in shown["secrets"]
    assert [b["counts"] for b in shown["bindings"]] == [True, True]
    two.write_text(two.read_text().replace('alias = "prod"\ntargets', 'alias = "dev"\ntargets'))
    shown = run("config", "show")
    assert "target dev does not accept clip@dev as CLIP" in shown
