"""Roll back a name: by its alias where it follows one, else the name alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import ApplyError, RegistryRefused, RegistryUnreachable
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.observed import healed
from oml_mlflow.planning.plan import plan_rollback
from oml_mlflow.planning.records import LedgerEntry
from oml_mlflow.promotion.apply import Promotion, observe
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.rollback import rollback as rollback_pair
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.fleet import Fleet
from oml_mlflow.reconciler.loop import Pass, Reconciler
from oml_mlflow.reconciler.pins import open_configured, pinned_for
from oml_mlflow.registry import get_version, register_alias
from oml_mlflow.targets import open_target


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did.

    Attributes:
        alias: Alias that was moved, such as ``clip@prod``; empty if none was.
        version: Version that was rolled back to.
        changed: What a reconciler's pass did after the alias was moved; None if none was.
        promotion: What was done to a pinned or unbound name; None if the alias was moved.
        pinned: Whether the name is pinned now.
        reason: Why it was pinned without being asked to; empty otherwise.
    """

    alias: str = ""
    version: str = ""
    changed: Pass | None = None
    promotion: Promotion | None = None
    pinned: bool = False
    reason: str = ""


def rollback_configured(
    config: Config,
    target: str,
    name: str,
    *,
    to: int | None = None,
    pinned: bool = False,
    reason: str = "",
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> RollbackResult:
    """Make a kept generation live again; where the name follows an alias, move the alias first.

    Then every target that follows the alias is rolled back with it. If the registry does not
    answer, or `pinned` is given, only this name is, and it is pinned.

    Args:
        config: Targets and bindings.
        target: Name of the target.
        name: Export name.
        to: Generation; by default the newest kept one before the live one.
        pinned: Pin the name instead of moving the alias.
        reason: Reason of the pin, shown by `status`.
        options: What is allowed beyond the usual.
        on_event: Told of progress.

    Raises:
        ApplyError: If that generation is not kept, or is not of the model that the name follows.
        OmlMlflowError: See `oml_mlflow.rollback`.

    Side effects: Moves an alias, writes to every target that follows it; or writes a ledger row and
        a note to this one.
    """
    export_name = check_export_name(name).upper()
    database, why = open_configured(config, target), ""
    chosen = _chosen(database, export_name, to)
    if not pinned:
        try:
            binding = _binding(config, target, export_name)
            if binding is None:
                done = _go_back(database, export_name, to, options, on_event)
                return RollbackResult(version=done.entry.version, promotion=done)
            return _move_back(config, binding, chosen, options, on_event)
        except RegistryRefused as error:
            error.hint += " Or go back with --pin, which leaves the alias alone."
            raise
        except RegistryUnreachable as error:
            why = f"the registry could not be asked ({error.message})"
    with pinned_for(database, export_name, reason or why or "rolled back by hand"):
        done = _go_back(database, export_name, to, replace(options, over_pin=True), on_event)
    return RollbackResult(version=done.entry.version, promotion=done, pinned=True, reason=why)


def _move_back(
    config: Config, binding: Binding, chosen: LedgerEntry, options: Options, on_event: Listener
) -> RollbackResult:
    if chosen.registered_model != binding.model or not chosen.version:
        raise ApplyError(
            f"generation {chosen.restores or chosen.generation} of {binding.name} on "
            f"{binding.target} is {chosen.origin}, which {binding.model}@{binding.alias} can't "
            "point to. Nothing was changed.",
            hint="go back with --pin, which leaves the alias alone.",
        )
    version = get_version(f"models:/{binding.model}/{chosen.version}")
    register_alias(version, binding.alias)
    changed = Reconciler(config, on_event=on_event).run([binding.model], options=options)
    follows = f"{binding.model}@{binding.alias}"
    return RollbackResult(alias=follows, version=chosen.version, changed=changed)


def _go_back(
    database: Target, name: str, to: int | None, options: Options, on_event: Listener
) -> Promotion:
    return rollback_pair(
        database,
        name,
        to=to,
        unverified=options.unverified,
        accept_new_geometry=options.accept_new_geometry,
        over_pin=options.over_pin,
        on_event=on_event,
    )


def _chosen(database: Target, name: str, to: int | None) -> LedgerEntry:
    """Return the ledger entry that a rollback would make live."""
    with database.session(f"roll back {name}", create=False) as session:
        observed = healed(observe(session, name))
    work = plan_rollback(observed, to=to, keep=database.keep, target=database.uri).work
    assert work is not None  # noqa: S101 -- it raises where there is nothing to do
    return work.entry


def _binding(config: Config, target: str, name: str) -> Binding | None:
    """Return the binding of a name; None if it has none that it can follow."""
    for status in Fleet(config).look(targets=[target]).plan.statuses:
        if status.name == name and status.binding is not None and not status.is_error:
            return status.binding
    return None


def rollback(
    target: Target | str,
    name: str,
    *,
    to: int | None = None,
    unverified: bool = False,
    accept_new_geometry: bool = False,
    pinned: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Promotion:
    """Make a kept generation live again, without loading anything.

    Where the name follows an alias in a configured target, the alias is moved first, and every
    target that follows it is rolled back.

    Args:
        target: A target, its URI, or the name of a configured one.
        name: Export name in the database.
        to: Generation; by default the newest kept one before the live one.
        unverified: Also go back to a generation without reference vectors.
        accept_new_geometry: See `promote`.
        pinned: Pin the name in a configured target instead of moving its alias.
        config: See `promote`.
        on_event: Told of progress.

    Returns:
        What is live in this target now.

    Raises:
        OmlMlflowError: See `oml_mlflow.promotion.rollback.rollback`.

    Side effects: Moves an alias, or pins the name; writes ledger rows to targets; commits.
    """
    if isinstance(target, str):
        config = config or load_config()
        chosen = config.choose(target).name
        if chosen in config.targets:
            options = Options(unverified=unverified, accept_new_geometry=accept_new_geometry)
            done = rollback_configured(
                config, chosen, name, to=to, pinned=pinned, options=options, on_event=on_event
            )
            return done.promotion or _of_target(done, chosen, name)
        target = open_target(target)
    return rollback_pair(
        target,
        name,
        to=to,
        unverified=unverified,
        accept_new_geometry=accept_new_geometry,
        on_event=on_event,
    )


def _of_target(done: RollbackResult, target: str, name: str) -> Promotion:
    """Return what the pass that followed the moved alias did to one name."""
    for outcome in done.changed.outcomes if done.changed else ():
        if outcome.change.binding.place == (target, name.upper()):
            if outcome.error is not None:
                raise outcome.error
            if outcome.promotion is not None:
                return outcome.promotion
    raise ApplyError(
        f"{done.alias} points to version {done.version} again, but {name.upper()} on {target} did "
        "not follow.",
        hint="run `oml-mlflow status`.",
    )
