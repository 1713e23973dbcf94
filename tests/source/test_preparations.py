"""Image processors: each key and form read as transformers reads it, or refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

import oml_mlflow.oml4py
from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.graph.cut import PIXEL_VALUES
from oml_mlflow.graph.image import OPSET, image_head
from oml_mlflow.graph.ops import make_graph_model, tensor_info
from oml_mlflow.graph.runtime import open_session
from oml_mlflow.graph.wire import write_model
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.source.description import ImagePreparation
from oml_mlflow.source.model import open_source
from oml_mlflow.source.preparation import OPENAI_MEAN, OPENAI_STD, read_preparation

PX = clip_folders.TINY_PX
DEMO = Path(__file__).resolve().parents[2] / "projects" / "demo_model" / "demo"
IS_4 = version("transformers").startswith("4.")
BY_PILLOW: dict[str, Any] = {"use_fast": False} if IS_4 else {"backend": "pil"}
FLAT, NESTED = "preprocessor_config.json", "processor_config.json"
CONFIG = {"model_type": "clip"}
BASE = clip_folders.PROCESSOR | {"size": PX, "crop_size": PX}
# how ONNX Runtime resizes by bicubic weights: a level off on some values (measured: 0.0022)
BICUBIC_SHARE = 0.004
# (height, width): tall enough for Pillow 13's other order, halves between two levels, tiny
SIZES = [(301, 64), (96, 131), (64, 64), (31, 40), (20, 33), (48, 36), (1, 7), (3, 90), (32, 32)]


def write(folder: Path, values: dict[str, Any], name: str = FLAT) -> Path:
    folder.mkdir(exist_ok=True)
    clip_folders.write_json(folder / "config.json", CONFIG)
    clip_folders.write_json(folder / name, values)
    return folder


def read(folder: Path, px: int = PX) -> ImagePreparation:
    return read_preparation(folder, json.loads((folder / "config.json").read_text()), px)


def processor_of(folder: Path) -> Any:
    """Return a function from a picture to the pixels that transformers prepares."""
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, **BY_PILLOW)
    return lambda picture: np.asarray(
        processor(images=picture, return_tensors="np")["pixel_values"], np.float32
    )


def head(preparation: ImagePreparation, folder: Path) -> Any:
    """Return a function from a picture to the pixels that the graph prepares."""
    nodes, graph_input = image_head(preparation, None)
    shape: list[int | str] = ["batch", 3, "h", "w"]
    output = tensor_info(PIXEL_VALUES, np.float32, shape)
    model = make_graph_model("head", OPSET, nodes.nodes, graph_input, output, [], {})
    path = folder / f"head-{len(list(folder.glob('head-*')))}.onnx"
    write_model(path, model, nodes.initializers)
    session = open_session(path)
    return lambda picture: session.run(None, {"input": np.asarray(picture)})[0]


@cache
def pictures() -> list[Image.Image]:
    """Return a photograph and noise in every size."""
    _, photograph = clip_folders.photographs()[0]
    dice = np.random.default_rng(7)
    noise = [dice.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    whole = [photograph.resize(size[::-1]) for size in SIZES[:6]]
    found = [*whole, *map(Image.fromarray, noise)]
    # transformers 4 takes a height of 1 or 3 for channels
    return [picture for picture in found if not IS_4 or picture.height not in (1, 3)]


def differing(wanted: np.ndarray, ours: np.ndarray, preparation: ImagePreparation) -> int:
    """Return how many values differ; all if one does by more than two levels."""
    assert wanted.shape == ours.shape
    level = preparation.rescale_factor or 1.0
    levels = np.abs(wanted - ours) * min(map(abs, preparation.std or (1,))) / level
    return int((levels > 0.01).sum()) if levels.max() <= 2.01 else wanted.size


def share(folder: Path, preparation: ImagePreparation, graph: Any) -> float:
    """Return the largest share of values in which graph and transformers differ, by picture."""
    processor = processor_of(folder)
    return max(
        differing(processor(picture), graph(picture), preparation) / (3 * PX * PX)
        for picture in pictures()
    )


USUAL = {
    "as published": {},
    "size as an object": {"size": {"shortest_edge": PX}},
    "size with an empty longest edge": {"size": {"shortest_edge": PX, "longest_edge": None}},
    "crop_size as an object": {"crop_size": {"height": PX, "width": PX}},
    "crop_size as a list": {"crop_size": [PX, PX]},
    "flags as numbers": {"do_resize": 1, "do_center_crop": 1, "do_normalize": 1},
    "the Fast class": {"image_processor_type": "CLIPImageProcessorFast"},
    "the old class": {
        "image_processor_type": None,
        "feature_extractor_type": "CLIPFeatureExtractor",
    },
    "no class": {"image_processor_type": None},
    "what has no effect": {
        "processor_class": "CLIPProcessor",
        "data_format": "channels_first",
        "input_data_format": None,
        "device": "cpu",
        "return_tensors": None,
        "disable_grouping": True,
        "do_pad": None,
        "pad_size": None,
        "size_divisor": 7,
        "image_seq_length": 5,
        "use_square_size": False,
        "default_to_square": False,
        "auto_map": {},
        "_valid_processor_keys": ["images"],
        "transformers_version": "4.44.0",
    },
}
OTHER = {
    "size as a list": {"size": [PX, PX]},
    "size by height and width": {"size": {"height": 41, "width": 57}},
    "size without crop": {"size": {"height": PX, "width": PX}, "do_center_crop": False},
    "size, default_to_square beside it": {"size": [40, 35], "default_to_square": True},
    "size above crop": {"size": 45},
    "size below crop": {"size": 21},
    "no resize": {"do_resize": False},
    "no resize, as a number": {"do_resize": 0},
    "no resize, as null": {"do_resize": None, "size": None},
    "no normalise, as null": {"do_normalize": None},
    "nearest": {"resample": 0},
    "nearest, size above crop": {"resample": 0, "size": 51},
    "bilinear": {"resample": 2},
    "bilinear, size above crop": {"resample": 2, "size": 48},
    "bilinear, size below crop": {"resample": 2, "size": 27},
    "bilinear by height and width": {"resample": 2, "size": [28, 44]},
    "no rescale": {"do_rescale": False},
    "rescale by another factor": {"rescale_factor": 1 / 127.5},
    "rescale by a whole number": {"rescale_factor": 2},
    "no normalise": {"do_normalize": False},
    "neither rescale nor normalise": {"do_rescale": False, "do_normalize": False},
    "one mean and deviation for all channels": {"image_mean": 0.5, "image_std": 0.25},
    "whole numbers for mean and deviation": {"image_mean": [0, 0, 1], "image_std": 1},
    "a negative deviation": {"image_std": [-0.3, 0.3, 0.2]},
}
if not IS_4:  # there a name is refused by Pillow
    OTHER["a filter's name"] = {"resample": "bicubic"}


@pytest.mark.parametrize("name", [*USUAL, *OTHER])
def test_is_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", BASE | (USUAL | OTHER)[name])
    preparation = read(folder)
    is_bicubic = preparation.resample == 3
    limit = BICUBIC_SHARE if is_bicubic else 0.0
    assert share(folder, preparation, head(preparation, tmp_path)) <= limit
    published = ImagePreparation(
        PX,
        crop_px=(PX, PX),
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        vertical_first=preparation.vertical_first,
    )
    if name in OTHER:
        # so the comparison would tell
        assert share(folder, published, head(published, tmp_path)) > 10 * BICUBIC_SHARE
    else:
        assert preparation == published


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "size with longest_edge": ("size", {"size": {"shortest_edge": PX, "longest_edge": 40}}),
    "size by longest_edge alone": ("size", {"size": {"longest_edge": PX}}),
    "size by largest height": ("size", {"size": {"max_height": PX, "max_width": PX}}),
    "size 0": ("size", {"size": 0}),
    "size below 0": ("size", {"size": {"height": -1, "width": PX}}),
    "size beyond all models": ("size", {"size": 10**12}),
    "size as a fraction": ("size", {"size": {"shortest_edge": 32.5}}),
    "size as a text": ("size", {"size": "32"}),
    "size true": ("size", {"size": True}),
    "size of three": ("size", {"size": [PX, PX, 3]}),
    "size without a number": ("size", {"size": {"shortest_edge": None}}),
    "crop_size by its short edge": ("crop_size", {"crop_size": {"shortest_edge": PX}}),
    "crop_size of one": ("crop_size", {"crop_size": [PX]}),
    "crop_size as a text": ("crop_size", {"crop_size": "32"}),
    "default_to_square": ("default_to_square", {"default_to_square": True}),
    "use_square_size": ("use_square_size", {"use_square_size": True}),
    "do_pad": ("do_pad", {"do_pad": True, "pad_size": {"height": 40, "width": 40}}),
    "do_convert_rgb": ("do_convert_rgb", {"do_convert_rgb": False}),
    "a flag as a text": ("do_resize", {"do_resize": "false"}),
    "no conversion, as null": ("do_convert_rgb", {"do_convert_rgb": None}),
    "size null": ("size", {"size": None}),
    "crop_size null": ("crop_size", {"crop_size": None}),
    "a filter null": ("resample", {"resample": None}),
    "a mean null": ("image_mean", {"image_mean": None}),
    "a factor null": ("rescale_factor", {"rescale_factor": None}),
    "Lanczos": ("resample", {"resample": 1}),
    "a filter that is none": ("resample", {"resample": 99}),
    "a filter true": ("resample", {"resample": False}),
    "a filter as a fraction": ("resample", {"resample": 3.0}),
    "one mean in a list": ("image_mean", {"image_mean": [0.5]}),
    "four means": ("image_mean", {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}),
    "a mean as a text": ("image_mean", {"image_mean": "0.5"}),
    "means as texts": ("image_mean", {"image_mean": ["0.5"] * 3}),
    "a deviation of 0": ("image_std", {"image_std": [0.5, 0, 0.5]}),
    "a deviation of nearly 0": ("image_std", {"image_std": 1e-50}),
    "a factor of 400 digits": ("rescale_factor", {"rescale_factor": 10**400}),
    "a factor as a text": ("rescale_factor", {"rescale_factor": "0.5"}),
    "a key that nobody knows": ("crop_pct", {"crop_pct": 0.9}),
    "a key that is a method's name": ("resize", {"resize": 5}),
    "code of the folder": ("auto_map", {"auto_map": {"AutoImageProcessor": "own.Own"}}),
    "another class": ("ViTImageProcessor", {"image_processor_type": "ViTImageProcessor"}),
    "a class that nobody knows": ("OwnProcessor", {"image_processor_type": "OwnProcessor"}),
    "a class that is a list": ("image processor", {"image_processor_type": ["CLIPImageProcessor"]}),
    "an old class of another model": (
        "ViTFeatureExtractor",
        {"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"},
    ),
    "pictures of no fixed size": ("no fixed size", {"do_center_crop": False}),
    "a crop that the encoder does not take": ("encoder takes", {"crop_size": 40}),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("file", [FLAT, NESTED])
def test_is_refused_by_name(name: str, file: str, tmp_path: Path) -> None:
    shown, changed = REFUSED[name]
    values = BASE | changed
    folder = write(
        tmp_path / "model", values if file == FLAT else {"image_processor": values}, file
    )
    with pytest.raises(UnsupportedSource, match=f"{file}: .*{shown}.*Nothing was written") as err:
        read(folder)
    assert err.value.code == "source-unsupported"
    assert err.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_with_their_file(value: float, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", BASE | {"rescale_factor": value}, FLAT)
    with pytest.raises(SourceError, match=rf"{FLAT} .*(NaN|Infinity) is no JSON.*Nothing was wr"):
        read(folder)


def test_a_refusal_needs_no_comparison(tmp_path: Path) -> None:
    folder = clip_folders.write_tiny(tmp_path / "model", processor={"do_pad": True})
    with pytest.raises(UnsupportedSource, match="do_pad True"):
        oml_mlflow.oml4py.ONNXPipeline(str(folder)).export2file("x", tmp_path, validate=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("inner", [{}, {"size": 40}, {"resample": 0}, None])
def test_what_two_files_say(inner: dict[str, Any] | None, tmp_path: Path) -> None:
    """Version 5 prefers what the processor's file holds, even nothing, and 4 the other file."""
    nested = None if inner is None else (BASE | inner if inner else {})
    folder = write(tmp_path / "model", {"image_processor": nested}, NESTED)
    write(folder, BASE)
    if inner is None:
        assert read(folder).resample == 3
        return
    with pytest.raises(UnsupportedSource, match="two image processors that differ"):
        read(folder)
    wanted = {} if IS_4 else inner
    processor = AutoImageProcessor.from_pretrained(folder, **BY_PILLOW)
    edge = dict(processor.size)["shortest_edge"]
    assert edge == (224 if wanted == {} and not IS_4 else wanted.get("size", PX))


