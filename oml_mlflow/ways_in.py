"""Python's ways in: promote, roll back and reconcile, a target given by name, URI or as an object.

A name, or the URI of a configured target, means that target: what it accepts, what its names
follow and what is pinned holds here as on the command line.
"""

from __future__ import annotations

from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import ApplyError
from oml_mlflow.events import Listener, silent
from oml_mlflow.promotion import promote as promotion
from oml_mlflow.promotion import rollback as restore
from oml_mlflow.promotion.apply import Promotion
from oml_mlflow.promotion.options import Terms
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler import pins
from oml_mlflow.reconciler.loop import Pass, Reconciler
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
    """Make a version the live pair of an export name in a database, if it proves right there.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target, its URI, or the name of a configured one.
        name: Export name in the database; the registered model's name by default.
        unverified: Promote a pair too that no runtime here could run, so that nothing can be
            compared; ledger and version then say ``unverified``. Others are compared all the same.
        adopt: Take over models of others under the live names; they are kept, and never dropped.
        take_over: Replace a pair too that belongs to another registered model or registry.
        accept_new_geometry: Promote a version too whose vectors can't be compared with those that
            were stored from the live one.
        pinned: Pin the name of a configured target, so that it stays whatever its alias says.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. Promoting what is live already writes nothing, but
        compares again.

    Raises:
        NotAccepted: If a configured target does not accept it, or the name follows another version.
        OmlMlflowError: See `oml_mlflow.promotion.promote.promote`.

    Side effects: Writes models and a ledger row to the target; commits. Calls hooks.
    """
    terms = Terms(
        unverified=unverified,
        adopt=adopt,
        take_over=take_over,
        accept_new_geometry=accept_new_geometry,
    )
    if isinstance(target, str):
        config = config or load_config()
        chosen = config.choose(target).name
        if chosen in config.targets:
            return pins.promote(
                config, model_uri, chosen, name, pinned=pinned, terms=terms, on_event=on_event
            )
        target = open_target(target)
    return promotion.promote(
        model_uri,
        target,
        name,
        unverified=unverified,
        adopt=adopt,
        take_over=take_over,
        accept_new_geometry=accept_new_geometry,
        on_event=on_event,
    )


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

    Where the name of a configured target follows an alias, the alias is moved first, and every
    target that follows it goes back.

    Args:
        target: A target, its URI, or the name of a configured one.
        name: Export name in the database.
        to: Generation; by default the newest kept one from before the live one.
        unverified: Go back to a generation too that has no reference vectors.
        accept_new_geometry: See `promote`.
        pinned: Pin the name of a configured target instead of moving its alias.
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
            terms = Terms(unverified=unverified, accept_new_geometry=accept_new_geometry)
            done = pins.rollback(
                config, chosen, name, to=to, pinned=pinned, terms=terms, on_event=on_event
            )
            return done.promotion or _of_target(done, chosen, name)
        target = open_target(target)
    return restore.rollback(
        target,
        name,
        to=to,
        unverified=unverified,
        accept_new_geometry=accept_new_geometry,
        on_event=on_event,
    )


def reconcile(
    *,
    retry: bool = False,
    take_over: bool = False,
    accept_new_geometry: bool = False,
    heal: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Pass:
    """Bring every bound name of every configured target in line with its alias, once.

    Args:
        retry: Try again what failed before.
        take_over: Names may change hands: to another registered model or registry.
        accept_new_geometry: See `promote`.
        heal: Heal drift, whatever a target's policy is.
        config: See `promote`.
        on_event: Told of progress.

    Returns:
        How everything stands now, and what was changed or failed to be.

    Raises:
        RegistryUnreachable, OtherRegistry: Nothing was changed.

    Side effects: Writes models, ledger rows and notes to targets, and tags and descriptions of
    versions to the registry. Calls hooks.
    """
    terms = Terms(
        retry=retry, take_over=take_over, accept_new_geometry=accept_new_geometry, heal=heal
    )
    return Reconciler(config or load_config(), on_event=on_event).run(terms=terms)


def _of_target(done: pins.WentBack, target: str, name: str) -> Promotion:
    """Return what the pass after the alias was moved did to one name."""
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
