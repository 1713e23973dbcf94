"""Evidence logged with a pair: probes, reference vectors, exactness report and model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from oml_mlflow.errors import GraphError, SourceError
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import MODEL_REFERENCES, pair_references
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.graph.runtime import runtime_versions
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.proof import Proof
from oml_mlflow.pair.reference import ReferenceModel, exactness
from oml_mlflow.pair.stages import prove
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

    The pairs are one pair for several profiles. What its export has shown is taken as it is, else
    it is compared with the model in ``source``. No pair's bytes embed a probe twice.
    """
    first = pairs[0]
    model, proof, not_run = _compared(first, on_event)
    probes = proof.probes if proof else golden_probes()
    made = {_bytes_of(first): proof.vectors} if proof else {}
    for pair in pairs:
        if not pair.unknown_operators and _bytes_of(pair) not in made:
            item = f"pair for {pair.profile}"
            vectors = embed_probes(pair.embedder(), probes, on_event, item)
            made[_bytes_of(pair)] = References(vectors, runtime_versions())
    chosen = {_bytes_of(pair): pair for pair in pairs if _bytes_of(pair) in made}
    for key, pair in chosen.items():
        probes = _sent_bare(pair, probes, made[key].vectors)
    ours = {
        pair.profile: _only(made[_bytes_of(pair)], probes)
        for pair in pairs
        if _bytes_of(pair) in made
    }
    if model is None or first.profile not in ours:
        return Evidence(probes, ours, model, None, not_run)
    model = _only(model, probes)
    precisions = read_precisions(first.metadata)
    report = exactness(probes, ours[first.profile], model, precisions, proof)
    return Evidence(probes, ours, model, report, not_run)


def _compared(
    pair: PipelinePair, on_event: Listener
) -> tuple[References | None, Proof | None, str]:
    """Return the model's vectors, what comparing a pair with it has shown, and why not."""
    not_run = pair.unverifiable
    if pair.model_references is not None:
        return pair.model_references, pair.proof, not_run
    if pair.source is None:
        return None, None, not_run or "the pair's model is not known"
    try:
        source = open_source(str(pair.source))
        if not pair.unknown_operators:
            with contextlib.suppress(GraphError):  # another maker's can't be cut into stages
                proof = prove(pair, source, on_event)
                return proof.model, proof, not_run
        return ReferenceModel(source).references(golden_probes(), on_event), None, not_run
    except (ImportError, SourceError) as error:  # a pair can be logged without torch
        return None, None, not_run or str(error)


def _bytes_of(pair: PipelinePair) -> tuple[str, ...]:
    return tuple(pair.fingerprints[side] for side in SIDES)


def _only(references: References, probes: Sequence[Probe]) -> References:
    vectors = references.vectors
    return replace(references, vectors={p.id: vectors[p.id] for p in probes if p.id in vectors})


def _sent_bare(
    pair: PipelinePair, probes: Sequence[Probe], vectors: Mapping[str, np.ndarray]
) -> tuple[Probe, ...]:
    """Return the probes without those of the model that a bare graph gets wrong.

    A database prepares nothing: what only the preparation makes right would fail a right pair.
    """
    embedder, precisions = pair.embedder(), read_precisions(pair.metadata)

    def is_right(probe: Probe) -> bool:
        limit = runtime_limit(precisions[probe.side], pair.dims)
        try:
            bare = embedder.embed_bare(probe.side, probe.value)[0]
        except Exception:  # onnxruntime's errors share no base class
            return False
        return bool(np.abs(bare - vectors[probe.id]).max() <= limit)

    return tuple(probe for probe in probes if probe.is_golden or is_right(probe))


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
