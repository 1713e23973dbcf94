"""Save and log a pipeline pair as an MLflow model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.models.utils import _save_example
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _validate_env_arguments,
)
from mlflow.utils.file_utils import get_total_file_size
from mlflow.utils.model_utils import (
    _copy_extra_files,
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)

from oml_mlflow._version import __version__
from oml_mlflow.errors import PackageError
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.environment import index_requirements, write_environment
from oml_mlflow.flavor.evidence import Evidence, gather_evidence, model_card
from oml_mlflow.flavor.manifest import to_manifest
from oml_mlflow.flavor.package import (
    FLAVOR_NAME,
    FORMAT_VERSION,
    GOLDEN_FOLDER,
    PROFILES_FOLDER,
    SOURCE_FOLDER,
)
from oml_mlflow.graph.profiles import Profile, get_profile
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import RAISE
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.registry.answering import answering
from oml_mlflow.registry.versions import CODE_TAG, MANIFEST_TAG, ModelVersion, describe_version

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            # with a type of its own MLflow would turn null into "None", and decode data: URLs
            ColSpec(AnyType(), "image", required=False),
            ColSpec(AnyType(), "text", required=False),
        ]
    ),
    outputs=Schema([ColSpec(Array(DataType.float), "embedding")]),
    params=ParamSchema([ParamSpec("on_error", DataType.string, RAISE)]),
)
INPUT_EXAMPLE = pd.DataFrame({"text": ["a photo of a cat", "two dogs on a beach"]})
EXACTNESS_TAG = "oml.exactness"


def save_model(
    pair: PipelinePair,
    path: str | Path,
    conda_env: dict[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    extra_files: list[str] | None = None,
    *,
    profiles: Sequence[str | Profile] | None = None,
    package_index: str | None = None,
    pairs: Sequence[PipelinePair] | None = None,
    evidence: Evidence | None = None,
    on_event: Listener = silent,
) -> None:
    """Save a pipeline pair as an MLflow model.

    The ONNX files are copied byte for byte, tokenizer and image-processor files beside them, and
    golden probes with two sets of reference vectors: the pair's own, and those of the model's
    Python code (see `oml_mlflow.flavor.evidence`).

    Args:
        pair: What ``export2file`` returned, or ``PipelinePair.from_files(img, txt)``.
        path: Folder; it must be absent or empty.
        conda_env: As in every flavor.
        code_paths: Further code to travel with the model; oml_mlflow itself always does, unless
            `package_index` is given.
        mlflow_model: The model object to add the flavor to.
        signature: By default: ``image`` and ``text``, both optional and of any type, in, since
            `PyfuncPair` judges every value itself; ``embedding`` (array of float) out.
        input_example: By default two texts.
        pip_requirements: As in every flavor; by default `get_default_pip_requirements`.
        extra_pip_requirements: Added to the default; replaces a default of the same package.
        metadata: As in every flavor.
        extra_files: As in every flavor.
        profiles: Profiles to store a pair for; the exactness report is about the first. By default
            that of `pair`; pairs for others are made from its files.
        package_index: URL, without credentials, of a package index that holds oml-mlflow. The
            requirements then name it there, and it does not travel as code.
        pairs: What `for_profiles` returned for `pair` and `profiles`; made by default.
        evidence: What `gather_evidence` returned for `pairs`; gathered by default.
        on_event: Told of progress.

    Raises:
        MlflowException: If the path or the environment arguments are not usable.
        ConfigError: If `package_index` holds credentials.
    """
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    index_lines = index_requirements(package_index)
    root = Path(path).absolute()
    _validate_and_prepare_target_save_path(str(root))
    own_code = [] if package_index else [str(Path(__file__).parents[1])]
    code = _validate_and_copy_code_paths([*(code_paths or []), *own_code], str(root))

    model = mlflow_model or Model()
    model.signature = signature or SIGNATURE
    _save_example(model, INPUT_EXAMPLE if input_example is None else input_example, str(root))
    if metadata is not None:
        model.metadata = metadata

    with tempfile.TemporaryDirectory() as scratch:
        made = pairs or for_profiles(pair, profiles, Path(scratch), on_event)
        evidence = evidence or gather_evidence(made, on_event)
        evidence.save(root / GOLDEN_FOLDER)
        entries = _copy_profiles(made, root)
    _copy_companions(pair, root)
    section = {
        "format_version": FORMAT_VERSION,
        "dims": pair.dims,
        "metadata": pair.metadata,
        "loss": evidence.exactness.loss if evidence.exactness else {},
        "profiles": entries,
        "code": code,
        **_copy_extra_files(extra_files, str(root)),
    }
    environment = conda_env, pip_requirements, extra_pip_requirements
    write_model(model, root, section, *environment, index_lines=index_lines)


def write_model(
    model: Model,
    root: Path,
    section: Mapping[str, Any],
    conda_env: dict[str, Any] | str | None = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    *,
    index_lines: Sequence[str] = (),
) -> None:
    """Write the MLmodel and environment files of a model whose other files are in `root`.

    The arguments are as in every flavor; `section` is the flavor's section without the release,
    `index_lines` what `index_requirements` returned.
    """
    pyfunc.add_to_model(
        model,
        loader_module="oml_mlflow",
        conda_env=_CONDA_ENV_FILE_NAME,
        python_env=_PYTHON_ENV_FILE_NAME,
        code=section["code"],
    )
    model.add_flavor(FLAVOR_NAME, **{**section, "oml_mlflow_version": __version__})
    model.model_size_bytes = get_total_file_size(str(root))
    model.save(str(root / MLMODEL_FILE_NAME))
    write_environment(root, conda_env, pip_requirements, extra_pip_requirements, index_lines)


def log_model(
    pair: PipelinePair,
    artifact_path: str | None = None,
    conda_env: dict[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    await_registration_for: int = DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    extra_files: list[str] | None = None,
    name: str | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    *,
    profiles: Sequence[str | Profile] | None = None,
    package_index: str | None = None,
    on_event: Listener = silent,
) -> ModelInfo:
    """Log a pipeline pair to MLflow, and register it if a name is given.

    Arguments are those of every flavor's ``log_model`` and of `save_model`. Writes: a logged
    model with the pair's facts as params and tags, among them sha256 of every file; with
    `registered_model_name` a model version with the same tags and a description that says what it
    is and how exact.

    Returns:
        MLflow's ``ModelInfo``; ``registered_model_version`` is set if it was registered.

    Raises:
        MlflowException, ConfigError: See `save_model`.
        RegistryError: See `oml_mlflow.registry.answering`; it says what is left.
    """
    with tempfile.TemporaryDirectory() as scratch:
        pairs = for_profiles(pair, profiles, Path(scratch), on_event)
        evidence = gather_evidence(pairs, on_event)
        info = log_anchored(
            save_model,
            registered_model_name=registered_model_name,
            await_registration_for=await_registration_for,
            tags={**identity_tags(pair), **_exactness_tag(evidence), **(tags or {})},
            artifact_path=artifact_path,
            name=name,
            metadata=metadata,
            params={**facts_of(pair), **(params or {})},
            model_type=model_type,
            step=step,
            model_id=model_id,
            pair=pair,
            conda_env=conda_env,
            code_paths=code_paths,
            signature=signature,
            input_example=input_example,
            pip_requirements=pip_requirements,
            extra_pip_requirements=extra_pip_requirements,
            extra_files=extra_files,
            package_index=package_index,
            pairs=pairs,
            evidence=evidence,
            on_event=on_event,
        )
    if evidence.exactness is not None and mlflow.active_run():
        figures = {f"exactness/{side}_max_abs": evidence.exactness.max_abs(side) for side in SIDES}
        with answering("the exactness was not logged", state=f"{info.model_uri} is logged."):
            mlflow.log_metrics(figures, model_id=info.model_id)
    if registered_model_name is not None:
        made = ModelVersion(registered_model_name, str(info.registered_model_version))
        describe_version(made, model_card(pair, evidence))
    return info


@dataclass
class _Saver:
    """What `Model.log` takes for a flavor's module; keeps the manifest of what it saved."""

    save: Callable[..., None]
    __name__ = "oml_mlflow.flavor.save"
    is_saving, manifest = False, ""

    def save_model(self, path: str, **options: Any) -> None:
        self.is_saving = True
        self.save(path=path, **options)
        self.is_saving, self.manifest = False, to_manifest(Path(path))


