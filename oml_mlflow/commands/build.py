"""Relog: log the bytes and evidence of a version again, with this release's code and pins."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS

from oml_mlflow._version import __version__
from oml_mlflow.flavor.environment import index_requirements, read_requirements
from oml_mlflow.flavor.manifest import LATER, check_files
from oml_mlflow.flavor.package import FLAVOR_NAME, read_package
from oml_mlflow.flavor.save import EXACTNESS_TAG, facts_of, identity_tags, log_anchored, write_model
from oml_mlflow.names import IMG
from oml_mlflow.publish.description import without_block
from oml_mlflow.registry.versions import (
    CODE_FOLDER,
    ModelVersion,
    describe_version,
    fetch_version,
    get_version,
    logged_tags,
)

_OWN_CODE = f"{CODE_FOLDER}/{FLAVOR_NAME}"
# written anew; the rest is copied
_REWRITTEN = (MLMODEL_FILE_NAME, "conda.yaml", "python_env.yaml", "requirements.txt")


def relog(
    model_uri: str, *, await_registration_for: int = DEFAULT_AWAIT_MAX_SLEEP_SECONDS
) -> ModelInfo:
    """Make a new version of a registered model: the same pair, with the code of this release.

    Copied byte for byte: ONNX files of every profile, golden probes, references, the model's own
    files, input example, code and files that were given to `log_model`; and signature, metadata,
    measured loss and further requirements. New: our code, the pins of what it needs, and the
    manifest. Nothing is run. Stored vectors stay valid, so a promotion needs no consent to a new
    geometry.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``. No alias is moved.
        await_registration_for: As in every flavor's ``log_model``.

    Returns:
        MLflow's ``ModelInfo``, ``registered_model_version`` among it.

    Raises:
        RegistryError: If there is no such version, or its files can't be fetched.
        PackageError: If its files are not those that were logged.

    Side effects: Writes a logged model and a version, with tags and a description.
    """
    version = get_version(model_uri)
    with tempfile.TemporaryDirectory(prefix="oml_mlflow-") as scratch:
        folder = fetch_version(version, scratch, without=())
        check_files(folder, logged_tags(version))
        stored = [read_package(folder, p) for p in read_package(folder).stored_profiles]
        told = version.tags.items()
        # the profile that it was logged for: the MLmodel file does not keep their order
        package = next((p for p in stored if identity_tags(p).items() <= told), stored[0])
        exactness = {k: v for k, v in version.tags.items() if k == EXACTNESS_TAG}
        info = log_anchored(
            partial(_save, folder),
            registered_model_name=version.name,
            await_registration_for=await_registration_for,
            tags={**identity_tags(package), **exactness, "oml.relogged": version.version},
            artifact_path=None,
            name=package.paths[IMG].stem.removesuffix(f"_{IMG}"),
            params=facts_of(package),
            # validation would run the model
            validate_serving_input=False,
        )
    line = f"Relogged from version {version.version} with oml_mlflow {__version__}."
    card = f"{without_block(version.description).rstrip()}\n\n{line}\n".lstrip()
    describe_version(ModelVersion(version.name, str(info.registered_model_version)), card)
    return info


def _save(source: Path, path: str, mlflow_model: Model, **_options: Any) -> None:
    """Write a model folder from another one, as `save_model` would today."""
    root, old = Path(path), Model.load(str(source))
    is_carried = (source / _OWN_CODE).is_dir()
    shutil.copytree(source, root, dirs_exist_ok=True, ignore=partial(_ignored, source))
    if is_carried:
        package = Path(__file__).parents[1]
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, root / _OWN_CODE, ignore=ignore)
    mlflow_model.signature = old.signature
    mlflow_model.saved_input_example_info = old.saved_input_example_info
    mlflow_model.metadata = old.metadata
    index, further = read_requirements(source)
    lines = [] if is_carried else index_requirements(index)
    section = old.flavors[FLAVOR_NAME]
    write_model(mlflow_model, root, section, None, None, further, index_lines=lines)


def _ignored(source: Path, folder: str, names: list[str]) -> set[str]:
    inside = Path(folder).relative_to(source)
    gone = {Path(name) for name in (*_REWRITTEN, *LATER, _OWN_CODE)}
    return {name for name in names if inside / name in gone or name == "__pycache__"}
