"""Search the gallery in SQL: a text, or a picture file, as the query."""

from __future__ import annotations

from pathlib import Path

import click
import gallery
import mlflow
from grid import result_grid

from oml_mlflow import open_target
from oml_mlflow.cli import console
from oml_mlflow.registry.answering import answering, started_run


@click.command()
@click.option("--query", required=True, help="A text, or the path of a picture.")
@click.option("--name", default="clip", help="Export name of the live pair.")
@click.option("--target", default="embedded:///database", help="Embedded database.")
@click.option("--count", default=5, help="How many pictures to find.")
def main(query: str, name: str, target: str, count: int) -> None:
    """Search the gallery in SQL."""
    value = Path(query).read_bytes() if Path(query).is_file() else query
    with open_target(target).connect("a search", create=False) as connection:
        if isinstance(value, str):
            hits = gallery.search_text(connection, name, value, count)
        else:
            hits = gallery.search_picture(connection, name, value, count)
    rows = [(f"{hit.distance:.4f}", hit.caption) for hit in hits]
    console.show_table(f"Nearest to {query}", ("cosine distance", "picture"), rows)
    with started_run(), answering("the results were not logged"):
        mlflow.log_figure(result_grid(query, [(value, hits)]), "search.png")


if __name__ == "__main__":
    console.run(main)
