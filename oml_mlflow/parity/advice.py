"""Advice: what the reader of a report should do next."""

from __future__ import annotations

import math
from collections.abc import Iterable

from oml_mlflow.parity.policy import FAILED, OK, WARNED
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.parity.tables import STANDS_FOR, side_name

_NON_ASCII = ("accents", "cjk", "emoji")


def next_steps(report: ParityReport) -> list[str]:
    """Return what to do, one or two sentences each; never empty."""
    by_name = {summary.category: summary for summary in report.by_class()}
    failed = {name for name, summary in by_name.items() if summary.state == FAILED}
    warned = {name for name, summary in by_name.items() if summary.state == WARNED}
    off = (failed | warned).intersection(_NON_ASCII)
    ascii_right = all(by_name[name].state == OK for name in ("ascii", "digits") if name in by_name)
    steps: list[str] = []
    if off and ascii_right and "ascii" in by_name:
        kinds = _listed(STANDS_FOR[name] for name in _NON_ASCII if name in off)
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
            f"No {side_name(side)} that must be right was compared, so nothing is proven for that "
            "side: see the reasons in the table below."
        )
    if not steps and not report.ok:
        steps.append(
            "Do not use this pair here: see the reasons in the table below."
            if report.rows
            else "Nothing was compared, so nothing is proven."
        )
    return steps or ["Nothing. The database gives the vectors that the version was logged with."]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
