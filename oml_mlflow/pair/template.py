"""Templates: the properties of a pipeline pair that users can set, named as in OML4Py."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from oml_mlflow.errors import ConfigError, UnsupportedSource
from oml_mlflow.graph.precision import choose_precisions
from oml_mlflow.source.presets import PRESETS

MULTIMODAL_CLIP = "multimodal_clip"
DISTANCE_METRICS = (
    "EUCLIDEAN",
    "COSINE",
    "MANHATTAN",
    "HAMMING",
    "DOT",
    "EUCLIDEAN_SQUARED",
    "JACCARD",
)
_NORMALIZE = {"name": "Normalize"}
_FEWEST_IDS = 3
# OML4Py's templates for other models than CLIP
_OTHER_TEMPLATES = ("text", "Image_ViT", "Image_ConvNext")
_OTHER_STEPS = ("Pooling", "Dense")
_Config = TypeVar("_Config", bound="ONNXPipelineConfig")


@dataclass
class ONNXPipelineConfig:
    """Properties of a pipeline pair; read and set them with the dot operator.

    Unknown names are refused when they are set; values that can't be honoured by `from_template`
    or, if set later, at export. Sizes, resampling, mean and standard
    deviation are no properties: they come from the model's own image processor.

    Attributes:
        template: Name of the template it was made from.
        post_processors: Only ``[{"name": "Normalize"}]``, which both CLIP pipelines end in.
        max_seq_length: Ids a text may have; by default, and at most, what the model has.
        do_lower_case: Only True: CLIP's tokenizer lower-cases.
        quantize_model: Store weights as INT8; changes the vectors. Besides True and False:
            ``"dynamic"`` also computes in INT8; a dict such as ``{"img": "dynamic", "txt": True}``
            says it by side.
        distance_metrics: Metrics that suit the vectors; stored with the pair.
        languages: Database language abbreviations; stored with the pair.
        use_float16: Store weights as float16; a dict says it by side. INT8 goes first.
        use_external_data: Only None or False: weights always stay in the ONNX file.

    Source: "Python Classes to Convert Pretrained Models to ONNX Models", Oracle AI Vector Search
    User's Guide, for names, meanings and defaults. ``max_seq_length`` has none there.
    """

    template: str = MULTIMODAL_CLIP
    post_processors: list[dict[str, Any]] = field(default_factory=lambda: [dict(_NORMALIZE)])
    max_seq_length: int | None = None
    do_lower_case: bool = True
    quantize_model: bool | str | dict[str, bool | str] = False
    distance_metrics: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    use_float16: bool | dict[str, bool] = False
    use_external_data: bool | None = None

    def __post_init__(self) -> None:
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        _check_known([name])
        super().__setattr__(name, value)

    @classmethod
    def from_template(cls: type[_Config], name: str, **kwargs: Any) -> _Config:
        """Return a configuration for any model that a template fits.

        Args:
            name: ``multimodal_clip``.
            **kwargs: Properties to set.

        Raises:
            UnsupportedSource: If there is no such template here.
            ConfigError: If a property is unknown or can't have that value.
        """
        if name != MULTIMODAL_CLIP:
            known = "; OML4Py has it" if name in _OTHER_TEMPLATES else ""
            raise UnsupportedSource(
                f"there is no template {name!r} here{known}.",
                hint=f"use {MULTIMODAL_CLIP!r}, which is for CLIP models: there is no other here.",
            )
        if "template" in kwargs:
            raise ConfigError("the template is named once.", hint="leave template= out.")
        _check_known(kwargs)
        return cls(template=name, **kwargs)

    @classmethod
    def from_preset(cls: type[_Config], model_name: str) -> _Config:
        """Return the configuration of a preconfigured model."""
        preset = PRESETS[model_name]
        return cls(
            max_seq_length=preset.max_seq_length, distance_metrics=list(preset.distance_metrics)
        )

    @staticmethod
    def show_templates() -> list[str]:
        """Return the names of the templates."""
        return [MULTIMODAL_CLIP]

    @staticmethod
    def show_preconfigured(
        include_properties: bool = False, model_name: str | None = None
    ) -> list[Any]:
        """Return the preconfigured models.

        Args:
            include_properties: Return their properties too.
            model_name: Only this model's; ignored unless `include_properties`.

        Returns:
            A list of names; with `include_properties` a list of one dict, properties by name. What
            is no property (dims, image_size, …) is checked against the model's own files.

        Raises:
            ConfigError: If `model_name` is not preconfigured.
        """
        if not include_properties:
            return list(PRESETS)
        if model_name is not None and model_name not in PRESETS:
            raise ConfigError(
                f"{model_name!r} is not preconfigured.",
                hint=f"preconfigured are {', '.join(PRESETS)}; other CLIP models need no preset: "
                f"from_template({MULTIMODAL_CLIP!r}).",
            )
        names = list(PRESETS) if model_name is None else [model_name]
        return [{name: PRESETS[name].properties() for name in names}]

    def check(self) -> None:
        """Raise ConfigError if a property can't be honoured."""
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))


