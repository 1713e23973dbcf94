"""The text that a person reads about a model version in the MLflow UI."""

from __future__ import annotations

from oml_mlflow.evidence import Evidence
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.pipeline_pair import PipelinePair

_SIDE_NAMES = {IMG: "image", TXT: "text"}


def exported_name(pair: PipelinePair) -> str:
    """Return the export name of a pair, from the name of its image pipeline."""
    return pair.img.stem.removesuffix(f"_{IMG}")


def model_card(pair: PipelinePair, evidence: Evidence) -> str:
    """Return Markdown, at most 5,000 characters, about a pair and how exact it is."""
    name = pair.metadata.get("model_name", "unknown")
    lines = [
        f"CLIP pipeline pair of `{name}`: encoded pictures and texts in, unit vectors of "
        f"{pair.dims} dims out, in one space.",
        "",
        "| pipeline | file | bytes | sha256 |",
        "|---|---|---|---|",
    ]
    for side in SIDES:
        path = pair.path(side)
        lines.append(
            f"| {_SIDE_NAMES[side]} | `{path.name}` | {path.stat().st_size:,} | "
            f"`{pair.fingerprints[side]}` |"
        )
    return "\n".join([*lines, "", exactness_sentence(evidence), ""])


def exactness_sentence(evidence: Evidence) -> str:
    """Return one sentence on how far the pair is from the model's own Python code."""
    report, model = evidence.exactness, evidence.model
    if report is None or model is None:
        return f"Exactness: not run ({evidence.not_run})."
    made_by = ", ".join(f"{name} {version}" for name, version in sorted(model.runtime.items()))
    return (
        f"Exactness: {'within' if report.ok else 'NOT within'} limits on {len(report.rows)} golden "
        f"probes; largest difference from the model's own Python code {report.max_abs(IMG):.1e} "
        f"(pictures) and {report.max_abs(TXT):.1e} (texts), smallest cosine "
        f"{report.min_cosine():.6f} ({made_by})."
    )
