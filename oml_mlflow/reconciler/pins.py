"""Pins and bindings of single names, kept as notes in a configured target.

A registry's alias is the only desired state. So whoever changes a bound name by hand moves the
alias, or pins the name: a reconciler leaves a pinned name alone until it is unpinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from oml_mlflow.config.bindings import DEPLOYMENT, Binding
from oml_mlflow.config.file import Config, TargetConfig
from oml_mlflow.errors import ConfigError, NotAccepted, OmlMlflowError
from oml_mlflow.names import check_export_name, showable
from oml_mlflow.planning.records import BINDING, PIN, Note, this_process
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.fleet import Fleet


def pin(config: Config, target: str, name: str, reason: str = "") -> None:
    """Pin a name: it stays as it is until it is unpinned.

    Raises:
        ConfigError: If there is no such target.
        TargetError: If it can't be written to.

    Side effects: Writes a note to the target; commits.
    """
    export_name = check_export_name(name).upper()
    with open_configured(config, target).session(f"pin {export_name}") as session:
        session.write_note(Note(export_name, PIN, {"reason": reason}, written_by=this_process()))


def unpin(config: Config, target: str, name: str) -> bool:
    """Let a name follow its alias again; return whether it was pinned.

    Raises:
        ConfigError: If there is no such target.
        TargetError: If it can't be written to.

    Side effects: Removes a note from the target; commits.
    """
    export_name = check_export_name(name).upper()
    with open_configured(config, target).session(f"unpin {export_name}") as session:
        return session.forget_note(export_name, PIN)


def bind(config: Config, target: str, name: str, model: str, alias: str) -> Binding:
    """Make a name follow an alias; the target keeps the binding.

    Raises:
        ConfigError: If there is no such target.
        NotAccepted: If the target does not accept it, or the file binds the name to another.

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
    with open_configured(config, target).session(f"bind {export_name}") as session:
        content = {"model": model, "alias": alias}
        session.write_note(Note(export_name, BINDING, content, written_by=this_process()))
        session.forget_note(export_name, PIN)
    return Binding(target, export_name, model, alias, DEPLOYMENT)


def unbind(config: Config, target: str, name: str) -> bool:
    """Remove binding and pin; return whether there was any. What is live stays live."""
    export_name = check_export_name(name).upper()
    with open_configured(config, target).session(f"unbind {export_name}") as session:
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


@contextmanager
def pinned_for(database: Target, name: str, reason: str) -> Iterator[None]:
    """Pin a name before it is changed, so that no reconciler moves it back; undone on failure."""
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


def open_configured(config: Config, target: str) -> Target:
    """Return a configured target."""
    _target(config, target)
    return Fleet(config).open(target)
