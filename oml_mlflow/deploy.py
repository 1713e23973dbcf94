"""Plugin of `mlflow deployments`: ``-t oml:/TARGET``, a configured target.

A deployment is an export name of that target. ``models:/m@alias`` makes it follow the alias, a
fixed version pins it. MLflow loads this module by its entry point ``oml``, and expects exactly one
client class in it. Source: `mlflow.deployments.plugin_manager`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from oml_mlflow.commands import operate
from oml_mlflow.commands import promote as commands
from oml_mlflow.commands.data import open_pair
from oml_mlflow.config.file import DEFAULT_TARGET, Config, load_config
from oml_mlflow.errors import (
    ConfigError,
    InputError,
    InvalidName,
    NotAccepted,
    OmlMlflowError,
    RegistryError,
    RegistryRefused,
)
from oml_mlflow.flavor.package import FLAVOR_NAME
from oml_mlflow.flavor.scoring import PyfuncPair
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.records import BINDING
from oml_mlflow.registry.versions import get_version

if TYPE_CHECKING:
    from oml_mlflow.reconciler.status import Status

_TARGET_URI = re.compile(r"oml(?::/+(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)/?)?")
_ALIAS_URI = re.compile(r"models:/(?P<model>[^/@:]+)@(?P<alias>[\w-]+)")
_OPTIONS = ("accept_new_geometry", "adopt", "reembed", "retry", "take_over", "unverified")
_FIXED_OPTIONS = tuple(option for option in _OPTIONS if option != "retry")
_DROP = "drop"


def target_help() -> str:
    """Return what `mlflow deployments help -t oml` shows."""
    return """\
Deploys a version into a database, as an in-database pair of pipelines that SQL can call.

Target URI
  oml:/NAME   a target of oml_mlflow.toml (or of the file that OML_MLFLOW_CONFIG names)
  oml         the target that the configuration's `target` names
  Neither a database's address nor a password is part of it; see `oml-mlflow config show`.

Name and model
  --name CLIP -m models:/clip@prod   CLIP follows the alias from now on, wherever it is moved
  --name CLIP -m models:/clip/3      CLIP is version 3, and is pinned to it
  The target has to accept model, alias and name.

-C key=value, each true or false
  accept_new_geometry  create, update: go on where stored vectors can't be compared with new ones
  adopt                create, update: take over foreign models under the live names
  reembed              create, update: take stored vectors along: registered columns are made anew
  retry                create, update: try again what failed before
  take_over            create, update: let the name change hands, from another model or registry
  unverified           create, update, of a fixed version: promote what nothing here can run
  drop                 delete: drop the pair too. Without it only the binding and the pin are
                       removed, and the pair stays live

predict takes rows with a column `text`, or `image` (base64 of a picture), and gives a column
`embedding`, computed by the database itself.
"""


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Promote a version into the embedded database in the folder ``database``.

    MLflow calls it without a target. Source: `mlflow.deployments.interface.run_local`.
    """
    with _as_mlflow():
        _demand_flavor(flavor)
        options = _switches(config, _FIXED_OPTIONS)
        commands.promote(model_uri, DEFAULT_TARGET, name, config=Config(), **options)


