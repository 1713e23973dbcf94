"""The parity report as one HTML file that can be forwarded: it loads nothing and has no script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from oml_mlflow.parity.advice import next_steps
from oml_mlflow.parity.report import ParityReport, explanation, headline, verdict_state
from oml_mlflow.parity.tables import SYMBOLS, class_table, probe_table

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
    """Return a report as an HTML document, all text escaped.

    Args:
        report: The comparison.
        facts: Further facts by name, such as target, model version and time; shown in this order.
            Never secrets.
        subject: What was compared, for the heading; the report's title by default.
    """
    title = subject or report.title
    state = verdict_state(report)
    shown = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in (facts or {}).items()
    )
    steps = "".join(f"<li>{escape(step)}</li>" for step in next_steps(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none';style-src 'unsafe-inline'\">"
        f"<title>{escape(headline(report))}: {escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<div class="verdict {state}"><strong>{SYMBOLS[state]} {escape(headline(report))}'
        f"</strong><span>{escape(explanation(report))}</span></div>"
        f"{f'<dl>{shown}</dl>' if shown else ''}</header>"
        f"<main><h2>What to do</h2><ul>{steps}</ul>"
        f"<h2>By class of input</h2>{class_table(report.by_class())}"
        f"<h2>Every probe</h2>{probe_table(report.rows)}</main>"
        "<footer>Each probe is a fixed picture or text. The database embedded it with its own "
        "SQL, and the vector is compared with the one that the same files gave when the version "
        "was logged. <b>Difference</b>: largest of any element. <b>Cosine</b>: 1 is the same "
        "direction. <b>must</b>: over a limit, the version does not go live; <b>warn</b>: it is "
        "reported. Both are set per target (must, warn).</footer></body></html>\n"
    )
