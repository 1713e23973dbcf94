"""Pairs that others made: look-alikes, since no genuine file of OML4Py could be had."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import foreign_graphs as foreign
import mlflow
import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner, Result

import oml_mlflow
from oml_mlflow import PipelinePair, promote
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import ApplyError, PackageError, TargetError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.graph.retarget import retarget_pipeline
from oml_mlflow.graph.runtime import Ends
from oml_mlflow.pair.pictures import picture_pixels
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.promotion.verify import verify
from oml_mlflow.registry.versions import fetch_version, get_version
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PICTURES = [probe.value for probe in golden_probes() if probe.side == "img"]
TEXTS = [str(probe.value) for probe in golden_probes() if probe.side == "txt"]
REASON = "operator DecodeJpeg of domain oracle.invented is not in this runtime"


@pytest.fixture
def renamed_pair(tiny_pair: PipelinePair, tmp_path: Path) -> PipelinePair:
    """The tiny pair as somebody else would name its tensors."""
    img = foreign.rename(
        tiny_pair.img, tmp_path / "their_img.onnx", input="data", embedding="vector"
    )
    txt = foreign.rename(tiny_pair.txt, tmp_path / "their_txt.onnx", input="TEXT", embedding="out")
    return PipelinePair.from_files(img, txt)


@pytest.fixture
def oracle_pair(tmp_path: Path) -> PipelinePair:
    """A look-alike of a pair whose image side only its own database can run."""
    img = foreign.save(foreign.image_model("data"), tmp_path / "clip_img.onnx")
    txt = foreign.save(foreign.text_model(), tmp_path / "clip_txt.onnx")
    return PipelinePair.from_files(img, txt)


@pytest.fixture
def target(tmp_path: Path) -> EmbeddedTarget:
    return EmbeddedTarget(tmp_path / "database", timeout_s=1)


def log(pair: PipelinePair) -> Path:
    """Log a pair as a version of `clip`; return its folder."""
    oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    return fetch_version(get_version("models:/clip/1"))


def test_names_are_read_from_the_graphs_and_kept(
    renamed_pair: PipelinePair, tiny_pair: PipelinePair, mlflow_store: Path, target: EmbeddedTarget
) -> None:
    assert renamed_pair.ends == {"img": Ends("data", "vector"), "txt": Ends("TEXT", "out")}
    assert renamed_pair.unknown_operators == {}
    ours, theirs = tiny_pair.embedder(), renamed_pair.embedder()
    images, texts = ours.embed_image(PICTURES), ours.embed_text(TEXTS)
    np.testing.assert_array_equal(theirs.embed_image(PICTURES), images)
    np.testing.assert_array_equal(theirs.embed_text(TEXTS), texts)

    folder = log(renamed_pair)
    entry = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["oml_mlflow"]["profiles"]
    [sides] = entry.values()
    assert [(sides[s]["input"], sides[s]["output"]) for s in ("img", "txt")] == [
        ("data", "vector"),
        ("TEXT", "out"),
    ]
    np.testing.assert_array_equal(oml_mlflow.load_model(str(folder)).embed_text(TEXTS), texts)
    done = promote("models:/clip/1", target)
    assert (done.entry.verification, done.report.ok) == ("verified", True)
    [(vector,)] = target.sql("SELECT CLIP_IMG(?)", [PICTURES[0]])
    np.testing.assert_array_equal(np.array(vector, np.float32), images[0])


def test_serving_needs_no_onnx(renamed_pair: PipelinePair, mlflow_store: Path) -> None:
    folder = log(renamed_pair)
    script = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "import mlflow\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(len(model.predict([{'text': 'a cat'}])['embedding'][0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["16"]


def test_one_text_at_a_time(tmp_path: Path, oracle_pair: PipelinePair) -> None:
    """OML4Py documents input string[1]."""
    vectors = oracle_pair.embedder().embed_text(["a cat", "a dog", "a cat"])
    assert vectors.shape == (3, foreign.DIMS)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert not np.array_equal(vectors[0], vectors[1])


def test_an_operator_that_no_runtime_has_is_reported(oracle_pair: PipelinePair) -> None:
    assert oracle_pair.dims == foreign.DIMS
    assert oracle_pair.unknown_operators == {"img": ("oracle.invented:DecodeJpeg",)}
    with pytest.raises(PackageError, match=r"oracle\.invented:DecodeJpeg"):
        oracle_pair.embedder().embed_image(PICTURES[:1])


def test_operators_of_runtime_and_extensions_are_known(
    tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    model = foreign.hidden_operator("com.microsoft", "FusedMatMul")
    txt = foreign.save(model, tmp_path / "txt.onnx")
    img = foreign.save(foreign.image_model(), tmp_path / "img.onnx")
    assert set(PipelinePair.from_files(img, txt).unknown_operators) == {"img"}
    foreign.save(foreign.hidden_operator(), txt)
    unknown = PipelinePair.from_files(img, txt).unknown_operators
    assert unknown["txt"] == ("somebody.else:Secret",)


def test_an_image_input_of_unknown_type_is_only_for_graphs_that_are_not_run(
    tiny_pair: PipelinePair, oracle_pair: PipelinePair, tmp_path: Path
) -> None:
    """Which type Oracle's own decoder takes is not public."""
    model = foreign.image_model("input", onnx.TensorProto.STRING)
    img = foreign.save(model, tmp_path / "string_img.onnx")
    assert PipelinePair.from_files(img, oracle_pair.txt).unknown_operators
    with pytest.raises(PackageError, match="may be swapped"):
        PipelinePair.from_files(tiny_pair.txt, tiny_pair.img)


