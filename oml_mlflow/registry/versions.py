"""The MLflow model registry: versions and aliases. Never touches a target.

Everything here raises what `oml_mlflow.registry.answering` says where the registry does not do it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version

from oml_mlflow.errors import PackageError, RegistryError
from oml_mlflow.registry.answering import answering, fetching, shown_registry

_log = logging.getLogger(__name__)
_DEFAULT_EXPERIMENT = "0"
# tags of a registered model; those of a version, and of its logged model
BIND_TAG, PAUSE_TAG = "oml.bind", "oml.paused"
MANIFEST_TAG, CODE_TAG = "oml.manifest", "oml.code"
# the second holds evidence of promotions, and is written after logging
CODE_FOLDER, EVIDENCE_FOLDER = "code", "oml_mlflow"
# no database needs these, and each of their many files would be a request
UNUSED = {CODE_FOLDER, EVIDENCE_FOLDER}
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_LOGGED_MODEL = re.compile(r"models:/(m-\w+)")
# how many copies of copies are followed to the original
_COPIES = 8
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
        registry: Identity of registry and model, see `Registered`; empty unless asked for.
        source: URI that it was registered from.
        description: Its description.
    """

    name: str
    version: str
    run_id: str = ""
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    registry: str = ""
    source: str = ""
    description: str = ""

    @property
    def uri(self) -> str:
        """URI of this version, which no alias changes."""
        return f"models:/{self.name}/{self.version}"

    @property
    def logged_model(self) -> str:
        """Id of the logged model that it was registered from; empty if it was from another."""
        logged = _LOGGED_MODEL.match(self.source)
        return logged[1] if logged else ""


@dataclass(frozen=True)
class Registered:
    """A registered model: all that a binding needs to know, from one call.

    Attributes:
        name: Its name.
        aliases: Version by alias.
        tags: Its tags.
        registry: Identity, ``<registry>:<model>``: when the registry's first experiment and the
            model were created, in milliseconds, so that neither another registry nor a model that
            was deleted and created again is taken for it. The first part may be unknown: empty.
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
    # the model first: to a user without rights MLflow refuses the rest where there is no model
    model = get_registered(parts["name"], "")
    number = parts["version"] or (model.aliases.get(parts["alias"]) if model else None)
    found = find_version(parts["name"], number) if model and number else None
    if found is None:
        missing = "version or alias" if model else "registered model"
        raise RegistryError(
            f"{model_uri} is not in the registry {shown_registry()}: there is no such {missing}.",
            hint="check MLFLOW_TRACKING_URI and the name, or set the alias on the model's page "
            "in the MLflow UI.",
        )
    return found


def registry_id() -> str:
    """Return the identity of this registry; empty where it does not say. Read-only.

    It is when its default experiment was created: MLflow's registries have no id of their own, that
    experiment can't be removed, and that of a new registry is of another time.
    """
    found = find(lambda client: client.get_experiment(_DEFAULT_EXPERIMENT), "the first experiment")
    return str(found.creation_time or "") if found else ""


def identified(version: ModelVersion) -> ModelVersion:
    """Return the version with its registry's and model's identity. Read-only; two calls."""
    model = get_registered(version.name, registry_id())
    return replace(version, registry=model.registry if model else "")


def get_registered(name: str, registry: str) -> Registered | None:
    """Return a registered model, or None (`registry`: see `registry_id`). Read-only; one call."""
    found = find(lambda client: client.get_registered_model(name), f"registered model {name}")
    return _to_registered(found, registry) if found else None


def list_tagged(registry: str) -> list[Registered]:
    """Return the models with a tag `BIND_TAG` (`registry`: see `registry_id`). A call per 100."""
    with answering("models with a tag can't be listed"):
        found = mlflow.search_registered_models(filter_string=f"tags.`{BIND_TAG}` LIKE '%'")
    return [_to_registered(model, registry) for model in found]


def is_empty() -> bool:
    """Return whether the registry holds no registered model at all. Read-only; one call."""
    with answering("models can't be listed"):
        return not mlflow.MlflowClient().search_registered_models(max_results=1)


def register_alias(version: ModelVersion, alias: str) -> None:
    """Point an alias to a version. Writes to the registry."""
    failed = f"alias {alias} of {version.name} was not moved to version {version.version}"
    with answering(failed, state="It is as it was."):
        mlflow.MlflowClient().set_registered_model_alias(version.name, alias, version.version)


def tag_version(version: ModelVersion, key: str, value: str) -> None:
    """Set a tag of a version; a failure is a warning: what it tells has been done by then."""
    try:
        with answering(f"tag {key} of {version.uri} was not set", state=""):
            mlflow.MlflowClient().set_model_version_tag(version.name, version.version, key, value)
    except RegistryError as error:
        _log.warning("%s", error)


def describe_version(version: ModelVersion, text: str) -> None:
    """Set the description of a version that was just made. Writes to the registry."""
    with answering(f"{version.uri} was not described", state="It is registered."):
        mlflow.MlflowClient().update_model_version(version.name, version.version, text)


def logged_tags(version: ModelVersion) -> Mapping[str, str]:
    """Return the tags that logging wrote for a version's files; none for an early release's.

    They are the version's own or, if it was registered or copied without them, those of its logged
    model or its original. Read-only; no call where they are its own.
    """
    for each in originals(version):
        if MANIFEST_TAG in each.tags:
            return each.tags
        if each.logged_model:
            return _model_tags(each.logged_model)
    return {}


def originals(version: ModelVersion) -> Iterator[ModelVersion]:
    """Yield a version and those that it was copied from, the last one last. Read-only."""
    for _ in range(_COPIES):
        yield version
        copied = _URI.fullmatch(version.source)
        origin = find_version(copied["name"], copied["version"] or "") if copied else None
        if origin is None:
            break
        version = origin


def find_version(name: str, version: str) -> ModelVersion | None:
    """Return a version, or None if there is no such one. Read-only; one call."""
    found = find(
        lambda client: client.get_model_version(name, version), f"version {version} of {name}"
    )
    return to_version(found) if found else None


def is_anchored(version: ModelVersion) -> bool:
    """Return whether the registry says what a version's files are; see `logged_tags`."""
    return MANIFEST_TAG in logged_tags(version)


