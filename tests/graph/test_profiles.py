from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oml_mlflow
from oml_mlflow import ONNXPipeline, PipelinePair
from oml_mlflow.errors import ConfigError, GraphError
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.profiles import PROFILES, get_profile
from oml_mlflow.graph.retarget import retarget_pipeline
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.graph.wire import read_header
from oml_mlflow.pair.export import export_pair
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.source.model import open_source

PICTURES = [p.value for p in golden_probes() if isinstance(p.value, bytes)]
TEXTS = [p.value for p in golden_probes() if isinstance(p.value, str)]


def operators(path: Path) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in read_header(path).graph.node if node.domain}


def export(folder: Path, to: Path, **options: str) -> PipelinePair:
    return ONNXPipeline(str(folder)).export2file("tiny", to, validate=False, **options)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_gives_the_models_vectors(
    tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    pair = ONNXPipeline(str(tiny_folder)).export2file("tiny", tmp_path, profile=name)
    assert pair.profile == name
    taken = {(d, op) for d, ops in PROFILES[name].operators().items() for op in ops}
    assert operators(pair.img) | operators(pair.txt) <= taken
    again = PipelinePair.from_files(pair.img, pair.txt)
    assert again.fingerprints == pair.fingerprints
    assert again.metadata == pair.metadata


@pytest.mark.parametrize(
    ("one", "other"), [("oracle-23.7", "onnxruntime"), ("onnxruntime", "oracle-26ai")]
)
def test_another_profile_from_the_files_alone_is_the_same_as_from_the_model(
    tiny_folder: Path, tmp_path: Path, one: str, other: str
) -> None:
    first = export(tiny_folder, tmp_path / "first", profile=one)
    direct = export(tiny_folder, tmp_path / "direct", profile=other)
    made = first.for_profile(get_profile(other), tmp_path / "made")
    assert made.fingerprints == direct.fingerprints
    assert made.profile == other


def test_profiles_that_decide_the_same_share_files(tiny_folder: Path, tmp_path: Path) -> None:
    pairs = [export(tiny_folder, tmp_path / name, profile=name) for name in PROFILES]
    assert len({pair.fingerprints["img"] for pair in pairs}) == 1
    assert len({pair.fingerprints["txt"] for pair in pairs}) == 2


def test_the_raw_variant_needs_no_custom_operator(
    tiny_folder: Path, tmp_path: Path, tiny_pair: PipelinePair
) -> None:
    path = tmp_path / "raw_img.onnx"
    retarget_pipeline(tiny_pair.img, path, get_profile("oracle-23.7", decode_op="raw"))
    assert operators(path) == set()
    session = open_session(path)
    wanted = tiny_pair.embedder().embed_image(PICTURES)
    for picture, vector in zip(PICTURES, wanted, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        np.testing.assert_allclose(run(session, pixels)[0], vector, atol=1e-6)
    back = tmp_path / "back_img.onnx"
    profile = get_profile("oracle-23.7")
    assert retarget_pipeline(path, back, profile) == tiny_pair.fingerprints["img"]


def test_the_decode_operator_can_be_named(tiny_folder: Path, tmp_path: Path) -> None:
    profile = get_profile("oracle-23.7", decode_op="oracle.images:Decode")
    source = open_source(str(tiny_folder))
    pair = export_pair(
        source, ONNXPipelineConfig(), "tiny", tmp_path, profile=profile, validate=False
    )
    assert operators(pair.img) == {("oracle.images", "Decode")}


@pytest.mark.parametrize("kind", ["png-landscape", "jpeg-444-landscape", "jpeg-grey"])
def test_grey_and_colour_are_exact_in_the_bare_graph(tiny_pair: PipelinePair, kind: str) -> None:
    [picture] = [p.value for p in golden_probes() if p.id == kind]
    got = run(open_session(tiny_pair.img), np.frombuffer(picture, np.uint8))
    np.testing.assert_allclose(got, tiny_pair.embedder().embed_image([picture]), atol=1e-4)


def test_cmyk_is_three_channels_in_the_bare_graph(tiny_pair: PipelinePair) -> None:
    photograph = Image.open(io.BytesIO(PICTURES[0])).convert("CMYK")
    out = io.BytesIO()
    photograph.save(out, "JPEG", quality=95, subsampling=0)
    got = run(open_session(tiny_pair.img), np.frombuffer(out.getvalue(), np.uint8))
    wanted = tiny_pair.embedder().embed_image([out.getvalue()])
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_log_model_stores_one_pair_per_profile(tiny_pair: PipelinePair, mlflow_store: Path) -> None:
    oml_mlflow.save_model(tiny_pair, "model", profiles=["oracle-23.7", "onnxruntime"])
    packages = {name: read_package("model", name) for name in ("oracle-23.7", "onnxruntime")}
    assert packages["oracle-23.7"].fingerprints == tiny_pair.fingerprints
    assert packages["onnxruntime"].fingerprints["img"] == tiny_pair.fingerprints["img"]
    assert packages["onnxruntime"].paths["img"] == packages["oracle-23.7"].paths["img"]
    assert packages["onnxruntime"].fingerprints["txt"] != tiny_pair.fingerprints["txt"]
    for package in packages.values():
        package.check_fingerprints()
        stored = set(package.references().vectors)
        assert stored >= {p.id for p in golden_probes()}
        assert stored == {p.id for p in package.probes()}
    # this process can run both, and takes the one whose tokenizer is exact
    assert read_package("model").profile == "onnxruntime"
    loaded = oml_mlflow.load_model("model")
    np.testing.assert_allclose(
        loaded.embed_text(TEXTS), tiny_pair.embedder().embed_text(TEXTS), atol=1e-6
    )


@pytest.mark.parametrize("name", ["oracle-19c", ""])
def test_unknown_profiles_are_refused(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="there is no profile"):
        export(tiny_folder, tmp_path, profile=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("decode_op", ["DecodeImage", "a b:c", "x:"])
def test_unreadable_decode_operators_are_refused(decode_op: str) -> None:
    with pytest.raises(ConfigError, match="neither 'raw' nor domain:Name"):
        get_profile("oracle-23.7", decode_op=decode_op)


def test_a_graph_of_somebody_else_is_not_rewritten(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tiny_pair.txt)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign_txt.onnx")
    with pytest.raises(GraphError, match="was not written by this package"):
        retarget_pipeline(
            tmp_path / "foreign_txt.onnx", tmp_path / "out.onnx", get_profile("onnxruntime")
        )
    assert not (tmp_path / "out.onnx").exists()
