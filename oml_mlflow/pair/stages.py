"""Prove a pair: run it and its model's own Python code side by side, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from oml_mlflow.errors import ParityError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.cut import INPUT_IDS, PIXEL_VALUES
from oml_mlflow.graph.precision import encoder_limit, read_precisions
from oml_mlflow.graph.runtime import Ends, runtime_versions
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import GRAPH, PairEmbedder
from oml_mlflow.pair.pictures import give_back
from oml_mlflow.pair.pipeline_pair import PipelinePair, Proof
from oml_mlflow.pair.reference import (
    ReferenceModel,
    exactness,
    import_reference,
    reference_versions,
    transformers_release,
)
from oml_mlflow.parity.model_probes import model_probes
from oml_mlflow.parity.probes import Probe, References, by_side, embed_probes, golden_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.parity.stage import (
    PIXELS,
    TOKENS,
    Both,
    apart,
    compare_encoder,
    compare_lengths,
    compare_pixels,
    compare_tokens,
)
from oml_mlflow.source.model import Source
from oml_mlflow.source.tokenizer import load_tokenizer

_HINTS = {
    TOKENS: "export it for profile onnxruntime, whose tokenizer is another operator.",
    PIXELS: "set its preparation (size, crop_size, resample) to CLIP's own.",
}
# transformers 4 takes a single pixel's colours for its height
_NOT_WITH_4 = "own-pixel"


def prove(pair: PipelinePair, source: Source, on_event: Listener = silent) -> Proof:
    """Compare a pair with its model; nothing is raised for a difference, see `demand_stages`.

    Raises:
        GraphError: If another maker wrote the pair, so that it can't be cut.
        PackageError: If this process can't run it.
        SourceError: See `ReferenceModel`.
    """
    heads, added = _heads(pair), load_tokenizer(source.folder).get_added_vocab()
    probes = (
        *golden_probes(),
        *model_probes(source, sorted(added, key=lambda token: added[token])),
    )
    if transformers_release() < 5:
        probes = tuple(probe for probe in probes if probe.id != _NOT_WITH_4)
    with ThreadPoolExecutor(1) as aside:
        # takes a core for as long as the pair's vectors take; what it raises, ReferenceModel raises
        aside.submit(import_reference)
        ours = _embed_side(pair, IMG, probes, on_event)
        # the model takes as much memory as both graphs, so that the larger one is gone by now
        loading = aside.submit(ReferenceModel, source)
        ours |= _embed_side(pair, TXT, probes, on_event)
        model = loading.result()
    prepared: dict[str, Both] = {IMG: {}, TXT: {}}
    for probe in probes:
        given = embed_probes(heads, [probe])[probe.id][None]
        prepared[probe.side][probe.id] = given, model.prepared(probe)
    inputs = {key: wanted for both in prepared.values() for key, (_, wanted) in both.items()}
    theirs = References(model.embed_prepared(inputs, on_event), reference_versions())
    precisions = read_precisions(pair.metadata)
    limits = {probe.id: encoder_limit(precisions[probe.side], pair.dims) for probe in probes}
    alike: dict[str, Both] = {IMG: {}, TXT: {}}
    for probe in probes:
        key, wanted = probe.id, theirs.vectors[probe.id]
        given, right = prepared[probe.side][key]
        is_near = probe.side == IMG and given.shape == right.shape
        is_right = is_near and apart(ours[key], wanted) <= limits[key]
        if is_right or np.array_equal(given, right):
            alike[probe.side][key] = ours[key], wanted
        elif is_near:
            # the model's own vector of what the pair prepared, whose stage accepts a level
            alike[IMG][key] = ours[key], (moved := model.embed_pixels(given)[0])
            limits[key] += apart(moved, wanted)
    stages = [compare_tokens(prepared[TXT]), compare_pixels(prepared[IMG], source.preparation)]
    for side in SIDES:
        limit = encoder_limit(precisions[side], pair.dims)
        lengths = {probe.id: ours[probe.id] for probe in by_side(probes, side)}
        stages += [compare_encoder(side, alike[side], limit), compare_lengths(side, lengths)]
    mine = References(ours, runtime_versions())
    report = exactness(golden_probes(), mine, theirs, limits=limits)
    return Proof(pair.fingerprints, probes, mine, theirs, replace(report, stages=tuple(stages)))


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


def _embed_side(
    pair: PipelinePair, side: str, probes: Sequence[Probe], on_event: Listener
) -> dict[str, np.ndarray]:
    # with a graph of its own each: ONNX Runtime holds a file twice while it opens it
    vectors = embed_probes(pair.embedder(GRAPH), by_side(probes, side), on_event, f"pair, {side}")
    give_back()
    return vectors


def _heads(pair: PipelinePair) -> PairEmbedder:
    """Return what a pair does before its encoders: pixel values of a picture, ids of a text."""
    ends = {IMG: Ends(output=PIXEL_VALUES), TXT: Ends(output=INPUT_IDS)}
    heads = PairEmbedder(pair.img, pair.txt, pair.dims, ends, front_end=GRAPH)
    for side in SIDES:
        heads.open(side)
    return heads