def test_without_unverified_promotion_is_refused(
    oracle_pair: PipelinePair, mlflow_store: Path, target: EmbeddedTarget
) -> None:
    folder = log(oracle_pair)
    assert not (folder / "golden" / "pair-oracle-23.7.npz").exists()
    version = mlflow.MlflowClient().get_model_version("clip", "1")
    assert f"Exactness: not run ({REASON})" in version.description
    with pytest.raises(ApplyError, match=REASON) as err:
        promote("models:/clip/1", target)
    assert "--unverified" in err.value.hint
    assert not target.folder.exists()
    assert "oml.verification" not in mlflow.MlflowClient().get_model_version("clip", "1").tags


def test_promoted_unverified_says_so_everywhere(
    oracle_pair: PipelinePair, mlflow_store: Path, target: EmbeddedTarget
) -> None:
    log(oracle_pair)
    done = promote("models:/clip/1", target, unverified=True)
    assert (done.changed, done.entry.verification) == (True, "unverified")
    assert done.report.rows == ()
    assert REASON in done.report.title
    version = mlflow.MlflowClient().get_model_version("clip", "1")
    assert version.tags["oml.verification"] == "unverified"
    again = promote("models:/clip/1", target, unverified=True)
    assert (again.changed, again.entry.verification) == (False, "unverified")

    with target.session("a test") as session:
        models = {m.name: m for m in session.models.list()}
        assert [e.verification for e in session.journal.ledger()] == ["unverified"]
        assert session.models.fingerprint("CLIP_IMG") == oracle_pair.fingerprints["img"]
    assert set(models) == {"CLIP_IMG", "CLIP_TXT"}
    assert models["CLIP_IMG"].metadata["unknown_operators"] == ["oracle.invented:DecodeJpeg"]
    assert target.sql("SELECT len(CLIP_TXT('a cat'))") == [(foreign.DIMS,)]
    with pytest.raises(TargetError, match=r"(?i)clip_img does not exist"):
        target.sql("SELECT CLIP_IMG('x'::BLOB)")
    with pytest.raises(PackageError, match=REASON):
        verify("models:/clip/1", target)


def test_a_pair_that_can_be_compared_is_compared_all_the_same(
    tiny_pair: PipelinePair, mlflow_store: Path, target: EmbeddedTarget
) -> None:
    log(tiny_pair)
    done = promote("models:/clip/1", target, unverified=True)
    assert (done.entry.verification, done.report.ok) == ("verified", True)
    assert "oml.verification" not in mlflow.MlflowClient().get_model_version("clip", "1").tags


