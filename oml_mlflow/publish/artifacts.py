"""Log a comparison among a version's artifacts: table, page and plot."""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from oml_mlflow.parity.page import to_html
from oml_mlflow.parity.plot import write_plot
from oml_mlflow.parity.report import ParityReport

_LOGGED_MODEL = re.compile(r"models:/(m-\w+)")
_VERSION = re.compile(r"models:/([^/@:]+)/(\d+)")
# how many copies of copies are followed to the original
_COPIES = 8


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
        run_id, model_id = _homes(client, model, version)
        if run_id:
            client.log_artifacts(run_id, made, folder)
            return f"runs:/{run_id}/{folder}"
        if model_id:
            client.log_model_artifacts(model_id, made, folder)
            return f"models:/{model_id}/{folder}"
    return ""


def _homes(client: mlflow.MlflowClient, model: str, version: str) -> tuple[str, str]:
    """Return ids of a version's run and logged model, or its original's; empty if deleted."""
    found = client.get_model_version(model, version)
    run_id = found.run_id or ""
    if run_id:
        try:
            run = client.get_run(run_id)
        except MlflowException:
            run_id = ""
        else:
            run_id = run_id if run.info.lifecycle_stage == LifecycleStage.ACTIVE else ""
    for _ in range(_COPIES):
        source = found.source or ""
        if logged := _LOGGED_MODEL.match(source):
            return run_id, logged[1]
        copied = _VERSION.fullmatch(source)
        if copied is None:
            break
        found = client.get_model_version(*copied.groups())
    return run_id, ""


def _write(folder: Path, report: ParityReport, title: str, facts: Mapping[str, str]) -> None:
    rows = report.to_rows()
    with (folder / "parity.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    page = to_html(report, dict(facts), subject=title)
    (folder / "parity.html").write_text(page, encoding="utf-8")
    write_plot(report, folder / "parity.png", title)
