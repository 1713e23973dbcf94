"""Verbs about one export name of one target: promote, rollback, pin, bind, drop, preflight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from oml_mlflow.commands.chosen import Chosen, choose
from oml_mlflow.config.bindings import DEPLOYMENT, Binding
from oml_mlflow.config.file import Config
from oml_mlflow.errors import NotAccepted, OmlMlflowError
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import Preflight
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import BINDING, PIN, Note, this_process
from oml_mlflow.promotion import preflight as checks
from oml_mlflow.promotion import promote as promotion
from oml_mlflow.promotion import rollback as removal
from oml_mlflow.promotion.candidate import checked_files
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.run import Promotion, observe
from oml_mlflow.promotion.target import Target
from oml_mlflow.registry.versions import ModelVersion, get_registered, get_version, identified


def promote(
    model_uri: str,
    target: Target | str | None = None,
    name: str | None = None,
    *,
    unverified: bool = False,
    adopt: bool = False,
    take_over: bool = False,
    accept_new_geometry: bool = False,
    reembed: bool = False,
    pin: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version the live pair of an export name in a database, if it proves right there.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target, its URI, or the name of a declared one; the configuration's by default.
        name: Export name in the database; the registered model's name by default.
        unverified: Also promote a pair that no runtime here could run, so that nothing can be
            compared; ledger and version then say ``unverified``. Others are still compared.
        adopt: Take over foreign models under the live names; they are kept, and never dropped.
        take_over: Also replace a pair of another registered model or registry; implies `adopt`.
        accept_new_geometry: Also promote a version whose vectors can't be compared with those
            stored from the live one.
        reembed: Take stored vectors along: the name's registered columns are made anew by the new
            models, beside those in use, and change with the models. What was stopped goes on.
        pin: Pin the name, so that it no longer follows its alias.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. If it was live already, nothing is written, and the
        vectors are compared again.

    Raises:
        RegistryError: If the version is not there, or the registry does not answer.
        PackageError: If its bytes are not those that were logged.
        InvalidName: If the name can't be that of an in-database model.
        NotAccepted: If a declared target does not accept it, or the name follows an alias of
            another version; nothing was changed.
        TargetLocked: If another process holds the database or the name for too long.
        PreflightError: If a check failed, or the database can't run any of the version's pairs;
            nothing was loaded. `PrivilegeError`, `QuotaExceeded` and others likewise.
        ForeignModel: If a live name is taken by a foreign model; nothing was loaded.
        OtherOwner: If the name belongs to another registered model or registry; likewise.
        Pinned: If the name is pinned; likewise.
        Vetoed: If a hook stops it; the live pair is as it was.
        GeometryChanged: If stored vectors would become worthless; nothing was loaded.
        ParityError: If a vector is not what it should be; the live pair is as it was.
        ApplyError: If a step fails, or the pair can't be compared and that is not allowed;
            the message says what state was left.

    Side effects: Writes models, a ledger row and perhaps a note to the target; commits. Tags the
    version if it is unverified. Calls hooks.
    """
    chosen = choose(target, config)
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    alias = model_uri.rpartition("@")[2] if "@" in model_uri else ""
    chosen.demand_accepted(version.name, alias, export_name)
    if not pin:
        _demand_followed(chosen, export_name, version)
    with ExitStack() as held:
        folder = held.enter_context(checked_files(version))
        if pin:
            held.enter_context(pinned(chosen.database, export_name, version.uri))
        return promotion.promote_files(
            folder,
            version,
            chosen.database,
            export_name,
            options=Options(
                unverified=unverified,
                adopt=adopt,
                take_over=take_over,
                accept_new_geometry=accept_new_geometry,
                reembed=reembed,
                over_pin=pin,
            ),
            target_name=chosen.name if chosen.name != chosen.database.uri else "",
            alias="" if pin else alias,
            on_event=on_event,
        )


def _demand_followed(chosen: Chosen, name: str, version: ModelVersion) -> None:
    """Raise NotAccepted if a name follows an alias that points to another version."""
    binding = chosen.binding(name)
    if binding is None:
        return
    model = get_registered(binding.model, "")
    wanted = model.aliases.get(binding.alias, "") if model else ""
    if wanted and (binding.model, wanted) != (version.name, version.version):
        raise NotAccepted(
            f"{name} on {chosen.name} follows {binding.model}@{binding.alias}, which is version "
            f"{wanted}, not {version.uri}. Nothing was changed.",
            hint="move the alias, or promote it with --pin.",
        )


