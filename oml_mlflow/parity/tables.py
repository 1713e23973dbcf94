"""The tables of a parity report in HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.difference import ClassSummary, Difference
from oml_mlflow.parity.policy import FAILED, OK, SKIPPED, WARNED

_TEXT_SHOWN = 60
STANDS_FOR = {
    "ascii": "plain English captions",
    "digits": "numbers in captions",
    "accents": "accented and Cyrillic letters",
    "cjk": "Chinese and Japanese",
    "emoji": "emoji",
    "long": "texts beyond the model's length",
    "jpeg-444": "JPEG with full colour (4:4:4)",
    "jpeg-420": "JPEG as cameras write it (4:2:0)",
    "grey": "grey pictures as JPEG",
    "png": "PNG",
}
SYMBOLS = {OK: "✓", FAILED: "✗", WARNED: "!", SKIPPED: "-"}
# problems come first
_ORDER = {FAILED: 0, WARNED: 1, OK: 2, SKIPPED: 3}


def class_table(classes: Sequence[ClassSummary]) -> str:
    """Return a table with a row for each class, problems first."""
    rows = []
    for summary in sorted(classes, key=lambda found: _ORDER[found.state]):
        stands_for = escape(STANDS_FOR.get(summary.category, ""))
        name = f"<b>{escape(summary.category)}</b><small>{stands_for}</small>"
        rows.append(
            f"<tr><td>{name}</td><td>{side_name(summary.side)}</td><td>{summary.level}</td>"
            f"{_state_cell(summary.state)}<td class=n>{summary.compared} of {summary.count}"
            f"<small>{_uncompared(summary)}</small></td>"
            f"<td class=n>{_figure(summary.max_abs, '.1e')}"
            f"<small>{_limit('≤', summary.limit, '.0e')}</small></td>"
            f"<td class=n>{_figure(summary.min_cosine, '.6f')}"
            f"<small>{_limit('≥', summary.cosine_limit, 'g')}</small></td></tr>"
        )
    heads = ("Class", "Side", "Rule", "State", "#Compared", "#Difference", "#Cosine")
    return _table(heads, rows)


def probe_table(differences: Sequence[Difference]) -> str:
    """Return a table with a row for each probe, problems first."""
    rows = []
    for row in sorted(differences, key=lambda found: _ORDER[found.state]):
        note = f"<small>{escape(row.reason)}</small>" if row.reason else ""
        shown = row.has_figures
        rows.append(
            f"<tr><td><b>{escape(row.probe.id)}</b><small>{escape(_input(row))}</small>{note}</td>"
            f"<td class=c>{escape(row.probe.category)}</td>{_state_cell(row.state)}"
            f"<td class=n>{_figure(row.max_abs if shown else math.nan, '.1e')}</td>"
            f"<td class=n>{_figure(row.cosine if shown else math.nan, '.7f')}</td></tr>"
        )
    return _table(("Probe", "Class", "State", "#Difference", "#Cosine"), rows)


def _uncompared(summary: ClassSummary) -> str:
    rest = summary.count - summary.compared
    if not rest:
        return ""
    return f"{rest} skipped" if summary.state in (OK, SKIPPED) else f"{rest} without a vector"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col" class="n">{head[1:]}</th>'
        if head.startswith("#")
        else f'<th scope="col">{head}</th>'
        for head in heads
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _state_cell(state: str) -> str:
    return f'<td class="s {state}">{SYMBOLS[state]} {state}</td>'


def _figure(value: float, shown: str) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else format(value, shown)


def _limit(sign: str, value: float | None, shown: str) -> str:
    return "" if value is None else f"{sign} {value:{shown}}"


def _input(row: Difference) -> str:
    value = row.probe.value
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return value if len(value) <= _TEXT_SHOWN else f"{value[:_TEXT_SHOWN].rstrip()}…"


def side_name(side: str) -> str:
    """Return a side's name for people."""
    return {IMG: "picture", TXT: "text"}.get(side, escape(side))
