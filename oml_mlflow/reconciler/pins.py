"""By hand: promote, roll back, pin and bind one name of a configured target.

What a registry's alias says is the only desired state. So what is done by hand to a bound name
moves the alias, or pins the name: a reconciler leaves a pinned name alone until it is unpinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from oml_mlflow.config.bindings import DEPLOYMENT, Binding
from oml_mlflow.config.file import Config, TargetConfig
from oml_mlflow.errors import (
    ApplyError,
    ConfigError,
    NotAccepted,
    OmlMlflowError,
    RegistryUnreachable,
)
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name, showable
from oml_mlflow.planning.observed import healed
from oml_mlflow.planning.plan import plan_rollback
from oml_mlflow.planning.records import BINDING, PIN, LedgerEntry, Note, this_process
from oml_mlflow.promotion.apply import Promotion, observe
from oml_mlflow.promotion.candidate import checked_files
from oml_mlflow.promotion.options import USUAL, Terms
from oml_mlflow.promotion.promote import promote_files
from oml_mlflow.promotion.rollback import rollback as rollback_pair
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.fleet import Fleet
from oml_mlflow.reconciler.loop import Pass, Reconciler
from oml_mlflow.registry import get_version, identified, register_alias


@dataclass(frozen=True)
class WentBack:
    """What a rollback did.

    Attributes:
        alias: Alias that was moved, such as ``clip@prod``; empty if none was.
        version: Version that is wanted now.
        changed: What a reconciler's pass did once the alias was moved; None if the name was
            pinned or is not bound.
        promotion: What was done to the pinned or unbound name; None if the alias was moved.
        pinned: Whether the name is pinned now.
        reason: Why it was pinned although nobody asked for it; empty otherwise.
    """

    alias: str = ""
    version: str = ""
    changed: Pass | None = None
    promotion: Promotion | None = None
    pinned: bool = False
    reason: str = ""


def pin(config: Config, target: str, name: str, reason: str = "") -> None:
    """Make a name stay as it is until it is unpinned.

    Raises:
        ConfigError: If there is no such target.
        TargetError: If it can't be written to.

    Side effects: Writes a note to the target; commits.
    """
    export_name = check_export_name(name).upper()
    with _open(config, target).session(f"pin {export_name}") as session:
        session.write_note(Note(export_name, PIN, {"reason": reason}, written_by=this_process()))


def unpin(config: Config, target: str, name: str) -> bool:
    """Let a name follow its alias again; return whether it was pinned.

    Raises:
        ConfigError: If there is no such target.
        TargetError: If it can't be written to.

    Side effects: Removes a note from the target; commits.
    """
    export_name = check_export_name(name).upper()
    with _open(config, target).session(f"unpin {export_name}") as session:
        return session.forget_note(export_name, PIN)


def bind(config: Config, target: str, name: str, model: str, alias: str) -> Binding:
    """Make a name follow an alias; the target remembers it.

    Raises:
        ConfigError: If there is no such target.
        NotAccepted: If the target does not accept it, or the name is bound already, elsewhere.

    Side effects: Writes a note to the target; commits.
    """
    export_name = check_export_name(name).upper()
    demand_accepted(config, target, model, alias, export_name)
    for other in config.bindings:
        if other.place == (target, export_name) and (other.model, other.alias) != (model, alias):
            raise NotAccepted(
                f"{export_name} of {target} is bound already: {other} (oml_mlflow.toml). Nothing "
                "was changed.",
                hint="choose another name, or change the file.",
            )
    with _open(config, target).session(f"bind {export_name}") as session:
        content = {"model": model, "alias": alias}
        session.write_note(Note(export_name, BINDING, content, written_by=this_process()))
        session.forget_note(export_name, PIN)
    return Binding(target, export_name, model, alias, DEPLOYMENT)


def unbind(config: Config, target: str, name: str) -> bool:
    """Forget what `bind` or `promote_pinned` made; return whether there was anything.

    What is live stays live.
    """
    export_name = check_export_name(name).upper()
    with _open(config, target).session(f"unbind {export_name}") as session:
        bound = session.forget_note(export_name, BINDING)
        return session.forget_note(export_name, PIN) or bound


def demand_accepted(config: Config, target: str, model: str, alias: str | None, name: str) -> None:
    """Raise NotAccepted unless a target takes a model's alias, or fixed version, under a name."""
    rules = _target(config, target).accept
    if any(rule.takes(model, alias, name) for rule in rules):
        return
    what = f"{model}@{alias}" if alias else f"a fixed version of {model}"
    raise NotAccepted(
        f"target {target} does not accept {what} as {name}. Nothing was changed.",
        hint=f'its owner adds {{model = "{model}", name = "{name}"}} to accept of '
        f"targets.{target}.",
    )


