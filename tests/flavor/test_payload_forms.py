"""Whatever a request holds: right vectors, or a refusal that names the row. Never junk, never 5xx.

MLflow's own: JSON that is nested 100,000 deep, or has a number of more than 4,300 digits, gets 500.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clip_folders
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema
from serving import post, served

import oml_mlflow
from oml_mlflow.errors import ConfigError
from oml_mlflow.pair.pipeline_pair import PipelinePair

IMAGE = clip_folders.photographs()[0][1].crop((140, 30, 230, 100))
PICTURES = {"png": clip_folders.as_png(IMAGE), "jpeg": clip_folders.as_jpeg_444(IMAGE)}
MLFLOW = Path(sys.executable).parent / "mlflow"
FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")


@pytest.fixture(scope="module")
def saved(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "model"
    oml_mlflow.save_model(tiny_pair, path)
    return path


@pytest.fixture(scope="module")
def url(saved: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OML_MLFLOW_REQUEST_ROWS", "5")
        patch.setenv("OML_MLFLOW_REQUEST_BYTES", "200000")
        with served(saved, MLFLOW, saved.parent / "serve.log") as address:
            yield address


def payload(form: str, column: str, values: list[Any]) -> dict[str, Any]:
    if form == "dataframe_split":
        return {form: {"columns": [column], "data": [[value] for value in values]}}
    return {form: [{column: value} for value in values]}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "row 0 has neither image nor text"),
        (float("nan"), "row 0 has neither image nor text"),
        (5, "row 0: text is a int"),
        (1.5, "row 0: text is a float"),
        (True, "row 0: text is a bool"),
        ({"a": 1}, "row 0: column 'text' holds a dict"),
        ([1], "row 0: column 'text' holds a list"),
        ("a\0b", "text 0: holds a NUL"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_text_is_refused_by_row_and_type(
    url: str, form: str, value: Any, said: str
) -> None:
    for column in ("text", "image") if not isinstance(value, str) else ("text",):
        status, answer = post(url, payload(form, column, [value]))
        assert status == 400
        assert (
            said.replace("text is", f"{column} is").replace("'text'", f"'{column}'")
            in (answer["message"])
        )


@pytest.mark.parametrize("value", [None, float("nan"), 5, True])
def test_inputs_beside_strings_are_refused_too(url: str, value: Any) -> None:
    for body in (payload("inputs", "text", ["a", value]), {"inputs": {"text": ["a", value]}}):
        status, answer = post(url, body)
        assert status == 400
        assert "row 1" in answer["message"]


def test_instances_beside_strings_are_words_to_mlflow(url: str, tiny_pair: PipelinePair) -> None:
    status, answer = post(url, payload("instances", "text", ["a", 5]))
    assert status == 200
    wanted = tiny_pair.embedder().embed_text(["a", "5"])
    np.testing.assert_allclose(vectors(answer), wanted, atol=1e-6)
    assert post(url, payload("instances", "text", ["a", None]))[0] == 400


def vectors(answer: Any) -> np.ndarray:
    return np.array([row["embedding"] for row in answer["predictions"]], np.float32)


def urls(kind: str) -> list[str]:
    """Return spellings of a picture's data: URL, and of its base64."""
    data = PICTURES[kind]
    quoted = b64(data).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    return [
        f"data:image/{kind};base64,{b64(data)}",
        f"DATA:image/{kind};charset=utf-8;BASE64,{b64(data)}",
        f" data:;base64,{quoted}\n",
        f"data:image/{kind}," + "".join(f"%{byte:02x}" for byte in data),
        base64.encodebytes(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    ]


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("form", FORMS)
def test_data_urls_work_in_every_form(
    url: str, tiny_pair: PipelinePair, form: str, kind: str
) -> None:
    wanted = tiny_pair.embedder().embed_image([PICTURES[kind]])[0]
    for value in urls(kind):
        status, answer = post(url, payload(form, "image", [value]))
        assert status == 200, (value[:60], answer)
        np.testing.assert_allclose(vectors(answer)[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data:image/png;base64,", "0 bytes can't be decoded"),
        ("data:image/png;base64", "a data: URL whose data is no base64"),
        ("data:image/png;base64,!", "a data: URL whose data is no base64"),
        ("no base64!", "row 0: image is a string that is no base64"),
        ("", "0 bytes can't be decoded"),
    ],
)
def test_broken_urls_and_base64_are_refused(url: str, value: str, said: str) -> None:
    for form in FORMS:
        status, answer = post(url, payload(form, "image", [value]))
        assert (status, said in answer["message"]) == (400, True), answer


def test_forms_by_column_and_mixed_rows(url: str, tiny_pair: PipelinePair) -> None:
    embedder, picture = tiny_pair.embedder(), PICTURES["png"]
    for form in ("inputs", "instances"):
        status, answer = post(url, {form: {"text": ["a", "b"]}})
        assert status == 200
        np.testing.assert_allclose(vectors(answer), embedder.embed_text(["a", "b"]), atol=1e-6)
    rows = [{"image": b64(picture), "text": None}, {"text": "a", "image": None}]
    for form in ("dataframe_records", "inputs", "instances"):
        status, answer = post(url, {form: rows})
        assert status == 200, answer
        np.testing.assert_allclose(
            vectors(answer)[0], embedder.embed_image([picture])[0], atol=1e-6
        )
        np.testing.assert_allclose(vectors(answer)[1], embedder.embed_text(["a"])[0], atol=1e-6)


def test_numbers_in_errors_are_those_of_the_rows(url: str) -> None:
    rows = [{"text": "a"}, {"image": b64(PICTURES["png"])}, {"image": b64(b"GIF89a or so")}]
    status, answer = post(url, {"dataframe_records": rows})
    assert status == 400
    assert "picture 2: 12 bytes can't be decoded" in answer["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (payload("inputs", "text", ["a"] * 6), "6 rows, more than the 5"),
        ({"inputs": {"text": ["a"] * 6}}, "6 rows, more than the 5"),
        (payload("instances", "text", ["a" * 100_001] * 2), "200,002 bytes, more than the 200,000"),
        (payload("instances", "text", ["é" * 100_001]), "200,002 bytes, more than the 200,000"),
        (payload("dataframe_records", "image", ["A" * 200_004]), "200,004 bytes"),
    ],
)
def test_a_request_has_limits(url: str, body: dict[str, Any], said: str) -> None:
    status, answer = post(url, body)
    assert status == 400
    assert said in answer["message"]
    assert "OML_MLFLOW_REQUEST_" in answer["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": None},
        {"inputs": 5},
        {"inputs": []},
        {"inputs": [[["a"]]]},
        {"inputs": ["a", "b"]},
        {"inputs": {"text": ["a", "b"], "image": ["x"]}},
        {"instances": [{"text": "a"}, {"image": "AAAA"}]},
        {"instances": [{"text": ["a"]}, {"text": "b"}]},
        {"dataframe_split": {"columns": ["text", "text"], "data": [["a", "b"]]}},
        {"dataframe_split": {"columns": ["text", "text"], "data": [["a", "b"]] * 2}},
        {"dataframe_split": {"columns": [None], "data": [["a"]]}},
        {"dataframe_split": {"columns": ["text"], "index": [0, 1], "data": []}},
        {"dataframe_records": {"text": ["a"]}},
        {"dataframe_records": ["a"]},
        {"dataframe_records": [{"text": "\ud800"}]},
        {"inputs": [{"image": "data:,\ud800"}]},
        {"inputs": [{"text": 10**400}]},
        {"inputs": json.loads("[" * 400 + "]" * 400)},
        {"input": ["a"]},
        {"messages": [{"text": "a"}]},
    ],
)
def test_odd_requests_get_a_4xx(url: str, body: dict[str, Any]) -> None:
    status, _ = post(url, body)
    assert 400 <= status < 500
    assert post(url, payload("inputs", "text", ["still there"]))[0] == 200


