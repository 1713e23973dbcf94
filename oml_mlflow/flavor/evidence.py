"""Evidence logged with a pair: probes, reference vectors, exactness report and model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oml_mlflow.errors import SourceError
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import MODEL_REFERENCES, pair_references
from oml_mlflow.graph.precision import read_precisions
from oml_mlflow.graph.runtime import runtime_versions
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel, exactness
from oml_mlflow.parity.probes import Probe, References, embed_probes, golden_probes, save_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.source.model import open_source

_SIDE_NAMES = {IMG: "image", TXT: "text"}


@dataclass(frozen=True)
class Evidence:
    """Golden probes with two sets of reference vectors.

    Attributes:
        probes: The probes.
        pairs: Vectors of the exact bytes of each profile's pair, one input at a time; a pair is
            missing if this runtime lacks one of its operators.
        model: Vectors of the model's own Python code, or None where they could not be made.
        exactness: The first profile's pair against `model`, or None.
        not_run: Why there is no `exactness`.
    """

    probes: tuple[Probe, ...]
    pairs: dict[str, References]
    model: References | None
    exactness: ParityReport | None
    not_run: str = ""

    def save(self, folder: Path) -> None:
        """Write probes, vectors and the exactness report into a folder."""
        folder.mkdir(parents=True)
        save_probes(folder, self.probes)
        for profile, references in self.pairs.items():
            references.save(folder, pair_references(profile))
        if self.model is not None:
            self.model.save(folder, MODEL_REFERENCES)
        if self.exactness is not None:
            (folder / "exactness.md").write_text(self.exactness.to_markdown(), encoding="utf-8")
            rows = json.dumps(self.exactness.to_rows(), indent=1)
            (folder / "exactness.json").write_text(rows + "\n", encoding="utf-8")


def gather_evidence(pairs: Sequence[PipelinePair], on_event: Listener = silent) -> Evidence:
    """Return the evidence for a pair; runs its graphs, and torch where the model is at hand.

    The pairs are one pair for several profiles. Vectors of its model are those of the export if it
    made them, else they are computed from ``source``.
    """
    probes, first = golden_probes(), pairs[0]
    ours = {
        pair.profile: References(
            embed_probes(pair.embedder(), probes, on_event, f"pair for {pair.profile}"),
            runtime_versions(),
        )
        for pair in pairs
        if not pair.unknown_operators
    }
    evidence = Evidence(probes, ours, None, None, first.unverifiable)
    model = first.model_references
    if model is None and first.source is None:
        return replace(evidence, not_run=evidence.not_run or "the pair's model is not known")
    if model is None:
        try:
            model = ReferenceModel(open_source(str(first.source))).references(probes, on_event)
        except (ImportError, SourceError) as error:  # a pair can be logged without torch
            return replace(evidence, not_run=evidence.not_run or str(error))
    if first.profile not in ours:
        return replace(evidence, model=model)
    report = exactness(probes, ours[first.profile], model, read_precisions(first.metadata))
    return replace(evidence, model=model, exactness=report)


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
