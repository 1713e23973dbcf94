"""Stages: a pair is compared with its model by what reaches the encoders, and by the encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import clip_folders
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from transformers import CLIPModel

from oml_mlflow.errors import ParityError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.export import export_pair
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.stages import demand_stages, prove
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.parity.stage import (
    ENCODER,
    LENGTH,
    PIXELS,
    TOKENS,
    compare_encoder,
    compare_lengths,
    compare_pixels,
    compare_tokens,
)
from oml_mlflow.source.description import BICUBIC, BILINEAR, NEAREST, ImagePreparation
from oml_mlflow.source.model import Source, open_source

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)


@pytest.mark.parametrize("size", [40, 37, 33])
def test_a_pixel_one_level_off_is_no_fault(size: int, tmp_path: Path) -> None:
    """With `size` 40 one value differs by a level, and its vector by more than 1e-4."""
    processor = {"size": size, "crop_size": 32}
    folder = clip_folders.write_tiny(tmp_path / "model", processor=processor)
    pair = ONNXPipeline(str(folder)).export2file("tiny", tmp_path / "out")
    assert pair.proof is not None
    assert pair.proof.report.ok
    assert [stage for stage in pair.proof.report.stages if stage.errors] == []
    if size == 40:
        assert pair.loss["img"]["max_abs"] > 1e-4
        row = next(r for r in pair.proof.report.rows if r.probe.id == "jpeg-444-landscape")
        assert row.max_abs <= (row.limit or 0.0) < row.max_abs + 1.1e-4


def _vision(source: Source, **changes: object) -> Source:
    return replace(source, vision=replace(source.vision, **changes))  # type: ignore[arg-type]


def _prepared(source: Source, **changes: object) -> Source:
    changed = replace(source.preparation, **changes)  # type: ignore[arg-type]
    return replace(source, preparation=changed)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        pytest.param(lambda s: _prepared(s, resample=BILINEAR), PIXELS, id="bilinear"),
        pytest.param(lambda s: _prepared(s, shortest_edge_px=33), PIXELS, id="crop"),
        pytest.param(lambda s: _vision(s, epsilon=1e-3), ENCODER, id="epsilon"),
    ],
)
def test_the_stage_that_differs_is_named(
    change: Callable[[Source], Source], stage: str, tiny_folder: Path, tmp_path: Path
) -> None:
    wrong = change(open_source(str(tiny_folder)))
    with pytest.raises(
        ParityError, match=rf"in its {stage}, on \d+ probes; probe .* No file"
    ) as err:
        export_pair(wrong, ONNXPipelineConfig(), "tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert err.value.hint
    assert sum("NOT right" in line for line in err.value.details["stages"]) == 1


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[PipelinePair, Source]:
    """A model to which "cat" and "dog" are the same, and its pair, not compared yet."""
    root = tmp_path_factory.mktemp("twins")
    folder = clip_folders.write_tiny(root / "model")
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        table = model.text_model.embeddings.token_embedding.weight
        table[ids["dog</w>"]] = table[ids["cat</w>"]]
    model.save_pretrained(folder)
    pair = ONNXPipeline(str(folder)).export2file("twins", root / "pair", validate=False)
    return pair, open_source(str(folder))


def _swap_cat_and_dog(model: onnx.ModelProto) -> None:
    attribute = next(
        a for n in model.graph.node for a in n.attribute if n.op_type == "CLIPTokenizer"
        if a.name == "vocab"
    )  # fmt: skip
    ids = json.loads(attribute.s)
    ids["cat</w>"], ids["dog</w>"] = ids["dog</w>"], ids["cat</w>"]
    attribute.s = json.dumps(ids).encode()


def _halve(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "whole"
    model.graph.node.append(helper.make_node("Mul", ["whole", "half"], ["embedding"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), "half"))


@pytest.mark.parametrize(("damage", "stage"), [(_swap_cat_and_dog, TOKENS), (_halve, LENGTH)])
def test_what_no_vector_shows_is_seen(
    damage: Callable[[onnx.ModelProto], None],
    stage: str,
    twins: tuple[PipelinePair, Source],
    tmp_path: Path,
) -> None:
    pair, source = twins
    model = onnx.load(pair.txt)
    damage(model)
    path = tmp_path / "twins_txt.onnx"
    onnx.save(model, path)
    wrong = replace(
        pair,
        files={**pair.files, "txt": (path,)},
        fingerprints={**pair.fingerprints, "txt": fingerprint_file(path)},
    )
    report = prove(wrong, source).report
    assert [found.name for found in report.stages if found.errors] == [stage]
    assert report.ok == (stage == TOKENS)  # the vectors are within limits
    with pytest.raises(ParityError, match=f"its {stage}, on .* probes; probe ascii-cat: "):
        demand_stages(report)


def both(ours: np.ndarray, theirs: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"probe": (ours, theirs)}


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([49406, 320, 49407], ""),
        ([49406, 321, 49407], r"[321, 49407] from place 1 on, wanted [320, 49407]"),
        ([49406, 320], "[] from place 2 on, wanted [49407]"),
        ([49406, 320, 49407, 49407], "[49407] from place 3 on, wanted []"),
    ],
)
def test_token_ids_have_to_be_equal(ids: list[int], told: str) -> None:
    found = compare_tokens(both(np.array([ids]), np.array([[49406, 320, 49407]])))
    assert found.errors == ((f"probe probe: {told}",) if told else ())


@pytest.mark.parametrize(
    ("resample", "values", "levels", "is_right"),
    [
        (BICUBIC, 30, 1.0, True),
        (BICUBIC, 31, 1.0, False),
        (BICUBIC, 1, 2.0, True),
        (BICUBIC, 1, 3.0, False),
        (BICUBIC, 3072, 0.005, True),
        (BICUBIC, 3072, 0.05, False),
        (BILINEAR, 1, 0.005, True),
        (BILINEAR, 1, 1.0, False),
        (NEAREST, 1, 1.0, False),
        (BICUBIC, 1, float("nan"), False),
    ],
)
@pytest.mark.parametrize("scaled", [True, False])
def test_pixels_are_judged_in_levels(
    resample: int, values: int, levels: float, is_right: bool, scaled: bool
) -> None:
    rest = {"rescale_factor": 1 / 255, "mean": MEAN, "std": STD} if scaled else {}
    preparation = ImagePreparation(resample=resample, **({"rescale_factor": None} | rest))  # type: ignore[arg-type]
    off = np.zeros(3072)
    off[:values] = levels
    pixels = np.full((1, 3, 32, 32), 100.0) + off.reshape(1, 3, 32, 32)
    theirs = np.full((1, 3, 32, 32), 100.0)
    if scaled:
        mean, std = (np.reshape(part, (1, 3, 1, 1)) for part in (MEAN, STD))
        pixels, theirs = ((part / 255 - mean) / std for part in (pixels, theirs))
    found = compare_pixels(both(pixels.astype(np.float32), theirs.astype(np.float32)), preparation)
    assert bool(found.errors) != is_right


def test_direction_and_length_are_told_apart() -> None:
    theirs = np.float32([0.6, 0.8])
    for ours, wrong in (
        (theirs, []),
        (theirs / 2, [LENGTH]),
        (theirs[::-1], [ENCODER]),
        (theirs * 0, [ENCODER, LENGTH]),
        (theirs * np.float32(np.nan), [ENCODER, LENGTH]),
    ):
        stages = (
            compare_encoder("txt", both(ours, theirs), 1e-4),
            compare_lengths("txt", {"probe": ours}),
        )
        assert [stage.name for stage in stages if stage.errors] == wrong


def test_a_model_of_other_dims_is_another_model(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    other = clip_folders.write_tiny(tmp_path / "other", dims=2 * tiny_pair.dims)
    report = prove(tiny_pair, open_source(str(other))).report
    assert ENCODER in [stage.name for stage in report.stages if stage.errors]
    with pytest.raises(ParityError, match=f"its {ENCODER}, on .* probes"):
        demand_stages(report)
