"""Where in a folder a CLIP model lies, by the layout of who saved it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.source.model import open_source

CLIP = {"idx": 0, "name": "0", "path": "0_CLIPModel"}
CLIP["type"] = "sentence_transformers.models.CLIPModel"
NORMALIZE = {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.fixture
def root(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder as sentence-transformers saves it."""
    folder = tmp_path / "clip-ViT-B-32"
    folder.mkdir()
    clip_folders.copy_folder(tiny_folder, folder / "0_CLIPModel")
    (folder / "modules.json").write_text(json.dumps([CLIP]))
    return folder


def test_sentence_transformers(root: Path, tiny_pair: PipelinePair, tmp_path: Path) -> None:
    pair = ONNXPipeline(str(root)).export2file("clip", tmp_path / "out")
    assert pair.metadata["model_name"] == "clip-ViT-B-32"
    assert {path.name for path in pair.companions} == {path.name for path in tiny_pair.companions}
    texts = ["a photo of a cat", "A Photo"]
    ours, theirs = (p.embedder().embed_text(texts) for p in (pair, tiny_pair))
    np.testing.assert_array_equal(ours, theirs)


def test_unit_vectors_stay_what_they_are(root: Path) -> None:
    (root / "modules.json").write_text(json.dumps([CLIP, NORMALIZE]))
    assert open_source(str(root)).folder == root / "0_CLIPModel"


def leave(path: str) -> Callable[[Path], Any]:
    return lambda root: (root / "modules.json").write_text(json.dumps([CLIP | {"path": path}]))


def link_out(root: Path) -> None:
    (root / "0_CLIPModel").rename(root.parent / "elsewhere")
    (root / "0_CLIPModel").symlink_to(root.parent / "elsewhere")


def link_file(root: Path) -> None:
    (root.parent / "secret").write_text("{}")
    (root / "0_CLIPModel" / "config.json").unlink()
    (root / "0_CLIPModel" / "config.json").symlink_to(root.parent / "secret")


def open_clip(root: Path) -> None:
    (root / "modules.json").rename(root / "open_clip_config.json")


REFUSED: dict[str, tuple[Callable[[Path], Any], type[SourceError], str]] = {
    "path above": (leave("../clip-ViT-B-32-other"), SourceError, "no folder inside"),
    "path of its own": (leave("/usr"), SourceError, "names /usr, which is no folder inside"),
    "no such folder": (leave("1_CLIPModel"), SourceError, "1_CLIPModel, which is no folder"),
    "link to a folder": (link_out, SourceError, "outside the model's folder"),
    "link to a file": (link_file, SourceError, "config.json leads to .*secret, outside"),
    "further module": (
        lambda root: (root / "modules.json").write_text(json.dumps([CLIP, DENSE])),
        UnsupportedSource,
        "made of CLIPModel, Dense, and only CLIPModel",
    ),
    "no CLIP": (
        lambda root: (root / "modules.json").write_text(json.dumps([NORMALIZE])),
        UnsupportedSource,
        "made of Normalize",
    ),
    "no list": (
        lambda root: (root / "modules.json").write_text("3"),
        SourceError,
        "modules.json holds a value of the wrong kind",
    ),
    "deep": (
        lambda root: (root / "modules.json").write_text("[" * 10**5),
        SourceError,
        r"modules.json \(the list of modules\) can't be read \(nested too deeply",
    ),
    "OpenCLIP": (open_clip, UnsupportedSource, "model of OpenCLIP .open_clip_config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused(name: str, root: Path) -> None:
    change, error, message = REFUSED[name]
    change(root)
    with pytest.raises(error, match=message) as err:
        open_source(str(root))
    assert err.value.code == error.code
    assert "Nothing was written" in str(err.value)
    assert err.value.hint


def test_weights_of_a_clip_inside_a_model(
    tiny_folder: Path, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    """Transformers reads them, too: the export compares both."""
    folder = clip_folders.copy_folder(tiny_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"clip.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    pair = ONNXPipeline(str(folder)).export2file("tiny", tmp_path / "out")
    ours, theirs = (p.embedder().embed_text(["a cat"]) for p in (pair, tiny_pair))
    np.testing.assert_array_equal(ours, theirs)
    save_file({f"model.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(SourceError, match="hold no tensor 'vision_model"):
        open_source(str(folder))