def test_two_files_that_agree(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"image_processor": BASE | {"size": [PX, PX]}}, NESTED)
    write(folder, BASE | {"size": {"height": PX, "width": PX}})
    assert read(folder).resize_px == (PX, PX)


@pytest.mark.parametrize(
    ("whole", "error", "shown"),
    [
        ({"image_processor": "CLIP"}, SourceError, "image_processor is no JSON object"),
        (
            {"image_processor": {}, "auto_map": {"AutoProcessor": "own.Own"}},
            UnsupportedSource,
            "auto_map",
        ),
        ({"image_processor": {}, "patch_size": 14}, UnsupportedSource, "patch_size 14"),
        ({"processor_class": "CLIPProcessor"}, SourceError, f"no {FLAT}"),
    ],
)
def test_what_a_processors_file_may_hold(
    whole: dict[str, Any], error: type[SourceError], shown: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=shown):
        read(write(tmp_path / "model", whole, NESTED), 224)


@pytest.mark.parametrize(
    "named",
    [{"image_processor_type": "OwnProcessor"}, {"auto_map": {"AutoImageProcessor": "own.Own"}}],
)
def test_the_models_configuration_names_a_class_too(named: dict[str, Any], tmp_path: Path) -> None:
    values = {k: v for k, v in BASE.items() if k != "image_processor_type"}
    folder = write(tmp_path / "model", values)
    clip_folders.write_json(folder / "config.json", CONFIG | named)
    with pytest.raises(UnsupportedSource, match=r"config\.json: .*(OwnProcessor|auto_map)"):
        read(folder)
    clip_folders.write_json(folder / FLAT, BASE)
    assert read(folder).resample == 3


