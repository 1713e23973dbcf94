"""Evidence of a promotion, as artifacts: every probe as table, page and plot."""

from __future__ import annotations

import csv
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from oml_mlflow.ledger import now
from oml_mlflow.parity_page import to_html
from oml_mlflow.parity_plot import write_plot

if TYPE_CHECKING:
    from oml_mlflow.parity import ParityReport
    from oml_mlflow.writeback import Showing

_LOGGED_MODEL = re.compile(r"models:/(m-\w+)")
_VERSION = re.compile(r"models:/([^/@:]+)/(\d+)")
_HOPS = 8


def log_evidence(showing: Showing, report: ParityReport, folder: str, warnings: list[str]) -> str:
    """Log table, page and plot of a comparison; return where they are."""
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as made:
        _write_evidence(Path(made), showing, report)
        run_id, model_id = _homes(client, showing.model, showing.version)
        if run_id:
            client.log_artifacts(run_id, made, folder)
            return f"runs:/{run_id}/{folder}"
        if model_id:
            client.log_model_artifacts(model_id, made, folder)
            return f"models:/{model_id}/{folder}"
    warnings.append(
        f"the evidence of {showing.model} v{showing.version} is nowhere: it has no run and no "
        "logged model"
    )
    return ""


def _homes(client: mlflow.MlflowClient, model: str, version: str) -> tuple[str, str]:
    """Return run and logged model that a version came from, copied or not; empty if gone."""
    found = client.get_model_version(model, version)
    run_id = found.run_id or ""
    if run_id:
        try:
            run = client.get_run(run_id)
        except MlflowException:
            run_id = ""
        else:
            run_id = run_id if run.info.lifecycle_stage == LifecycleStage.ACTIVE else ""
    for _ in range(_HOPS):
        source = found.source or ""
        if logged := _LOGGED_MODEL.match(source):
            return run_id, logged[1]
        copied = _VERSION.fullmatch(source)
        if copied is None:
            break
        found = client.get_model_version(*copied.groups())
    return run_id, ""


def _write_evidence(folder: Path, showing: Showing, report: ParityReport) -> None:
    title = f"{showing.model} v{showing.version} as {showing.name} in {showing.target}"
    facts = {
        "Target": f"{showing.target} ({showing.uri})",
        "Models": f"{showing.name}_IMG, {showing.name}_TXT",
        "Version": f"{showing.model} v{showing.version}",
        "Compared": f"{now():%Y-%m-%d %H:%M} UTC",
    }
    rows = report.to_rows()
    with (folder / "parity.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    page = to_html(report, facts, subject=title)
    (folder / "parity.html").write_text(page, encoding="utf-8")
    write_plot(report, folder / "parity.png", title)
