"""Export a CLIP model as a pair, log it to MLflow and register it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import oml_mlflow
from oml_mlflow.cli import console
from oml_mlflow.events import Listener
from oml_mlflow.registry.answering import started_run
from oml_mlflow.registry.versions import ModelVersion, get_version, register_alias

DEMO = Path(__file__).resolve().parents[1] / "demo_model" / "demo"


def export_and_log(
    model: str, name: str, alias: str, output_dir: str, listener: Listener
) -> tuple[ModelVersion, oml_mlflow.PipelinePair]:
    """Export, log, register, and point the alias; return the version and the pair.

    Args:
        model: Hub id, folder, or ``demo``.
        name: Export name, and name of the registered model.
        alias: Alias to set; none if empty.
        output_dir: Folder for the two files.
        listener: Told of progress.
    """
    pipeline = oml_mlflow.ONNXPipeline(str(DEMO) if model == "demo" else model)
    pair = pipeline.export2file(name, output_dir, on_event=listener)
    info = oml_mlflow.log_model(pair, name=name, registered_model_name=name, on_event=listener)
    version = get_version(f"models:/{name}/{info.registered_model_version}")
    if alias:
        register_alias(version, alias)
    return version, pair


@click.command()
@click.option("--model", default="demo", help="Hub id, folder, or demo.")
@click.option("--name", default="clip", help="Export name, and name of the registered model.")
@click.option("--alias", default="", help="Alias to point to the new version.")
@click.option("--output-dir", default="", help="Folder to keep the two files in.")
def main(model: str, name: str, alias: str, output_dir: str) -> None:
    """Export a CLIP model as a pair, log it to MLflow and register it."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        started_run(),
        console.progress() as listener,
    ):
        version, pair = export_and_log(model, name, alias, output_dir or scratch, listener)
    rows = list(pair.fingerprints.items())
    console.show_table(f"Registered {version.uri}", ("side", "sha256"), rows)


if __name__ == "__main__":
    console.run(main)
