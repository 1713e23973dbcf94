"""The target that a verb is about: a declared one by name or URI, or any other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oml_mlflow import targets
from oml_mlflow.config.bindings import Acceptance, Binding
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import NotAccepted
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.fleet import binding_of, open_declared


@dataclass(frozen=True)
class Chosen:
    """The target that a verb is about.

    Attributes:
        config: The configuration, with this target among its own.
        name: Name of the target there; its URI if it is not declared.
        database: The target.
    """

    config: Config
    name: str
    database: Target

    def demand_accepted(self, model: str, alias: str, name: str) -> None:
        """Raise NotAccepted unless the target takes a model's alias under an export name.

        Args:
            model: Registered model.
            alias: Its alias; empty for a fixed version.
            name: Export name.
        """
        rules = self.config.targets[self.name].accept
        if any(rule.takes(model, alias or None, name) for rule in rules):
            return
        what = f"{model}@{alias}" if alias else f"a fixed version of {model}"
        raise NotAccepted(
            f"target {self.name} does not accept {what} as {name}. Nothing was changed.",
            hint=f'its owner adds {{model = "{model}", name = "{name}"}} to accept of '
            f"targets.{self.name}.",
        )

    def binding(self, name: str) -> Binding | None:
        """Return the binding that an export name follows here; None without one that counts.

        Read-only; no other target is asked, and the registry only if tags may bind this target.

        Raises:
            RegistryUnreachable: If the registry is asked and does not answer.
            TargetError: If the target can't be read.
        """
        return binding_of(self.config, self.name, name, self.database.survey())


def choose(target: Target | str | None = None, config: Config | None = None) -> Chosen:
    """Return the target that a verb is about. Nothing is opened or written yet.

    Args:
        target: A target, its URI, or the name of a declared one; by default the configuration's. A
            target that is not declared accepts everything, and nothing is bound to it by the file.
        config: The configuration; by default that of `load_config`.

    Raises:
        ConfigError: If there is no such target.
    """
    config = config or load_config()
    uri, given = (target, None) if target is None or isinstance(target, str) else (None, target)
    found = config.choose(given.uri if given else uri)
    if found.name not in config.targets:
        found = replace(found, accept=(Acceptance(),))
        config = replace(config, targets={**config.targets, found.name: found})
    return Chosen(config, found.name, given or open_declared(config, found.name))


def secret_variables(config: Config) -> tuple[str, ...]:
    """Return the environment variables that may hold secrets of targets."""
    return targets.secret_variables(target.uri for target in config.targets.values())
