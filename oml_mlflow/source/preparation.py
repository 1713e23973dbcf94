"""What a folder's image processor does, read from its files as transformers reads them.

Every key is honoured, known to be without effect, or refused by name; nothing is taken for CLIP's
usual preparation that is not. Source: CLIPImageProcessor of transformers 4.57.6, its slow one, and
5.24.0, its Pillow backend; tests/source/test_preparations.py compares each reading with theirs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.source.description import BICUBIC, BILINEAR, RESAMPLING, ImagePreparation
from oml_mlflow.source.reading import read_json

IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# what transformers takes where a configuration names none
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_CLASS = "CLIPImageProcessor"
_CLASSES = frozenset({_CLASS, f"{_CLASS}Fast", f"{_CLASS}Pil", "CLIPFeatureExtractor"})
_HONOURED = frozenset(
    {
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
        *("image_processor_type", "feature_extractor_type"),
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        # they say who reads or wrote the file
        *("processor_class", "_valid_processor_keys", "transformers_version"),
        # only a call's own values count, or those of the torchvision backend
        *("return_tensors", "data_format", "input_data_format", "device", "disable_grouping"),
        # CLIP's image processor has them, and asks for none
        *("image_seq_length", "size_divisor"),
        # they count beside others only, which are judged: do_pad, and a size of one number
        *("pad_size", "default_to_square"),
    }
)
# keys that change what comes out, unless they are false, null or empty
_REFUSED = {
    "auto_map": "the folder brings code of its own, which is not run here",
    "do_pad": "transformers 5 pads the prepared picture, and 4 does not",
    "use_square_size": "transformers 4 and 5 take other sizes for it",
}
_PROCESSOR_KEYS = frozenset({"image_processor", "processor_class", "auto_map"})
# far beyond any model's; what is computed from them stays finite in float32
_MOST_PX, _MOST = 10_000, 1e9


def read_preparation(folder: Path, config: dict[str, Any], image_px: int) -> ImagePreparation:
    """Return what the image processor in a folder does to a decoded picture.

    The order of its two passes of resizing is that of the Pillow that is installed.

    Args:
        folder: The model's folder.
        config: Contents of its ``config.json``, which names the class where no other file does.
        image_px: Edge of the picture that the encoder takes.

    Raises:
        SourceError: If there is no file, or it can't be read.
        UnsupportedSource: If a class, a key or a value is not one that a graph here follows.
    """
    # transformers 5 prefers the first, 4 the second
    newer = _Settings.of_processor(folder / "processor_config.json")
    path = folder / "preprocessor_config.json"
    found = [] if newer is None else [newer]
    if path.is_file() or not found:
        found.append(_Settings(path, read_json(path, "the image processor")))
    model = _Settings(folder / "config.json", config)
    preparation, *others = [_read(settings, model) for settings in found]
    if any(other != preparation for other in others):
        raise UnsupportedSource(
            f"{folder} holds two image processors that differ: transformers 5 takes "
            f"{found[0].path.name}, and 4 takes {found[1].path.name}. Nothing was written.",
            hint="remove the one that does not belong to the model.",
        )
    if preparation.output_px != (image_px, image_px):
        raise UnsupportedSource(
            f"{found[0].path}: prepared pictures are "
            f"{preparation.output_px or 'of no fixed size'}, and the encoder takes "
            f"{(image_px, image_px)} pixels. Nothing was written.",
            hint="set size and crop_size to the model's image_size.",
        )
    return preparation


def _read(settings: _Settings, model: _Settings) -> ImagePreparation:
    _check_class(settings, model)
    settings.check_keys(_HONOURED | _WITHOUT_EFFECT)
    if not settings.flag("do_convert_rgb"):
        raise settings.refusal("do_convert_rgb", "give true: a pair makes every picture RGB")
    shortest, exact = _size(settings) if settings.flag("do_resize") else (None, None)
    normalise = settings.flag("do_normalize")
    mean, std = (
        settings.channels(key, default) if normalise else None
        for key, default in (("image_mean", OPENAI_MEAN), ("image_std", OPENAI_STD))
    )
    if std and min(map(abs, std)) < 1 / _MOST:
        raise settings.refusal("image_std", "give numbers other than 0")
    return ImagePreparation(
        shortest_edge_px=shortest,
        resize_px=exact,
        resample=_resample(settings) if shortest or exact else BICUBIC,
        crop_px=_crop(settings) if settings.flag("do_center_crop") else None,
        rescale_factor=settings.number("rescale_factor", 1 / 255)
        if settings.flag("do_rescale")
        else None,
        mean=mean,
        std=std,
        vertical_first=int(PIL.__version__.split(".")[0]) >= 13,
    )


def _check_class(settings: _Settings, model: _Settings) -> None:
    """Raise UnsupportedSource unless transformers would take CLIP's image processor."""
    values = settings.values
    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    if not name:
        settings, name = model, model.values.get("image_processor_type")
        own = model.values.get("auto_map")
        if isinstance(own, dict) and "AutoImageProcessor" in own:
            raise model.refusal("auto_map", f"leave it out: {_REFUSED['auto_map']}")
    if not isinstance(name, str | None) or (name or _CLASS) not in _CLASSES:
        raise UnsupportedSource(
            f"{settings.path}: image processor {str(name)[:80]} is not supported. "
            "Nothing was written.",
            hint=f"supported is {_CLASS}; another class prepares pictures in its own way.",
        )


