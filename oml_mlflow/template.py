"""Templates: what a user may set about a pipeline pair, with OML4Py's property names."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from oml_mlflow.errors import ConfigError, UnsupportedSource
from oml_mlflow.precision import choose_precisions

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


def _normalize() -> list[dict[str, Any]]:
    return [{"name": "Normalize"}]


@dataclass
class ONNXPipelineConfig:
    """Properties of a pipeline pair; read and set them with the dot operator.

    Names and meanings: OML4Py, "Python Classes to Convert Pretrained Models to ONNX Models".
    Sizes, resampling, mean and standard deviation are no properties: they come from the model's
    own image processor.

    Attributes:
        template: Name of the template it was made from.
        post_processors: Only ``[{"name": "Normalize"}]``.
        max_seq_length: Ids a text may have; by default, and at most, what the model has.
        do_lower_case: Only True: CLIP's tokenizer lower-cases.
        distance_metrics: Metrics that suit the vectors; stored with the pair.
        languages: Database language abbreviations; stored with the pair.
        quantize_model: Store weights as INT8. Besides True and False: ``"dynamic"`` also computes
            in INT8; a dict such as ``{"img": "dynamic", "txt": True}`` says it by side.
        use_float16: Store weights as float16; a dict says it by side. INT8 goes first.
    """

    template: str = MULTIMODAL_CLIP
    post_processors: list[dict[str, Any]] = field(default_factory=_normalize)
    max_seq_length: int | None = None
    do_lower_case: bool = True
    distance_metrics: list[str] = field(default_factory=lambda: ["COSINE"])
    languages: list[str] = field(default_factory=list)
    quantize_model: bool | str | dict[str, bool | str] = False
    use_float16: bool | dict[str, bool] = False

    @staticmethod
    def from_template(name: str, **overrides: Any) -> ONNXPipelineConfig:
        """Return a configuration for any model that a template fits.

        Args:
            name: ``multimodal_clip``.
            **overrides: Properties to set.

        Raises:
            UnsupportedSource: If there is no such template here.
            ConfigError: If a property is unknown or can't have that value.
        """
        if name != MULTIMODAL_CLIP:
            raise UnsupportedSource(
                f"there is no template {name!r} here.", hint=f"use {MULTIMODAL_CLIP!r}."
            )
        known = sorted({f.name for f in fields(ONNXPipelineConfig)} - {"template"})
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)}: no such property of template {name!r}.",
                hint=f"it has {', '.join(known)}.",
            )
        config = ONNXPipelineConfig(template=name, **overrides)
        config.check()
        return config

    @staticmethod
    def show_templates() -> list[str]:
        """Return the names of the templates."""
        return [MULTIMODAL_CLIP]

    def check(self) -> None:
        """Raise ConfigError if a property can't be honoured."""
        if self.post_processors != _normalize():
            raise ConfigError(
                f"post_processors {self.post_processors} can't be honoured: both CLIP pipelines "
                "end in Normalize.",
                hint="leave it at [{'name': 'Normalize'}].",
            )
        if self.do_lower_case is not True:
            raise ConfigError(
                "do_lower_case=False can't be honoured: CLIP's tokenizer lower-cases.",
                hint="leave it at True.",
            )
        choose_precisions(self.quantize_model, self.use_float16)
        length = self.max_seq_length
        if length is not None and (not isinstance(length, int) or length < 3):
            raise ConfigError(
                f"max_seq_length {length!r} is no whole number of 3 or more.",
                hint="leave it out to use the model's own.",
            )
        wrong = [m for m in self.distance_metrics if m not in DISTANCE_METRICS]
        if wrong:
            raise ConfigError(
                f"distance_metrics: {', '.join(map(str, wrong))} is unknown.",
                hint=f"known are {', '.join(DISTANCE_METRICS)}.",
            )
