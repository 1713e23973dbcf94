"""The parity report as a page that can be forwarded: one file, nothing to load, no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity import ClassSummary, Difference, ParityReport
from oml_mlflow.policy import FAILED, OK, SKIPPED, WARNED

_TEXT_SHOWN = 60
_STANDS_FOR = {
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
_SYMBOLS = {OK: "✓", FAILED: "✗", WARNED: "!", SKIPPED: "-"}
# what needs a look comes first
_ORDER = {FAILED: 0, WARNED: 1, OK: 2, SKIPPED: 3}
_NON_ASCII = ("accents", "cjk", "emoji")
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--page:#fff;
--card:#f6f8fa;--ok:#116329;--failed:#a40e26;--warned:#7d4e00;--skipped:#57606a}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b1;--line:#3d444d;
--page:#0d1117;--card:#161b22;--ok:#56d364;--failed:#ff8f88;--warned:#e3b341;--skipped:#9da7b1}}
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem 3rem;background:var(--page);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 .75rem}
h2{font-size:1.05rem;margin:2rem 0 .5rem}
.verdict{border:1px solid var(--line);border-left:.45rem solid currentColor;border-radius:.4rem;
padding:.8rem 1.1rem;background:var(--card)}
.verdict strong{display:block;font-size:1.45rem;line-height:1.3}.verdict span{color:var(--ink)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.c,td b{white-space:nowrap}td.s{white-space:nowrap;font-weight:600}td.n small{font-size:.8em}
small{color:var(--soft);display:block}
.ok{color:var(--ok)}.failed{color:var(--failed)}.warned{color:var(--warned)}
.skipped{color:var(--skipped)}li{margin:.3rem 0}footer{margin-top:2rem;color:var(--soft);
font-size:.85rem}
@media print{body{max-width:none;padding:0}}
"""


