"""Killed before and after every step: the live pair is whole, or the ledger says what is up."""

from __future__ import annotations

from pathlib import Path

import killed
import pytest
from drilled import Drill, drawn, environment, heal, judge, judge_healed, look

import oml_mlflow
from oml_mlflow import PipelinePair, promote
from oml_mlflow.targets.embedded.target import EmbeddedTarget

SAMPLES = 10


@pytest.fixture
def two_versions(
    mlflow_store: Path, tiny_pair: PipelinePair, second_pair: PipelinePair
) -> tuple[PipelinePair, PipelinePair]:
    for pair in (tiny_pair, second_pair):
        oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    return tiny_pair, second_pair


def embedded_drill(
    action: str, pairs: tuple[PipelinePair, PipelinePair], folder: Path, samples: int | None
) -> Drill:
    prepared = EmbeddedTarget(folder / "prepared")
    promote("models:/clip/1", prepared, "clip")
    old, new = (pair.fingerprints for pair in pairs)
    if action == "rollback":
        promote("models:/clip/2", prepared, "clip", accept_new_geometry=True)
        old, new = new, old
    drill = Drill(f"{action}, embedded")
    target = EmbeddedTarget(folder / "database")
    job = killed.Job(action, target.uri, "models:/clip/2", "clip", environment())

    drill.steps = killed.attempt(job, prepared.folder, 0, True)
    every = killed.every_step(drill.steps)
    for step, before in every if samples is None else drawn(every, samples):
        where = f"killed {'before' if before else 'after'} step {step}"
        killed.attempt(job, prepared.folder, step, before)
        drill.killed += 1
        judge(drill, where, look(target), old, new)
        heal(job, target, new)
        found = look(target)
        judge_healed(drill, where, found, new)
        files = {path.name for path in (target.folder / "models").iterdir()}
        if files != {f"{model.fingerprint}.onnx" for model in found.models.values()}:
            drill.blame(where, f"files left: {files}")
    drill.show()
    return drill


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_some_steps(
    two_versions: tuple[PipelinePair, PipelinePair], tmp_path: Path, action: str
) -> None:
    drill = embedded_drill(action, two_versions, tmp_path, SAMPLES)
    assert (drill.killed, drill.violations) == (SAMPLES, 0)


@pytest.mark.drill
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_every_step(
    two_versions: tuple[PipelinePair, PipelinePair], tmp_path: Path, action: str
) -> None:
    drill = embedded_drill(action, two_versions, tmp_path, None)
    assert (drill.killed, drill.violations) == (2 * drill.steps, 0)