def test_the_model_s_own_vectors_are_kept_for_a_database_that_can_run_it(
    oracle_pair: PipelinePair, tiny_pair: PipelinePair, mlflow_store: Path
) -> None:
    folder = log(replace(oracle_pair, model_references=tiny_pair.model_references))
    assert (folder / "golden" / "model.npz").is_file()
    assert not (folder / "golden" / "pair-oracle-23.7.npz").exists()


FOLLOWED = """\
[targets.small]
uri = "embedded:///followed"
accept = [{ model = "clip" }]
[[bindings]]
model = "clip"
alias = "prod"
target = "small"
"""


def test_the_command_line(oracle_pair: PipelinePair, mlflow_store: Path) -> None:
    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    done = run("log", oracle_pair.img, oracle_pair.txt, "--register", "clip")
    assert f"not run: {REASON}" in done.stderr
    assert done.exit_code == 0
    assert isinstance(run("promote", "models:/clip/1").exception, ApplyError)
    assert "unverified. Not compared" in run("promote", "models:/clip/1", "--unverified").stdout
    assert "unverified" in run("models").stdout
    ledger = json.loads(run("history", "--json").stdout)["ledger"]
    assert [entry["verification"] for entry in ledger] == ["unverified"]
    assert isinstance(run("verify", "clip").exception, PackageError)

    Path("oml_mlflow.toml").write_text(FOLLOWED)
    mlflow.MlflowClient().set_registered_model_alias("clip", "prod", "1")
    assert "can't be compared with anything" in run("apply", "--yes").stdout
    assert run("plan", "--retry", "--unverified", "--out", "plan.json").exit_code == 0
    assert "clip 1 live (generation 1), unverified" in run("apply", "plan.json").stdout


def test_a_ledger_of_an_older_release_is_read_as_verified(
    tiny_pair: PipelinePair, mlflow_store: Path, target: EmbeddedTarget
) -> None:
    log(tiny_pair)
    promote("models:/clip/1", target)
    with duckdb.connect(str(target.folder / "catalog.duckdb")) as connection:
        connection.execute("ALTER TABLE oml.ledger DROP COLUMN verification")
    with target.session("a test") as session:
        assert [entry.verification for entry in session.journal.ledger()] == ["verified"]
    assert not promote("models:/clip/1", target).changed


def test_the_raw_variant_takes_pixels(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    raw = tmp_path / "raw_img.onnx"
    retarget_pipeline(tiny_pair.img, raw, get_profile("oracle-23.7", decode_op="raw"))
    pair = PipelinePair.from_files(raw, tiny_pair.txt)
    assert pair.unknown_operators == {}
    png = [p.value for p in golden_probes() if p.category.startswith("png")]
    assert png
    embedder = pair.embedder()
    np.testing.assert_allclose(
        embedder.embed_image(png), tiny_pair.embedder().embed_image(png), atol=1e-6
    )
    assert embedder.embed_image(PICTURES).shape == (len(PICTURES), pair.dims)
    pixels = picture_pixels(PICTURES[0])
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign.optimum_model, "has inputs"),
        (foreign.image_model, "may be swapped"),
        (lambda: foreign.with_external_data("w.bin"), "keeps 1 tensors in other files"),
        (lambda: foreign.with_external_data("../../etc/passwd"), "in other files"),
        (
            lambda: _without_dims(foreign.text_model()),
            r"none, or more than one, is float32 of shape",
        ),
    ],
)
def test_files_that_are_no_text_pipeline(
    make: Callable[[], onnx.ModelProto], message: str, oracle_pair: PipelinePair, tmp_path: Path
) -> None:
    txt = foreign.save(make(), tmp_path / "other_txt.onnx")
    with pytest.raises(PackageError, match=message):
        PipelinePair.from_files(oracle_pair.img, txt)


