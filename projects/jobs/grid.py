"""Search results as one picture."""

from __future__ import annotations

import io
import textwrap

from gallery import Hit
from matplotlib.figure import Figure
from PIL import Image


def result_grid(title: str, results: list[tuple[str | bytes, list[Hit]]]) -> Figure:
    """Return a figure with a row per query: the query, then what was found, nearest first.

    Args:
        title: Heading.
        results: Queries, texts or pictures, with what was found for each.
    """
    columns = 1 + max(len(hits) for _, hits in results)
    figure = Figure(figsize=(1.9 * columns, 2.15 * len(results) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(len(results), columns, squeeze=False)
    for row, (query, hits) in zip(grid, results, strict=True):
        for axes in row:
            axes.axis("off")
        if isinstance(query, str):
            text = textwrap.fill(query, 20)
            row[0].text(0.5, 0.5, text, ha="center", va="center", fontsize=10, wrap=True)
        else:
            row[0].imshow(Image.open(io.BytesIO(query)).convert("RGB"))
            row[0].set_title("query picture", fontsize=9)
        for axes, hit in zip(row[1:], hits, strict=False):
            axes.imshow(Image.open(io.BytesIO(hit.picture)).convert("RGB"))
            axes.set_title(f"{hit.distance:.3f}", fontsize=9)
    return figure
