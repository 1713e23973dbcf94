"""The parity report as a picture: the largest difference of each class, with its limit."""

from __future__ import annotations

import math
from pathlib import Path

from oml_mlflow.parity.difference import ClassSummary
from oml_mlflow.parity.policy import FAILED, OK, SKIPPED, WARNED
from oml_mlflow.parity.report import ParityReport

# also distinct for the colour-blind; the state is written beside each bar
_COLOURS = {OK: "#4c78a8", WARNED: "#e0a100", FAILED: "#b5182b", SKIPPED: "#9aa0a6"}
_LEAST = 1e-8


def write_plot(report: ParityReport, path: Path, title: str) -> None:
    """Write a PNG of the largest difference of every class, with its limit."""
    # not pyplot: that has one state for a whole process, which belongs to whoever calls this
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = report.by_class()[::-1]
    # places are given in inches: a layout engine would draw everything twice, for each promotion
    width, height = 8, 1.6 + 0.34 * len(classes)
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((1.25 / width, 0.6 / height, 5.5 / width, 1 - 0.95 / height))
    axes.set_xscale("log")
    highest = max((c.limit or 0.0 for c in classes), default=0.0)
    widths = [max(c.max_abs, _LEAST) if c.compared else _LEAST for c in classes]
    right = max([*widths, highest, 10 * _LEAST]) * 3
    powers = range(round(math.log10(_LEAST)), math.ceil(math.log10(right)))
    axes.set_xticks([10.0**power for power in powers], [f"1e{power}" for power in powers])
    axes.minorticks_off()
    axes.set_xlim(_LEAST, right)
    places = range(len(classes))
    axes.barh(places, widths, color=[_COLOURS[c.state] for c in classes], height=0.6)
    for place, summary in zip(places, classes, strict=True):
        if summary.limit is not None:
            axes.plot([summary.limit] * 2, [place - 0.4, place + 0.4], color="#1b1f24", lw=1.6)
        axes.annotate(
            _label(summary),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=_COLOURS[FAILED] if summary.state == FAILED else "#1b1f24",
        )
    axes.set_yticks(list(places), [f"{c.category} ({c.side})" for c in classes])
    axes.set_xlabel("largest difference of an element; the bar's limit is the black line")
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _label(summary: ClassSummary) -> str:
    if not summary.compared:
        return f"{summary.state}: no vectors"
    return f"{summary.state}  {summary.max_abs:.1e}"
