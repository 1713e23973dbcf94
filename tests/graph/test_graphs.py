"""The two graphs of a tiny pair: their form, where they can be cut, and what they are made from."""

from __future__ import annotations

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.utils import Extractor

from oml_mlflow.errors import ConfigError, PackageError
from oml_mlflow.graph import wire
from oml_mlflow.graph.protobuf import tag
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.graph.wire import Initializer, read_header, write_model
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.source.model import open_source

ENCODER_LIMIT = 1e-5
PX = clip_folders.TINY_PX
TEXTS = [
    "a photo of a cat",
    "two dogs, 4711 and 08",
    "x",
    "it's a very long story about nothing " * 12,
]


def export(folder: Path, to: Path, **properties: Any) -> PipelinePair:
    config = ONNXPipelineConfig.from_template("multimodal_clip", **properties)
    return ONNXPipeline(str(folder), config).export2file("tiny", to, validate=False)


def reference(folder: Path, max_length: int | None = None) -> ReferenceModel:
    source = open_source(str(folder))
    if max_length:
        source = replace(source, vocabulary=replace(source.vocabulary, max_length=max_length))
    return ReferenceModel(source)


def cut(path: Path, start: str, end: str, to: Path) -> Any:
    """Return a session of the part of a graph between two tensors."""
    onnx.save(Extractor(onnx.load(path)).extract_model([start], [end]), to)
    return open_session(to)


def pictures() -> list[bytes]:
    """Return PNG pictures that are larger, smaller and narrower than the tiny model's input."""
    _, picture = clip_folders.photographs()[3]
    boxes = [(40, 30, 171, 127), (60, 20, 105, 81), (100, 50, 119, 74), (80, 90, 251, 113)]
    return [clip_folders.as_png(picture.crop(box)) for box in boxes]


def agree(pair: PipelinePair, model: ReferenceModel) -> None:
    """Check both encoders on what transformers prepares, and texts from the start."""
    session = cut(pair.img, "pixel_values", "embedding", pair.img.with_name("encoder.onnx"))
    for picture in pictures():
        values = model.prepare(picture)
        ours = session.run(["embedding"], {"pixel_values": values})[0]
        assert np.abs(ours - model.embed_pixels(values)).max() <= ENCODER_LIMIT
    ours = pair.embedder().embed_text(TEXTS)
    assert np.abs(ours - model.embed_text(TEXTS)).max() <= ENCODER_LIMIT


@pytest.mark.parametrize(("side", "kind"), [("img", "UINT8"), ("txt", "STRING")])
def test_form(tiny_pair: PipelinePair, side: str, kind: str) -> None:
    model = onnx.load(tiny_pair.path(side))
    onnx.checker.check_model(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets[""] <= 18
    assert model.ir_version == 8
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DataType.Value(kind)
    assert tiny_pair.dims == clip_folders.TINY_DIMS
    shape = model.graph.output[0].type.tensor_type.shape.dim
    assert shape[1].dim_value == clip_folders.TINY_DIMS
    foreign = {node.op_type for node in model.graph.node if node.domain}
    assert foreign == {"img": {"DecodeImage"}, "txt": {"CLIPTokenizer"}}[side]


@pytest.mark.parametrize(
    ("side", "tensor", "axes"),
    [
        ("img", "pixel_values", ["batch", 3, PX, PX]),
        ("txt", "input_ids", ["batch", "sequence"]),
    ],
)
def test_axes_of_the_cut_are_symbolic(
    tiny_pair: PipelinePair, side: str, tensor: str, axes: list[int | str]
) -> None:
    model = onnx.load(tiny_pair.path(side), load_external_data=False)
    (value,) = (value for value in model.graph.value_info if value.name == tensor)
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == axes


def test_image_encoder_runs_alone_in_batches(
    tiny_pair: PipelinePair, tiny_reference: ReferenceModel, tmp_path: Path
) -> None:
    session = cut(tiny_pair.img, "pixel_values", "embedding", tmp_path / "cut.onnx")
    values = np.concatenate([tiny_reference.prepare(picture) for picture in pictures()])
    for batch in (values[:3], values[:1], values):
        ours = session.run(["embedding"], {"pixel_values": batch})[0]
        np.testing.assert_allclose(ours, tiny_reference.embed_pixels(batch), atol=1e-5)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])  # grey ones damage memory in the decoder