class EmbeddingModelConfig(ONNXPipelineConfig):
    """`ONNXPipelineConfig` by the name it had before 23.7; every use warns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warn_deprecated("EmbeddingModelConfig", "ONNXPipelineConfig")
        super().__init__(*args, **kwargs)

    @staticmethod
    def show_templates() -> list[str]:
        """Return the names of the templates."""
        warn_deprecated("EmbeddingModelConfig", "ONNXPipelineConfig")
        return ONNXPipelineConfig.show_templates()

    @staticmethod
    def show_preconfigured(
        include_properties: bool = False, model_name: str | None = None
    ) -> list[Any]:
        """Return the preconfigured models; see `ONNXPipelineConfig.show_preconfigured`."""
        warn_deprecated("EmbeddingModelConfig", "ONNXPipelineConfig")
        return ONNXPipelineConfig.show_preconfigured(include_properties, model_name)


def warn_deprecated(old: str, new: str) -> None:
    """Warn that a class has a new name, at the line outside this package that uses the old one."""
    level, frame = 0, sys._getframe().f_back
    while frame is not None and frame.f_globals["__name__"].startswith("oml_mlflow."):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{old} is deprecated and will be removed; use {new}.",
        DeprecationWarning,
        stacklevel=level + 2,
    )


def _check_known(names: Iterable[str]) -> None:
    """Raise ConfigError if there is no property of one of these names."""
    unknown = sorted(set(names) - _CHECKS.keys())
    if not unknown:
        return
    raise ConfigError(
        "labels belong to classification and do not apply to CLIP."
        if unknown == ["labels"]
        else f"{', '.join(unknown)}: no such property of template {MULTIMODAL_CLIP!r}.",
        hint=f"it has {', '.join(sorted(_CHECKS.keys() - {'template'}))}.",
    )


def _check_template(name: str, value: Any) -> None:
    if value != MULTIMODAL_CLIP:
        raise ConfigError(
            f"{name} {value!r} can't be set.", hint=f"the only one is {MULTIMODAL_CLIP!r}."
        )


def _check_post_processors(name: str, value: Any) -> None:
    if value == [_NORMALIZE]:
        return
    steps = value if isinstance(value, list) else []
    others = [s["name"] for s in steps if isinstance(s, dict) and s.get("name") in _OTHER_STEPS]
    raise ConfigError(
        f"{name}: {', '.join(others)} belongs to text models and does not apply to CLIP."
        if others
        else f"{name} {value!r} can't be honoured: both CLIP pipelines end in Normalize.",
        hint=f"leave it at {[_NORMALIZE]}.",
    )


def _check_max_seq_length(name: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < _FEWEST_IDS):
        raise ConfigError(
            f"{name} {value!r} is no whole number of {_FEWEST_IDS} or more.",
            hint="leave it out to use the model's own.",
        )


def _check_do_lower_case(name: str, value: Any) -> None:
    if value is not True:
        raise ConfigError(
            f"{name}={value!r} can't be honoured: CLIP's tokenizer lower-cases.",
            hint="leave it at True.",
        )


def _check_precision(name: str, value: Any) -> None:
    choose_precisions(**{"quantize_model": False, "use_float16": False, name: value})


def _check_use_external_data(name: str, value: Any) -> None:
    if value is not None and value is not False:
        raise ConfigError(
            f"{name}={value!r} can't be honoured: weights always stay in the ONNX file, which "
            "holds less than 2 GB.",
            hint="leave it out; where a file is too large, use quantize_model or use_float16.",
        )


def _check_distance_metrics(name: str, value: Any) -> None:
    _check_names(name, value)
    wrong = [metric for metric in value if metric not in DISTANCE_METRICS]
    if wrong:
        raise ConfigError(
            f"{name}: {', '.join(wrong)} is unknown.",
            hint=f"known are {', '.join(DISTANCE_METRICS)}.",
        )


def _check_names(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} {value!r} is no list of strings.", hint="give a list.")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "template": _check_template,
    "post_processors": _check_post_processors,
    "max_seq_length": _check_max_seq_length,
    "do_lower_case": _check_do_lower_case,
    "quantize_model": _check_precision,
    "distance_metrics": _check_distance_metrics,
    "languages": _check_names,
    "use_float16": _check_precision,
    "use_external_data": _check_use_external_data,
}
