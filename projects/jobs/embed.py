"""Embed a folder's pictures or a column of a table, and log how it went."""

from __future__ import annotations

import time
from pathlib import Path

import click
import mlflow

from oml_mlflow.cli import console
from oml_mlflow.commands.embed import embed
from oml_mlflow.registry.answering import answering, started_run


@click.command()
@click.option("--source", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--model-uri", required=True, help="Version, such as models:/clip@prod.")
@click.option("--output", default="", help="File; SOURCE.vectors.parquet beside it by default.")
@click.option("--column", default="", help="Column to embed; image or text by default.")
@click.option("--side", default="", help="img or txt, if the column is called otherwise.")
@click.option("--id", "id_column", default="", help="Column that names the rows.")
def main(source: Path, model_uri: str, output: str, column: str, side: str, id_column: str) -> None:
    """Embed a folder's pictures or a column of a table, and log how it went."""
    path = source.parent / (output or f"{source.stem}.vectors.parquet")
    with started_run(f"embed {source.name}"):
        begun = time.monotonic()
        with console.progress() as listener:
            done = embed(
                source,
                path,
                model_uri,
                column=column,
                side=side,
                id_column=id_column,
                on_event=listener,
            )
        seconds = time.monotonic() - begun
        with answering("the run was not logged", state=f"{path} is written."):
            mlflow.set_tag("oml.embedded", str(path))
            mlflow.log_metrics(
                {
                    "rows": done.rows,
                    "missing": done.missing,
                    "rows_per_second": (done.rows - done.done_before) / seconds,
                }
            )
    for reason in done.reasons:
        console.err.print(f"not embedded: {reason}", markup=False)
    console.say(f"{path}: {done.rows:,} rows, {done.missing:,} without a vector.")


if __name__ == "__main__":
    console.run(main)
