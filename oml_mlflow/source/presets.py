"""Presets: published facts about known CLIP models, and the checks of their files against them.

A preset decides nothing: sizes, vocabulary and preparation are read from the model's own files. It
says what those files should say, so that a wrong or altered model is noticed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oml_mlflow.errors import SourceError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.source.model import Source
from oml_mlflow.source.preparation import OPENAI_MEAN, OPENAI_STD

_log = logging.getLogger(__name__)
_RECORD = "oml_mlflow.json"
_INCEPTION = (0.5, 0.5, 0.5)
_FROM_OPENAI = (
    "github.com/openai/CLIP clip/clip.py: 77 ids, mean, std; clip/model.py: QuickGELU, cosine "
    "similarity; github.com/mlfoundations/open_clip model_configs/{}.json: sizes"
)
_FROM_OPEN_CLIP = (
    "github.com/mlfoundations/open_clip model_configs/{}.json: sizes, 77 ids; model.py: GELU; "
    "pretrained.py: mean, std of this checkpoint; trained as OpenAI's, for cosine similarity"
)


@dataclass(frozen=True)
class Preset:
    """What is published about one model.

    Attributes:
        dims: Length of its embeddings.
        image_size: Edge of the picture its encoder takes, in pixels.
        patch_size: Edge of a patch, in pixels.
        max_seq_length: Most ids of a text, both special ones included.
        hidden_act: Activation of both encoders.
        image_mean: Subtracted from each channel.
        image_std: Divides each channel.
        source: Where the values are published.
        distance_metrics: What the model was trained for: cosine similarity.
    """

    dims: int
    image_size: int
    patch_size: int
    max_seq_length: int
    hidden_act: str
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    source: str
    distance_metrics: tuple[str, ...] = ("COSINE",)

    def properties(self) -> dict[str, Any]:
        """Return the preset with OML4Py's property names first, as JSON has it."""
        first = {
            "template": "multimodal_clip",
            "max_seq_length": self.max_seq_length,
            "do_lower_case": True,
            "post_processors": [{"name": "Normalize"}],
            "distance_metrics": list(self.distance_metrics),
            "languages": [],
            "quantize_model": False,
            "use_float16": False,
        }
        rest = {key: value for key, value in asdict(self).items() if key not in first}
        return {**first, **json.loads(json.dumps(rest))}


def _openai(dims: int, px: int, patch: int, architecture: str) -> Preset:
    source = _FROM_OPENAI.format(architecture)
    return Preset(dims, px, patch, 77, "quick_gelu", OPENAI_MEAN, OPENAI_STD, source)


def _laion(
    dims: int,
    patch: int,
    architecture: str,
    mean: tuple[float, float, float] = OPENAI_MEAN,
    std: tuple[float, float, float] = OPENAI_STD,
) -> Preset:
    source = _FROM_OPEN_CLIP.format(architecture)
    return Preset(dims, 224, patch, 77, "gelu", mean, std, source)


PRESETS: dict[str, Preset] = {
    "openai/clip-vit-base-patch32": _openai(512, 224, 32, "ViT-B-32"),
    "openai/clip-vit-base-patch16": _openai(512, 224, 16, "ViT-B-16"),
    "openai/clip-vit-large-patch14": _openai(768, 224, 14, "ViT-L-14"),
    "openai/clip-vit-large-patch14-336": _openai(768, 336, 14, "ViT-L-14-336"),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": _laion(512, 32, "ViT-B-32"),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": _laion(512, 16, "ViT-B-16"),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": _laion(768, 14, "ViT-L-14", _INCEPTION, _INCEPTION),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _laion(1024, 14, "ViT-H-14"),
}


def check_expectations(source: Source, preset: Preset) -> None:
    """Raise SourceError if a model's files contradict what is published about it."""
    preparation = source.preparation
    found = {
        "dims": source.dims,
        "image_size": (preparation.output_px or (0, 0))[0],
        "patch_size": source.patch_px,
        "max_seq_length": source.vocabulary.max_length,
        "hidden_act": source.vision.activation,
        "image_mean": preparation.mean,
        "image_std": preparation.std,
    }
    if source.text.activation != source.vision.activation:
        found["hidden_act"] = f"{source.vision.activation} and {source.text.activation}"
    for name, value in found.items():
        wanted = getattr(preset, name)
        if not _same(value, wanted):
            raise SourceError(
                f"{source.name}: {name} is {value} in the model's own files, and {wanted} is "
                f"published ({preset.source}). Nothing was written.",
                hint="fetch the model again (force_download); to build what the files say, pass "
                "config=ONNXPipelineConfig.from_template('multimodal_clip').",
            )


def check_download(source: Source, *, ignore_mismatch: bool = False) -> None:
    """Compare a download's weights with the record of the first download, or make that record.

    The authors publish no checksum of these files that could be shipped here, so the first
    download is trusted: sha256 of its weights go to ``oml_mlflow.json`` in the model's folder in
    the cache, and a warning says so.

    Args:
        source: A model from the hub.
        ignore_mismatch: Only log that weights differ.

    Raises:
        SourceError: If weights differ from the first download's.

    Side effects: Writes the record if there is none, or a file is not in it yet.
    """
    path = source.folder.parents[1] / _RECORD
    recorded = _read(path)
    found = {file.name: fingerprint_file(file) for file in source.weights.files}
    wrong = [name for name in found if recorded.get(name, found[name]) != found[name]]
    if wrong:
        name = wrong[0]
        message = (
            f"{source.name}: sha256 of {name} is {found[name][:12]}…, and {recorded[name][:12]}… "
            f"was recorded at its first download ({path})."
        )
        if not ignore_mismatch:
            raise SourceError(
                f"{message} Nothing was written.",
                hint="find out why the weights changed; then set ignore_checksum_error to True in "
                "the settings, or remove that record.",
            )
        _log.warning("%s Ignored, as ignore_checksum_error asks.", message)
        return
    new = found.keys() - recorded.keys()
    if new and _record(path, {**recorded, **found}):
        _log.warning(
            "%s: no checksum of its weights is published; sha256 of this first download of %s was "
            "recorded in %s, and later ones are compared with it.",
            source.name,
            ", ".join(sorted(new)),
            path,
        )


def _same(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, tuple):
        return bool(value == wanted)
    # files written from float32 hold 0.4814546704292297 for 0.48145466
    return value is not None and all(
        math.isclose(a, b, abs_tol=1e-6) for a, b in zip(value, wanted, strict=True)
    )


def _read(path: Path) -> dict[str, str]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path}, the record of first downloads, can't be read ({type(error).__name__}). "
            "Nothing was written.",
            hint="remove it, if the weights can be trusted.",
        ) from error
    return dict(loaded.get("sha256", {})) if isinstance(loaded, dict) else {}


def _record(path: Path, sha256: dict[str, str]) -> bool:
    text = json.dumps({"sha256": sha256}, indent=1, sort_keys=True) + "\n"
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{_RECORD}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s can't be written (%s): nothing is recorded.", path, error.strerror)
        return False
    return True
