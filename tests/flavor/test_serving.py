from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from serving import post, served

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.errors import PackageError
from oml_mlflow.flavor.serving import worker_threads
from oml_mlflow.graph.runtime import CPU
from oml_mlflow.parity.probes import golden_probes

PICTURES = [p.value for p in golden_probes() if isinstance(p.value, bytes)]
TEXTS = [p.value for p in golden_probes() if isinstance(p.value, str)]


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


@pytest.fixture(scope="module")
def saved(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model"
    oml_mlflow.save_model(tiny_pair, path)
    return path


@pytest.fixture(scope="module")
def program_without_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlflow` in an environment with everything that is installed here but oml_mlflow.

    The packages are links: the long form of this test installs the model's requirements instead.
    """
    root = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(root, with_pip=False)
    here = Path(sysconfig.get_path("purelib"))
    there = next(root.glob("lib/python*/site-packages"))
    for entry in here.iterdir():
        if "oml_mlflow" not in entry.name and not entry.name.endswith(".pth"):
            (there / entry.name).symlink_to(entry)
    program = root / "bin" / "mlflow"
    program.write_text(f"#!{root}/bin/python\nfrom mlflow.cli import cli\ncli()\n")
    program.chmod(0o755)
    probe = subprocess.run(
        [root / "bin" / "python", "-c", "import oml_mlflow"],
        env={},
        check=False,
        capture_output=True,
        cwd=root,
    )
    assert b"No module named 'oml_mlflow'" in probe.stderr
    return program


@pytest.fixture(scope="module")
def url(saved: Path, program_without_package: Path) -> Iterator[str]:
    with served(saved, program_without_package, saved.parent / "serve.log") as address:
        yield address


def test_texts_and_pictures_have_the_right_vectors(url: str, tiny_pair: PipelinePair) -> None:
    check_vectors(url, tiny_pair)


def check_vectors(url: str, pair: PipelinePair) -> None:
    """Compare answers with what the pair gives in this process."""
    embedder = pair.embedder()
    status, answer = post(url, {"dataframe_records": [{"text": text} for text in TEXTS]})
    assert status == 200, answer
    vectors = np.array([row["embedding"] for row in answer["predictions"]], np.float32)
    np.testing.assert_allclose(vectors, embedder.embed_text(TEXTS), atol=1e-6)
    records = [{"image": encoded(picture)} for picture in PICTURES]
    status, answer = post(url, {"dataframe_records": records})
    assert status == 200, answer
    vectors = np.array([row["embedding"] for row in answer["predictions"]], np.float32)
    np.testing.assert_allclose(vectors, embedder.embed_image(PICTURES), atol=1e-6)


@pytest.mark.parametrize("form", ["dataframe_split", "inputs", "instances"])
def test_other_request_forms(url: str, tiny_pair: PipelinePair, form: str) -> None:
    wanted = tiny_pair.embedder().embed_image([PICTURES[0]])[0]
    payload: dict[str, object] = {form: [{"image": encoded(PICTURES[0])}]}
    if form == "dataframe_split":
        payload = {form: {"columns": ["image"], "data": [[encoded(PICTURES[0])]]}}
    status, answer = post(url, payload)
    assert status == 200, answer
    got = np.array(answer["predictions"][0]["embedding"], np.float32)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "neither a column 'image' nor a column 'text'"),
        ([{"caption": "a cat"}], "neither a column 'image' nor a column 'text'"),
        ([{"text": "a cat", "image": encoded(PICTURES[0])}], "row 0 has both image and text"),
        ([{"text": None}], "row 0 has neither image nor text"),
        ([{"image": encoded(b"GIF89a, or so it says")}], "21 bytes can't be decoded"),
        ([{"image": encoded(PICTURES[3][:2000])}], "2,000 bytes can't be decoded"),
    ],
)
def test_bad_requests_are_refused_and_the_server_lives(
    url: str, records: list[dict[str, object]], message: str
) -> None:
    status, answer = post(url, {"dataframe_records": records})
    assert status == 400
    assert message in answer["message"]
    status, _ = post(url, {"dataframe_records": [{"text": "still there"}]})
    assert status == 200


@pytest.mark.drill
def test_serving_from_the_models_own_requirements(
    saved: Path, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    root = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", root], check=True)
    install = [root / "bin" / "pip", "install", "-q", "-r", saved / "requirements.txt"]
    subprocess.run(install, check=True)
    listed = subprocess.run([root / "bin" / "pip", "list"], check=True, capture_output=True)
    assert b"oml" not in listed.stdout
    with served(saved, root / "bin" / "mlflow", tmp_path / "serve.log") as address:
        check_vectors(address, tiny_pair)


def test_rows_that_can_t_be_embedded_are_null_if_asked(url: str, tiny_pair: PipelinePair) -> None:
    records = [{"text": "a"}, {"image": "?"}, {"image": encoded(b"no picture")}, {"text": "b"}, {}]
    payload = {"dataframe_records": records, "params": {"on_error": "null"}}
    status, answer = post(url, payload)
    assert status == 200, answer
    rows = answer["predictions"]
    wanted = tiny_pair.embedder().embed_text(["a", "b"])
    got = np.array([rows[0]["embedding"], rows[3]["embedding"]], np.float32)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert [row["embedding"] is None for row in rows] == [False, True, True, False, True]
    assert [row["error"] is None for row in rows] == [True, False, False, True, False]
    assert "row 1: image is a string that is no base64" in rows[1]["error"]
    assert "10 bytes can't be decoded" in rows[2]["error"]
    assert "row 4 has neither image nor text" in rows[4]["error"]
    assert post(url, {**payload, "params": {"on_error": "skip"}})[0] == 400
    assert post(url, {"dataframe_records": records})[0] == 400


@pytest.mark.parametrize(
    ("options", "workers", "wanted"), [(["--workers", "2"], "", 1), ([], "9", 1), ([], "1", None)]
)
def test_workers_share_the_cores(
    options: list[str], workers: str, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "--port", "1", *options])
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    monkeypatch.setattr("oml_mlflow.flavor.serving.cores", lambda: 2)
    assert worker_threads() == wanted


def test_another_provider_s_vectors_are_compared_first(saved: Path, tmp_path: Path) -> None:
    # it runs nothing here, so that the CPU does, but is another one by name
    [other, *_] = [p for p in onnxruntime.get_available_providers() if p != CPU]
    assert other in repr(oml_mlflow.load_model(str(saved), providers=[other]))
    wrong = tmp_path / "wrong"
    shutil.copytree(saved, wrong)
    [stored] = (wrong / "golden").glob("pair-*.npz")
    with np.load(stored) as vectors:
        turned = {name: -vectors[name] for name in vectors.files}
    np.savez(stored, **turned)
    with pytest.raises(PackageError, match=f"{other} gives other vectors"):
        oml_mlflow.load_model(str(wrong), providers=[other])