def test_metadata_of_earlier_releases_keeps_its_order() -> None:
    entry = {"shortest_edge_px": 224, "crop_px": [224, 224], "resample": 3}
    old = ImagePreparation.from_metadata(entry)
    assert not old.vertical_first
    resizes = [n for n in image_head(old, None)[0].nodes if n.op_type == "Resize"]
    assert len(resizes) == 1
    new = replace(old, vertical_first=True)
    assert ImagePreparation.from_metadata(new.to_metadata()) == new


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_on_white(mode: str, tiny_reference: ReferenceModel) -> None:
    """A pair and its reference follow transformers 5, which has it so; 4 drops it."""
    clear = Image.new("RGBA", (40, 40), (200, 30, 60, 0)).convert(mode)
    if mode == "P":
        clear.info["transparency"] = clear.getpixel((0, 0))
    white = clip_folders.as_png(Image.new("RGB", (40, 40), "white"))
    ours = tiny_reference.prepare(clip_folders.as_png(clear))
    assert np.array_equal(ours, tiny_reference.prepare(white))


def test_tall_pictures_are_exact(tmp_path: Path) -> None:
    """Pillow 13 resizes a screenshot vertically first, and Pillow 12 does not."""
    source = open_source(str(DEMO))
    model = ReferenceModel(source)
    graph = head(source.preparation, tmp_path)
    other = head(
        replace(source.preparation, vertical_first=not source.preparation.vertical_first), tmp_path
    )
    _, photograph = clip_folders.photographs()[0]
    worst = dict.fromkeys(("followed", "other, tall", "other, not tall"), 0.0)
    for size in [(108, 240), (270, 600), (60, 1200), (240, 108), (300, 400)]:
        picture = photograph.resize(size)
        wanted = model.embed_image([clip_folders.as_png(picture)])
        kind = "other, tall" if size[1] > 2 * size[0] else "other, not tall"
        for key, prepare in (("followed", graph), (kind, other)):
            off = float(np.abs(model.embed_pixels(prepare(picture)) - wanted).max())
            worst[key] = max(worst[key], off)
    assert worst["followed"] <= 1e-4
    assert worst["other, not tall"] <= 1e-4
    # the limit that holds with a Pillow of the other order
    assert 1e-4 < worst["other, tall"] <= 1e-3