def dry_run(
    model_uri: str,
    target: Target | str | None = None,
    name: str | None = None,
    *,
    adopt: bool = False,
    take_over: bool = False,
    reembed: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Plan:
    """Return what `promote` would do. Read-only: not even capability probes are run.

    Arguments and errors are those of `promote`. Bindings and pins are not looked at.
    """
    options = Options(adopt=adopt, take_over=take_over, reembed=reembed)
    database = choose(target, config).database
    return promotion.dry_run(model_uri, database, name, options=options, on_event=on_event)


def preflight(
    model_uri: str,
    target: Target | str | None = None,
    name: str | None = None,
    *,
    adopt: bool = False,
    probe: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> tuple[Preflight, CapabilityTable | None]:
    """Return every check before a promotion, and the known answers to capability probes.

    Args:
        model_uri: See `promote`.
        target: See `promote`.
        name: See `promote`.
        adopt: See `promote`.
        probe: Run the capability probes first; see `oml_mlflow.promotion.capabilities.ask`.
            Otherwise read-only.
        config: See `promote`.
        on_event: Told of progress.

    Raises:
        RegistryError, PackageError, InvalidName, CapabilityMissing: See `promote`.
    """
    database = choose(target, config).database
    return checks.examine(model_uri, database, name, adopt=adopt, probe=probe, on_event=on_event)


def drop(
    name: str,
    target: Target | str | None = None,
    *,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Promotion:
    """Drop a live pair and its kept generations; adopted models and the ledger stay.

    Raises:
        TargetError: If there is no such pair.
        ForeignModel: If a live name is taken by a foreign model.

    Side effects: Drops models and writes a ledger row; commits. A pin does not keep it.
    """
    return removal.drop_pair(choose(target, config).database, name, on_event=on_event)


def look(
    name: str, target: Target | str | None = None, *, config: Config | None = None
) -> Observed:
    """Return all that a target has under an export name. Read-only."""
    database = choose(target, config).database
    with database.session(f"look at {name}", create=False) as session:
        return observe(session, check_export_name(name))


def pin(
    name: str,
    target: Target | str | None = None,
    reason: str = "",
    *,
    config: Config | None = None,
) -> None:
    """Pin a name: it stays as it is, whatever alias it follows, until it is unpinned.

    A registry's alias is the only desired state. So whoever changes a bound name by hand moves the
    alias, or pins the name.

    Side effects: Writes a note to the target; commits.
    """
    export_name = check_export_name(name).upper()
    with choose(target, config).database.session(f"pin {export_name}") as session:
        session.notes.write(_pin(export_name, reason))


def unpin(name: str, target: Target | str | None = None, *, config: Config | None = None) -> bool:
    """Let a name follow its alias again; return whether it was pinned.

    Side effects: Removes a note from the target; commits.
    """
    export_name = check_export_name(name).upper()
    with choose(target, config).database.session(f"unpin {export_name}") as session:
        return session.notes.forget(export_name, PIN)


def bind(
    name: str,
    target: Target | str | None,
    model: str,
    alias: str,
    *,
    config: Config | None = None,
) -> Binding:
    """Make a name follow an alias; the target keeps the binding.

    Raises:
        NotAccepted: If the target does not accept it, or the file binds the name to another.

    Side effects: Writes a note to the target, and removes a pin; commits.
    """
    chosen, export_name = choose(target, config), check_export_name(name).upper()
    chosen.demand_accepted(model, alias, export_name)
    for other in chosen.config.bindings:
        if other.place == (chosen.name, export_name) and (other.model, other.alias) != (
            model,
            alias,
        ):
            raise NotAccepted(
                f"{export_name} of {chosen.name} is bound already: {other} (oml_mlflow.toml). "
                "Nothing was changed.",
                hint="choose another name, or change the file.",
            )
    with chosen.database.session(f"bind {export_name}") as session:
        content = {"model": model, "alias": alias}
        session.notes.write(Note(export_name, BINDING, content, written_by=this_process()))
        session.notes.forget(export_name, PIN)
    return Binding(chosen.name, export_name, model, alias, DEPLOYMENT)


def unbind(name: str, target: Target | str | None, *, config: Config | None = None) -> bool:
    """Remove binding and pin; return whether there was any. What is live stays live.

    Side effects: Removes notes from the target; commits.
    """
    export_name = check_export_name(name).upper()
    with choose(target, config).database.session(f"unbind {export_name}") as session:
        bound = session.notes.forget(export_name, BINDING)
        return session.notes.forget(export_name, PIN) or bound


@contextmanager
def pinned(database: Target, name: str, reason: str) -> Iterator[None]:
    """Pin a name before it is changed, so that no reconciler moves it back; undone on failure."""
    with database.session(f"pin {name}") as session:
        before = next((note for note in session.notes.list(name) if note.kind == PIN), None)
        session.notes.write(_pin(name, reason))
    try:
        yield
    except OmlMlflowError:
        with database.session(f"unpin {name}") as session:
            if before is None:
                session.notes.forget(name, PIN)
            else:
                session.notes.write(before)
        raise


def _pin(name: str, reason: str) -> Note:
    return Note(name, PIN, {"reason": reason}, written_by=this_process())
