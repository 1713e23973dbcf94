"""Verbs about the configuration: config show."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import config_option, json_option
from oml_mlflow.pair.limits import LIMITS

if TYPE_CHECKING:
    from oml_mlflow.config.bindings import Refusal
    from oml_mlflow.config.file import Config

_MASK = "***"


@click.group()
def config() -> None:
    """Show the configuration and where its values come from."""


@config.command(epilog="Example: oml-mlflow config show --json")
@config_option
@json_option
def show(as_json: bool) -> None:
    """Show every value and where it came from.

    And which bindings count. No database is asked.
    """
    from oml_mlflow.config.bindings import settle

    found = console.configuration()
    kept, refused = settle(
        found.bindings,
        {name: target.accept for name, target in found.targets.items()},
        [name for name, target in found.targets.items() if target.allow_tag_bindings],
    )
    values = _values(found)
    secrets = _secrets(found)
    if as_json:
        console.show_json(
            {
                "file": str(found.path) if found.path else None,
                "values": [
                    {"key": key, "value": value, "origin": origin} for key, value, origin in values
                ],
                "secrets": [
                    {"variable": name, "is_set": value == "set"} for name, value in secrets
                ],
                "bindings": [{**vars(b), "counts": True, "reason": "", "hint": ""} for b in kept]
                + [
                    {**vars(r.binding), "counts": False, "reason": r.reason, "hint": r.hint}
                    for r in refused
                ],
            }
        )
        return
    place = str(found.path) if found.path else "no file; there is no oml_mlflow.toml here"
    console.show_table(f"Configuration: {place}", ("key", "value", "from"), values)
    console.show_table("Secrets, never shown", ("environment variable", ""), secrets)
    console.show_table(
        "Bindings of the file",
        ("binding", "counts", "why", "what to do"),
        [(b, "yes", "", "") for b in kept] + [_refusal_row(refusal) for refusal in refused],
    )


def _refusal_row(refusal: Refusal) -> tuple[object, ...]:
    return refusal.binding, "NO", refusal.reason, refusal.hint


def _values(found: Config) -> list[tuple[str, str, str]]:
    """Return key, value and origin of all settings, except bindings."""
    values: dict[str, Any] = {
        "target": found.target,
        "concurrency": found.concurrency,
        "poll_s": found.poll_s,
    }
    for name, target in found.targets.items():
        facts = {k: v for k, v in vars(target).items() if k != "name"}
        values |= {f"targets.{name}.{key}": value for key, value in facts.items()}
    values |= {f"webhook.{key}": value for key, value in vars(found.webhook).items()}
    rows = [(key, _shown(value), found.origins.get(key, "")) for key, value in values.items()]
    for limit in LIMITS:
        origin = "environment" if os.environ.get(limit.variable) else "default"
        rows.append((limit.variable, str(limit.read()), origin))
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if uri := os.environ.get(variable):
            masked = re.sub(r"//[^@/]*@", f"//{_MASK}@", uri)
            rows.append(("registry", masked, f"environment {variable}"))
    return rows


def _secrets(found: Config) -> list[tuple[str, str]]:
    """Return variables that hold secrets, and whether they are set."""
    from oml_mlflow.commands.chosen import secret_variables

    names = [*secret_variables(found), "OML_MLFLOW_WEBHOOK_SECRET"]
    names += ["OML_MLFLOW_WEBHOOK_SECRET_OLD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"]
    return [(n, "set" if os.environ.get(n) else "not set") for n in dict.fromkeys(names)]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(part) for part in value) or "nothing"
    if hasattr(value, "takes"):
        return f"{value.model}@{value.alias} as {value.name}"
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
