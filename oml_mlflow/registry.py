"""The MLflow model registry: versions and aliases. Never touches a target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from oml_mlflow.errors import RegistryError

_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        name: Registered model.
        version: Its version.
        run_id: Run that logged it, or empty.
        aliases: Aliases that point to it.
        tags: Its tags.
    """

    name: str
    version: str
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Return the URI of this very version."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Registered:
    """A registered model: all that a binding needs to know, from one call.

    Attributes:
        name: Its name.
        aliases: Version by alias.
        tags: Its tags.
        registry: Which registry and which model: ``<registry>:<created>``. The first part is made
            of when the registry's first experiment was made, the second of when the model was, in
            milliseconds, so that neither another registry nor a model that was deleted and made
            anew is taken for it. Where the registry does not say, the first part is empty.
    """

    name: str
    aliases: Mapping[str, str]
    tags: Mapping[str, str]
    registry: str


def get_version(model_uri: str) -> ModelVersion:
    """Return the version that a URI names now. Read-only.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.

    Raises:
        RegistryError: If there is no such model, version or alias.
    """
    parts = _URI.fullmatch(model_uri)
    if parts is None:
        raise RegistryError(
            f"{model_uri!r} names no model version.",
            hint="use models:/name@alias or models:/name/version.",
        )
    client, name = mlflow.MlflowClient(), parts["name"]
    try:
        if parts["alias"]:
            found = client.get_model_version_by_alias(name, parts["alias"])
        else:
            found = client.get_model_version(name, parts["version"])
    except MlflowException as error:
        raise RegistryError(
            f"{model_uri} is not in the registry {_shown_registry()}: {error.message}",
            hint="check MLFLOW_TRACKING_URI and the name, or set the alias on the model's page "
            "in the MLflow UI.",
        ) from error
    return _to_version(found)


def register_alias(version: ModelVersion, alias: str) -> None:
    """Point an alias to a version. Writes to the registry."""
    mlflow.MlflowClient().set_registered_model_alias(version.name, alias, version.version)


def tag_version(version: ModelVersion, key: str, value: str) -> None:
    """Set a tag of a version. Writes to the registry."""
    mlflow.MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def fetch_version(version: ModelVersion, folder: str | Path | None = None) -> Path:
    """Return a local folder with a version's files, downloaded if they are remote.

    Raises:
        RegistryError: If the files can't be had.
    """
    try:
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=version.uri, dst_path=str(folder) if folder else None
        )
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the files of {version.uri} can't be fetched: {error}",
            hint="check that its artifacts are still in the artifact store.",
        ) from error
    return Path(found)


def _to_version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        aliases=tuple(found.aliases or ()),
        tags=dict(found.tags or {}),
    )


def _shown_registry() -> str:
    return re.sub(r"//[^@/]*@", "//***@", mlflow.get_registry_uri())
