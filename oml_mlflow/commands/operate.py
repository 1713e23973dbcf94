"""Verbs about all declared targets, and those that only look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from oml_mlflow.commands.chosen import choose
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import ConfigError, OmlMlflowError, TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.names import check_export_name
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.observed import Observed, Survey
from oml_mlflow.planning.records import LedgerEntry, LoadedModel
from oml_mlflow.promotion import verify as verification
from oml_mlflow.promotion.options import DEFAULTS as DEFAULTS
from oml_mlflow.promotion.options import Options as Options
from oml_mlflow.promotion.run import observe
from oml_mlflow.promotion.target import Target
from oml_mlflow.promotion.verify import Trace
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.fleet import Fleet, open_declared
from oml_mlflow.reconciler.loop import Pass, Reconciler
from oml_mlflow.reconciler.loop import prepare as prepare
from oml_mlflow.reconciler.plan_file import read_plan, waiting_in, write_plan
from oml_mlflow.reconciler.remarks import with_fillings, with_remarks
from oml_mlflow.reconciler.status import Outcome
from oml_mlflow.targets import sql_call as sql_call


def declared(config: Config | None = None, target: str | None = None) -> Config:
    """Return the configuration, which must declare targets, among them the one named.

    Raises:
        ConfigError: If it declares none, or not that one.
    """
    config = config or load_config()
    if not config.targets:
        place = config.path or "oml_mlflow.toml, which is not there"
        raise ConfigError(
            f"there are no targets in {place}. Nothing was changed.",
            hint="add [targets.NAME] with a uri and what it accepts. `oml-mlflow models` shows "
            "what one database holds.",
        )
    if target is not None and target not in config.targets:
        raise config.unknown(target)
    return config


def look(
    *,
    target: str | None = None,
    models: Collection[str] | None = None,
    options: Options = DEFAULTS,
    config: Config | None = None,
) -> Diff:
    """Return what `plan` does, without remarks, which cost a registry call for each version."""
    reconciler = Reconciler(declared(config, target))
    return reconciler.look(models or None, targets=_only(target), options=options)


def plan(
    *,
    target: str | None = None,
    models: Collection[str] | None = None,
    out: str | Path | None = None,
    options: Options = DEFAULTS,
    config: Config | None = None,
) -> Diff:
    """Return how every bound name stands, and what `apply` would change. Read-only.

    Args:
        target: Only this declared target; all by default.
        models: Only bindings of these registered models; all by default.
        out: File to save it in, for `apply`, readable by its owner only.
        options: What is allowed beyond the usual.
        config: Targets and bindings; by default `oml_mlflow.toml` and the environment.

    Raises:
        ConfigError: If there are no targets, or not that one, or the file can't be written.
        RegistryUnreachable, OtherRegistry: See `apply`.
    """
    config = declared(config, target)
    found = with_remarks(look(target=target, models=models, options=options, config=config))
    found = with_fillings(found, partial(open_declared, config), options)
    if out is not None:
        write_plan(Path(out), found, options, target or "", models or ())
    return found


def apply(
    file: str | Path | None = None,
    *,
    target: str | None = None,
    models: Collection[str] | None = None,
    options: Options = DEFAULTS,
    config: Config | None = None,
    confirm: Callable[[Diff], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_event: Listener = silent,
) -> Pass:
    """Make every bound name what its alias says, once; or do exactly what `plan` saved.

    Args:
        file: What `plan` saved; it holds target, models and options itself.
        target: See `plan`.
        models: See `plan`.
        options: See `plan`.
        config: See `plan`.
        confirm: Called with what is due before anything is changed; raises to stop. Nothing but
            that is then done.
        on_outcome: Called with the result of each change.
        on_event: Told of progress.

    Returns:
        The status of every name afterwards, and what was changed or failed.

    Raises:
        PlanStale: If anything that the file is about has moved; nothing was changed.
        RegistryUnreachable: If the registry does not answer, or with an error; likewise.
        OtherRegistry: If it is empty, or not the one that the ledgers name; likewise.

    Side effects: Writes models, ledger rows and notes to targets, and tags and descriptions of
    versions to the registry. Calls hooks.
    """
    saved = read_plan(Path(file)) if file is not None else None
    if saved is not None:
        options, target, models = saved.options, saved.target or None, saved.models
    reconciler = Reconciler(declared(config, target), on_event=on_event)
    diff = reconciler.look(models or None, targets=_only(target), options=options)
    if saved is not None:
        saved.demand_fresh(diff)
    if confirm is not None and diff.changes:
        confirm(diff)
    is_shown = saved is not None or confirm is not None
    return reconciler.run(
        models or None,
        targets=_only(target),
        options=options,
        only={*(c.key for c in diff.changes), *waiting_in(diff)} if is_shown else None,
        diff=diff,
        on_outcome=on_outcome,
        until_filled=True,
    )


def watch(
    stop: threading.Event,
    *,
    interval_s: float | None = None,
    on_pass: Callable[[Pass | OmlMlflowError], None] | None = None,
    options: Options = DEFAULTS,
    config: Config | None = None,
) -> None:
    """Do what `apply` does, pass after pass, until stopped; see `Reconciler.watch`."""
    reconciler = Reconciler(declared(config))
    reconciler.watch(stop, interval_s=interval_s, options=options, on_pass=on_pass)


def following(config: Config) -> Callable[[Collection[str] | None], Pass]:
    """Return what a receiver of webhooks calls: a pass over the bindings of some models, or all.

    Raises:
        ConfigError: If a hook can't be loaded.
    """
    return Reconciler(config).run


def status(*, target: str | None = None, config: Config | None = None) -> Diff:
    """Return the status of every bound name, and of what is live without a binding. Read-only.

    Arguments and errors are those of `plan`.
    """
    return with_remarks(look(target=target, config=config))


def survey(
    *, target: str | None = None, config: Config | None = None
) -> dict[str, Survey | OmlMlflowError]:
    """Return what declared targets hold, or why that is unknown. Read-only; no registry is asked.

    Args:
        target: See `plan`.
        config: See `plan`.
    """
    return Fleet(declared(config, target)).survey(_only(target))


def contents(
    target: Target | str | None = None, *, config: Config | None = None
) -> tuple[list[Observed], list[LoadedModel]]:
    """Return what a target has under each export name, and all models of its schema. Read-only."""
    database = choose(target, config).database
    with database.session("models", create=False) as session:
        names = dict.fromkeys(entry.name for entry in session.journal.ledger())
        return [observe(session, name) for name in names], list(session.models.list())


def history(
    name: str | None = None, target: Target | str | None = None, *, config: Config | None = None
) -> list[LedgerEntry]:
    """Return what was done in a target, oldest first; under one export name or all. Read-only.

    Raises:
        TargetError: If nothing ever was under that name.
    """
    database = choose(target, config).database
    with database.session("history", create=False) as session:
        ledger = session.journal.ledger(name and check_export_name(name).upper())
        if name and not ledger:
            known = ", ".join(dict.fromkeys(e.name for e in session.journal.ledger())) or "none"
            raise TargetError(
                f"nothing was ever live as {name.upper()} in {database.uri}.",
                hint=f"names there are: {known}.",
            )
    return ledger


@dataclass(frozen=True)
class Verified:
    """A live pair, compared with the references of its own version.

    Attributes:
        target: Name of the target.
        name: Export name; ``*`` for a target that can't be read.
        entry: What is live; None for such a target.
        report: The comparison; None if there was none.
        error: Why not; None if there was one.
    """

    target: str
    name: str
    entry: LedgerEntry | None = None
    report: ParityReport | None = None
    error: OmlMlflowError | None = None


def verify(
    name: str,
    target: Target | str | None = None,
    *,
    config: Config | None = None,
    on_event: Listener = silent,
) -> ParityReport:
    """Compare the live pair of an export name with its version's references. Read-only.

    Args:
        name: Export name.
        target: A target, its URI, or the name of a declared one; the configuration's by default.
        config: See `plan`.
        on_event: Told of progress.

    Returns:
        The comparison; nothing is raised for a difference.

    Raises:
        TargetError: If nothing from the registry is live under the name.
        RegistryError, PackageError: See `promote`.
    """
    database = choose(target, config).database
    return verification.verify(_live_uri(database, name), database, name, on_event=on_event)


def verify_all(
    target: str | None = None, *, config: Config | None = None, on_event: Listener = silent
) -> Iterator[Verified]:
    """Compare every live pair of the registry, in all declared targets or one. Read-only."""
    fleet = Fleet(declared(config, target))
    for where, found in fleet.survey(_only(target)).items():
        if isinstance(found, OmlMlflowError):
            yield Verified(where, "*", error=found)
            continue
        for name, observed in found.names.items():
            live = observed.live
            if live is None or not live.version:
                continue
            try:
                report = verification.verify(_uri(live), fleet.open(where), name, on_event=on_event)
                yield Verified(where, name, live, report)
            except OmlMlflowError as error:
                yield Verified(where, name, live, error=error)


def verify_bytes(
    name: str,
    target: Target | str | None = None,
    files: Sequence[Path] = (),
    *,
    config: Config | None = None,
) -> list[Trace]:
    """Return sha256 of files, of the live version's artifact and of a database's bytes, anew.

    Read-only; arguments and errors are those of `verify`, and of
    `oml_mlflow.promotion.verify.trace_bytes`.
    """
    database = choose(target, config).database
    return verification.trace_bytes(_live_uri(database, name), database, name, files)


def _live_uri(database: Target, name: str) -> str:
    found = database.survey().names.get(check_export_name(name).upper())
    live = found.live if found else None
    if live is None or not live.version:
        what = f"{live.origin}, of no version" if live else "nothing"
        raise TargetError(
            f"what is live as {name.upper()} in {database.uri} is {what}: there is nothing to "
            "compare it with.",
            hint="run `oml-mlflow models` to see what is there.",
        )
    return _uri(live)


def _uri(live: LedgerEntry) -> str:
    return f"models:/{live.registered_model}/{live.version}"


def _only(target: str | None) -> list[str] | None:
    return None if target is None else [target]