def _without_dims(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    return model


def test_a_package_whose_graph_names_other_files_is_not_run(
    oracle_pair: PipelinePair, mlflow_store: Path, tmp_path: Path
) -> None:
    folder = log(oracle_pair)
    secret = np.zeros((2, foreign.DIMS), np.float32).tobytes()
    (tmp_path / "secret.bin").write_bytes(secret)
    [txt] = folder.glob("profiles/*/*_txt.onnx")
    for location in ("../../../secret.bin", str(tmp_path / "secret.bin"), "secret.bin"):
        (txt.parent / "secret.bin").write_bytes(secret)
        foreign.save(foreign.with_external_data(location), txt)
        change_mlmodel(folder, lambda sides: sides["txt"].update(sha256=fingerprint_file(txt)))
        with pytest.raises(PackageError, match=r"in other files.* Nothing was loaded"):
            oml_mlflow.load_model(str(folder)).embed_text(["a cat"])


def change_mlmodel(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    path = folder / "MLmodel"
    content = yaml.safe_load(path.read_text())
    [sides] = content["flavors"]["oml_mlflow"]["profiles"].values()
    change(sides)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("location", ["../outside.onnx", "profiles/../../outside.onnx", None])
def test_no_path_of_a_package_leaves_it(
    location: str | None, oracle_pair: PipelinePair, mlflow_store: Path
) -> None:
    folder = log(oracle_pair)
    outside = folder.parent / "outside.onnx"
    outside.write_bytes(oracle_pair.txt.read_bytes())
    path = location or str(outside)
    change_mlmodel(folder, lambda sides: sides["txt"].update(path=path))
    with pytest.raises(PackageError, match="leaves the package"):
        read_package(folder)


@pytest.mark.parametrize("where", ["profiles/link.onnx", "golden/link.png", "code"])
def test_no_link_of_a_package_leaves_it(
    where: str, tiny_pair: PipelinePair, mlflow_store: Path, tmp_path: Path
) -> None:
    folder = log(tiny_pair)
    if where == "code":
        (folder / where).rename(tmp_path / "moved")
        (folder / where).symlink_to(tmp_path / "moved", target_is_directory=True)
    else:
        (folder / where).symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match=r"link .* leaves the package"):
        read_package(folder)
    (folder / where).unlink()
    if where != "code":
        (folder / where).symlink_to(folder / "MLmodel")
        assert read_package(folder).dims == 16


@pytest.mark.parametrize(
    "section", ["text", {}, {"format_version": 1}, {"format_version": 1, "profiles": {"a": 1}}]
)
def test_a_damaged_mlmodel_is_an_error_of_ours(
    section: object, oracle_pair: PipelinePair, mlflow_store: Path
) -> None:
    folder = log(oracle_pair)
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["oml_mlflow"] = section
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    with pytest.raises(PackageError):
        read_package(folder)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


def test_nothing_in_a_package_is_executed_or_unpickled(
    tiny_pair: PipelinePair, mlflow_store: Path, tmp_path: Path
) -> None:
    folder, mark = log(tiny_pair), tmp_path / "executed"
    bomb = pickle.dumps(Bomb(mark))
    for name in (
        "model.pkl",
        "python_model.pkl",
        "golden/pair-oracle-23.7.npz",
        "golden/model.npz",
    ):
        (folder / name).write_bytes(bomb)
    (folder / "code" / "sitecustomize.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    (folder / "code" / "oml_mlflow" / "__init__.py").write_text(
        f"import os; os.mkdir({str(mark)!r})"
    )
    assert oml_mlflow.load_model(str(folder)).embed_text(["a cat"]).shape == (1, 16)
    package = read_package(folder)
    package.check_fingerprints()
    with pytest.raises(PackageError, match="can't be read"):
        package.references()
    arrays = np.array([Bomb(mark)], dtype=object)
    np.savez(folder / "golden" / "pair-oracle-23.7.npz", first=arrays)
    with pytest.raises(PackageError, match="can't be read"):
        package.references()
    (folder / "MLmodel").write_text(f"flavors: !!python/object/apply:os.mkdir [{str(mark)!r}]")
    with pytest.raises(PackageError):
        read_package(folder)
    assert not mark.exists()
