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
from oml_mlflow.flavor.package import (
    HOST_EVIDENCE,
    MODEL_REFERENCES,
    TOKENIZER,
    pair_references,
)
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.graph.runtime import CPU, runtime_versions
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import GRAPH
from oml_mlflow.pair.pipeline_pair import PipelinePair, Proof
from oml_mlflow.pair.reference import ReferenceModel, exactness
from oml_mlflow.pair.stages import prove
from oml_mlflow.parity.probes import (
    Probe,
    References,
    embed_probes,
    golden_probes,
    save_probes,
    unsafe_reason,
)
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.source.model import open_source

_SIDE_NAMES = {IMG: "image", TXT: "text"}


@dataclass(frozen=True)
class Host:
    """The host front end beside the graph.

    Attributes:
        max_abs: Largest difference of an element, by class of probes.
        ids: What makes token ids there: ``tokenizer.json`` or ``graph``.
    """

    max_abs: dict[str, float]
    ids: str


@dataclass(frozen=True)
class Evidence:
    """Probes with two sets of reference vectors.

    Attributes:
        probes: The golden probes and, where the model is at hand, those of its own.
        pairs: Vectors of the exact bytes of each profile's pair, one input at a time; a pair is
            missing if this runtime lacks one of its operators.
        model: Vectors of the model's own Python code, or None where they could not be made.
        exactness: The first profile's pair against `model`, or None.
        not_run: Why there is no `exactness`.
        host: How far the first profile's vectors from the host front end, as `load_model` and
            serving make them, are from `pairs`.
    """

    probes: tuple[Probe, ...]
    pairs: dict[str, References]
    model: References | None
    exactness: ParityReport | None
    not_run: str = ""
    host: Host | None = None

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
        if self.host:
            document = {"provider": CPU, "runtime": runtime_versions(), **vars(self.host)}
            text = json.dumps(document, indent=1, sort_keys=True)
            (folder / HOST_EVIDENCE).write_text(text + "\n", encoding="utf-8")


def gather_evidence(pairs: Sequence[PipelinePair], on_event: Listener = silent) -> Evidence:
    """Return the evidence for a pair; runs its graphs, and torch where the model is at hand.

    The pairs are one pair for several profiles. What its export has shown is taken as it is, else
    it is compared with the model in ``source``. No pair's bytes embed a probe twice.
    """
    first, runnable = pairs[0], {_key(p): p for p in pairs if not p.unknown_operators}
    model, proof, not_run = _compared(first, on_event)
    probes = proof.probes if proof else golden_probes()
    made = {"".join(proof.fingerprints.values()): proof.vectors} if proof else {}
    for key, pair in runnable.items():
        if key not in made:
            vectors = embed_probes(
                pair.embedder(GRAPH), probes, on_event, f"pair for {pair.profile}"
            )
            made[key] = References(vectors, runtime_versions())
    for key, pair in runnable.items():
        probes = _gating(pair, probes, made[key].vectors)
    ours = {pair.profile: _only(made[_key(pair)], probes) for pair in pairs if _key(pair) in made}
    model = _only(model, golden_probes()) if model else None
    report = None
    if proof and proof.fingerprints == first.fingerprints:
        report = proof.report
    elif model and first.profile in ours:
        limits = {row.probe.id: row.limit for row in proof.report.rows} if proof else None
        precisions = read_precisions(first.metadata)
        report = exactness(golden_probes(), ours[first.profile], model, precisions, limits)
    host = _host_differences(first, probes, made[_key(first)]) if _key(first) in made else None
    return Evidence(probes, ours, model, report, not_run, host)


def _host_differences(pair: PipelinePair, probes: Sequence[Probe], references: References) -> Host:
    """Return how far the host front end is from the graph's vectors.

    With the model's tokenizer.json, if that gives the golden texts the ids that the graph gives.
    """
    tokenizer = next((path for path in pair.companions if path.name == TOKENIZER), None)
    vectors = embed_probes(pair.embedder(tokenizer=tokenizer, providers=[CPU]), probes)
    limits = read_precisions(pair.metadata)
    found = dict[str, float]()
    for probe in probes:
        off = float(np.abs(vectors[probe.id] - references.vectors[probe.id]).max())
        found[probe.category] = max(off, found.get(probe.category, 0.0))
        is_wrong = probe.is_golden and off > runtime_limit(limits[probe.side], pair.dims)
        if is_wrong and tokenizer and probe.side == TXT:
            return _host_differences(replace(pair, companions=()), probes, references)
    return Host(found, TOKENIZER if tokenizer else "graph")


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


def _key(pair: PipelinePair) -> str:
    return "".join(pair.fingerprints.values())


def _only(references: References, probes: Sequence[Probe]) -> References:
    vectors = references.vectors
    return replace(references, vectors={p.id: vectors[p.id] for p in probes if p.id in vectors})


def _gating(
    pair: PipelinePair, probes: Sequence[Probe], vectors: Mapping[str, np.ndarray]
) -> tuple[Probe, ...]:
    """Return the probes that a bare graph gets right, too: databases prepare nothing."""
    embedder, precisions = pair.embedder(GRAPH), read_precisions(pair.metadata)

    def is_right(probe: Probe) -> bool:
        try:
            bare = embedder.embed_bare(probe.side, probe.value)[0]
        except Exception:  # onnxruntime's errors share no base class
            return False
        limit = runtime_limit(precisions[probe.side], pair.dims)
        return bool(np.abs(bare - vectors[probe.id]).max() <= limit)

    return tuple(p for p in probes if p.is_golden or (not unsafe_reason(p) and is_right(p)))


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
    stages = [f"- {stage}" for stage in evidence.exactness.stages] if evidence.exactness else []
    if evidence.host:
        stages.append(
            "- in batches, as `load_model` and serving embed: at most "
            f"{max(evidence.host.max_abs.values()):.1e} from one input at a time"
        )
    return "\n".join([*lines, "", exactness_sentence(evidence), "", *stages]).rstrip() + "\n"


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