def log_anchored(
    save: Callable[..., None],
    *,
    registered_model_name: str | None,
    await_registration_for: int,
    tags: Mapping[str, Any],
    **options: Any,
) -> ModelInfo:
    """Log what `save` writes, with its manifest in a tag, and register it with the same tags.

    The tag is written before the version, so that no version is ever seen without it.

    Args:
        save: Writes a model folder, as `save_model` does.
        registered_model_name: Registered model; None registers nothing.
        await_registration_for: Seconds to wait until the version is ready.
        tags: Further tags.
        options: For ``Model.log`` and `save`.
    """
    saver = _Saver(save)
    try:
        info = Model.log(flavor=saver, tags=dict(tags), **options)
        anchors = {CODE_TAG: __version__, MANIFEST_TAG: saver.manifest}
        mlflow.MlflowClient().set_logged_model_tags(info.model_id, anchors)
    except Exception:
        if saver.is_saving:  # which asks MLflow's stores nothing
            raise
        left = "A logged model without some files is" if saver.manifest else "Nothing is"
        with answering("the pair was not logged", state=f"{left} left."):
            raise
    if registered_model_name is not None:
        failed = f"{info.model_uri} was not registered as {registered_model_name}"
        with answering(failed, state="It is logged."):
            made = mlflow.register_model(
                f"models:/{info.model_id}",
                registered_model_name,
                await_registration_for,
                tags={**tags, **anchors},
            )
        info.registered_model_version = made.version
    return info


