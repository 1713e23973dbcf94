"""OML4Py's interface: `ONNXPipeline`, its older names, and the connection that it loads into."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oml_mlflow.errors import ConfigError, SourceError, UnsupportedSource
from oml_mlflow.events import Listener, silent
from oml_mlflow.files import spool
from oml_mlflow.graph.profiles import DEFAULT_PROFILE, Profile, get_profile
from oml_mlflow.names import check_export_name
from oml_mlflow.pair.export import check_destination, export_pair
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import MULTIMODAL_CLIP, ONNXPipelineConfig, warn_deprecated
from oml_mlflow.promotion.target import Target
from oml_mlflow.source.model import Source, open_source
from oml_mlflow.source.presets import PRESETS, check_download, check_expectations
from oml_mlflow.targets import open_target

if TYPE_CHECKING:
    from oml_mlflow.promotion.run import Promotion

# names of Python's levels, and the severities of onnxruntime
_LEVELS = {"DEBUG": 0, "INFO": 1, "WARNING": 2, "ERROR": 3, "CRITICAL": 4}
_FLAGS = ("force_download", "ignore_checksum_error", "ignore_safetensors_error")
_SETTINGS = ("cache_dir", "logging_level", *_FLAGS)
_BUILD_EXTRA = ("huggingface_hub", "safetensors", "torch", "transformers")
_connected: Target | None = None


class MiningFunction(Enum):
    """What a model does. OML4Py's class has the first spelling, its examples have the second."""

    EMBEDDING = 1
    CLASSIFCATION = 2
    CLASSIFICATION = 2  # noqa: PIE796
    REGRESSION = 3