def to_html(
    report: ParityReport, facts: Mapping[str, str] | None = None, *, subject: str = ""
) -> str:
    """Return a report as an HTML document of its own: no script, nothing fetched, all escaped.

    Args:
        report: The comparison.
        facts: What else the reader should know, such as target, database version, model version,
            time and fingerprints; shown in this order. Never secrets.
        subject: What was compared, for the heading; the report's title by default.
    """
    title = subject or report.title
    state = _verdict_state(report)
    shown = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in (facts or {}).items()
    )
    steps = "".join(f"<li>{escape(step)}</li>" for step in next_steps(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none';style-src 'unsafe-inline'\">"
        f"<title>{escape(_headline(report))}: {escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<div class="verdict {state}"><strong>{_SYMBOLS[state]} {escape(_headline(report))}'
        f"</strong><span>{escape(_explanation(report))}</span></div>"
        f"{f'<dl>{shown}</dl>' if shown else ''}</header>"
        f"<main><h2>What to do</h2><ul>{steps}</ul>"
        f"<h2>By class of input</h2>{_class_table(report.by_class())}"
        f"<h2>Every probe</h2>{_probe_table(report.rows)}</main>"
        "<footer>Each probe is a fixed picture or text. The database embedded it with its own "
        "SQL, and the vector is compared with the one that the same files gave when the version "
        "was logged. <b>Difference</b>: largest of any element. <b>Cosine</b>: 1 is the same "
        "direction. <b>must</b>: over a limit, the version does not go live; <b>warn</b>: it is "
        "reported. Both are set per target (must, warn).</footer></body></html>\n"
    )


def to_fragment(report: ParityReport) -> str:
    """Return verdict and class table for a notebook, which brings its own colours."""
    state = _verdict_state(report)
    return (
        f"<div><p><b>{_SYMBOLS[state]} {escape(_headline(report))}</b> {escape(report.title)}. "
        f"{escape(_explanation(report))}</p>{_class_table(report.by_class())}</div>"
    )


def next_steps(report: ParityReport) -> list[str]:
    """Return what a reader should do, one sentence or two each; there is always one."""
    by_name = {summary.category: summary for summary in report.by_class()}
    failed = {name for name, summary in by_name.items() if summary.state == FAILED}
    warned = {name for name, summary in by_name.items() if summary.state == WARNED}
    off = (failed | warned).intersection(_NON_ASCII)
    ascii_right = all(by_name[name].state == OK for name in ("ascii", "digits") if name in by_name)
    steps: list[str] = []
    if off and ascii_right and "ascii" in by_name:
        kinds = _listed(_STANDS_FOR[name] for name in _NON_ASCII if name in off)
        text = (
            f"Texts with {kinds} get other vectors in this database, or none; plain English does "
            "not. That is how tokenizers of onnxruntime-extensions up to 0.12 behave. Use a "
            "database with a newer one"
        )
        if off & failed:
            text += (
                "; or, if no such text is ever embedded there, let these classes only warn, in the "
                f"target's URI: ?warn={','.join(sorted(off))}."
            )
        else:
            text += " before any such text is embedded there: this target's settings let it pass."
        steps.append(text)
        failed -= off
    if failed.intersection(("ascii", "digits", "long", *_NON_ASCII)):
        steps.append(
            "Texts are tokenised or embedded differently: do not use this pair here. Compare the "
            "fingerprints first; then see in the table below whether there is an error."
        )
    if failed.intersection(("jpeg-444", "grey", "png")):
        steps.append(
            "Pictures are decoded, resized or normalised differently: do not use this pair here. "
            "A pair made for the database's own decode operator (oml-mlflow export ... "
            "--decode-op) may be right."
        )
    if "jpeg-420" in failed | warned:
        worst = by_name["jpeg-420"].max_abs
        figure = "" if math.isnan(worst) else f" (here up to {worst:.1e} per element)"
        steps.append(
            "Pictures with subsampled colour, as cameras write them, are decoded a little "
            f"differently{figure}. Embed stored and query pictures both in the database, or both "
            "outside it."
        )
    for side in report.uncompared:
        steps.append(
            f"Nothing that must be right was compared on the {_side(side)} side, so nothing is "
            "proven there: see the reasons in the table below."
        )
    if not steps and not report.ok:
        steps.append(
            "Do not use this pair here: see the reasons in the table below."
            if report.rows
            else "Nothing was compared, so nothing is proven."
        )
    return steps or ["Nothing. The database gives the vectors that the version was logged with."]


def _verdict_state(report: ParityReport) -> str:
    if not report.rows:
        return SKIPPED
    if not report.ok:
        return FAILED
    return WARNED if report.count(WARNED) else OK


def _headline(report: ParityReport) -> str:
    return {
        OK: "Passed",
        WARNED: "Passed, with warnings",
        FAILED: "Failed",
        SKIPPED: "Not compared",
    }[_verdict_state(report)]


def _explanation(report: ParityReport) -> str:
    text = f"{len(report.rows)} probes: {report.summary}."
    for state, what in ((FAILED, "Not right, but must be"), (WARNED, "Only warned about")):
        names = [summary.category for summary in report.by_class() if summary.state == state]
        text += f" {what}: {', '.join(names)}." if names else ""
    return text


def _class_table(classes: Sequence[ClassSummary]) -> str:
    rows = []
    for summary in sorted(classes, key=lambda found: _ORDER[found.state]):
        stands_for = escape(_STANDS_FOR.get(summary.category, ""))
        name = f"<b>{escape(summary.category)}</b><small>{stands_for}</small>"
        rows.append(
            f"<tr><td>{name}</td><td>{_side(summary.side)}</td><td>{summary.level}</td>"
            f"{_state_cell(summary.state)}<td class=n>{summary.compared} of {summary.count}"
            f"<small>{_uncompared(summary)}</small></td>"
            f"<td class=n>{_figure(summary.max_abs, '.1e')}"
            f"<small>{_limit('≤', summary.limit, '.0e')}</small></td>"
            f"<td class=n>{_figure(summary.min_cosine, '.6f')}"
            f"<small>{_limit('≥', summary.cosine_limit, 'g')}</small></td></tr>"
        )
    heads = ("Class", "Side", "Rule", "State", "#Compared", "#Difference", "#Cosine")
    return _table(heads, rows)


def _probe_table(differences: Sequence[Difference]) -> str:
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
    return f'<td class="s {state}">{_SYMBOLS[state]} {state}</td>'


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


def _side(side: str) -> str:
    return {IMG: "picture", TXT: "text"}.get(side, escape(side))


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
