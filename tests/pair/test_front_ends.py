"""A pair's two front ends give the same vectors, whatever is handed over, and beside whatever."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import onnx
import onnxruntime
import pytest
from attacks import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from oml_mlflow.errors import ConfigError, InputError, PackageError
from oml_mlflow.graph.cut import INPUT_IDS, PIXEL_VALUES, PLANES, WEIGHTS, read_part
from oml_mlflow.graph.precision import PRECISIONS
from oml_mlflow.graph.runtime import CPU
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.embedder import GRAPH, HOST
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import ONNXPipelineConfig

DEMO = Path(__file__).resolve().parents[2] / "projects" / "demo_model" / "demo"
# a vector alone and beside others, in float32
LIMIT = 1e-6
QUANTIZED = {"float32": None, "int8": True, "int8-dynamic": "dynamic"}


def photographs() -> list[Image.Image]:
    return [picture.convert("RGB") for _, picture in clip_folders.photographs()]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PipelinePair]:
    """The demo model in every precision."""
    found = {}
    for precision in PRECISIONS:
        shrunk = {"use_float16": True} if precision == "float16" else {}
        if quantized := QUANTIZED.get(precision):
            shrunk = {"quantize_model": quantized}
        config = ONNXPipelineConfig.from_template("multimodal_clip", **shrunk)
        folder = tmp_path_factory.mktemp("front_ends")
        pipeline = ONNXPipeline(str(DEMO), config=config)
        found[precision] = pipeline.export2file("demo", folder, validate=False)
    return found


def test_both_give_the_same_vectors(pairs: dict[str, PipelinePair]) -> None:
    pair = pairs["float32"]
    pictures = [encoded(p, "PNG") for p in photographs()]
    pictures += [encoded(p.convert("L"), "PNG") for p in photographs()[:2]]
    pictures += [clip_folders.as_jpeg_444(p) for p in photographs()[:3]]
    pictures += [encoded(p, kind) for kind in ("WEBP", "GIF", "TIFF") for p in photographs()[:1]]
    texts = ["a cat", "", "two red stars " * 40, *(f"{n} blue rings" for n in range(70)), "a cat"]
    host, graph = pair.embedder(), pair.embedder(GRAPH)
    assert np.abs(host.embed_image(pictures) - graph.embed_image(pictures)).max() <= LIMIT
    assert np.abs(host.embed_text(texts) - graph.embed_text(texts)).max() <= LIMIT


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_does_not_depend_on_what_is_beside_it(
    precision: str, pairs: dict[str, PipelinePair]
) -> None:
    embedder = pairs[precision].embedder()
    pictures = [encoded(p, "PNG") for p in photographs()] * 2
    texts = ["a cat", "x", "two red stars beside a small green ring", "y " * 100] * 20
    limit = 0 if precision == "int8-dynamic" else LIMIT
    alone = np.concatenate([embedder.embed_image(p) for p in pictures])
    assert np.abs(embedder.embed_image(pictures) - alone).max() <= limit
    alone = np.concatenate([embedder.embed_text(t) for t in texts[:4]] * 20)
    assert np.abs(embedder.embed_text(texts) - alone).max() <= limit


def test_weights_stay_in_the_pair_s_files(pairs: dict[str, PipelinePair], tmp_path: Path) -> None:
    pair = pairs["float32"]
    parts = [
        (pair.img, PLANES, PIXEL_VALUES),
        (pair.img, PIXEL_VALUES, "embedding"),
        (pair.txt, INPUT_IDS, "embedding"),
    ]
    for path, first, last in parts:
        part = read_part(path, first, last)
        assert part is not None
        assert len(part) < min(100_000, path.stat().st_size // 5)
        model = onnx.load_model_from_string(part)
        assert [i.name for i in model.graph.input] == [first]
        assert [o.name for o in model.graph.output] == [last]
        outside = {e.value for i in model.graph.initializer for e in i.external_data[:1]}
        assert outside <= {WEIGHTS}
    assert read_part(pair.img, "nothing", "embedding") is None
    assert read_part(pair.img, INPUT_IDS, "embedding") is None
    assert read_part(pair.txt, INPUT_IDS, "token_ids") is None
    link = tmp_path / "linked.onnx"
    link.symlink_to(pair.img)
    linked = PipelinePair.from_files(link, pair.txt).embedder()
    pictures = [encoded(photographs()[0], "PNG")]
    np.testing.assert_array_equal(
        linked.embed_image(pictures), pair.embedder().embed_image(pictures)
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_give_no_part_or_our_error(
    data: st.DataObject, pairs: dict[str, PipelinePair], tmp_path: Path
) -> None:
    whole = bytearray(pairs["int8"].txt.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with contextlib.suppress(PackageError):
        part = read_part(path, INPUT_IDS, "embedding")
        assert part is None or len(part) < len(whole)


def test_a_file_that_is_changed_later_changes_no_vector(
    pairs: dict[str, PipelinePair], tmp_path: Path
) -> None:
    paths = [tmp_path / path.name for path in (pairs["float32"].img, pairs["float32"].txt)]
    for path, old in zip(paths, (pairs["float32"].img, pairs["float32"].txt), strict=True):
        shutil.copyfile(old, path)
    embedder, picture = PipelinePair.from_files(*paths).embedder(), photographs()[0]
    wanted = embedder.embed_image(picture), embedder.embed_text("a cat")
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))
        os.truncate(path, 10)
    np.testing.assert_array_equal(embedder.embed_image(picture), wanted[0])
    np.testing.assert_array_equal(embedder.embed_text("a cat"), wanted[1])


def test_pictures_in_every_form(pairs: dict[str, PipelinePair], tmp_path: Path) -> None:
    embedder, picture = pairs["float32"].embedder(), photographs()[1]
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture, "PNG"))
    wanted = embedder.embed_image([path.read_bytes()])
    assert wanted.shape == (1, embedder.dims)
    forms: list[Any] = [path.read_bytes(), path, str(path), picture, np.asarray(picture)]
    for form in (*forms, memoryview(path.read_bytes()), Image.open(path)):
        np.testing.assert_array_equal(embedder.embed_image(form), wanted)
    np.testing.assert_array_equal(embedder.embed_image(forms), np.repeat(wanted, 5, axis=0))
    both = np.stack([np.asarray(picture), np.asarray(picture.rotate(180))])
    assert embedder.embed_image(both).shape == (2, embedder.dims)
    assert embedder.embed_image([]).shape == (0, embedder.dims)
    grey = picture.convert("L")
    np.testing.assert_array_equal(
        embedder.embed_image(np.asarray(grey)), embedder.embed_image(grey.convert("RGB"))
    )
    # what was handed over is as it was
    assert picture.getpixel((3, 3)) == photographs()[1].getpixel((3, 3))


def test_a_text_alone_is_one_text(pairs: dict[str, PipelinePair]) -> None:
    embedder = pairs["float32"].embedder()
    np.testing.assert_array_equal(embedder.embed_text("a cat"), embedder.embed_text(["a cat"]))
    assert embedder.embed_text(()).shape == (0, embedder.dims)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (Path("missing.png"), "file missing.png can.t be read .No such file"),
        (Path(), "can.t be read"),
        (np.zeros((4, 4, 3)), "a ndarray can.t be decoded"),
        (np.zeros((4, 4, 7), np.uint8), "a ndarray can.t be decoded"),
        (Image.new("RGB", (3000, 2)), "one edge more than 1,000 times"),
        (17, "got int, wanted an encoded picture"),
    ],
)
def test_the_first_bad_picture_is_named(
    form: Any, told: str, pairs: dict[str, PipelinePair]
) -> None:
    good = photographs()[0]
    with pytest.raises(InputError, match=f"picture 20: .*{told}"):
        pairs["float32"].embedder().embed_image([*[good] * 20, form, good, b"no picture"])


def test_a_row_that_can_t_be_embedded_is_null_if_asked(
    pairs: dict[str, PipelinePair], caplog: pytest.LogCaptureFixture
) -> None:
    good = encoded(photographs()[0], "PNG")
    for pair in (pairs["float32"], pairs["int8-dynamic"]):
        for front_end in (HOST, GRAPH):
            embedder = pair.embedder(front_end)
            alone = embedder.embed_image(good)[0]
            caplog.clear()
            vectors = embedder.embed_image([good, b"no picture", good], on_error="null")
            assert np.isnan(vectors[1]).all()
            assert np.abs(vectors[[0, 2]] - alone).max() <= LIMIT
            [told] = [
                r.getMessage() for r in caplog.records if r.name == "oml_mlflow.pair.embedder"
            ]
            assert told.startswith("picture 1: 10 bytes can't be decoded")
            texts: list[Any] = ["a", 5, "b"]
            vectors = embedder.embed_text(texts, on_error="null")
            assert np.isnan(vectors[1]).all()
            assert np.abs(vectors[[0, 2]] - embedder.embed_text(["a", "b"])).max() <= LIMIT
            with pytest.raises(InputError, match="text 1"):
                embedder.embed_text(texts)
    with pytest.raises(InputError, match="on_error is 'skip'"):
        embedder.embed_image([good], on_error="skip")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_of_any_size_give_the_same_vectors(
    precision: str, pairs: dict[str, PipelinePair]
) -> None:
    embedder = pairs[precision].embedder(threads=1)
    pictures = [encoded(p, "PNG") for p in photographs()]
    texts = ["a cat", "two red stars beside a small green ring"] * 3
    wanted = embedder.embed_image(pictures), embedder.embed_text(texts)
    for size in (1, 3, 100):
        found = embedder.embed_image(pictures, batch_size=size)
        assert np.abs(found - wanted[0]).max() <= LIMIT
        found = embedder.embed_text(texts, batch_size=size)
        assert np.abs(found - wanted[1]).max() <= LIMIT
    with pytest.raises(InputError, match="batch_size"):
        embedder.embed_text(texts, batch_size=0)


def test_rows_are_taken_as_they_are_needed(
    pairs: dict[str, PipelinePair], capsys: pytest.CaptureFixture[str]
) -> None:
    embedder, taken = pairs["float32"].embedder(), [0]
    picture = photographs()[0]

    def endless() -> Iterator[Image.Image]:
        while True:
            taken[0] += 1
            yield picture

    rows = embedder.embed_rows("img", endless(), batch_size=4)
    for _ in range(9):
        row = next(rows)
        assert isinstance(row, np.ndarray)
        assert row.shape == (embedder.dims,)
    assert taken[0] <= 9 + 4 + 8
    assert embedder.embed_text(["a", "b"], show_progress=True).shape == (2, embedder.dims)
    assert "embed" in capsys.readouterr().out


def test_what_runs_the_encoder_is_chosen_and_said(
    pairs: dict[str, PipelinePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pairs["float32"]
    shown = repr(pair.embedder())
    assert "demo_img.onnx" in shown
    assert len(shown) < 200
    assert pair.embedder().providers[-1] == CPU
    with pytest.raises(ConfigError, match=r"has no NoneSuch; it has .*CPUExecutionProvider"):
        pair.embedder(providers=["NoneSuch"])
    monkeypatch.setenv("OML_MLFLOW_PROVIDERS", "Other, CPUExecutionProvider")
    with pytest.raises(ConfigError, match="has no Other;"):
        pair.embedder()
    # what verifies is not what is chosen
    assert pair.embedder(GRAPH).providers == (CPU,)
    monkeypatch.setenv("OML_MLFLOW_PROVIDERS", CPU)
    assert "host, CPUExecutionProvider" in repr(pair.embedder())


def test_a_provider_that_does_not_start_is_not_said_to_run(
    pairs: dict[str, PipelinePair],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where onnxruntime-gpu finds no driver: it lists CUDA, and runs the CPU."""
    listed = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    embedder = pairs["float32"].embedder()
    assert embedder.providers == (CPU,)
    assert "CUDAExecutionProvider does not start here" in caplog.text
    assert embedder.embed_text("a").shape == (1, embedder.dims)
    with pytest.raises(ConfigError, match=r"can't start CUDAExecutionProvider;.*preload_dlls"):
        pairs["float32"].embedder(providers=["CUDAExecutionProvider", CPU])
