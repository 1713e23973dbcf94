# ruff: noqa: T201, S311 -- the counts belong in the log; steps are drawn by a fixed seed
"""What a kill drill counts, and what it demands of a database afterwards."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import killed

from oml_mlflow import promote, rollback
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.records import SWAPPING, WHOLE
from oml_mlflow.promotion.run import observe
from oml_mlflow.promotion.target import Target

SEED = 20261123
T = TypeVar("T")


@dataclass
class Drill:
    """Figures of a drill.

    Attributes:
        name: What is drilled.
        steps: How many steps it has.
        killed: How often the client was killed.
        crashed: How often the database crashed instead.
        pending: How often something was left for the next run.
        violations: How often anything was not as it must be.
    """

    name: str
    steps: int = 0
    killed: int = 0
    crashed: int = 0
    pending: int = 0
    violations: int = 0

    def blame(self, where: str, what: str) -> None:
        """Count a violation, and show it."""
        self.violations += 1
        print(f"violation: {self.name}, {where}: {what}")

    def show(self) -> None:
        print(
            f"\n{self.name}: {self.steps} steps, killed {self.killed} times, crashed "
            f"{self.crashed} times, {self.pending} left something pending, "
            f"{self.violations} violations"
        )


def drawn(every: Sequence[T], samples: int) -> list[T]:
    """Return some of a list, in order, the same ones each time."""
    chosen = random.Random(SEED).sample(range(len(every)), min(samples, len(every)))
    return [every[i] for i in sorted(chosen)]


def environment() -> tuple[tuple[str, str], ...]:
    """Return what a child must be told of MLflow and of passwords."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OML_MLFLOW_PASSWORD")
    return tuple((name, os.environ[name]) for name in names if name in os.environ)


def look(target: Target, name: str = "clip") -> Observed:
    """Return what a database has under a name."""
    with target.session("a look", create=False, missing_ok=True) as session:
        return observe(session, name)


def live_pair(found: Observed) -> dict[str, str | None]:
    """Return fingerprints under the live names."""
    models = found.models
    return {
        side: models[name].fingerprint if name in models else None
        for side, name in found.live_names.items()
    }


def judge(
    drill: Drill, where: str, found: Observed, old: dict[str, str], new: dict[str, str]
) -> bool:
    """Count a violation unless the live pair is of one version, or the ledger says what is up.

    Returns:
        Whether the live pair must be of one version: no swap is under way.
    """
    live, state = live_pair(found), found.state
    drill.pending += state.phase != WHOLE
    is_told = state.phase == SWAPPING and state.work is not None
    if live not in (old or {side: None for side in live}, new) and not is_told:
        drill.blame(where, f"live {live}, {state}")
    if state.phase != SWAPPING and not found.is_whole() and (old or state.generation):
        drill.blame(where, f"the ledger says {found.live}, and live is {live}")
    if state.phase == WHOLE and state.work is not None:
        drill.blame(where, f"whole, but with work: {state}")
    return state.phase != SWAPPING


def heal(job: killed.Job, target: Target, wanted: dict[str, str]) -> bool:
    """Run once more, as a user would; a rollback that is done is not run again.

    Returns:
        Whether it was run.
    """
    if job.action == "promote":
        promote(job.model_uri, target, job.name, accept_new_geometry=True)
        return True
    found = look(target, job.name)
    if found.state.phase == WHOLE and live_pair(found) == wanted:
        return False
    rollback(job.name, target, accept_new_geometry=True)
    return True


def judge_healed(drill: Drill, where: str, found: Observed, new: dict[str, str]) -> None:
    """Count a violation unless one version is live, and nothing pending."""
    if live_pair(found) != new or found.state.phase != WHOLE or not found.is_whole():
        drill.blame(where, f"not healed: {live_pair(found)}, {found.state}")
