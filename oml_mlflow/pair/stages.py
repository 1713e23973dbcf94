"""Prove a pair: run it and its model's own Python code side by side, stage by stage."""

from __future__ import annotations

import tempfile
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
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.proof import Proof
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.parity import stage
from oml_mlflow.parity.model_probes import model_probes, prepared_probes
from oml_mlflow.parity.probes import References, by_side, embed_probes, golden_probes
from oml_mlflow.source.model import Source

_HINTS = {
    stage.TOKENS: "export it for profile onnxruntime, whose tokenizer is another operator, or give "
    "the model a tokenizer that does what CLIP's does.",
    stage.PIXELS: "set size, crop_size and resample of its image processor to CLIP's own; "
    "Pillow's version counts too.",
}


def prove(pair: PipelinePair, source: Source, on_event: Listener = silent) -> Proof:
    """Return how a pair compares with its model; nothing is raised for a difference.

    Two small graphs, from the inputs to the encoders, are written to a temporary folder.

    Raises:
        GraphError: If another maker wrote the pair, so that it can't be cut.
        PackageError: If this process can't run it.
        SourceError: See `ReferenceModel`.
    """
    heads = _heads(pair)
    model = ReferenceModel(source)
    own = model_probes(source, model.added_tokens())
    probes = (*golden_probes(), *own)
    ours = embed_probes(pair.embedder(), probes, on_event, "pair")
    theirs = model.references(probes, on_event)
    texts = {probe.id: str(probe.value) for probe in by_side(probes, TXT)}
    ids = {
        name: (heads.embed_text([text]), np.array([model.token_ids(text)], np.int64))
        for name, text in texts.items()
    }
    # transformers 4 drops transparency, which a pair puts on white as transformers 5 does
    is_old = int(version("transformers").split(".")[0]) < 5
    only_prepared = [p for p in prepared_probes() if not (is_old and p.id == "own-transparent")]
    pixels = {
        probe.id: (heads.embed_image([probe.value]), model.prepare(probe.value))
        for probe in (*by_side(probes, IMG), *only_prepared)
        if isinstance(probe.value, bytes)
    }
    # the model's own vectors of what the pair prepared
    alike = dict(theirs.vectors)
    for probe in probes:
        got, wanted = (ids if probe.side == TXT else pixels)[probe.id]
        if got.shape == wanted.shape and not np.array_equal(got, wanted):
            embed = model.embed_ids if probe.side == TXT else model.embed_pixels
            alike[probe.id] = embed(got)[0]
    accepted = {
        probe.id: float(np.abs(alike[probe.id] - theirs.vectors[probe.id]).max())
        for probe in by_side(probes, IMG)
    }
    stages = [stage.compare_tokens(ids), stage.compare_pixels(pixels, source.preparation)]
    precisions = read_precisions(pair.metadata)
    for side in SIDES:
        names = [probe.id for probe in by_side(probes, side)]
        both = {name: (ours[name], alike[name]) for name in names}
        stages += [
            stage.compare_encoder(side, both, encoder_limit(precisions[side], pair.dims)),
            stage.compare_length(side, {name: ours[name] for name in names}),
        ]
    return Proof(probes, References(ours, runtime_versions()), theirs, tuple(stages), accepted)


def demand_proof(proof: Proof) -> None:
    """Raise ParityError, naming the first stage that differs and all of them in its details."""
    failed = [found for found in proof.stages if found.error]
    if failed:
        raise ParityError(
            f"the pair differs from the model's own Python code in its {failed[0].name}: "
            f"{failed[0].error}. No file was left.",
            hint=_HINTS.get(
                failed[0].name,
                "fetch or save the model again; if it stays so, report it with the model's name.",
            ),
            details={"stages": [str(found) for found in proof.stages]},
        )


def _heads(pair: PipelinePair) -> PairEmbedder:
    """Return what a pair does before its encoders: pixel values of a picture, ids of a text."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {side: Path(folder) / f"head_{side}.onnx" for side in SIDES}
        for side, path in paths.items():
            path.write_bytes(read_head(pair.path(side)).SerializeToString())
        ends = {IMG: Ends(output=PIXEL_VALUES), TXT: Ends(output=INPUT_IDS)}
        heads = PairEmbedder(paths[IMG], paths[TXT], pair.dims, ends)
        for side in SIDES:
            heads.open(side)
    return heads
