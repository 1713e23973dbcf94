"""Where in a folder the CLIP model lies."""

from __future__ import annotations

from pathlib import Path

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.source.links import refuse_links
from oml_mlflow.source.reading import read_any_json, values_of

# Source: sentence-transformers writes a list of modules, each in a folder of its own.
MODULES, CLIP_MODULE = "modules.json", "0_CLIPModel"
_OPEN_CLIP = "open_clip_config.json"


def clip_folder(root: Path) -> Path:
    """Return the folder with the model in the Hugging Face layout: `root`, or one below it.

    Raises:
        SourceError: If the list of modules is damaged or names a folder that is not in `root`, or
            a link leads out of one.
        UnsupportedSource: If the layout is OpenCLIP's, or vectors pass through further modules.
    """
    refuse_links(root)
    if (root / "config.json").is_file():
        return root
    if (root / MODULES).is_file():
        return _of_sentence_transformers(root)
    if (root / _OPEN_CLIP).is_file():
        raise UnsupportedSource(
            f"{root} is a model of OpenCLIP ({_OPEN_CLIP}), with other files. Nothing was written.",
            hint="give the same model as transformers' CLIPModel saves it.",
        )
    return root


def _of_sentence_transformers(root: Path) -> Path:
    path = root / MODULES
    listed = read_any_json(path, "the list of modules")
    with values_of(path):
        modules = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
        folder = root / next((name for kind, name in modules if kind == "CLIPModel"), "")
        inside = folder.resolve().is_relative_to(root.resolve()) and folder.is_dir()
    kinds = [kind for kind, _ in modules]
    if {*kinds} - {"CLIPModel", "Normalize"} or folder == root:
        raise UnsupportedSource(
            f"{path}: the model is made of {', '.join(kinds) or 'nothing'}, and only CLIPModel, "
            "with or without Normalize, is read. Nothing was written.",
            hint="give the folder of a CLIPModel.",
        )
    if not inside:
        raise SourceError(
            f"{path} names {folder}, which is no folder inside of {root}. Nothing was written.",
            hint="fetch the model again, or give the folder that holds the CLIP model.",
        )
    refuse_links(folder)
    return folder
