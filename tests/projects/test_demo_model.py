"""Hold the demo model to its promises: its pictures, its shipped weights and its recipe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

DEMO = Path(__file__).resolve().parents[2] / "projects" / "demo_model"
WEIGHTS = DEMO / "demo"
MODULES = ("drawings", "vocabulary", "train", "evaluate")
RECALLS = ("text_to_image_recall_at_1", "image_to_image_recall_at_1")
QUICK = {"steps": 60, "copies": 1, "stride": 5}


@pytest.fixture(scope="module")
def demo() -> Iterator[SimpleNamespace]:
    """Import the project's modules, which are scripts beside each other and not a package."""
    sys.path.insert(0, str(DEMO))
    try:
        modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
        yield SimpleNamespace(**modules)
    finally:
        sys.path.remove(str(DEMO))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Put back what training sets for the whole process."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def test_held_out_scenes_are_absent_from_training(demo: SimpleNamespace) -> None:
    trained = {scene.caption for scene in demo.drawings.training_scenes()}
    held = [drawing.caption for drawing in demo.drawings.held_out(200)]
    assert len(set(held)) == len(held) == 200
    assert trained.isdisjoint(held)
    assert trained.isdisjoint(scene.caption for scene in demo.drawings.held_out_scenes())


def test_every_attribute_value_is_trained_on_and_held_out(demo: SimpleNamespace) -> None:
    held = [drawing.scene for drawing in demo.drawings.held_out(200)]
    for field in fields(demo.drawings.Scene):
        everywhere = {getattr(scene, field.name) for scene in demo.drawings.training_scenes()}
        assert {getattr(scene, field.name) for scene in held} == everywhere
        assert len(everywhere) > 1


def test_drawings_follow_from_the_seed(demo: SimpleNamespace) -> None:
    first, second = demo.drawings.held_out(20, seed=3), demo.drawings.held_out(20, seed=3)
    assert [a.caption for a in first] == [b.caption for b in second]
    assert [a.picture.tobytes() for a in first] == [b.picture.tobytes() for b in second]
    again = [demo.drawings.draw(drawing.scene, seed=4) for drawing in first]
    assert all(
        a.picture.tobytes() != b.picture.tobytes() for a, b in zip(first, again, strict=True)
    )


def test_drawings_encode_to_what_they_show(demo: SimpleNamespace) -> None:
    from io import BytesIO

    from PIL import Image, JpegImagePlugin

    drawing = demo.drawings.held_out(1)[0]
    exact = Image.open(BytesIO(drawing.png()))
    assert exact.format == "PNG"
    assert exact.tobytes() == drawing.picture.tobytes()
    close = Image.open(BytesIO(drawing.jpeg()))
    assert isinstance(close, JpegImagePlugin.JpegImageFile)
    assert JpegImagePlugin.get_sampling(close) == 0
    apart = np.asarray(close, np.int16) - np.asarray(drawing.picture, np.int16)
    assert np.abs(apart).mean() < 3


def test_nothing_is_drawn_outside_the_centre_square(demo: SimpleNamespace) -> None:
    for scene in demo.drawings.held_out_scenes()[:300]:
        picture = np.asarray(demo.drawings.draw(scene, seed=0).picture, np.int16)
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        outside = np.ones((height, width), bool)
        outside[top : top + side + 1, left : left + side + 1] = False
        background = np.array(demo.drawings.BACKGROUNDS[scene.background])
        assert np.abs(picture[outside] - background).max(initial=0) < 30


def test_vocabulary_is_laid_out_as_clips(demo: SimpleNamespace) -> None:
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(WEIGHTS)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    symbols = demo.vocabulary.byte_symbols()
    assert len(set(symbols)) == 256
    assert tokens[:256] == symbols
    assert tokens[256:512] == [f"{symbol}</w>" for symbol in symbols]
    lines = (WEIGHTS / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#version")
    assert tokens[512:-2] == [line.replace(" ", "") for line in lines[1:]]
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert not any(char.isdigit() for line in lines[1:] for char in line)


def test_shipped_weights_find_the_held_out_pictures(demo: SimpleNamespace) -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 3_000_000
    result = demo.evaluate.measure(WEIGHTS)
    assert result["pictures"] >= 200
    assert {name: result[name] >= 0.95 for name in RECALLS} == dict.fromkeys(RECALLS, True), result


def test_shipped_files_name_no_place_on_any_machine() -> None:
    names = {path.name for path in WEIGHTS.iterdir()}
    assert names == {
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    for path in WEIGHTS.glob("*config.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert ': "/' not in text


@pytest.mark.usefixtures("torch_settings")
def test_a_short_training_learns_and_repeats(demo: SimpleNamespace, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    demo.train.train(tmp_path / "start", seed=1, **{**QUICK, "steps": 0})
    start = demo.evaluate.measure(tmp_path / "start", n=100)[RECALLS[0]]
    losses = demo.train.train(tmp_path / "first", seed=1, **QUICK)
    end = demo.evaluate.measure(tmp_path / "first", n=100)[RECALLS[0]]
    assert start <= 0.05
    assert end >= 0.12
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    demo.train.train(tmp_path / "second", seed=1, **QUICK)
    first = load_file(tmp_path / "first" / "model.safetensors")
    second = load_file(tmp_path / "second" / "model.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.drill
@pytest.mark.usefixtures("torch_settings")
def test_the_recipe_gives_the_shipped_quality(demo: SimpleNamespace, tmp_path: Path) -> None:
    demo.train.train(tmp_path, seed=0)
    shipped, again = demo.evaluate.measure(WEIGHTS), demo.evaluate.measure(tmp_path)
    assert {name: again[name] for name in RECALLS} == pytest.approx(
        {name: shipped[name] for name in RECALLS}, abs=0.03
    )
