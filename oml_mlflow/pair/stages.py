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
    Both,
    compare_encoder,
    compare_lengths,
    compare_pixels,
    compare_tokens,
)
from oml_mlflow.source.model import Source

_HINTS = {
    TOKENS: "export it for profile onnxruntime, whose tokenizer is another operator.",
    PIXELS: "set its preparation (size, crop_size, resample) to CLIP's own.",
}
# transformers 4 takes a single pixel's colours for its height
_NOT_WITH_4 = "own-pixel"


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
    if int(version("transformers").split(".")[0]) < 5:
        probes = tuple(probe for probe in probes if probe.id != _NOT_WITH_4)
    ours = embed_probes(pair.embedder(), probes, on_event, "pair")
    theirs = model.references(probes, on_event)
    prepared: dict[str, Both] = {IMG: {}, TXT: {}}
    alike: dict[str, Both] = {IMG: {}, TXT: {}}
    limits: dict[str, float] = {}
    precisions = read_precisions(pair.metadata)
    for probe in probes:
        value, key, wanted = probe.value, probe.id, theirs.vectors[probe.id]
        if isinstance(value, bytes):
            both = heads.embed_image([value]), model.prepare(value)
        else:
            both = heads.embed_text([value]), np.array([model.token_ids(value)], np.int64)
        prepared[probe.side][key] = both
        limits[key] = encoder_limit(precisions[probe.side], pair.dims)
        if np.array_equal(*both):
            alike[probe.side][key] = ours[key], wanted
        elif probe.side == IMG and both[0].shape == both[1].shape:
            # the model's own vector of what the pair prepared; its stage accepts such a difference
            moved = model.embed_pixels(both[0])[0]
            alike[IMG][key] = ours[key], moved
            limits[key] += float(np.abs(moved - wanted).max())
    stages = [compare_tokens(prepared[TXT]), compare_pixels(prepared[IMG], source.preparation)]
    for side in SIDES:
        limit = encoder_limit(precisions[side], pair.dims)
        lengths = {probe.id: ours[probe.id] for probe in by_side(probes, side)}
        stages += [compare_encoder(side, alike[side], limit), compare_lengths(side, lengths)]
    vectors = References(ours, runtime_versions())
    report = exactness(golden_probes(), vectors, theirs, limits=limits)
    return Proof(pair.fingerprints, probes, vectors, theirs, replace(report, stages=tuple(stages)))


def demand_stages(report: ParityReport) -> None:
    """Raise ParityError, naming the first stage that differs and all of them in its details."""
    wrong = next((stage for stage in report.stages if stage.errors), None)
    if wrong is not None:
        raise ParityError(
            f"the pair differs from the model's own Python code in its {wrong.name}, on "
            f"{len(wrong.errors)} probes; {wrong.errors[0]}. No file was left.",
            hint=_HINTS.get(wrong.name, "fetch or save the model again, then export it anew."),
            details={"stages": [str(stage) for stage in report.stages], "rows": report.to_rows()},
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