def test_limits_are_for_http_only(saved: Path) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    assert len(model.predict(pd.DataFrame({"text": ["a"] * 1500}))) == 1500


@pytest.mark.parametrize(
    ("name", "value"),
    [("ROWS", "0"), ("ROWS", "many"), ("BYTES", "-1"), ("BYTES", "1e6"), ("ROWS", "9" * 30)],
)
def test_limits_that_are_no_numbers_are_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"OML_MLFLOW_REQUEST_{name}", value)
    with pytest.raises(ConfigError, match=f"OML_MLFLOW_REQUEST_{name}.* whole number") as caught:
        oml_mlflow._load_pyfunc(str(saved))
    assert caught.value.code == "config-invalid"


@pytest.mark.parametrize(
    "value", [IMAGE, 5, 300_000_000, True, 1.5, np.int64(3), pd.Timestamp(0), object()]
)
def test_an_image_cell_of_another_type_is_refused(saved: Path, value: Any) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    frame = pd.DataFrame({"image": pd.Series([PICTURES["png"], value], dtype=object)})
    said = f"row 1: image is a {type(value).__name__}"
    with pytest.raises(MlflowException, match=said) as caught:
        model.predict(frame)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_every_kind_of_bytes_and_null_is_known(saved: Path, tiny_pair: PipelinePair) -> None:
    model, data = mlflow.pyfunc.load_model(str(saved)), PICTURES["png"]
    same = [data, bytearray(data), memoryview(data), np.bytes_(data), np.str_(b64(data))]
    nulls = [None, pd.NA, pd.NaT, float("nan"), np.float32("nan")]
    frame = pd.DataFrame({"image": [*same, *nulls], "text": [None] * 5 + ["a"] * 5}, dtype=object)
    got = np.array(model.predict(frame)["embedding"].tolist(), np.float32)
    embedder = tiny_pair.embedder()
    np.testing.assert_allclose(got[:5], np.repeat(embedder.embed_image([data]), 5, 0), atol=1e-6)
    np.testing.assert_allclose(got[5:], np.repeat(embedder.embed_text(["a"]), 5, 0), atol=1e-6)


def test_a_url_that_an_older_signature_decoded_is_told(
    tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    columns = [ColSpec(DataType.binary, "image", False), ColSpec(DataType.string, "text", False)]
    oml_mlflow.save_model(tiny_pair, tmp_path / "m", signature=ModelSignature(Schema(columns)))
    decoded = base64.decodebytes(f"data:image/jpeg;base64,{b64(PICTURES['jpeg'])}".encode())
    model = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    with pytest.raises(MlflowException, match="row 0: image is a data: URL that MLflow decoded"):
        model.predict(pd.DataFrame({"image": [decoded]}))


def test_a_column_that_is_there_twice_is_refused(saved: Path) -> None:
    frame = pd.DataFrame([["a", "b"]] * 2, columns=["text", "text"])
    with pytest.raises(MlflowException, match="a column is there twice"):
        oml_mlflow._load_pyfunc(str(saved)).predict(frame)