def for_profiles(
    pair: PipelinePair,
    profiles: Sequence[str | Profile] | None,
    folder: Path,
    on_event: Listener = silent,
) -> list[PipelinePair]:
    """Return a pair for every profile; those it was not made for are written into `folder`."""
    made = []
    for wanted in profiles or [pair.profile]:
        if wanted == pair.profile:
            made.append(pair)
            continue
        profile = get_profile(wanted) if isinstance(wanted, str) else wanted
        made.append(pair.for_profile(profile, folder / profile.name, on_event))
    return made


def _copy_profiles(pairs: Sequence[PipelinePair], root: Path) -> dict[str, Any]:
    """Copy the files of every profile and return their entries; equal files are stored once."""
    stored: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for pair in pairs:
        folder = root / PROFILES_FOLDER / pair.profile
        entry: dict[str, Any] = {}
        for side in SIDES:
            source, fingerprint = pair.path(side), pair.fingerprints[side]
            if fingerprint not in stored:
                name = source.name if pair.img.name != pair.txt.name else f"{side}_{source.name}"
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
                stored[fingerprint] = (folder / name).relative_to(root).as_posix()
            entry[side] = {
                "path": stored[fingerprint],
                "sha256": fingerprint,
                "size_bytes": source.stat().st_size,
                "input": pair.ends[side].input,
                "output": pair.ends[side].output,
            }
            if side in pair.unknown_operators:
                entry[side]["unknown_operators"] = list(pair.unknown_operators[side])
        entries[pair.profile] = entry
    return entries


def _copy_companions(pair: PipelinePair, root: Path) -> None:
    if not pair.companions:
        return
    (root / SOURCE_FOLDER).mkdir()
    for source in pair.companions:
        if not source.is_file():
            raise PackageError(
                f"{source}, which belongs to the pair, is gone.", hint="export the pair again."
            )
        shutil.copyfile(source, root / SOURCE_FOLDER / source.name)


def facts_of(pair: PipelinePair) -> dict[str, Any]:
    """Return the facts of a pair that a logged model has as params."""
    return {
        "oml.model_name": pair.metadata.get("model_name", "unknown"),
        "oml.template": pair.metadata.get("template", "unknown"),
        "oml.dims": pair.dims,
        "oml.max_seq_length": pair.metadata.get("max_seq_length", "unknown"),
    }


def identity_tags(pair: PipelinePair) -> dict[str, str]:
    """Return the tags that identify a pair."""
    return {
        "oml.sha256_img": pair.fingerprints[IMG],
        "oml.sha256_txt": pair.fingerprints[TXT],
        "oml.dims": str(pair.dims),
    }


def _exactness_tag(evidence: Evidence) -> dict[str, str]:
    report = evidence.exactness
    verdict = "not run" if report is None else f"max abs {report.max_abs():.1e}"
    is_right = report is None or report.ok
    return {EXACTNESS_TAG: verdict if is_right else f"{verdict}, NOT within limits"}
