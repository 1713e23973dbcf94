"""The benchmark: rates, latencies and memory of ViT-B/32, side by side, logged to MLflow.

Models, pairs and databases are kept in the cache, for the next run.

    mlflow run projects/benchmark -P cache=FOLDER
"""

from __future__ import annotations

import json
import os
import platform
from importlib import import_module
from pathlib import Path

import click
import matplotlib.pyplot as plt
import mlflow

from oml_mlflow.cli import console
from oml_mlflow.graph.runtime import runtime_versions
from oml_mlflow.registry.answering import started_run

PARTS = ("embedding", "scoring_server", "columns", "starting")
# fetched from the package index
LONG = ("others",)
Figures = dict[str, dict[str, float]]


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Kept between runs.")
@click.option("--rounds", default=5, show_default=True, help="How often each is run.")
@click.option(
    "--only", multiple=True, type=click.Choice(PARTS + LONG), help="These parts; repeatable."
)
def main(cache: Path, rounds: int, only: tuple[str, ...]) -> None:
    """Measure, print, and log figures and plots to MLflow."""
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.processor()}
    with started_run("benchmark of ViT-B/32"):
        mlflow.log_params({**machine, **runtime_versions(), "rounds": rounds})
        for part in only or PARTS:
            figures: Figures = import_module(part).measure(cache.absolute(), rounds)
            for name, row in figures.items():
                console.show_table(name, ("", ""), [(k, f"{v:.3g}") for k, v in row.items()])
            console.say(json.dumps({part: figures}))
            for name, row in figures.items():
                # MLflow takes no comma in a name
                keys = {f"{part}/{name}/{key}".replace(",", ""): v for key, v in row.items()}
                mlflow.log_metrics(keys)
            mlflow.log_dict(figures, f"{part}.json")
            plot(part, figures)


def plot(part: str, figures: Figures) -> None:
    """Log a chart: a panel for each kind of input, a bar for each figure."""
    _, panels = plt.subplots(
        len(figures), 1, figsize=(8, 2 * len(figures)), squeeze=False, layout="constrained"
    )
    for panel, (name, row) in zip(panels[:, 0], figures.items(), strict=True):
        shown = {key: value for key, value in row.items() if " / " not in key and " - " not in key}
        bars = panel.barh(list(shown)[::-1], list(shown.values())[::-1])
        panel.bar_label(bars, fmt="%.3g", padding=3)
        panel.margins(x=0.15)
        panel.set_title(name, loc="left")
    mlflow.log_figure(plt.gcf(), f"{part}.png")
    plt.close()


if __name__ == "__main__":
    console.run(main)