class ONNXPipeline:
    """Turn a pretrained CLIP model into an image and a text pipeline.

    Args:
        model_name: Hub id, or a local folder in the Hugging Face layout.
        config: Properties. By default those of the preset if the model is preconfigured, whose
            files are then checked against it; else of the template ``multimodal_clip``.
        settings: ``cache_dir`` (folder of hub downloads; the Hugging Face cache by default),
            ``logging_level`` (of this package's logger, and of onnxruntime),
            ``force_download``, ``ignore_checksum_error`` (take weights that differ from the first
            download of a preconfigured model) and ``ignore_safetensors_error`` (take
            ``pytorch_model.bin``, tensors only, where there are no safetensors).
        function: ``MiningFunction.EMBEDDING`` or its name.

    Raises:
        UnsupportedSource: If the function is another one.
        ConfigError: If a setting is unknown or can't have that value.
    """

    def __init__(
        self,
        model_name: str,
        config: ONNXPipelineConfig | None = None,
        settings: Mapping[str, Any] = {},
        function: MiningFunction | str = MiningFunction.EMBEDDING,
    ) -> None:
        _check_function(function)
        if config is not None and not isinstance(config, ONNXPipelineConfig):
            raise ConfigError(
                f"config is a {type(config).__name__}, not an ONNXPipelineConfig.",
                hint=f"make it with ONNXPipelineConfig.from_template({MULTIMODAL_CLIP!r}).",
            )
        _check_settings(settings)
        self.model_name = str(model_name)
        self._preset = PRESETS.get(self.model_name) if config is None else None
        if config is not None:
            self.config = config
        elif self._preset is not None:
            self.config = ONNXPipelineConfig.from_preset(self.model_name)
        else:
            self.config = ONNXPipelineConfig.from_template(MULTIMODAL_CLIP)
        self.settings = dict(settings)
        if "logging_level" in settings:
            _set_logging_level(settings["logging_level"])

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
            export_name: Base of both names; in-database models must be able to have it too.
            output_dir: Folder; the current one by default.
            profile: Profile of the target, or its name (see `oml_mlflow.graph.profiles`).
            decode_op: The target's own decode operator, ``domain:Name``, or ``raw`` for a pair
                that takes undecoded RGB pixels.
            validate: Compare the pair with the model's own Python code first.
            on_event: Told of progress.

        Returns:
            The pair, ready for ``log_model``.

        Raises:
            InvalidName: If the name can't be that of an in-database model.
            NameTaken: If one of the files is already there.
            SourceError: If the model can't be read in full, or a preconfigured one differs from
                what is published or from its first download.
            UnsupportedSource: If it is no CLIP model, or does what no graph here can.
            ParityError: If the pair differs from the model's own Python code.
        """
        chosen = get_profile(profile, decode_op=decode_op) if isinstance(profile, str) else profile
        check_destination(export_name, output_dir)
        with _build_extra():
            return export_pair(
                self._open(),
                self.config,
                export_name,
                output_dir,
                profile=chosen,
                validate=validate,
                on_event=on_event,
            )

    def export2db(
        self,
        export_name: str,
        *,
        profile: str | Profile = DEFAULT_PROFILE,
        validate: bool = True,
        adopt: bool = False,
        accept_new_geometry: bool = False,
        on_event: Listener = silent,
    ) -> Promotion:
        """Make the model the live pair ``<export_name>_IMG``, ``<export_name>_TXT`` of a database.

        The database is that of ``oml_mlflow.connect``. As in a promotion, the pair is loaded into
        slots, embeds the golden probes there, and must give this process's vectors before it gets
        the live names; a pair that was live stays loaded in its slots. Local files are made in a
        private temporary folder (below ``TMPDIR``) and removed, also on an error, and after a kill
        by the next run.

        Args:
            export_name: Base of both in-database names.
            profile: See `export2file`.
            validate: Compare the pair with the model's own Python code first.
            adopt: Take over foreign models under the live names; they are kept.
            accept_new_geometry: Go on even if vectors stored from the live pair can't be compared
                with new ones.
            on_event: Told of progress.

        Returns:
            The ledger entry, with empty registered model and version, and the comparison.

        Raises:
            ConfigError: If nothing is connected.
            InvalidName: If the name can't be that of an in-database model.
            SourceError: See `export2file`.
            PreflightError, ForeignModel, GeometryChanged: If the database can't take it, or should
                not; nothing was loaded. `PrivilegeError`, `QuotaExceeded` and others likewise.
            ParityError: If a vector exceeds its limit; the live pair is as it was.
            ApplyError: If a step fails; the message says what state was left.

        Side effects: Writes models and a ledger row to the target; commits.
        """
        chosen = get_profile(profile) if isinstance(profile, str) else profile
        check_export_name(export_name)
        target = connected_target()
        # imported here: needs MLflow, whose import takes seconds
        from oml_mlflow.promotion.candidate import unregistered
        from oml_mlflow.promotion.options import Options
        from oml_mlflow.promotion.promote import promote_candidate

        with spool() as folder:
            pair = self.export2file(
                export_name, folder, profile=chosen, validate=validate, on_event=on_event
            )
            candidate = unregistered(pair, self.model_name, on_event)
            options = Options(adopt=adopt, accept_new_geometry=accept_new_geometry)
            return promote_candidate(
                candidate, target, export_name, options=options, on_event=on_event
            )

    def _open(self) -> Source:
        settings = self.settings
        source = open_source(
            self.model_name,
            cache_dir=settings.get("cache_dir"),
            force=settings.get("force_download", False),
            pickles=settings.get("ignore_safetensors_error", False),
        )
        if source.revision and self.model_name in PRESETS:
            if self._preset is not None:
                check_expectations(source, self._preset)
            check_download(source, ignore_mismatch=settings.get("ignore_checksum_error", False))
        return source


class EmbeddingModel(ONNXPipeline):
    """`ONNXPipeline` by the name it had before 23.7; warns.

    `configuration` and `config` are the same: OML4Py's signature has one, its examples the other.
    """

    def __init__(
        self,
        model_name: str,
        configuration: ONNXPipelineConfig | None = None,
        settings: Mapping[str, Any] = {},
        *,
        config: ONNXPipelineConfig | None = None,
    ) -> None:
        warn_deprecated("EmbeddingModel", "ONNXPipeline")
        if configuration is not None and config is not None:
            raise ConfigError(
                "configuration and config are the same, and both were given.",
                hint="give one of them.",
            )
        super().__init__(model_name, configuration or config, settings)


@contextlib.contextmanager
def _build_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _BUILD_EXTRA:
            raise
        raise SourceError(
            f"a model is read with {error.name}, which is not installed. Nothing was written.",
            hint="pip install 'oml-mlflow[build]'.",
        ) from error


def _check_function(function: MiningFunction | str) -> None:
    name = function.name if isinstance(function, MiningFunction) else function
    if name == MiningFunction.EMBEDDING.name:
        return
    known = ": it is OML4Py's, for other models" if name in MiningFunction.__members__ else ""
    raise UnsupportedSource(
        f"function {name} is not supported here{known}.",
        hint="use MiningFunction.EMBEDDING: CLIP models embed, there is nothing else here.",
    )


def _check_settings(settings: Mapping[str, Any]) -> None:
    unknown = sorted(map(str, set(settings) - set(_SETTINGS)))
    if unknown:
        raise ConfigError(
            f"settings {', '.join(unknown)}: unknown.", hint=f"known are {', '.join(_SETTINGS)}."
        )
    for name in _FLAGS:
        if not isinstance(settings.get(name, False), bool):
            raise ConfigError(
                f"settings: {name} {settings[name]!r} is neither True nor False.",
                hint="give one of them.",
            )
    if not isinstance(settings.get("cache_dir"), str | Path | None):
        raise ConfigError(
            f"settings: cache_dir {settings['cache_dir']!r} is no path.", hint="give a folder."
        )
    level = settings.get("logging_level", "ERROR")
    if level not in tuple(_LEVELS):
        raise ConfigError(
            f"settings: logging_level {level!r} is unknown.",
            hint=f"known are {', '.join(_LEVELS)}.",
        )


def _set_logging_level(level: str) -> None:
    import onnxruntime

    logging.getLogger("oml_mlflow").setLevel(level)
    onnxruntime.set_default_logger_severity(_LEVELS[level])


def connect(
    user: str | None = None,
    password: str | None = None,
    dsn: str | None = None,
    *,
    target: Target | str | None = None,
) -> None:
    """Set the target that `export2db` loads into, for the whole process.

    With `user`, `password` and `dsn` it is an Oracle database, as with OML4Py's ``oml.connect``.

    Args:
        user: Its user, whose schema holds the models.
        password: Its password; by default from OML_MLFLOW_PASSWORD, else asked for. Kept only in
            this process, and never shown.
        dsn: ``host:port/service``, an alias of ``tnsnames.ora``, or a connect descriptor.
        target: Another target, or a URI such as ``embedded:///folder`` or
            ``oracle://user@host:1521/service``. Nothing is opened yet.

    Raises:
        ConfigError: If no target is named, or an unknown one. The connection stays as it was.
    """
    global _connected
    given = any(value is not None for value in (user, password, dsn))
    if target is not None and given:
        raise ConfigError(
            "connect() was given both a target and a user, password or dsn. The connection was "
            "not changed.",
            hint="give one of the two.",
        )
    if target is None:
        if not user or not dsn:
            raise ConfigError(
                f"connect() names no {'user or dsn' if given else 'target'}. The connection was "
                "not changed.",
                hint='use connect(user, password, "host:1521/service") or '
                'connect(target="embedded:///folder").',
            )
        _connected = _oracle(user, password, dsn)
        return
    _connected = open_target(target) if isinstance(target, str) else target


def _oracle(user: str, password: str | None, dsn: str) -> Target:
    if "@" in dsn or "/" in user:
        raise ConfigError(
            "connect() was given a user or dsn with credentials in it. The connection was not "
            "changed.",
            hint="give user, password and dsn each on its own.",
        )
    # imported here: the driver takes a while to import
    from oml_mlflow.secrets import Secret
    from oml_mlflow.targets.oracle.settings import OracleSettings
    from oml_mlflow.targets.oracle.target import OracleTarget

    return OracleTarget(OracleSettings(user, dsn, Secret(password) if password else None))


def disconnect() -> None:
    """Forget the connection; nothing is written to its target."""
    global _connected
    _connected = None


def isconnected() -> bool:
    """Return whether `export2db` has a target."""
    return _connected is not None


def connected_target() -> Target:
    """Return the target that `connect` set.

    Raises:
        ConfigError: If there is none.
    """
    if _connected is None:
        raise ConfigError(
            "export2db needs a connection, and there is none. Nothing was written.",
            hint='call oml_mlflow.connect(target="embedded:///folder") first.',
        )
    return _connected
