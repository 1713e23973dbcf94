from __future__ import annotations

import base64
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.types.schema import AnyType

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.errors import ConfigError, IncompatiblePackage, PackageError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.names import SIDES
from oml_mlflow.parity.probes import golden_probes

PICTURES = [probe.value for probe in golden_probes() if probe.side == "img"]


@pytest.fixture(scope="module")
def saved(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    oml_mlflow.save_model(tiny_pair, path)
    return path


def test_files_are_stored_byte_for_byte(saved: Path, tiny_pair: PipelinePair) -> None:
    section = yaml.safe_load((saved / "MLmodel").read_text())["flavors"]["oml_mlflow"]
    assert section["format_version"] == 1
    assert section["dims"] == tiny_pair.dims
    assert section["metadata"] == tiny_pair.metadata
    [profile] = section["profiles"].values()
    for side in ("img", "txt"):
        stored = saved / profile[side]["path"]
        assert fingerprint_file(stored) == profile[side]["sha256"] == tiny_pair.fingerprints[side]
    for companion in tiny_pair.companions:
        assert (saved / "source" / companion.name).read_bytes() == companion.read_bytes()


def test_signature_and_example(saved: Path) -> None:
    model = mlflow.models.Model.load(str(saved / "MLmodel"))
    assert [(c.name, c.type, c.required) for c in model.signature.inputs] == [
        ("image", AnyType(), False),
        ("text", AnyType(), False),
    ]
    assert model.signature.outputs.input_names() == ["embedding"]
    assert model.load_input_example(str(saved))["text"].tolist()[0] == "a photo of a cat"


def test_requirements_name_what_serving_needs_and_no_more(saved: Path) -> None:
    lines = (saved / "requirements.txt").read_text().split()
    names = {line.split("==")[0] for line in lines}
    assert names == {
        "mlflow",
        "onnxruntime",
        "onnxruntime-extensions",
        "numpy",
        "pandas",
        "pillow",
        "pyyaml",
        "tokenizers",
    }
    assert (saved / "code" / "oml_mlflow" / "flavor" / "save.py").is_file()


def test_onnxruntime_counts_whatever_distribution_brought_it(
    tiny_pair: PipelinePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu leaves no metadata under the name that the pins have."""
    found = importlib.metadata.Distribution.from_name

    def without(name: str) -> importlib.metadata.Distribution:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", without)
    oml_mlflow.save_model(tiny_pair, tmp_path / "model")
    lines = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert f"onnxruntime=={onnxruntime.__version__}" in lines
    assert oml_mlflow.load_model(str(tmp_path / "model")).embed_text("a").shape == (
        1,
        tiny_pair.dims,
    )


def test_package_index_replaces_the_code(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    index = "https://pypi.example.com/simple"
    oml_mlflow.save_model(tiny_pair, tmp_path / "model", package_index=index)
    lines = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert f"--extra-index-url {index}" in lines
    assert f"oml-mlflow=={oml_mlflow.__version__}" in lines
    assert not (tmp_path / "model" / "code").exists()


def test_package_index_with_credentials_is_refused(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without credentials") as err:
        oml_mlflow.save_model(
            tiny_pair, tmp_path / "model", package_index="https://user:hunter2@example.com/simple"
        )
    assert "hunter2" not in str(err.value)
    assert not (tmp_path / "model").exists()


def test_extra_requirement_replaces_a_default(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    oml_mlflow.save_model(
        tiny_pair, tmp_path / "model", extra_pip_requirements=["onnxruntime>=1.20", "requests"]
    )
    lines = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert "onnxruntime>=1.20" in lines
    assert "requests" in lines
    assert not any(line.startswith("onnxruntime==") for line in lines)


def test_load_model_embeds_both_sides(saved: Path, tiny_pair: PipelinePair) -> None:
    loaded = oml_mlflow.load_model(str(saved))
    direct = tiny_pair.embedder()
    images, texts = loaded.embed_image(PICTURES), loaded.embed_text(["a cat", "a dog", ""])
    assert images.shape == (len(PICTURES), tiny_pair.dims)
    assert images.dtype == texts.dtype == np.float32
    assert np.array_equal(images, direct.embed_image(PICTURES))
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert loaded.embed_text([]).shape == loaded.embed_image([]).shape == (0, tiny_pair.dims)


def test_reference_vectors_are_stored_with_what_made_them(
    saved: Path, tiny_pair: PipelinePair
) -> None:
    from oml_mlflow.flavor.package import read_package

    package = read_package(saved)
    stored = package.probes()
    assert stored[:24] == golden_probes()
    assert not any(probe.is_golden for probe in stored[24:])
    pair, model = package.references(), package.references(of_model=True)
    assert set(pair.vectors) == {p.id for p in stored}
    assert set(model.vectors) == {p.id for p in golden_probes()}
    assert {"onnxruntime", "onnxruntime-extensions"} <= pair.runtime.keys()
    assert {"transformers", "torch", "pillow"} <= model.runtime.keys()
    rows = json.loads((saved / "golden" / "exactness.json").read_text())
    assert all(row["ok"] for row in rows)


def test_a_pair_without_source_says_why_exactness_was_not_run(
    tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    from oml_mlflow.flavor.evidence import gather_evidence, model_card
    from oml_mlflow.flavor.package import read_package

    pair = PipelinePair.from_files(tiny_pair.img, tiny_pair.txt)
    evidence = gather_evidence([pair])
    assert "not run (the pair's model is not known)" in model_card(pair, evidence)
    oml_mlflow.save_model(pair, tmp_path / "model", evidence=evidence)
    with pytest.raises(PackageError, match="no model reference vectors"):
        read_package(tmp_path / "model").references(of_model=True)


def test_pyfunc_takes_every_form_of_a_picture(saved: Path, tiny_pair: PipelinePair) -> None:
    picture = PICTURES[0]
    encoded = base64.b64encode(picture)
    wanted = tiny_pair.embedder().embed_image([picture])[0]
    model = mlflow.pyfunc.load_model(str(saved)).unwrap_python_model
    flavor = oml_mlflow._load_pyfunc(str(saved))
    forms = [
        picture,
        np.bytes_(encoded),
        encoded.decode(),
        f"data:image/png;base64,{encoded.decode()}",
    ]
    result = flavor.predict(pd.DataFrame({"image": pd.Series(forms, dtype=object)}))
    assert model is not None
    for embedding in result["embedding"]:
        np.testing.assert_array_equal(np.asarray(embedding, np.float32), wanted)


def test_pyfunc_keeps_the_order_of_mixed_rows(saved: Path, tiny_pair: PipelinePair) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    frame = pd.DataFrame(
        {"image": [None, PICTURES[1], None], "text": ["a cat", None, "a dog"]}, dtype=object
    )
    result = np.array(model.predict(frame)["embedding"].tolist(), np.float32)
    embedder = tiny_pair.embedder()
    np.testing.assert_array_equal(result[1], embedder.embed_image([PICTURES[1]])[0])
    np.testing.assert_allclose(result[[0, 2]], embedder.embed_text(["a cat", "a dog"]), atol=1e-6)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"caption": ["a cat"]}, "neither a column 'image' nor a column 'text'"),
        ({}, "neither a column 'image' nor a column 'text'"),
        ({"text": ["a", "b"], "image": [None, PICTURES[0]]}, "row 1 has both image and text"),
        ({"text": ["a", None]}, "row 1 has neither image nor text"),
        ({"text": [["a", "b"]]}, "row 0: column 'text' holds a list"),
        ({"image": ["no base64!"]}, "row 0: image is a string that is no base64"),
        ({"image": [b"GIF89a but not really"]}, "picture 0: 21 bytes can't be decoded"),
        ({"text": ["a\0b"]}, "text 0: holds a NUL"),
    ],
)
def test_pyfunc_refuses(saved: Path, frame: dict[str, list[object]], message: str) -> None:
    model = oml_mlflow._load_pyfunc(str(saved))
    with pytest.raises(MlflowException, match=message) as err:
        model.predict(pd.DataFrame(frame, dtype=object))
    assert err.value.error_code == "INVALID_PARAMETER_VALUE"


def test_unknown_columns_only_are_refused_through_the_signature(saved: Path) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    with pytest.raises(MlflowException, match="neither a column 'image' nor a column 'text'"):
        model.predict(pd.DataFrame({"caption": ["a cat"]}))


def test_changed_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(saved, copy)
    [txt] = copy.glob("profiles/*/*_txt.onnx")
    data = bytearray(txt.read_bytes())
    data[len(data) // 2] ^= 1
    txt.write_bytes(data)
    with pytest.raises(PackageError, match="not the bytes that were logged"):
        oml_mlflow.load_model(str(copy))


OUTSIDE = {"path": "../x", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 2}, IncompatiblePackage, "format_version 2.*Nothing was .*upgrade oml"),
        ({"format_version": "2"}, PackageError, "damaged .*format_version '2'"),
        ({"profiles": {"p": dict.fromkeys(SIDES, OUTSIDE)}}, PackageError, "leaves the package"),
    ],
)
def test_other_formats_and_paths_outside_are_refused(
    saved: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(saved, copy)
    mlmodel = yaml.safe_load((copy / "MLmodel").read_text())
    mlmodel["flavors"]["oml_mlflow"].update(change)
    (copy / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    with pytest.raises(error, match=message):
        oml_mlflow.load_model(str(copy))


def test_log_model_registers_with_tags_params_and_description(
    tiny_pair: PipelinePair, mlflow_store: Path
) -> None:
    with mlflow.start_run() as run:
        info = oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="clip")
    client = mlflow.MlflowClient()
    version = client.get_model_version("clip", info.registered_model_version)
    assert version.run_id == run.info.run_id
    assert version.tags["oml.sha256_img"] == tiny_pair.fingerprints["img"]
    assert version.tags["oml.exactness"].startswith("max abs ")
    assert tiny_pair.fingerprints["txt"] in version.description
    assert "Exactness: within limits on 24 golden probes" in version.description
    assert len(version.description) <= 5000
    logged = mlflow.get_logged_model(info.model_id)
    assert logged.params["oml.dims"] == str(tiny_pair.dims)
    assert {m.key for m in logged.metrics} == {"exactness/img_max_abs", "exactness/txt_max_abs"}
    assert oml_mlflow.load_model("models:/clip/1").embed_text(["a cat"]).shape == (
        1,
        tiny_pair.dims,
    )


def test_serving_code_needs_neither_onnx_nor_torch(saved: Path, tiny_pair: PipelinePair) -> None:
    script = (
        "import sys\n"
        "for name in ('onnx', 'torch', 'transformers', 'duckdb', 'oracledb', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import mlflow\n"
        f"model = mlflow.pyfunc.load_model({str(saved)!r})\n"
        "print(len(model.predict([{'text': 'a cat'}])['embedding'][0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tiny_pair.dims)
