"""Prove a pair: run it and its model's own Python code side by side, stage by stage."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from oml_mlflow.errors import ParityError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.image import PIXEL_VALUES
from oml_mlflow.graph.precision import encoder_limit, read_precisions
from oml_mlflow.graph.retarget import read_head
from oml_mlflow.graph.runtime import Ends, runtime_versions
from oml_mlflow.graph.text import INPUT_IDS
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.pair.pipeline_pair import PipelinePair, Proof
from oml_mlflow.pair.reference import ReferenceModel, exactness
from oml_mlflow.parity.model_probes import model_probes
from oml_mlflow.parity.probes import References, by_side, embed_probes, golden_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.parity.stage import (
    PIXELS,
    TOKENS,
    compare_pixels,
    compare_tokens,
    compare_vectors,
)
from oml_mlflow.source.model import Source

_HINTS = {
    TOKENS: "export it for profile onnxruntime, whose tokenizer is another operator, or give the "
    "model a tokenizer that does what CLIP's does.",
    PIXELS: "set size, crop_size and resample of its image processor to CLIP's own; Pillow's "
    "version counts too.",
}
_OTHERWISE = "fetch or save the model again; if it stays so, report it with the model's name."


def prove(pair: PipelinePair, source: Source, on_event: Listener = silent) -> Proof:
    """Compare a pair with its model; nothing is raised for a difference, see `demand_stages`.

    Two small graphs, from the inputs to the encoders, are written to a temporary folder.

    Raises:
        GraphError: If another maker wrote the pair, so that it can't be cut.
        PackageError: If this process can't run it.
        SourceError: See `ReferenceModel`.
    """
    heads, model = _heads(pair), ReferenceModel(source)
    probes = (*golden_probes(), *model_probes(source, model.added_tokens()))
    # transformers 4 drops transparency, which a pair puts on white as transformers 5 does
    if int(version("transformers").split(".")[0]) < 5:
        probes = tuple(probe for probe in probes if probe.id != "own-transparent")
    ours = embed_probes(pair.embedder(), probes, on_event, "pair")
    theirs = model.references(probes, on_event)
    prepared: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {IMG: {}, TXT: {}}
    for probe in probes:
        value = probe.value
        if isinstance(value, bytes):
            both = heads.embed_image([value]), model.prepare(value)
        else:
            both = heads.embed_text([value]), np.array([model.token_ids(value)], np.int64)
        prepared[probe.side][probe.id] = both
    # the model's own vectors of what the pair prepared
    alike = dict(theirs.vectors)
    for probe in probes:
        got, wanted = prepared[probe.side][probe.id]
        if not np.array_equal(got, wanted):
            embed = model.embed_ids if probe.side == TXT else model.embed_pixels
            alike[probe.id] = embed(got)[0]
    stages = [compare_tokens(prepared[TXT]), compare_pixels(prepared[IMG], source.preparation)]
    limits: dict[str, float | None] = {}
    precisions = read_precisions(pair.metadata)
    for side in SIDES:
        limit = encoder_limit(precisions[side], pair.dims)
        ids = [probe.id for probe in by_side(probes, side)]
        stages += compare_vectors(side, {key: (ours[key], alike[key]) for key in ids}, limit)
        # what the stage of prepared pixels accepts moves the vector by as much
        moved = {key: float(np.abs(alike[key] - theirs.vectors[key]).max()) for key in ids}
        limits |= {key: limit + (moved[key] if side == IMG else 0.0) for key in ids}
    vectors = References(ours, runtime_versions())
    report = replace(exactness(probes, vectors, theirs, limits=limits), stages=tuple(stages))
    return Proof(pair.fingerprints, probes, vectors, theirs, report)


def demand_stages(report: ParityReport) -> None:
    """Raise ParityError, naming the first stage that differs and all of them in its details."""
    for stage in report.stages:
        if stage.errors:
            more = f", and {len(stage.errors) - 1} more probes" if stage.errors[1:] else ""
            raise ParityError(
                f"the pair differs from the model's own Python code in its {stage.name}: "
                f"{stage.errors[0]}{more}. No file was left.",
                hint=_HINTS.get(stage.name, _OTHERWISE),
                details={"stages": [str(each) for each in report.stages], "rows": report.to_rows()},
            )


def _heads(pair: PipelinePair) -> PairEmbedder:
    """Return what a pair does before its encoders: pixel values of a picture, ids of a text."""
    # the sessions stay when their files are gone
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"head_{side}.onnx" for side in SIDES}
        for side, path in paths.items():
            path.write_bytes(read_head(pair.path(side)).SerializeToString())
        ends = {IMG: Ends(output=PIXEL_VALUES), TXT: Ends(output=INPUT_IDS)}
        heads = PairEmbedder(paths[IMG], paths[TXT], pair.dims, ends)
        for side in SIDES:
            heads.open(side)
    return heads