def _size(settings: _Settings) -> tuple[int | None, tuple[int, int] | None]:
    """Return the short edge, or (height, width), to which pictures are resized."""
    size = settings.values.get("size", {"shortest_edge": 224})
    if _is_whole(size):
        if settings.values.get("default_to_square"):
            raise settings.refusal(
                "default_to_square",
                "give size as height and width: transformers 4 overlooks this key",
            )
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.get("longest_edge", 0) is None:
        size = {key: value for key, value in size.items() if key != "longest_edge"}
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return settings.edge("size", size["shortest_edge"]), None
    return None, settings.edges("size", size, "give shortest_edge, or height and width")


def _crop(settings: _Settings) -> tuple[int, int]:
    size = settings.values.get("crop_size", 224)
    if _is_whole(size):
        size = [size, size]
    return settings.edges("crop_size", size, "give height and width")


def _resample(settings: _Settings) -> int:
    resample = settings.values.get("resample", BICUBIC)
    if isinstance(resample, str):
        # whatever the name: transformers 5 looks for torchvision's, and without it takes this one
        return BILINEAR
    if not _is_whole(resample) or resample not in RESAMPLING:
        raise settings.refusal(
            "resample", "give 0 (nearest), 2 (bilinear) or 3 (bicubic): ONNX has no other"
        )
    return int(resample)


def _is_whole(value: Any) -> bool:
    # bool is a kind of int
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Settings:
    """An image processor's keys, and the file that holds them.

    Null is no default: transformers 5 refuses it where the key counts, and 4 has defaults for some.
    """

    path: Path
    values: dict[str, Any]

    @classmethod
    def of_processor(cls, path: Path) -> _Settings | None:
        """Return the image processor inside a processor's file; None if there is none."""
        if not path.is_file():
            return None
        whole = cls(path, read_json(path, "the image processor"))
        inner = whole.values.get("image_processor")
        whole.check_keys(_PROCESSOR_KEYS)
        if inner is None:
            return None
        if not isinstance(inner, dict):
            raise SourceError(
                f"{path}: image_processor is no JSON object. Nothing was written.",
                hint="fetch or save the model again.",
            )
        return cls(path, inner)

    def refusal(self, key: str, hint: str) -> UnsupportedSource:
        """Return the error for a key whose value is not supported."""
        return UnsupportedSource(
            f"{self.path}: {key} {reprlib.repr(self.values.get(key))} is not supported. "
            "Nothing was written.",
            hint=f"{hint}.",
        )

    def check_keys(self, known: Collection[str]) -> None:
        """Raise UnsupportedSource for a key that would change what comes out, or is unknown."""
        for key, value in self.values.items():
            if key in _REFUSED:
                if value:
                    raise self.refusal(key, f"leave it out: {_REFUSED[key]}")
            elif key not in known:
                raise self.refusal(key, f"leave it out: {_CLASS} knows no such key")

    def flag(self, key: str) -> bool:
        value = self.values.get(key, True)
        # null counts as false in transformers 4 and 5; "false" would count as true
        if value is not None and (not isinstance(value, int) or value not in (0, 1)):
            raise self.refusal(key, "give true or false")
        return bool(value)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not _is_number(value):
            raise self.refusal(key, "give a number")
        return float(value)

    def channels(self, key: str, default: Any) -> tuple[float, ...]:
        """Return a number for each channel; one number counts for all three."""
        given = self.values.get(key, default)
        values = given if isinstance(given, list | tuple) else [given] * 3
        if len(values) != 3 or not all(_is_number(value) for value in values):
            raise self.refusal(key, "give one number, or three, one for each channel")
        return tuple(float(value) for value in values)

    def edge(self, key: str, value: Any) -> int:
        if not _is_whole(value) or not 0 < value <= _MOST_PX:
            raise self.refusal(key, f"give whole numbers of pixels, 1 to {_MOST_PX:,}")
        return int(value)

    def edges(self, key: str, size: Any, hint: str) -> tuple[int, int]:
        """Return (height, width)."""
        if isinstance(size, dict) and size.keys() == {"height", "width"}:
            size = [size["height"], size["width"]]
        if not isinstance(size, list) or len(size) != 2:
            raise self.refusal(key, hint)
        return self.edge(key, size[0]), self.edge(key, size[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST
