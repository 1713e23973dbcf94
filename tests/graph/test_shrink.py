"""Smaller pairs: what is stored, what it loses, and that wrong preparation is still seen."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.utils import Extractor

from oml_mlflow.cli import main
from oml_mlflow.errors import ConfigError, GraphError, ParityError
from oml_mlflow.graph.cut import read_part
from oml_mlflow.graph.precision import (
    PRECISIONS,
    choose_precisions,
    encoder_limit,
    measure_loss,
    read_precisions,
    runtime_limit,
)
from oml_mlflow.graph.profiles import PROFILES
from oml_mlflow.graph.retarget import retarget_pipeline
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.graph.shrink import estimated_size_bytes, shrink
from oml_mlflow.graph.wire import Initializer, read_model
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair import export
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.source.model import open_source

CUTS = {
    "img": ("pixel_values", onnx.TensorProto.FLOAT),
    "txt": ("input_ids", onnx.TensorProto.INT64),
}
PROPERTIES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"use_float16": True},
    "int8": {"quantize_model": True},
    "int8-dynamic": {"quantize_model": "dynamic"},
}
SHRUNK = [name for name in PROPERTIES if name != "float32"]
TEXTS = ["a photo of a cat", "two dogs, 4711 and 08", "x", "", "a long story " * 40]
DEMO = Path(__file__).resolve().parents[2] / "projects" / "demo_model" / "demo"


def export_as(precision: str, model: Path, folder: Path, **options: Any) -> PipelinePair:
    config = ONNXPipelineConfig(**PROPERTIES[precision])
    return ONNXPipeline(str(model), config).export2file("small", folder, **options)


@pytest.fixture(scope="module")
def pairs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PipelinePair]:
    """The tiny model's pair in each precision, compared with transformers at export."""
    return {p: export_as(p, tiny_folder, tmp_path_factory.mktemp(p)) for p in PRECISIONS}


@pytest.mark.parametrize("precision", SHRUNK)
@pytest.mark.parametrize("side", ["img", "txt"])
def test_form_stays(pairs: dict[str, PipelinePair], precision: str, side: str) -> None:
    path = pairs[precision].path(side)
    model, before = onnx.load(path), onnx.load(pairs["float32"].path(side))
    onnx.checker.check_model(model)
    assert model.graph.input == before.graph.input
    assert model.graph.output == before.graph.output
    assert model.graph.value_info == before.graph.value_info
    assert model.opset_import == before.opset_import
    assert model.ir_version == 8
    name, kind = CUTS[side]
    marked = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert marked[name] == kind
    kinds = {i.data_type for i in model.graph.initializer if np.prod(i.dims) >= 1024}
    # integer products take uint8, everything else int8
    small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    small = {onnx.TensorProto.FLOAT16} if precision == "float16" else small
    assert small & kinds
    weights = [i for i in model.graph.initializer if i.data_type in small]
    assert sum(np.prod(i.dims) for i in weights) >= 0.9 * sum(
        np.prod(i.dims) for i in before.graph.initializer if i.data_type == onnx.TensorProto.FLOAT
    )


def test_sizes(pairs: dict[str, PipelinePair]) -> None:
    header, initializers = read_model(pairs["float32"].txt)
    for precision, most in (("float16", 0.51), ("int8", 0.29), ("int8-dynamic", 0.29)):
        _, smaller = shrink(header, initializers, precision)
        assert estimated_size_bytes(smaller) <= most * estimated_size_bytes(initializers)
        file = pairs[precision].txt.stat().st_size
        assert estimated_size_bytes(smaller) < file
        assert pairs["float32"].txt.stat().st_size - file == pytest.approx(
            estimated_size_bytes(initializers) - estimated_size_bytes(smaller), abs=20_000
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_is_measured_and_within_limits(pairs: dict[str, PipelinePair], precision: str) -> None:
    pair = pairs[precision]
    assert read_precisions(pair.metadata) == {"img": precision, "txt": precision}
    for loss in pair.loss.values():
        assert loss["max_abs"] <= encoder_limit(precision, pair.dims)
        assert loss["min_cosine"] >= 0.995
        assert loss["rank_agreement"] >= 0.97
    assert set(pair.loss) == {"img", "txt"}
    again = PipelinePair.from_files(pair.img, pair.txt)
    assert read_precisions(again.metadata) == read_precisions(pair.metadata)


@pytest.mark.parametrize("precision", SHRUNK)
def test_loss_is_of_the_stated_size(pairs: dict[str, PipelinePair], precision: str) -> None:
    """A precision that lost nothing would not be the one that was asked for."""
    worst = max(loss["max_abs"] for loss in pairs[precision].loss.values())
    assert worst > encoder_limit(precision, pairs[precision].dims) / 30
    assert worst > encoder_limit("float32", pairs[precision].dims)


@pytest.mark.parametrize("precision", SHRUNK)
def test_same_bytes_again(
    pairs: dict[str, PipelinePair], precision: str, tiny_folder: Path, tmp_path: Path
) -> None:
    again = export_as(precision, tiny_folder, tmp_path, validate=False)
    assert again.fingerprints == pairs[precision].fingerprints


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_weights_only_do_not_depend_on_the_batch(
    pairs: dict[str, PipelinePair], precision: str
) -> None:
    session = open_session(pairs[precision].txt)
    alone = np.concatenate([run(session, np.array([text], dtype=object)) for text in TEXTS])
    together = run(session, np.array(TEXTS, dtype=object))
    assert np.abs(alone - together).max() <= 1e-5


@pytest.mark.parametrize("precision", SHRUNK)
@pytest.mark.parametrize("side", ["img", "txt"])
def test_can_be_cut_and_retargeted(
    pairs: dict[str, PipelinePair], precision: str, side: str, tmp_path: Path
) -> None:
    path = pairs[precision].path(side)
    cut = tmp_path / "encoder.onnx"
    onnx.save(Extractor(onnx.load(path)).extract_model([CUTS[side][0]], ["embedding"]), cut)
    assert [i.name for i in open_session(cut).get_inputs()] == [CUTS[side][0]]
    retarget_pipeline(path, tmp_path / "other.onnx", PROFILES["onnxruntime"])
    given = np.array(["a photo of a cat"], dtype=object)
    if side == "img":
        data = next(p.value for p in golden_probes() if p.id == "png-small")
        assert isinstance(data, bytes)
        given = np.frombuffer(data, np.uint8)
    other = run(open_session(tmp_path / "other.onnx"), given)
    np.testing.assert_allclose(other, run(open_session(path), given), atol=1e-6)


def test_sides_are_chosen_apart(tiny_folder: Path, tmp_path: Path) -> None:
    config = ONNXPipelineConfig(quantize_model={"txt": True}, use_float16=True)
    pair = ONNXPipeline(str(tiny_folder), config).export2file("mixed", tmp_path)
    assert read_precisions(pair.metadata) == {"img": "float16", "txt": "int8"}
    assert pair.loss["img"]["max_abs"] < encoder_limit("float16", pair.dims)


@pytest.mark.parametrize(
    ("quantize_model", "use_float16", "chosen"),
    [
        (False, False, ("float32", "float32")),
        (True, False, ("int8", "int8")),
        (True, True, ("int8", "int8")),
        ("weights", False, ("int8", "int8")),
        ({"img": "dynamic"}, False, ("int8-dynamic", "float32")),
        ({"img": "dynamic", "txt": True}, True, ("int8-dynamic", "int8")),
        (False, {"txt": True}, ("float32", "float16")),
    ],
)
def test_choices(quantize_model: Any, use_float16: Any, chosen: tuple[str, str]) -> None:
    found = choose_precisions(quantize_model, use_float16)
    assert (found["img"], found["txt"]) == chosen


@pytest.mark.parametrize(
    "wrong",
    [
        {"quantize_model": 1},
        {"quantize_model": None},
        {"quantize_model": "int4"},
        {"quantize_model": {"image": True}},
        {"quantize_model": {"img": [True]}},
        {"use_float16": "weights"},
        {"use_float16": {"txt": "dynamic"}},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ONNXPipelineConfig.from_template("multimodal_clip", **wrong)


@pytest.mark.parametrize("precision", SHRUNK)
def test_wrong_preparation_is_seen(
    precision: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault too small for any shrunk encoder's limit is held to float32's."""
    right = export.image_pipeline

    def wrong(weights: Any, tower: Any, preparation: Any, *rest: Any) -> Any:
        return right(weights, tower, replace(preparation, rescale_factor=1.0005 / 255), *rest)

    monkeypatch.setattr(export, "image_pipeline", wrong)
    with pytest.raises(ParityError, match="preparation"):
        export_as(precision, tiny_folder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_head_is_what_the_graph_computes_first(pairs: dict[str, PipelinePair]) -> None:
    part = read_part(pairs["int8"].img, "input", "pixel_values")
    assert part is not None
    head = onnx.load_model_from_string(part)
    onnx.checker.check_model(head)
    assert [v.name for v in head.graph.output] == ["pixel_values"]
    assert sum(i.ByteSize() for i in head.graph.initializer) < 10_000


def test_float16_that_overflows_is_refused(tiny_pair: PipelinePair) -> None:
    header, stored = read_model(tiny_pair.img)
    name = next(i.name for i in stored if len(i.shape) == 2 and i.size_bytes >= 4096)
    huge = [
        Initializer(i.name, i.shape, i.dtype, lambda s=i.shape: np.full(s, 1e5, np.float32))
        if i.name == name
        else i
        for i in stored
    ]
    _, smaller = shrink(header, huge, "float16")
    with pytest.raises(GraphError, match=name):
        next(i for i in smaller if i.name == name).load()


def test_zero_weights_stay_zero(tiny_pair: PipelinePair) -> None:
    header, stored = read_model(tiny_pair.img)
    name = next(i.name for i in stored if len(i.shape) == 2 and i.size_bytes >= 4096)
    empty = [
        Initializer(i.name, i.shape, i.dtype, lambda s=i.shape: np.zeros(s, np.float32))
        for i in stored
        if i.name == name
    ]
    _, smaller = shrink(header, empty, "int8")
    loaded = {i.name: i.load() for i in smaller}
    assert not loaded[name].any()
    assert (loaded[f"{name}/scale"] == 1).all()


def test_loss_figures() -> None:
    rows = np.eye(4)[:, :3] + 0.1
    same = measure_loss(rows, rows)
    assert same["max_abs"] == 0
    assert same["min_cosine"] == pytest.approx(1)
    assert (same["rank_agreement"], same["top1"]) == (1, 1)
    other = measure_loss(rows, rows[::-1])
    assert other["max_abs"] == pytest.approx(1)
    assert other["rank_agreement"] < 1


def test_only_integer_arithmetic_is_given_room_between_runtimes() -> None:
    room = {p for p in PRECISIONS if runtime_limit(p, 512) > 1e-4}
    assert room == {"int8-dynamic"}


@pytest.mark.usefixtures("mlflow_store")
def test_logged_pair_carries_its_loss(pairs: dict[str, PipelinePair]) -> None:
    import mlflow
    import yaml
    from mlflow.artifacts import download_artifacts

    from oml_mlflow.flavor.save import log_model

    pair = pairs["int8"]
    info = log_model(pair, name="small")
    folder = Path(download_artifacts(info.model_uri))
    section = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["oml_mlflow"]
    assert section["metadata"]["precision"] == {"img": "int8", "txt": "int8"}
    assert section["loss"]["img"]["min_cosine"] == pytest.approx(pair.loss["img"]["min_cosine"])
    assert "rank agreement" in (folder / "golden" / "exactness.md").read_text()
    tags = mlflow.get_logged_model(info.model_id).tags
    assert "NOT" not in tags["oml.exactness"]


def test_command_line_prints_the_loss(tiny_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main.cli,
        ["export", str(tiny_folder), "small", "--output-dir", str(tmp_path), "--quantize-model"],
    )
    assert done.exit_code == 0, done.output
    assert "img: int8, max abs" in done.output
    assert "txt: int8, max abs" in done.output


def test_trained_weights_keep_their_neighbours(tmp_path: Path) -> None:
    captions = [
        f"{n} {size} {colour} stars"
        for n in ("two", "three")
        for size in ("small", "large")
        for colour in ("red", "green", "blue", "black", "pink")
    ]
    vectors = {}
    for precision in PRECISIONS:
        folder = tmp_path / precision
        embedder = export_as(precision, DEMO, folder, validate=False).embedder()
        vectors[precision] = np.concatenate([embedder.embed_text([text]) for text in captions])
    for precision in SHRUNK:
        loss = measure_loss(vectors[precision], vectors["float32"])
        assert loss["min_cosine"] >= 0.999
        assert loss["rank_agreement"] >= 0.97


def test_source_is_read_one_tensor_at_a_time(tiny_folder: Path) -> None:
    source = open_source(str(tiny_folder))
    loaded: list[str] = []
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"

    def load() -> np.ndarray:
        loaded.append(weight)
        return source.weights.load(weight).T

    shape = source.weights.shape(weight)[::-1]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", weight], ["y"])], "one", [], []
    )
    item = Initializer(weight, shape, np.dtype(np.float32), load)
    _, smaller = shrink(onnx.helper.make_model(graph), [item], "int8")
    assert not loaded
    assert [i.dtype for i in smaller] == [np.int8, np.float32]
    restored = smaller[0].load() * smaller[1].load()
    assert np.abs(restored - load()).max() <= np.abs(load()).max() / 254 * 1.001


@pytest.mark.drill
def test_oldest_runtime_runs_them(pairs: dict[str, PipelinePair], tmp_path: Path) -> None:
    """ORT 1.15.1 loads every precision, and computes the same up to the runtime limit."""
    environment = tmp_path / "environment"
    subprocess.run(["python3", "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = ["onnxruntime==1.15.1", "onnxruntime-extensions==0.12.0", "numpy<2"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=False)
    if done.returncode:
        pytest.skip("the package index has no onnxruntime 1.15.1 for this Python")
    for precision, pair in pairs.items():
        compare_with(python, pair, precision, tmp_path)


def compare_with(python: Path, pair: PipelinePair, precision: str, folder: Path) -> None:
    script = (
        "import sys, numpy as np, onnxruntime as ort, onnxruntime_extensions as ext\n"
        "img, txt, data, out = sys.argv[1:]\n"
        "o = ort.SessionOptions(); o.register_custom_ops_library(ext.get_library_path())\n"
        "r = lambda p, v: ort.InferenceSession(p, o).run(None, {'input': v})[0]\n"
        "i = r(img, np.fromfile(data, np.uint8))\n"
        "t = r(txt, np.array(['a photo of a cat'], dtype=object))\n"
        "np.savez(out, img=i, txt=t)\n"
    )
    data = clip_folders.as_png(clip_folders.photographs()[1][1])
    (folder / "picture").write_bytes(data)
    command = [str(python), "-c", script, str(pair.img), str(pair.txt)]
    subprocess.run([*command, str(folder / "picture"), str(folder / "out.npz")], check=True, env={})
    ours = {
        "img": run(open_session(pair.img), np.frombuffer(data, np.uint8)),
        "txt": run(open_session(pair.txt), np.array(["a photo of a cat"], dtype=object)),
    }
    with np.load(folder / "out.npz") as there:
        for side, vectors in ours.items():
            assert np.abs(there[side] - vectors).max() <= runtime_limit(precision, pair.dims)
