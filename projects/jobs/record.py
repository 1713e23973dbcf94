"""What a pass over all targets came to, in the MLflow run that made it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

from oml_mlflow.cli import console
from oml_mlflow.cli.text import exit_code, outcome_line, show_statuses
from oml_mlflow.commands import operate
from oml_mlflow.commands.operate import DEFAULTS, Options
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.registry.answering import answering

if TYPE_CHECKING:
    from oml_mlflow.reconciler.loop import Pass


def configured(path: str) -> Config:
    """Return a configuration, and work in its folder: `mlflow run` works in the project's."""
    file = Path(path).resolve()
    os.chdir(file.parent)
    return load_config(file)


def recorded_apply(config: Config, models: Sequence[str], options: Options = DEFAULTS) -> int:
    """Log the plan, apply it, log and show how everything stands; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plan.json"
        operate.plan(models=models, out=path, options=options, config=config)
        with answering("the plan was not logged", state="No target was changed."):
            mlflow.log_artifact(str(path))
    found = operate.apply(models=models, options=options, config=config)
    for number, outcome in enumerate(found.outcomes, 1):
        console.say(outcome_line(f"{number} of {len(found.outcomes)}", outcome))
    show_statuses(f"Targets of {config.path}", found.statuses)
    return log_pass(found)


def log_pass(found: Pass, step: int = 0) -> int:
    """Log counts, statuses as rows of a table, and the exit code; return that."""
    failed = sum(outcome.error is not None for outcome in found.outcomes)
    counts = {
        "names": len(found.statuses),
        "in_sync": sum(status.is_in_sync for status in found.statuses),
        "changed": len(found.outcomes) - failed,
        "failed": failed,
    }
    columns = ("target", "name", "wanted", "live", "state", "text", "hint")
    rows = [
        (s.target, s.name, s.wanted, s.live.origin if s.live else "", s.state, s.text, s.hint)
        for s in found.statuses
    ]
    table = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    code = exit_code(found.outcomes, found.statuses)
    with answering("the pass was not logged", state=f"{_said(counts)}."):
        mlflow.log_metrics(dict(counts), step=step)
        mlflow.log_table({"pass": [step] * len(rows), **table}, "standings.json")
        mlflow.set_tags({"oml.exit_code": code, "oml.outcome": _said(counts)})
    return code


def _said(counts: dict[str, int]) -> str:
    return "{changed} changed, {failed} failed; {in_sync} of {names} in sync".format(**counts)
