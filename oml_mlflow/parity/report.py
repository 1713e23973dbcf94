"""The parity report: vectors of golden probes against their references."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from oml_mlflow.graph.precision import loss_sentence
from oml_mlflow.names import SIDES
from oml_mlflow.parity.difference import ClassSummary, Difference
from oml_mlflow.parity.policy import FAILED, MUST, OK, SKIPPED, WARNED
from oml_mlflow.parity.stage import Stage
from oml_mlflow.parity.tables import SYMBOLS, class_table

FORMAT_VERSION = 1
COLUMNS = ("probe", "category", "max abs", "cosine", "limit", "state")


@dataclass(frozen=True)
class ParityReport:
    """Vectors of a set of probes against their references.

    Attributes:
        title: Heading.
        rows: A row for every probe.
        loss: Figures over all probes of a side, by side (see `measure_loss`).
        sides: Sides that must have been compared; by default those of the rows.
        stages: What reaches the encoders, and they themselves, where they could be compared.
    """

    title: str
    rows: tuple[Difference, ...] = field(default=())
    loss: dict[str, dict[str, float]] = field(default_factory=dict)
    sides: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and each side has a row that must be right and was compared."""
        return bool(self.rows) and not self.uncompared and all(row.ok for row in self.rows)

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Sides without any comparison that must be within limits."""
        done = {r.probe.side for r in self.rows if r.level == MUST and r.state in (OK, FAILED)}
        wanted = self.sides or tuple(s for s in SIDES if any(r.probe.side == s for r in self.rows))
        return tuple(side for side in wanted if side not in done)

    @property
    def worst(self) -> Difference:
        """The row with the worst state, and of these with the largest difference."""
        order = (SKIPPED, OK, WARNED, FAILED)
        return max(self.rows, key=lambda row: (order.index(row.state), row.max_abs))

    def count(self, state: str) -> int:
        """Return how many rows are in a state."""
        return sum(row.state == state for row in self.rows)

    @property
    def compared(self) -> int:
        """Number of probes with figures."""
        return sum(row.has_figures for row in self.rows)

    @property
    def summary(self) -> str:
        """How many rows are in each state, such as ``21 ok, 2 warned, 1 skipped``."""
        counts = [(self.count(state), state) for state in (OK, FAILED, WARNED, SKIPPED)]
        return ", ".join(f"{n} {state}" for n, state in counts if n) or "nothing compared"

    def max_abs(self, side: str | None = None) -> float:
        """Return the largest difference of one side, or of both; infinite if a vector failed."""
        return max((r.max_abs for r in self._counted(side)), default=0.0)

    def min_cosine(self, side: str | None = None) -> float:
        """Return the smallest cosine of one side, or of both."""
        return min((r.cosine for r in self._counted(side)), default=1.0)

    def _counted(self, side: str | None) -> list[Difference]:
        rows = [row for row in self.rows if side in (None, row.probe.side)]
        return [row for row in rows if row.has_figures or row.state == FAILED]

    def by_class(self) -> list[ClassSummary]:
        """Return a row for every class, in the order of the probes."""
        groups: dict[tuple[str, str], list[Difference]] = {}
        for row in self.rows:
            groups.setdefault((row.probe.side, row.probe.category), []).append(row)
        found = []
        for (side, category), rows in groups.items():
            figures = [row for row in rows if row.has_figures]
            states = [row.state for row in rows]
            state = next(s for s in (FAILED, WARNED, OK, SKIPPED) if s in states)
            summary = ClassSummary(
                category=category,
                side=side,
                level=rows[0].level,
                state=state,
                count=len(rows),
                compared=len(figures),
                max_abs=max((row.max_abs for row in figures), default=math.nan),
                min_cosine=min((row.cosine for row in figures), default=math.nan),
                limit=rows[0].limit,
                cosine_limit=rows[0].cosine_limit,
            )
            found.append(summary)
        return found

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the report as a list of flat dicts."""
        return [row.to_row() for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "ok": self.ok,
            "summary": self.summary,
            "classes": [summary.to_row() for summary in self.by_class()],
            "probes": self.to_rows(),
            "loss": self.loss,
            "stages": [asdict(stage) for stage in self.stages],
        }

    def to_table(self) -> list[tuple[str, ...]]:
        """Return the report as rows of text under `COLUMNS`."""
        return [
            (
                row.probe.id,
                row.probe.category,
                f"{row.max_abs:.1e}" if row.has_figures else "-",
                f"{row.cosine:.7f}" if row.has_figures else "-",
                "reported only" if row.limit is None else f"{row.limit:.0e}",
                f"{row.state}: {row.reason}" if row.reason else row.state,
            )
            for row in self.rows
        ]

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        rows = [COLUMNS, ("---",) * len(COLUMNS)]
        rows += [(*cells[:-1], _emphasised(cells[-1])) for cells in self.to_table()]
        lines = [f"### {self.title}", "", *(f"| {' | '.join(cells)} |" for cells in rows)]
        for side, loss in self.loss.items():
            lines += ["", f"{side}: {loss_sentence(loss)}."]
        lines += ["", *(f"- {stage}" for stage in self.stages)] if self.stages else []
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        return to_fragment(self)


def _emphasised(cell: str) -> str:
    """Return a Markdown cell, which no text of an error can end."""
    text = cell.replace("|", "\\|").replace("\n", " ")
    return f"**{FAILED}**{text.removeprefix(FAILED)}" if text.startswith(FAILED) else text


def to_fragment(report: ParityReport) -> str:
    """Return verdict and class table as HTML for a notebook, which has its own colours."""
    state = verdict_state(report)
    return (
        f"<div><p><b>{SYMBOLS[state]} {escape(headline(report))}</b> {escape(report.title)}. "
        f"{escape(explanation(report))}</p>{class_table(report.by_class())}</div>"
    )


def verdict_state(report: ParityReport) -> str:
    """Return the state of a whole report: its gravest one."""
    if not report.rows:
        return SKIPPED
    if not report.ok:
        return FAILED
    return WARNED if report.count(WARNED) else OK


def headline(report: ParityReport) -> str:
    """Return the verdict in two or three words."""
    return {
        OK: "Passed",
        WARNED: "Passed, with warnings",
        FAILED: "Failed",
        SKIPPED: "Not compared",
    }[verdict_state(report)]


def explanation(report: ParityReport) -> str:
    """Return how many probes are in which state, and which classes failed or warned."""
    text = f"{len(report.rows)} probes: {report.summary}."
    for state, what in ((FAILED, "Failed"), (WARNED, "Warned")):
        names = [summary.category for summary in report.by_class() if summary.state == state]
        text += f" {what}: {', '.join(names)}." if names else ""
    return text