def test_all_pixels_are_only_decoded_turned_and_resized(
    mode: str, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    _, picture = clip_folders.photographs()[3]
    encoded = io.BytesIO()
    picture.convert(mode).save(encoded, "JPEG")
    model = onnx.load(tiny_pair.img)
    names = [name for node in model.graph.node for name in node.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n != "embedding")
    onnx.save(model, tmp_path / "all.onnx")
    session = open_session(tmp_path / "all.onnx")
    found = session.run(names, {"input": np.frombuffer(encoded.getvalue(), np.uint8)})
    least = picture.width * picture.height
    kinds = [
        node.op_type
        for node, name in ((n, o) for n in model.graph.node for o in n.output)
        if np.size(found[names.index(name)]) >= least
    ]
    if mode == "RGB":
        assert kinds == ["DecodeImage", "Transpose", "Unsqueeze"]
    else:
        assert {"Gather", "Concat"} < set(kinds)


def test_text_encoder_runs_alone_in_batches(
    tiny_pair: PipelinePair, tiny_reference: ReferenceModel, tmp_path: Path
) -> None:
    session = cut(tiny_pair.txt, "input_ids", "embedding", tmp_path / "cut.onnx")
    for texts in (["cat", "dog", "red"], ["a photo of a cat"] * 3, TEXTS[3:]):
        ids = np.array([tiny_reference.token_ids(text) for text in texts])
        ours = session.run(["embedding"], {"input_ids": ids})[0]
        np.testing.assert_allclose(ours, tiny_reference.embed_text(texts), atol=1e-5)


def test_the_same_folder_gives_the_same_bytes(
    tiny_folder: Path, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    again = export(tiny_folder, tmp_path)
    assert again.fingerprints == tiny_pair.fingerprints
    for side in ("img", "txt"):
        assert again.path(side).read_bytes() == tiny_pair.path(side).read_bytes()


def test_both_file_layouts_give_the_same_bytes(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "tiny", style=5)
    assert not (folder / "vocab.json").exists()
    assert not (folder / "preprocessor_config.json").exists()
    assert export(folder, tmp_path / "out").fingerprints == tiny_pair.fingerprints


# every key and form: tests/source/test_preparations.py, which needs no whole graph
PROCESSORS: dict[str, dict[str, Any]] = {
    "height and width, crop": {"size": {"height": 41, "width": 57}},
    "bilinear, size below crop": {"resample": 2, "size": 27},
    "no resize, no rescale": {"do_resize": False, "do_rescale": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preparation_comes_from_the_model(name: str, tmp_path: Path) -> None:
    processor = PROCESSORS[name]
    folder = clip_folders.write_tiny(tmp_path / "tiny", processor=processor)
    pair, model = export(folder, tmp_path / "out"), reference(folder)
    prepared = cut(pair.img, "input", "pixel_values", tmp_path / "cut.onnx")
    std = (
        1.0
        if processor.get("do_normalize") is False
        else min(processor.get("image_std", clip_folders.PROCESSOR["image_std"]))
    )
    factor = (
        1.0 if processor.get("do_rescale") is False else processor.get("rescale_factor", 1 / 255)
    )
    level = factor / std
    for picture in pictures():
        values = prepared.run(["pixel_values"], {"input": np.frombuffer(picture, np.uint8)})[0]
        wanted = model.prepare(picture)
        assert values.shape == wanted.shape
        off = np.abs(values - wanted)
        assert off.max() <= 1.1 * level
        assert (off > 0.3 * level).mean() <= 0.004
    agree(pair, model)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos_token_id", [2, clip_folders.END_ID])
def test_activation_and_end_token_come_from_the_model(
    activation: str, eos_token_id: int, tmp_path: Path
) -> None:
    folder = clip_folders.write_tiny(
        tmp_path / "tiny", activation=activation, eos_token_id=eos_token_id
    )
    agree(export(folder, tmp_path / "out"), reference(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "tiny", dtype=dtype)
    agree(export(folder, tmp_path / "out"), reference(folder))


def test_sharded_weights(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "tiny", shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert not (folder / "model.safetensors").exists()
    assert export(folder, tmp_path / "out").fingerprints == tiny_pair.fingerprints


def test_old_section_of_the_configuration_counts_as_in_transformers(tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "tiny", activation="gelu")
    text = clip_folders.tiny_config(activation="gelu").text_config.to_dict()
    clip_folders.change_json(
        folder / "config.json",
        text_config_dict=text,
        text_config=text | {"hidden_act": "quick_gelu"},
    )
    agree(export(folder, tmp_path / "out"), reference(folder))


@pytest.mark.parametrize("length", [3, 16, 77])
def test_texts_are_cut_at_max_seq_length(tiny_folder: Path, tmp_path: Path, length: int) -> None:
    pair = export(tiny_folder, tmp_path, max_seq_length=length)
    model = reference(tiny_folder, length)
    session = cut(pair.txt, "input", "input_ids", tmp_path / "cut.onnx")
    for text in TEXTS:
        ids = session.run(["input_ids"], {"input": np.array([text], dtype=object)})[0]
        assert ids[0].tolist() == model.token_ids(text)
    agree(pair, model)


def test_more_than_the_models_length_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_seq_length 78 is more than the 77") as err:
        export(tiny_folder, tmp_path, max_seq_length=78)
    assert err.value.code == "config-invalid"
    assert "77" in err.value.hint
    assert not list(tmp_path.iterdir())


def test_length_of_the_tokenizer_counts(tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "tiny", max_length=20)
    pair = export(folder, tmp_path / "out")
    assert pair.metadata["max_seq_length"] == 20
    agree(pair, reference(folder))


def test_text_batch_is_the_same_as_each_text_alone(tiny_pair: PipelinePair) -> None:
    session = open_session(tiny_pair.txt)
    texts = [*TEXTS, "", "café in the rain", "1", "the end"]
    batch = run(session, np.array(texts, dtype=object))
    alone = [run(session, np.array([text], dtype=object)) for text in texts]
    np.testing.assert_allclose(batch, np.concatenate(alone), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1, atol=1e-6)


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)
DTYPES = ["float32", "float16", "int64", "int32", "uint8", "bool"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(0, 2**31, shape)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(draw(st.sampled_from(DTYPES)))


@st.composite
def headers(draw: st.DrawFn) -> onnx.ModelProto:
    nodes = [
        onnx.helper.make_node(draw(NAMES), ["x"], [f"y{i}"], note=draw(st.text(max_size=300)))
        for i in range(draw(st.integers(1, 4)))
    ]
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    graph = onnx.helper.make_graph(nodes, draw(NAMES), [info], [info])
    model = onnx.helper.make_model(graph, ir_version=draw(st.integers(1, 2**40)))
    onnx.helper.set_model_props(model, draw(st.dictionaries(NAMES, st.text(max_size=200))))
    return model


@settings(max_examples=60, deadline=None)
@given(header=headers(), values=st.lists(arrays(), max_size=4))
def test_written_models_are_what_onnx_reads(
    tmp_path_factory: pytest.TempPathFactory, header: onnx.ModelProto, values: list[np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("wire") / "model.onnx"
    fingerprint = write_model(
        path, header, [Initializer.constant(f"w{i}", array) for i, array in enumerate(values)]
    )
    loaded = onnx.load(path)
    for array, tensor in zip(values, loaded.graph.initializer, strict=True):
        stored = onnx.numpy_helper.to_array(tensor)
        assert stored.dtype == array.dtype
        np.testing.assert_array_equal(stored, array)
    loaded.graph.ClearField("initializer")
    assert loaded == header
    assert read_header(path) == header
    again = path.with_name("again.onnx")
    write_model(again, header, [Initializer.constant(f"w{i}", a) for i, a in enumerate(values)])
    assert again.read_bytes() == path.read_bytes()
    assert len(fingerprint) == 64


def test_a_header_can_be_read_from_any_model_of_onnx(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.arange(12.0).reshape(3, 4), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], [], initializer=[weight]), producer_name="other"
    )
    onnx.save(model, tmp_path / "m.onnx")
    model.graph.ClearField("initializer")
    assert read_header(tmp_path / "m.onnx") == model


def test_headers_of_truncated_files_are_refused(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    whole = tiny_pair.img.read_bytes()
    path = tmp_path / "cut.onnx"
    for size in [*range(0, 400, 7), len(whole) // 3, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(PackageError, match="is no ONNX model") as err:
            read_header(path)
        assert err.value.code == "package-corrupt"
        assert err.value.hint


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_headers_of_garbage_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.onnx"
    path.write_bytes(data)
    with pytest.raises(PackageError, match="is no ONNX model"):
        read_header(path)


def test_headers_are_read_without_the_weights(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], []).SerializeToString()
    weight = Initializer("w", (2**28,), np.dtype(np.float32), lambda: np.empty(0))
    prefix = weight._prefix()
    size = len(prefix) + weight.size_bytes
    entry = tag(wire._INITIALIZER, size)
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(tag(wire._GRAPH, len(graph) + len(entry) + size) + graph + entry + prefix)
        # 1 GiB of zeros that take no room on the disk
        file.truncate(file.tell() + weight.size_bytes)
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [node.op_type for node in header.graph.node] == ["Identity"]
    assert peak < 2**20
