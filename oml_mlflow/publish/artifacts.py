"""Log a comparison among a version's artifacts: table, page and plot."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import LifecycleStage

from oml_mlflow.parity.page import to_html
from oml_mlflow.parity.plot import write_plot
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.registry.versions import ModelVersion, find, get_version, originals


def log_parity(
    report: ParityReport,
    model: str,
    version: str,
    folder: str,
    title: str,
    facts: Mapping[str, str],
) -> str:
    """Log a comparison into a folder of a version's run, or else of its logged model.

    Page and plot have a title; the page also shows the facts, by name.

    Returns:
        URI of the artifacts; empty if the version has neither.

    Side effects: Writes artifacts.
    """
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as made:
        _write(Path(made), report, title, facts)
        run_id, model_id = _homes(get_version(f"models:/{model}/{version}"))
        if run_id:
            client.log_artifacts(run_id, made, folder)
            return f"runs:/{run_id}/{folder}"
        if model_id:
            client.log_model_artifacts(model_id, made, folder)
            return f"models:/{model_id}/{folder}"
    return ""


def _homes(version: ModelVersion) -> tuple[str, str]:
    """Return ids of a version's run and logged model, or its original's; empty if deleted."""
    run_id = version.run_id
    run = find(lambda client: client.get_run(run_id), f"run {run_id}") if run_id else None
    is_there = run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE
    logged = (each.logged_model for each in originals(version) if each.logged_model)
    return run_id if is_there else "", next(logged, "")


def _write(folder: Path, report: ParityReport, title: str, facts: Mapping[str, str]) -> None:
    rows = report.to_rows()
    with (folder / "parity.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    page = to_html(report, dict(facts), subject=title)
    (folder / "parity.html").write_text(page, encoding="utf-8")
    write_plot(report, folder / "parity.png", title)
