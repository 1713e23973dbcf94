"""The MLflow model registry: versions and aliases. Never touches a target."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version

from oml_mlflow.errors import PackageError, RegistryError, RegistryUnreachable

_log = logging.getLogger(__name__)
_DEFAULT_EXPERIMENT = "0"
# the cause within the text of an error of requests
_CAUSE = re.compile(r"\(Caused by \w+\(.*?\): (?P<why>[^\"]+)\"\)\)")
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
    """

    name: str
    version: str
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    registry: str = ""
    source: str = ""

    @property
    def uri(self) -> str:
        """URI of this version, which no alias changes."""
        return f"models:/{self.name}/{self.version}"


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
    client, name = mlflow.MlflowClient(), parts["name"]
    try:
        if parts["alias"]:
            found = client.get_model_version_by_alias(name, parts["alias"])
        else:
            found = client.get_model_version(name, parts["version"])
    except MlflowException as error:
        raise RegistryError(
            f"{model_uri} is not in the registry {shown_registry()}: {error.message}",
            hint="check MLFLOW_TRACKING_URI and the name, or set the alias on the model's page "
            "in the MLflow UI.",
        ) from error
    return to_version(found)


def registry_id() -> str:
    """Return the identity of this registry; empty where it does not say. Read-only.

    It is when its default experiment was created: MLflow's registries have no id of their own, that
    experiment can't be removed, and that of a new registry is of another time.

    Raises:
        RegistryUnreachable: If it does not answer, or with an error.
    """
    with _answering("which registry it is"):
        try:
            found = mlflow.MlflowClient().get_experiment(_DEFAULT_EXPERIMENT)
        except MlflowException as error:
            if error.error_code != _MISSING:
                raise
            return ""
    return str(found.creation_time or "")


def identified(version: ModelVersion) -> ModelVersion:
    """Return the version with its registry's and model's identity. Read-only; two calls.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with an error.
    """
    model = get_registered(version.name, registry_id())
    return replace(version, registry=model.registry if model else "")


def get_registered(name: str, registry: str) -> Registered | None:
    """Return a registered model, or None (`registry`: see `registry_id`). Read-only; one call.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with another error.
    """
    found = _found(lambda client: client.get_registered_model(name), f"registered model {name}")
    return _to_registered(found, registry) if found else None


def list_tagged(registry: str) -> list[Registered]:
    """Return the models with a tag `BIND_TAG` (`registry`: see `registry_id`). A call per 100.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with an error.
    """
    found, token = [], None
    with _answering("which models have a tag"):
        while True:
            page = mlflow.MlflowClient().search_registered_models(
                filter_string=f"tags.`{BIND_TAG}` LIKE '%'", max_results=100, page_token=token
            )
            found += [_to_registered(model, registry) for model in page]
            token = page.token
            if not token:
                return found


def is_empty() -> bool:
    """Return whether the registry holds no registered model at all. Read-only; one call.

    Raises:
        RegistryUnreachable: If it does not answer, or with an error.
    """
    with _answering("whether there are models"):
        return not mlflow.MlflowClient().search_registered_models(max_results=1)


def register_alias(version: ModelVersion, alias: str) -> None:
    """Point an alias to a version. Writes to the registry."""
    mlflow.MlflowClient().set_registered_model_alias(version.name, alias, version.version)


def tag_version(version: ModelVersion, key: str, value: str) -> None:
    """Set a tag of a version. Writes to the registry."""
    mlflow.MlflowClient().set_model_version_tag(version.name, version.version, key, value)


def logged_tags(version: ModelVersion) -> Mapping[str, str]:
    """Return the tags that logging wrote for a version's files; none for an early release's.

    They are the version's own or, if it was registered or copied without them, those of its logged
    model or its original. Read-only; no call where they are its own.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with an error.
    """
    for _ in range(_COPIES):
        if MANIFEST_TAG in version.tags:
            return version.tags
        if logged := _LOGGED_MODEL.fullmatch(version.source):
            return _model_tags(logged[1])
        copied = _URI.fullmatch(version.source)
        origin = find_version(copied["name"], copied["version"] or "") if copied else None
        if origin is None:
            break
        version = origin
    return {}


def find_version(name: str, version: str) -> ModelVersion | None:
    """Return a version, or None if there is no such one. Read-only; one call.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with another error.
    """
    found = _found(
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
        RegistryUnreachable: If the registry does not answer, or with an error.
    """
    client = mlflow.MlflowClient()
    if model_uri.startswith("models:"):
        parts = get_model_name_and_version(client, model_uri)
        if len(parts) == 1:
            return model_uri, _model_tags(parts[0])
        version = get_version(f"models:/{parts[0]}/{parts[1]}")
        return version.uri, logged_tags(version)
    if RunsArtifactRepository.is_runs_uri(model_uri):
        run_id, name = RunsArtifactRepository.parse_runs_uri(model_uri)
        with _answering(f"what run {run_id} logged"):
            experiment, token = client.get_run(run_id).info.experiment_id, None
            while True:
                page = client.search_logged_models(
                    [experiment], filter_string=f"name = '{name}'", page_token=token
                )
                # the first one, as MLflow itself takes it
                if of_run := [model for model in page if model.source_run_id == run_id]:
                    return model_uri, of_run[0].tags
                token = page.token
                if not token:
                    break
    return model_uri, {}


def _model_tags(model_id: str) -> Mapping[str, str]:
    found = _found(lambda client: client.get_logged_model(model_id), f"logged model {model_id}")
    return found.tags if found else {}


def _found(ask: Callable[[mlflow.MlflowClient], Any], what: str) -> Any:
    """Return what the registry says of something, or None if there is no such thing."""
    with _answering(f"whether there is a {what}"):
        try:
            return ask(mlflow.MlflowClient())
        except MlflowException as error:
            if error.error_code != _MISSING:
                raise
            return None


def fetch_version(version: ModelVersion, folder: str | Path | None = None) -> Path:
    """Return a local folder with a version's files, downloaded if they are remote.

    Args:
        version: The version.
        folder: Where to download to, without logged code and evidence of earlier promotions.

    Raises:
        RegistryError: If the files can't be fetched.
    """
    try:
        if folder is None:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=version.uri))
        source = get_artifact_repository(version.uri)
        entries = source.list_artifacts(None)
        if not entries:
            raise FileNotFoundError("there are none")
        for entry in entries:
            if entry.path not in UNUSED:
                source.download_artifacts(entry.path, str(folder))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the files of {version.uri} can't be fetched: {error}",
            hint="check that its artifacts are still in the artifact store.",
        ) from error
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
    with _answering(f"where the files of {version.uri} are"):
        where = mlflow.MlflowClient().get_model_version_download_uri(version.name, version.version)
    return urlsplit(where).scheme not in ("", "file")


@contextlib.contextmanager
def _answering(question: str) -> Iterator[None]:
    """Raise RegistryUnreachable for whatever keeps the registry from answering."""
    try:
        yield
    except (MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
        text = str(getattr(error, "message", "") or error).splitlines() or [type(error).__name__]
        cause = _CAUSE.search(text[0])
        why = cause["why"] if cause else text[0]
        raise RegistryUnreachable(
            f"the registry {shown_registry()} does not say {question}: {_hidden(why)}. "
            "Nothing was changed.",
            hint="check that the MLflow server runs, and MLFLOW_TRACKING_URI; then run it again.",
        ) from error


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
    )


def shown_registry() -> str:
    """Return the address of the registry, without a password."""
    return _hidden(mlflow.get_registry_uri())


def _hidden(text: str) -> str:
    return re.sub(r"//[^@/]*@", "//***@", text)
