"""Configured targets for tests: an embedded one and the Oracle stand-in, bound to one alias."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
from oracle_fixtures import Oracle

from oml_mlflow.config.bindings import Acceptance, Binding
from oml_mlflow.config.file import Config, TargetConfig
from oml_mlflow.promotion.hooks import Hooks
from oml_mlflow.reconciler.loop import Pass, Reconciler

MODEL, ALIAS, NAME = "clip", "prod", "CLIP"
ANYTHING = (Acceptance(),)
NO_HOOKS = Hooks(())


def two_targets(folder: Path, oracle: Oracle, **changes: Any) -> Config:
    """Return targets `small` (embedded) and `big` (Oracle), both bound to clip@prod."""
    targets = {
        "small": TargetConfig("small", f"embedded:///{folder / 'small'}", ANYTHING),
        "big": TargetConfig("big", oracle.uri, ANYTHING),
    }
    bindings = tuple(Binding(target, NAME, MODEL, ALIAS) for target in targets)
    return replace(Config(targets, bindings), **changes)


def changed(config: Config, target: str, **changes: Any) -> Config:
    """Return a configuration with one target changed."""
    targets = {**config.targets, target: replace(config.targets[target], **changes)}
    return replace(config, targets=targets)


def move(version: int | str, alias: str = ALIAS, model: str = MODEL) -> None:
    """Point an alias to a version."""
    mlflow.MlflowClient().set_registered_model_alias(model, alias, str(version))


def reconcile(config: Config, **options: Any) -> Pass:
    """Look once, and change what is to be changed."""
    return Reconciler(config, hooks=NO_HOOKS).run(**options)


def states(found: Pass) -> dict[str, str]:
    """Return the state by target."""
    return {status.target: status.state for status in found.statuses}


def live_versions(config: Config, name: str = NAME) -> dict[str, str]:
    """Return the live version by target, as the databases themselves say."""
    found = {}
    for target, survey in Reconciler(config, hooks=NO_HOOKS).fleet.survey().items():
        assert not isinstance(survey, Exception), survey
        held = survey.names.get(name)
        live = held.live if held else None
        found[target] = live.version if live else ""
    return found


def unanchor(version: int) -> None:
    """Make a version one of an early release: nothing in the registry says what its files are."""
    client = mlflow.MlflowClient()
    model_id = client.get_model_version("clip", str(version)).source.removeprefix("models:/")
    for key in ("oml.manifest", "oml.code"):
        client.delete_model_version_tag("clip", str(version), key)
        client.delete_logged_model_tag(model_id, key)
