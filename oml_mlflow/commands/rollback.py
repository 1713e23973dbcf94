"""The verb rollback: by the alias that a name follows, or the name alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from oml_mlflow.commands.chosen import Chosen, choose
from oml_mlflow.commands.promote import pinned
from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config
from oml_mlflow.errors import ApplyError, RegistryRefused, RegistryUnreachable
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.observed import finished
from oml_mlflow.planning.plan import plan_rollback
from oml_mlflow.planning.records import LedgerEntry
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.rollback import is_finished, roll_back
from oml_mlflow.promotion.run import Promotion, made_meanwhile, observe
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.loop import Pass, Reconciler
from oml_mlflow.reconciler.status import PAUSED, PINNED, Status
from oml_mlflow.registry.versions import get_version, register_alias


def rollback(
    name: str,
    target: Target | str | None = None,
    *,
    to: int | None = None,
    unverified: bool = False,
    accept_new_geometry: bool = False,
    reembed: bool = False,
    pin: bool = False,
    reason: str = "",
    config: Config | None = None,
    tell: Callable[[str], None] = lambda text: None,
    on_pass: Callable[[Pass], None] = lambda found: None,
    on_event: Listener = silent,
) -> Promotion:
    """Make a kept generation live again, without loading anything.

    Where the name follows an alias, the alias is moved, and every name that follows it goes back
    with it. With `pin`, or while the registry does not answer, only this name does, and is pinned.

    Args:
        name: Export name.
        target: A target, its URI, or the name of a declared one; the configuration's by default.
        to: Generation; by default the newest kept one from before the live one. After a rollback
            it has to be named.
        unverified: Also go back to a generation that has no reference vectors.
        accept_new_geometry: See `promote`.
        reembed: See `promote`: rows without a vector of that generation are embedded first.
        pin: Pin the name instead of moving its alias.
        reason: Reason of the pin, shown by `status`.
        config: See `promote`.
        tell: Told what will be moved, before it is, and what is pinned, for people.
        on_pass: Called with what the pass after the moved alias did to all that follow it.
        on_event: Told of progress.

    Returns:
        What is live in this target now.

    Raises:
        InvalidName, TargetLocked, ForeignModel, Pinned, Vetoed, GeometryChanged, ParityError: See
            `promote`.
        ApplyError: If that generation is not kept, is not of the model that the name follows, has
            no references and `unverified` is not given, or a step fails; the message says what
            state was left.

    Side effects: Moves an alias and writes to every target that follows it; or writes a ledger row
        to this one, and perhaps a note; commits. Calls hooks.
    """
    chosen, export_name = choose(target, config), check_export_name(name).upper()
    options = Options(
        unverified=unverified, accept_new_geometry=accept_new_geometry, reembed=reembed
    )
    entry, why = _wanted(chosen.database, export_name, to), ""
    if not pin:
        try:
            binding = chosen.binding(export_name)
            if binding is not None:
                return _move_back(chosen, binding, entry, options, tell, on_pass, on_event)
        except RegistryRefused as error:
            error.hint += " Or go back with --pin, which leaves the alias alone."
            raise
        except RegistryUnreachable as error:
            why = f"the registry could not be asked ({error.message})"
        else:
            return roll_back(
                chosen.database, export_name, to=to, options=options, on_event=on_event
            )
    options = replace(options, over_pin=True)
    with pinned(chosen.database, export_name, reason or why or "rolled back by hand"):
        done = roll_back(chosen.database, export_name, to=to, options=options, on_event=on_event)
    tell(f"{export_name} on {chosen.name} is pinned{f', since {why}' if why else ''}.")
    return done


def _wanted(database: Target, name: str, to: int | None) -> LedgerEntry:
    """Return the ledger entry that a rollback would make live."""
    with database.session(f"roll back {name}", create=False) as session:
        found = observe(session, name)
    observed = finished(found)
    if observed.live is not None and is_finished(found.state.work, observed.live, to):
        return observed.live
    work = plan_rollback(observed, to=to, keep=database.keep, target=database.uri).work
    assert work is not None  # noqa: S101 -- it raises where there is nothing to do
    return work.entry


def _move_back(
    chosen: Chosen,
    binding: Binding,
    entry: LedgerEntry,
    options: Options,
    tell: Callable[[str], None],
    on_pass: Callable[[Pass], None],
    on_event: Listener,
) -> Promotion:
    follows = f"{binding.model}@{binding.alias}"
    if entry.registered_model != binding.model or not entry.version:
        raise ApplyError(
            f"generation {entry.restores} of {binding.name} on {chosen.name} is {entry.origin}, "
            f"which {follows} can't point to. Nothing was changed.",
            hint="go back with --pin, which leaves the alias alone.",
        )
    version = get_version(f"models:/{binding.model}/{entry.version}")
    reconciler = Reconciler(chosen.config, on_event=on_event)
    tell(_announced(reconciler.look([binding.model]).statuses, follows, version.version))
    register_alias(version, binding.alias)
    found = reconciler.run([binding.model], options=options, until_filled=True)
    on_pass(found)
    for outcome in found.outcomes:
        if outcome.change.binding.place == binding.place:
            if outcome.promotion is None:
                raise outcome.error or ApplyError(str(outcome.change))
            return outcome.promotion
    for status in found.statuses:
        live = status.live
        if live is None or (status.target, status.name) != binding.place:
            continue
        if (live.registered_model, live.version) == (version.name, version.version):
            return made_meanwhile(live)
    raise ApplyError(
        f"{follows} points to version {version.version} again, but {binding.name} on "
        f"{chosen.name} did not follow.",
        hint="run `oml-mlflow status`.",
    )


def _announced(statuses: Sequence[Status], follows: str, version: str) -> str:
    """Return which names go with an alias, and which don't, for people."""
    bound = [s for s in statuses if s.binding and f"{s.binding.model}@{s.binding.alias}" == follows]
    staying = [s for s in bound if s.is_error or s.state in (PINNED, PAUSED)]
    going = ", ".join(f"{s.name} on {s.target}" for s in bound if s not in staying) or "nothing"
    but = ", ".join(f"{s.name} on {s.target} ({s.state})" for s in staying)
    was = next((s.wanted for s in bound), "") or "no version"
    text = f"{follows} goes from {was} to {version}; with it go {going}"
    return f"{text}; not: {but}." if but else f"{text}."
