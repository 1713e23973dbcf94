"""Promote a version into a target, given as an object, a URI or the name of a configured one.

For a configured target, by name or URI, what it accepts, its bindings and its pins apply, as on the
command line.
"""

from __future__ import annotations

from dataclasses import replace

from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import NotAccepted
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name
from oml_mlflow.promotion.apply import Promotion
from oml_mlflow.promotion.candidate import checked_files
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.promote import promote as promote_pair
from oml_mlflow.promotion.promote import promote_files
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.fleet import Fleet
from oml_mlflow.reconciler.pins import demand_accepted, open_configured, pinned_for
from oml_mlflow.registry import get_version, identified
from oml_mlflow.targets import open_target


def promote(
    model_uri: str,
    target: Target | str,
    name: str | None = None,
    *,
    unverified: bool = False,
    adopt: bool = False,
    take_over: bool = False,
    accept_new_geometry: bool = False,
    pinned: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version the live pair of an export name in a database, if it is verified there.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target, its URI, or the name of a configured one.
        name: Export name in the database; the registered model's name by default.
        unverified: Also promote a pair that no runtime here could run, so that nothing can be
            compared; ledger and version then say ``unverified``. Others are still compared.
        adopt: Take over foreign models under the live names; they are kept, and never dropped.
        take_over: Also replace a pair of another registered model or registry.
        accept_new_geometry: Also promote a version whose vectors can't be compared with those
            stored from the live one.
        pinned: Pin the name in a configured target, so that it no longer follows its alias.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. If it was live already, nothing is written, and the
        vectors are compared again.

    Raises:
        NotAccepted: If a configured target does not accept it, or the name follows an alias of
            another version.
        OmlMlflowError: See `oml_mlflow.promotion.promote.promote`.

    Side effects: Writes models and a ledger row to the target; commits. Calls hooks.
    """
    options = Options(
        unverified=unverified,
        adopt=adopt,
        take_over=take_over,
        accept_new_geometry=accept_new_geometry,
    )
    if isinstance(target, str):
        config = config or load_config()
        chosen = config.choose(target).name
        if chosen in config.targets:
            return promote_configured(
                config, model_uri, chosen, name, pinned=pinned, options=options, on_event=on_event
            )
        target = open_target(target)
    return promote_pair(model_uri, target, name, options=options, on_event=on_event)


def promote_configured(
    config: Config,
    model_uri: str,
    target: str,
    name: str | None = None,
    *,
    pinned: bool = False,
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version live in a configured target.

    Args:
        config: Targets and bindings.
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: Name of the target.
        name: Export name; the registered model's by default.
        pinned: Pin the name; needed where it follows an alias of another version.
        options: What is allowed beyond the usual.
        on_event: Told of progress.

    Raises:
        NotAccepted: If the target does not accept it, or the name follows an alias of another
            version.
        RegistryError, OmlMlflowError: See `oml_mlflow.promote`.

    Side effects: Writes models, a ledger row and perhaps a note to the target; commits.
    """
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    alias = model_uri.rpartition("@")[2] if "@" in model_uri else None
    demand_accepted(config, target, version.name, alias, export_name)
    database = open_configured(config, target)
    if not pinned:
        _demand_followed(config, target, export_name, version.name, version.version)
    with checked_files(version) as folder:
        if not pinned:
            return promote_files(
                folder,
                version,
                database,
                export_name,
                options=options,
                target_name=target,
                alias=alias or "",
                on_event=on_event,
            )
        with pinned_for(database, export_name, version.uri):
            return promote_files(
                folder,
                version,
                database,
                export_name,
                options=replace(options, over_pin=True),
                target_name=target,
                on_event=on_event,
            )


def _demand_followed(config: Config, target: str, name: str, model: str, version: str) -> None:
    """Raise NotAccepted if a name follows an alias that points to another version."""
    for status in Fleet(config).look(targets=[target]).plan.statuses:
        binding = status.binding
        if status.name != name or binding is None:
            continue
        if (binding.model, status.wanted) != (model, version) and status.wanted:
            raise NotAccepted(
                f"{name} on {target} follows {binding.model}@{binding.alias}, which is version "
                f"{status.wanted}, not models:/{model}/{version}. Nothing was changed.",
                hint="move the alias, or promote it with --pin.",
            )
