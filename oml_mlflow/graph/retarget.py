"""Retarget a pipeline: write it for another profile, from its ONNX file alone.

A profile decides on decoder and tokenizer, which come before the encoder. So the nodes before
``pixel_values`` or ``input_ids`` are built anew from the metadata and the vocabulary in the file,
and the encoder is copied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from oml_mlflow.documents import damaged, read_json
from oml_mlflow.errors import GraphError
from oml_mlflow.graph.cut import INPUT_IDS, PIXEL_VALUES
from oml_mlflow.graph.image import image_head
from oml_mlflow.graph.ops import GraphBuilder, make_graph_model
from oml_mlflow.graph.profiles import STANDARD_DOMAINS, Profile, decoder_name
from oml_mlflow.graph.text import read_vocabulary, text_head
from oml_mlflow.graph.wire import read_model, write_model
from oml_mlflow.names import PROPERTY
from oml_mlflow.source.description import ImagePreparation


def retarget_pipeline(
    path: Path,
    out: Path,
    profile: Profile,
    on_bytes: Callable[[int, int], None] | None = None,
) -> str:
    """Write a pipeline for another profile to `out`, and return its fingerprint. Needs no torch.

    `on_bytes` is called with bytes written and bytes in all.

    Raises:
        GraphError: If this package did not write the file.
    """
    header, stored = read_model(path)
    properties = {entry.key: entry.value for entry in header.metadata_props}
    hint = f"export the model for profile {profile.name}."
    with damaged(f"{path.name}: its metadata is damaged", GraphError, hint=hint):
        metadata = read_json(properties.get(PROPERTY, "{}"))
    outputs = {name for node in header.graph.node for name in node.output}
    if not metadata or not outputs & {PIXEL_VALUES, INPUT_IDS}:
        raise GraphError(
            f"{path.name} was not written by this package: it has no tensor {PIXEL_VALUES} or "
            f"{INPUT_IDS} to cut at, or no metadata. Nothing was written.",
            hint=hint,
        )
    cut = PIXEL_VALUES if PIXEL_VALUES in outputs else INPUT_IDS
    head: GraphBuilder
    if cut == PIXEL_VALUES:
        preparation = ImagePreparation.from_metadata(metadata["image_preparation"])
        head, graph_input = image_head(preparation, profile.decoder)
    else:
        vocabulary = read_vocabulary(header.graph.node, int(metadata["max_seq_length"]))
        head, graph_input = text_head(vocabulary, profile.tokenizer)
    nodes = _behind(header, cut)
    needed = {name for node in nodes for name in node.input}
    opset = next(o.version for o in header.opset_import if o.domain in STANDARD_DOMAINS)
    model = make_graph_model(
        header.graph.name,
        opset,
        [*head.nodes, *nodes],
        graph_input,
        header.graph.output[0],
        list(header.graph.value_info),
        {**properties, PROPERTY: side_metadata(metadata, cut, profile)},
    )
    initializers = [*head.initializers, *(item for item in stored if item.name in needed)]
    return write_model(out, model, initializers, on_bytes)


def side_metadata(metadata: dict[str, Any], cut: str, profile: Profile) -> str:
    """Return a pipeline's metadata as JSON, its decoder or tokenizer included.

    The profile's name is left out, so that profiles with the same operators share one file.
    """
    own = shared_metadata(metadata)
    own |= (
        {"decoder": decoder_name(profile)}
        if cut == PIXEL_VALUES
        else {"tokenizer": profile.tokenizer}
    )
    return json.dumps(own, sort_keys=True)


def shared_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that both pipelines share, whatever the profile."""
    return {k: v for k, v in metadata.items() if k not in ("decoder", "tokenizer")}


def _behind(model: onnx.ModelProto, cut: str) -> list[onnx.NodeProto]:
    """Return the nodes between a tensor and the output, in order."""
    needed = {model.graph.output[0].name}
    chosen: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if cut not in node.output and needed & set(node.output):
            chosen.append(node)
            needed |= set(node.input) - {cut}
    return chosen[::-1]
