"""OML4Py's classes: `ONNXPipeline` and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from oml_mlflow.errors import ConfigError, UnsupportedSource
from oml_mlflow.events import Listener, silent
from oml_mlflow.export import check_destination, export_pair
from oml_mlflow.pair import PipelinePair
from oml_mlflow.profiles import DEFAULT_PROFILE, Profile, get_profile
from oml_mlflow.source import open_source
from oml_mlflow.template import MULTIMODAL_CLIP, ONNXPipelineConfig

_SETTINGS = ("cache_dir", "force_download")


class MiningFunction(Enum):
    """What a model does. Spelling as in OML4Py's documentation."""

    EMBEDDING = 1
    CLASSIFCATION = 2
    REGRESSION = 3


class ONNXPipeline:
    """Turn a pretrained CLIP model into an image and a text pipeline.

    Args:
        model_name: Hub id, or a local folder in the Hugging Face layout.
        config: Properties; the template ``multimodal_clip`` by default.
        settings: ``cache_dir`` (folder of hub downloads) and ``force_download``.
        function: ``MiningFunction.EMBEDDING`` or its name.

    Raises:
        UnsupportedSource: If the function is another one.
        ConfigError: If a setting is unknown.
    """

    def __init__(
        self,
        model_name: str,
        config: ONNXPipelineConfig | None = None,
        settings: Mapping[str, Any] = {},
        function: MiningFunction | str = MiningFunction.EMBEDDING,
    ) -> None:
        if function not in (MiningFunction.EMBEDDING, MiningFunction.EMBEDDING.name):
            raise UnsupportedSource(
                f"function {function} is not supported.", hint="use MiningFunction.EMBEDDING."
            )
        unknown = sorted(set(settings) - set(_SETTINGS))
        if unknown:
            raise ConfigError(
                f"settings {', '.join(unknown)}: unknown.",
                hint=f"known are {', '.join(_SETTINGS)}.",
            )
        self.model_name = str(model_name)
        self.config = config or ONNXPipelineConfig.from_template(MULTIMODAL_CLIP)
        self.settings = dict(settings)

    def __repr__(self) -> str:
        """Return the model's name and template."""
        return f"ONNXPipeline({self.model_name!r}, template={self.config.template!r})"

    def export2file(
        self,
        export_name: str,
        output_dir: str | Path | None = None,
        *,
        profile: str | Profile = DEFAULT_PROFILE,
        decode_op: str | None = None,
        validate: bool = True,
        on_event: Listener = silent,
    ) -> PipelinePair:
        """Write ``<export_name>_img.onnx`` and ``<export_name>_txt.onnx``.

        Both or none: an error or an interruption leaves no file, and no file is replaced.

        Args:
            export_name: Base of both names; it must do as the name of an in-database model too.
            output_dir: Folder; the current one by default.
            profile: What the target takes; a name of `oml_mlflow.profiles`, or a profile.
            decode_op: The target's own decode operator, ``domain:Name``, or ``raw`` for a pair
                that takes undecoded RGB pixels.
            validate: Compare the pair with the model's own Python code first.
            on_event: Told of progress.

        Returns:
            The pair, ready for ``log_model``.

        Raises:
            InvalidName: If the name can't be that of an in-database model.
            NameTaken: If one of the files is already there.
            SourceError: If the model can't be read in full.
            UnsupportedSource: If it is no CLIP model, or does what no graph here can.
            ParityError: If the pair differs from the model's own Python code.
        """
        chosen = get_profile(profile, decode_op=decode_op) if isinstance(profile, str) else profile
        check_destination(export_name, output_dir)
        source = open_source(
            self.model_name,
            cache_dir=self.settings.get("cache_dir"),
            force=bool(self.settings.get("force_download")),
        )
        return export_pair(
            source,
            self.config,
            export_name,
            output_dir,
            profile=chosen,
            validate=validate,
            on_event=on_event,
        )