class OmlDeploymentClient(BaseDeploymentClient):  # type: ignore[misc] # MLflow has no types
    """Deployments in one configured target.

    Args:
        target_uri: ``oml:/NAME``, or ``oml`` for the configuration's own.

    Every method raises `MlflowException`, with our own error as its cause.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        with _as_mlflow():
            parts = _TARGET_URI.fullmatch(target_uri)
            if parts is None:
                raise ConfigError(
                    "that is no target URI of oml.",
                    hint="use oml:/NAME with the name of a target of oml_mlflow.toml, or oml.",
                )
            self._config = load_config()
            self._target = self._config.choose(parts["name"]).name
            if self._target not in self._config.targets:
                raise ConfigError(
                    "oml alone needs a configuration whose `target` is the name of a target.",
                    hint="use oml:/NAME, or set target in oml_mlflow.toml.",
                )

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Make a name follow ``models:/m@alias``, or pin it to a fixed version.

        Creating what is there already changes nothing; a name that follows another alias has to be
        updated instead.

        Side effects: Writes a note to the target, and promotes; commits.
        """
        with _as_mlflow():
            _demand_flavor(flavor, endpoint)
            export_name, observed = check_export_name(name).upper(), self._observed(name)
            alias = _ALIAS_URI.fullmatch(model_uri)
            note = observed.notes.get(BINDING) if observed else None
            if note is not None and (alias is None or dict(note.content) != alias.groupdict()):
                raise MlflowException(
                    f"{export_name} on {self._target} follows {note.content['model']}"
                    f"@{note.content['alias']} already. Nothing was changed. Next: update it.",
                    error_code=RESOURCE_ALREADY_EXISTS,
                )
            return self._deploy(export_name, model_uri, config)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Make a name follow another alias, or pin it to another fixed version.

        Side effects: Writes a note to the target, and promotes; commits.
        """
        with _as_mlflow():
            _demand_flavor(flavor, endpoint)
            if not model_uri:
                raise InputError(
                    "there is nothing to update without a model URI.",
                    hint="give -m models:/name@alias or models:/name/version.",
                )
            self._find(name)
            return self._deploy(check_export_name(name).upper(), model_uri, config)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Remove a name's binding and pin, if any; the pair stays live unless ``drop`` is set.

        Side effects: Removes notes from the target, and with ``drop`` the pair; commits.
        """
        with _as_mlflow():
            _demand_flavor(None, endpoint)
            drops = _switches(config, (_DROP,)).get(_DROP, False)
            export_name, observed = check_export_name(name).upper(), self._observed(name)
            by_file = [b for b in self._config.bindings if b.place == (self._target, export_name)]
            if drops and by_file:
                raise NotAccepted(
                    f"{by_file[0]} is bound by {self._config.path}: what is dropped would be "
                    "loaded again. Nothing was changed.",
                    hint="remove the binding there first.",
                )
            if observed is None:
                return
            if observed.notes:
                commands.unbind(export_name, self._target, config=self._config)
            if drops and (observed.live is not None or observed.kept()):
                commands.drop(export_name, self._target, config=self._config)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return every name of the target that is live or bound. Read-only."""
        with _as_mlflow():
            _demand_flavor(None, endpoint)
            return [self._shown(status) for status in self._statuses()]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return the status of a name, what is live, and the SQL that calls it. Read-only."""
        with _as_mlflow():
            _demand_flavor(None, endpoint)
            return self._shown(self._find(name))

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: pd.DataFrame | None = None,
        endpoint: str | None = None,
    ) -> PredictionsResponse:
        """Embed rows with a column ``text`` or ``image``, in the database. Read-only."""
        with _as_mlflow():
            _demand_flavor(None, endpoint)
            observed = self._observed(deployment_name or "")
            live = observed.live if observed else None
            if live is None:
                raise _unknown(deployment_name, self._target)
            with open_pair(live, self._target, self._config) as pair:
                frame = PyfuncPair(pair).predict(pd.DataFrame(inputs))
            return PredictionsResponse(predictions=frame.to_dict("records"))

    def _deploy(
        self, name: str, model_uri: str, config: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        options = _switches(config, _OPTIONS)
        parts = _ALIAS_URI.fullmatch(model_uri)
        # before anything is written
        get_version(model_uri)
        if parts is None:
            options.pop("retry", None)
            commands.promote(
                model_uri, self._target, name, pin=True, config=self._config, **options
            )
            return self._shown(self._find(name))
        commands.bind(name, self._target, parts["model"], parts["alias"], config=self._config)
        done = operate.apply(
            models=[parts["model"]],
            target=self._target,
            options=operate.Options(**options),
            config=self._config,
        )
        for outcome in done.outcomes:
            if outcome.error is not None and outcome.change.binding.name == name:
                raise outcome.error
        return self._shown(self._find(name))

    def _statuses(self) -> list[Status]:
        found = operate.look(target=self._target, config=self._config)
        return [status for status in found.statuses if status.target == self._target]

    def _find(self, name: str) -> Status:
        export_name = check_export_name(name).upper()
        for status in self._statuses():
            if status.name == export_name:
                return status
        raise _unknown(name, self._target)

    def _observed(self, name: str) -> Observed | None:
        export_name = check_export_name(name).upper()
        found = operate.survey(target=self._target, config=self._config)[self._target]
        if isinstance(found, OmlMlflowError):
            raise found
        return found.names.get(export_name)

    def _shown(self, status: Status) -> dict[str, Any]:
        live, binding = status.live, status.binding
        uri = self._config.targets[self._target].uri
        return {
            "name": status.name,
            "flavor": FLAVOR_NAME,
            "target": self._target,
            "state": status.state,
            "why": status.text,
            "next_step": status.hint,
            "follows": f"models:/{binding.model}@{binding.alias}" if binding else "",
            "live": live.origin if live else "",
            "generation": live.generation if live else 0,
            "sql": operate.sql_call(uri, status.name) if live else "",
        }


@contextmanager
def _as_mlflow() -> Iterator[None]:
    """Raise our errors as MlflowException, with the original as the cause."""
    try:
        yield
    except OmlMlflowError as error:
        code = INTERNAL_ERROR
        if error.retryable:
            code = TEMPORARILY_UNAVAILABLE
        elif isinstance(error, ConfigError | InvalidName | InputError):
            code = INVALID_PARAMETER_VALUE
        elif isinstance(error, NotAccepted | RegistryRefused):
            code = PERMISSION_DENIED
        elif isinstance(error, RegistryError):
            code = RESOURCE_DOES_NOT_EXIST
        raise MlflowException(f"[{error.code}] {error}", error_code=code) from error


def _unknown(name: str | None, target: str) -> MlflowException:
    return MlflowException(
        f"there is no deployment {name!r} on {target}. Nothing was changed. Next: "
        f"mlflow deployments list -t oml:/{target}",
        error_code=RESOURCE_DOES_NOT_EXIST,
    )


def _demand_flavor(flavor: str | None, endpoint: str | None = None) -> None:
    if flavor not in (None, FLAVOR_NAME):
        raise InputError(f"only flavor {FLAVOR_NAME} can be deployed.", hint="leave out --flavor.")
    if endpoint is not None:
        raise InputError("oml has no endpoints.", hint="leave out --endpoint.")


def _switches(config: Mapping[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """Return settings of ``-C``, which MLflow passes as texts. Errors never quote a value."""
    found = {}
    for key, value in (config or {}).items():
        if key not in known:
            raise InputError(
                f"-C {key}: no such setting here; its value was not used.",
                hint=f"there are {', '.join(known)}. Passwords never go here.",
            )
        if str(value).lower() not in ("true", "false"):
            raise InputError(f"-C {key} is neither true nor false.", hint=f"use -C {key}=true.")
        found[key] = str(value).lower() == "true"
    return found