def locate(model_uri: str) -> tuple[str, Mapping[str, str]]:
    """Return the URI of the files that a URI means now, and the tags that logging wrote.

    Args:
        model_uri: As MLflow takes it; a folder has no tags.

    Raises:
        RegistryError: If there is no such version.
    """
    if model_uri.startswith("models:"):
        with answering(f"{model_uri} can't be looked up"):
            parts = get_model_name_and_version(mlflow.MlflowClient(), model_uri)
        if len(parts) == 1:
            return model_uri, _model_tags(parts[0])
        version = get_version(f"models:/{parts[0]}/{parts[1]}")
        return version.uri, logged_tags(version)
    if RunsArtifactRepository.is_runs_uri(model_uri):
        run_id, name = RunsArtifactRepository.parse_runs_uri(model_uri)
        with answering(f"models of run {run_id} can't be looked up"):
            client = mlflow.MlflowClient()
            experiment = client.get_run(run_id).info.experiment_id
            asked = f"name = '{name}' AND source_run_id = '{run_id}'"
            # the first one, as MLflow itself takes it
            for model in client.search_logged_models([experiment], asked, max_results=1):
                return model_uri, model.tags
    return model_uri, {}


def _model_tags(model_id: str) -> Mapping[str, str]:
    found = find(lambda client: client.get_logged_model(model_id), f"logged model {model_id}")
    return found.tags if found else {}


def find(ask: Callable[[mlflow.MlflowClient], Any], what: str) -> Any:
    """Return what the registry says of something, or None if there is no such thing."""
    with answering(f"{what} can't be looked up"):
        try:
            return ask(mlflow.MlflowClient())
        except MlflowException as error:
            if error.error_code != _MISSING:
                raise
            return None


def fetch_version(
    version: ModelVersion, folder: str | Path | None = None, without: Collection[str] = UNUSED
) -> Path:
    """Return a local folder with a version's files, downloaded if they are remote.

    Args:
        version: The version.
        folder: Where to download to.
        without: What is not downloaded there: logged code and evidence of earlier promotions.

    Raises:
        RegistryError: If the files can't be fetched.
    """
    with fetching(version.uri):
        if folder is None:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=version.uri))
        source = get_artifact_repository(version.uri)
        entries = source.list_artifacts(None)
        if not entries:
            raise FileNotFoundError(errno.ENOENT, "there are none")
        for entry in entries:
            if entry.path not in without:
                source.download_artifacts(entry.path, str(folder))
    return Path(folder)


@contextlib.contextmanager
def local_files(
    version: ModelVersion, check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Yield a folder with a version's files; a download is removed when the context ends.

    Args:
        version: The version.
        check: Raises PackageError if files are not what was logged. A download is then repeated
            once: other bytes once, such as an error page, say nothing about the version.

    Raises:
        RegistryError: If the files can't be fetched.
        PackageError: If `check` fails for local files, or twice.
    """
    with contextlib.ExitStack() as held:
        folder = None
        if _is_remote(version):
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="oml_mlflow-"))
        found = fetch_version(version, folder)
        if check is not None:
            try:
                check(found)
            except PackageError as error:
                if folder is None:
                    raise
                _log.warning("%s is downloaded again: %s", version.uri, error.message)
                check(fetch_version(version, folder))
        yield found


def _is_remote(version: ModelVersion) -> bool:
    with answering(f"the files of {version.uri} can't be located"):
        where = mlflow.MlflowClient().get_model_version_download_uri(version.name, version.version)
    return urlsplit(where).scheme not in ("", "file")


def _to_registered(found: Any, registry: str) -> Registered:
    return Registered(
        name=found.name,
        aliases={alias: str(version) for alias, version in (found.aliases or {}).items()},
        tags=dict(found.tags or {}),
        registry=f"{registry}:{found.creation_timestamp or ''}",
    )


def to_version(found: Any) -> ModelVersion:
    """Return a version from MLflow's entity."""
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        aliases=tuple(found.aliases or ()),
        tags=dict(found.tags or {}),
        source=found.source or "",
        description=found.description or "",
    )