@pytest.mark.drill
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_values_on_many_sizes(resample: int, tmp_path: Path) -> None:
    """Every accepted filter, with sizes and crops of all kinds, on pictures of all kinds."""
    dice = np.random.default_rng(resample)
    for _ in range(150):
        px = int(dice.integers(1, 60))
        edges = [int(edge) for edge in dice.integers(1, 90, 2)]
        size = edges if dice.random() < 0.5 else edges[0]
        folder = write(
            tmp_path / "model", BASE | {"size": size, "crop_size": px, "resample": resample}
        )
        preparation = read(folder, px)
        graph, processor = head(preparation, tmp_path), processor_of(folder)
        for _ in range(6):
            shape = dice.integers(4, int(dice.choice((12, 90, 400))), 2)
            values = dice.integers(0, 256, (*shape, 3), dtype=np.uint8)
            if dice.random() < 0.3:
                values = (values > 127) * np.uint8(255)
            picture = Image.fromarray(values)
            wanted = processor(picture)
            # as the comparison of an export accepts: noise and black and white have more
            limit = max(9, 0.01 * wanted.size) if resample == 3 else 0
            assert differing(wanted, graph(picture), preparation) <= limit, (size, px, shape)


@pytest.mark.drill
def test_the_other_pillow(tmp_path: Path) -> None:
    """All of this file holds with Pillow 12, whose order a pair made with it follows."""
    there = tmp_path / "pillow"
    wanted = "pillow<13" if read_preparation(DEMO, {}, 64).vertical_first else "pillow>=13"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(there),
        wanted,
    ]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"pip has no {wanted} here")
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not drill",
        "-p",
        "no:cacheprovider",
        __file__,
    ]
    done = subprocess.run(
        tests, env=os.environ | {"PYTHONPATH": str(there)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
