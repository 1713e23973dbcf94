# ruff: noqa: T201, S311 -- the counts belong in the log; indices are drawn by a fixed seed
"""Killed before and after every step: the live pair is whole, or the ledger says what is up."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import killed
import pytest

import oml_mlflow
from oml_mlflow import PipelinePair, promote
from oml_mlflow.apply import observe
from oml_mlflow.ledger import SWAPPING, WHOLE
from oml_mlflow.rollback import rollback
from oml_mlflow.targets.embedded import EmbeddedTarget

SEED, SAMPLES = 20261123, 10


@dataclass
class Drill:
    """Figures of a drill."""

    name: str
    killed: int = 0
    pending: int = 0
    violations: int = 0

    def show(self) -> None:
        print(
            f"\n{self.name}: killed {self.killed} times, {self.pending} left something pending, "
            f"{self.violations} violations"
        )


@pytest.fixture
def two_versions(
    mlflow_store: Path, tiny_pair: PipelinePair, second_pair: PipelinePair
) -> tuple[PipelinePair, PipelinePair]:
    for pair in (tiny_pair, second_pair):
        oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    return tiny_pair, second_pair


def environment() -> tuple[tuple[str, str], ...]:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OML_MLFLOW_PASSWORD")
    return tuple((name, os.environ[name]) for name in names if name in os.environ)


def judge(drill: Drill, target: oml_mlflow.targets.base.Target, old: dict, new: dict) -> None:
    """Count a violation unless the live pair is of one version, or the ledger says what is up."""
    with target.session("a look", create=False) as session:
        found = observe(session, "CLIP")
    live = {
        side: found.models[name].fingerprint if name in found.models else None
        for side, name in found.live_names.items()
    }
    state = found.state
    drill.pending += state.phase != WHOLE
    is_told = state.phase == SWAPPING and state.work is not None
    if live not in (old, new) and not is_told:
        drill.violations += 1
        print(f"violation: live {live}, {state}")
    if state.phase != SWAPPING and not found.is_whole():
        drill.violations += 1
        print(f"violation: the ledger says otherwise: {found.live}, {live}")


def steps_of(total: int, exhaustive: bool) -> list[tuple[int, bool]]:
    every = [(step, before) for step in range(1, total + 1) for before in (True, False)]
    return every if exhaustive else sorted(random.Random(SEED).sample(every, SAMPLES))


def embedded_drill(
    action: str,
    pairs: tuple[PipelinePair, PipelinePair],
    folder: Path,
    exhaustive: bool,
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

    def attempt(kill_at: int, before: bool) -> int:
        shutil.rmtree(target.folder, ignore_errors=True)
        shutil.copytree(prepared.folder, target.folder)
        count = killed.counter()
        child = killed.start(killed.run_counting, job, kill_at, before, count)
        child.join(60)
        assert child.exitcode == (0 if kill_at == 0 else -9), child.exitcode
        return int(count.value)

    total = attempt(0, True)
    for step, before in steps_of(total, exhaustive):
        attempt(step, before)
        drill.killed += 1
        judge(drill, target, old, new)
        heal(action, target)
        with target.session("a look", create=False) as session:
            found = observe(session, "CLIP")
        healed = {side: found.models[n].fingerprint for side, n in found.live_names.items()}
        files = {path.name for path in (target.folder / "models").iterdir()}
        if healed != new or found.state.phase != WHOLE or not found.is_whole():
            drill.violations += 1
            print(f"violation: {action} killed at {step}, not healed: {healed}, {found.state}")
        if files != {f"{model.fingerprint}.onnx" for model in found.models.values()}:
            drill.violations += 1
            print(f"violation: {action} killed at {step}, files left: {files}")
    return drill


def heal(action: str, target: oml_mlflow.targets.base.Target) -> None:
    """Run once more, as a user would."""
    if action == "promote":
        promote("models:/clip/2", target, "clip", accept_new_geometry=True)
        return
    with target.session("a look", create=False) as session:
        found = observe(session, "CLIP")
    if found.live is not None and found.state.phase == WHOLE and found.live.version == "1":
        return
    if found.state.phase in (SWAPPING, "cleaning"):
        promote("models:/clip/1", target, "clip", accept_new_geometry=True)
    else:
        rollback(target, "clip", accept_new_geometry=True)


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_some_steps(
    two_versions: tuple[PipelinePair, PipelinePair], tmp_path: Path, action: str
) -> None:
    drill = embedded_drill(action, two_versions, tmp_path, exhaustive=False)
    drill.show()
    assert drill.violations == 0


@pytest.mark.drill
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_every_step(
    two_versions: tuple[PipelinePair, PipelinePair], tmp_path: Path, action: str
) -> None:
    drill = embedded_drill(action, two_versions, tmp_path, exhaustive=True)
    drill.show()
    assert drill.violations == 0