def promote(
    config: Config,
    model_uri: str,
    target: str,
    name: str | None = None,
    *,
    pinned: bool = False,
    terms: Terms = USUAL,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version live in a configured target.

    Args:
        config: Targets and bindings.
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: Name of the target.
        name: Export name; the registered model's by default.
        pinned: Pin the name, so that it stays; needed where it follows an alias that points to
            another version.
        terms: What is allowed beyond the usual.
        on_event: Told of progress.

    Raises:
        NotAccepted: If the target does not accept it, or the name follows another version.
        RegistryError, OmlMlflowError: See `oml_mlflow.promote`.

    Side effects: Writes models, a ledger row and perhaps a note to the target; commits.
    """
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    alias = model_uri.rpartition("@")[2] if "@" in model_uri else None
    demand_accepted(config, target, version.name, alias, export_name)
    database = _open(config, target)
    if not pinned:
        _demand_followed(config, target, export_name, version.name, version.version)
    with checked_files(version) as folder:
        if not pinned:
            return promote_files(
                folder,
                version,
                database,
                export_name,
                terms=terms,
                target_name=target,
                alias=alias or "",
                on_event=on_event,
            )
        with _pinned_for(database, export_name, version.uri):
            return promote_files(
                folder,
                version,
                database,
                export_name,
                terms=replace(terms, over_pin=True),
                target_name=target,
                on_event=on_event,
            )


def rollback(
    config: Config,
    target: str,
    name: str,
    *,
    to: int | None = None,
    pinned: bool = False,
    reason: str = "",
    terms: Terms = USUAL,
    on_event: Listener = silent,
) -> WentBack:
    """Make a kept generation live again; where the name follows an alias, move the alias first.

    With the alias moved, every target that follows it goes back, and stays there. If the registry
    does not answer, or `pinned` is given, only this name goes back, and is pinned.

    Args:
        config: Targets and bindings.
        target: Name of the target.
        name: Export name.
        to: Generation; by default the newest kept one from before the live one.
        pinned: Pin the name instead of moving the alias.
        reason: Why, for whoever reads `status`.
        terms: What is allowed beyond the usual.
        on_event: Told of progress.

    Raises:
        ApplyError: If that generation is not kept, or is not of the model that the name follows.
        OmlMlflowError: See `oml_mlflow.rollback`.

    Side effects: Moves an alias, writes to every target that follows it; or writes a ledger row and
        a note to this one.
    """
    export_name = check_export_name(name).upper()
    database, why = _open(config, target), ""
    chosen = _chosen(database, export_name, to)
    if not pinned:
        try:
            binding = _binding(config, target, export_name)
            if binding is None:
                done = _go_back(database, export_name, to, terms, on_event)
                return WentBack(version=done.entry.version, promotion=done)
            return _move_back(config, binding, chosen, terms, on_event)
        except RegistryUnreachable as error:
            why = f"the registry could not be asked ({error.message})"
    with _pinned_for(database, export_name, reason or why or "rolled back by hand"):
        done = _go_back(database, export_name, to, replace(terms, over_pin=True), on_event)
    return WentBack(version=done.entry.version, promotion=done, pinned=True, reason=why)


def _move_back(
    config: Config, binding: Binding, chosen: LedgerEntry, terms: Terms, on_event: Listener
) -> WentBack:
    if chosen.registered_model != binding.model or not chosen.version:
        raise ApplyError(
            f"generation {chosen.restores or chosen.generation} of {binding.name} on "
            f"{binding.target} is {chosen.origin}, which {binding.model}@{binding.alias} can't "
            "point to. Nothing was changed.",
            hint="go back with --pin, which leaves the alias alone.",
        )
    version = get_version(f"models:/{binding.model}/{chosen.version}")
    register_alias(version, binding.alias)
    changed = Reconciler(config, on_event=on_event).run([binding.model], terms=terms)
    follows = f"{binding.model}@{binding.alias}"
    return WentBack(alias=follows, version=chosen.version, changed=changed)


def _go_back(
    database: Target, name: str, to: int | None, terms: Terms, on_event: Listener
) -> Promotion:
    return rollback_pair(
        database,
        name,
        to=to,
        unverified=terms.unverified,
        accept_new_geometry=terms.accept_new_geometry,
        over_pin=terms.over_pin,
        on_event=on_event,
    )


def _chosen(database: Target, name: str, to: int | None) -> LedgerEntry:
    """Return what a rollback would make live."""
    with database.session(f"roll back {name}", create=False) as session:
        observed = healed(observe(session, name))
    work = plan_rollback(observed, to=to, keep=database.keep, target=database.uri).work
    assert work is not None  # noqa: S101 -- it raises where there is nothing to do
    return work.entry


def _binding(config: Config, target: str, name: str) -> Binding | None:
    """Return what a name follows."""
    for standing in Fleet(config).look(targets=[target]).plan.standings:
        if standing.name == name and standing.binding is not None and not standing.is_error:
            return standing.binding
    return None


def _demand_followed(config: Config, target: str, name: str, model: str, version: str) -> None:
    """Raise NotAccepted if a name follows an alias that points to another version."""
    for standing in Fleet(config).look(targets=[target]).plan.standings:
        binding = standing.binding
        if standing.name != name or binding is None:
            continue
        if (binding.model, standing.wanted) != (model, version) and standing.wanted:
            raise NotAccepted(
                f"{name} on {target} follows {binding.model}@{binding.alias}, which is version "
                f"{standing.wanted}, not models:/{model}/{version}. Nothing was changed.",
                hint="move the alias, or promote it with --pin.",
            )


@contextmanager
def _pinned_for(database: Target, name: str, reason: str) -> Iterator[None]:
    """Pin a name before it is changed, so that nobody moves it back meanwhile.

    If the change fails, it is pinned only if it was before.
    """
    with database.session(f"pin {name}") as session:
        before = next((note for note in session.notes(name) if note.kind == PIN), None)
        session.write_note(Note(name, PIN, {"reason": reason}, written_by=this_process()))
    try:
        yield
    except OmlMlflowError:
        with database.session(f"unpin {name}") as session:
            if before is None:
                session.forget_note(name, PIN)
            else:
                session.write_note(before)
        raise


def _target(config: Config, target: str) -> TargetConfig:
    if target not in config.targets:
        known = ", ".join(sorted(config.targets)) or "none"
        raise ConfigError(
            f"there is no target {showable(target)!r} in the configuration; there are {known}.",
            hint="run `oml-mlflow config show`.",
        )
    return config.targets[target]


def _open(config: Config, target: str) -> Target:
    _target(config, target)
    return Fleet(config).open(target)
