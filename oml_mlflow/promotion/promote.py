"""Promotion: plan it, and make a version live if its vectors prove right."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from oml_mlflow.errors import OmlMlflowError, OtherOwner, Pinned, PlanStale
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import SIDES, check_export_name, live_names
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.checks import Preflight
from oml_mlflow.planning.observed import Observed, healed
from oml_mlflow.planning.plan import Plan, plan_promotion
from oml_mlflow.planning.records import (
    PIN,
    UNVERIFIED,
    VERIFIED,
    LedgerEntry,
    is_other_registry,
    this_process,
)
from oml_mlflow.promotion.apply import (
    Promotion,
    carry_out,
    describe_pending,
    describe_rewritten,
    heal,
    observe,
)
from oml_mlflow.promotion.candidate import Candidate, checked_files, choose_candidate, registered
from oml_mlflow.promotion.capabilities import ask, pair_needs
from oml_mlflow.promotion.geometry import demand_geometry, keep_vectors, with_geometry
from oml_mlflow.promotion.hooks import HookContext, Hooks, load_hooks
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.preflight import preflight
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.promotion.verify import demand_vectors, refuse_unverifiable
from oml_mlflow.registry import ModelVersion, get_version, identified, is_anchored, tag_version

VERIFICATION_TAG = "oml.verification"
_Choose = Callable[["Session"], Candidate]


def promote(
    model_uri: str,
    target: Target,
    name: str | None = None,
    *,
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version the live pair of an export name in a database, if it proves right there.

    What an earlier run left is finished or undone first. Then the database is asked what it can
    run, the fitting pair is loaded under slot names, the version's golden probes are embedded by
    the database in SQL, and their vectors are compared with the version's own. Only then the live
    names are swapped. The pair that was live before stays loaded under slot names.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: The database.
        name: Export name in the database; the registered model's name by default.
        options: See `Options`.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. Promoting what is live already writes nothing, but
        compares again.

    Raises:
        RegistryError: If the version is not there.
        PackageError: If its bytes are not those that were logged.
        InvalidName: If the name can't be that of an in-database model.
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

    Side effects: Writes models and a ledger row to the target; commits. Tags the version if it is
    unverified. Calls hooks.
    """
    version = identified(get_version(model_uri))
    with checked_files(version) as folder:
        return promote_files(
            folder, version, target, name or version.name, options=options, on_event=on_event
        )


def promote_files(
    folder: Path,
    version: ModelVersion,
    database: Target,
    name: str,
    *,
    options: Options = DEFAULTS,
    before: int | None = None,
    hooks: Hooks | None = None,
    target_name: str = "",
    alias: str = "",
    on_event: Listener = silent,
) -> Promotion:
    """Make a version live whose files are already here; see `promote`.

    Args:
        folder: The version's files, checked.
        version: The version, identified.
        database: The target.
        name: Export name there.
        options: See `Options`.
        before: Generation that must be live until then; any by default.
        hooks: Hooks to call; the installed ones by default.
        target_name: Name of the target in the configuration.
        alias: Alias that the name follows.
        on_event: Told of progress.

    Raises:
        PlanStale: If another generation than `before` is live; nothing was changed.
    """
    export_name = check_export_name(name).upper()
    refuse_unverifiable(registered(read_package(folder), version), options.unverified)
    run = _Run(
        database,
        export_name,
        version.uri,
        options,
        load_hooks() if hooks is None else hooks,
        HookContext(
            uri=database.uri,
            target=target_name,
            name=export_name,
            registered_model=version.name,
            version=version.version,
            alias=alias,
        ),
        on_event,
    )
    choose = partial(choose_candidate, folder, version, database, True, on_event)
    done = run.make_live(choose, before)
    if done.entry.verification == UNVERIFIED:
        tag_version(version, VERIFICATION_TAG, UNVERIFIED)
    return done


def make_live(
    candidate: Candidate,
    database: Target,
    export_name: str,
    *,
    adopt: bool = False,
    take_over: bool = False,
    accept_new_geometry: bool = False,
    on_event: Listener = silent,
) -> Promotion:
    """Make a pair the live one of an export name, if it proves right in the database.

    Like `promote`, with the same errors and side effects, but for a pair of any origin.
    """

    def choose(session: Session) -> Candidate:
        if database.is_probed:
            ask(session, [pair_needs(candidate.paths)], on_event)
        return candidate

    name = check_export_name(export_name).upper()
    context = HookContext(
        uri=database.uri,
        name=name,
        registered_model=candidate.registered_model,
        version=candidate.version,
    )
    options = Options(adopt=adopt, take_over=take_over, accept_new_geometry=accept_new_geometry)
    run = _Run(database, name, candidate.title, options, load_hooks(), context, on_event)
    return run.make_live(choose)


@dataclass
class _Run:
    """One promotion: its target, options, hooks and listener."""

    database: Target
    export_name: str
    title: str
    options: Options
    hooks: Hooks
    context: HookContext
    on_event: Listener

    def make_live(self, choose: _Choose, before: int | None = None) -> Promotion:
        try:
            done = self._make_live(choose, before)
        except OmlMlflowError as error:
            self.hooks.on_failure(replace(self.context, error=error))
            raise
        if done.changed:
            self.hooks.after_swap(replace(self.context, report=done.report))
        return done

    def _make_live(self, choose: _Choose, before: int | None) -> Promotion:
        name, options = self.export_name, self.options
        purpose = f"promote {self.title}"
        with contextlib.ExitStack() as held:
            session = held.enter_context(self.database.session(purpose))
            # before anything is written, even our tables, so that the error can name the GRANT
            early = Preflight(f"{name} in {self.database.uri}", tuple(session.checks(0)))
            early.demand()
            held.enter_context(session.lock(name, purpose))
            # before `heal`, so that a stale plan changes nothing
            self._demand_unmoved(session, before)
            mended = heal(session, name)
            candidate = choose(session)
            observed = observe(session, name)
            self._demand_owner(observed, candidate)
            if damaged := observed.damaged(candidate.fingerprints.values()):
                for side, fingerprint in candidate.fingerprints.items():
                    if fingerprint in damaged:
                        session.load(damaged[fingerprint], candidate.paths[side], self.on_event)
                mended = "; ".join(filter(None, [mended, describe_rewritten(damaged)]))
                observed = observed.rewritten(damaged)
            planned = plan_candidate(session, self.database, observed, candidate, options.adopt)
            live = planned.observed.live
            if planned.work is None and live is not None:
                report = self._compared(session, candidate, f"which is live as {name}")(
                    live_names(name)
                )
                return Promotion(live, report, changed=False, healed=mended)
            preflight(
                session,
                self.database,
                name,
                candidate.paths,
                get_profile(candidate.profile),
                adopt=options.adopt,
            ).demand()
            demand_geometry(planned, self.database, options.accept_new_geometry)
            shown = live.origin if live else ""
            self.context = replace(
                self.context, fingerprints=dict(candidate.fingerprints), live=shown
            )
            self.hooks.before_load(self.context)
            keep_vectors(session, planned, candidate)
            check = self._compared(session, candidate, f"in {self.database.uri}")
            verify = self.hooks.asked_after(check, self.context)
            report, swap_s = carry_out(
                session, self.database, planned, candidate.paths, verify, self.on_event
            )
            recorded = session.ledger(name)[-1]
        return Promotion(recorded, report, changed=True, healed=mended, swap_s=swap_s)

    def _compared(
        self, session: Session, candidate: Candidate, where: str
    ) -> Callable[[Mapping[str, str]], ParityReport]:
        return partial(demand_vectors, session, self.database, candidate, where, self.on_event)

    def _demand_unmoved(self, session: Session, before: int | None) -> None:
        name, where = self.export_name, self.database.uri
        generation = session.live_state(name).generation
        if before is not None and generation != before:
            raise PlanStale(
                f"{name} in {where}: generation {before} was to be replaced by {self.title}, but "
                f"{generation} is live. Nothing was changed.",
                hint="plan again: `oml-mlflow plan`, or `oml-mlflow history`.",
            )
        if not self.options.over_pin:
            demand_unpinned(session, name, where)

    def _demand_owner(self, observed: Observed, candidate: Candidate) -> None:
        live = observed.live
        if live is None or not live.registered_model or self.options.take_over:
            return
        if live.registered_model != candidate.registered_model:
            owner = f"registered model {live.registered_model}"
        elif is_other_registry(live.registry, candidate.registry):
            owner = f"a {live.registered_model} of another registry, or one that was deleted since"
        else:
            return
        raise OtherOwner(
            f"{observed.name} in {self.database.uri} belongs to {owner} ({live.origin}, generation "
            f"{live.generation}), not to {candidate.title}. Nothing was changed.",
            hint="choose another name (--name), or take it over with --take-over.",
        )


def demand_unpinned(session: Session, name: str, where: str) -> None:
    """Raise Pinned if an export name is pinned."""
    for note in session.notes(name):
        if note.kind == PIN:
            since = f"{note.written_at:%Y-%m-%d %H:%M} UTC" if note.written_at else "some time"
            raise Pinned(
                f"{name} in {where} is pinned by {note.written_by} since {since}. "
                "Nothing was changed.",
                hint=f"`oml-mlflow unpin {name} --target …` lets it change again.",
            )


def plan(
    model_uri: str,
    target: Target,
    name: str | None = None,
    *,
    adopt: bool = False,
    on_event: Listener = silent,
) -> Plan:
    """Return what `promote` would do. Read-only: not even capability probes are run.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: The database.
        name: Export name in the database; the registered model's name by default.
        adopt: See `promote`.
        on_event: Told of progress.

    Raises:
        RegistryError, PackageError, InvalidName, ForeignModel, CapabilityMissing: See `promote`.
    """
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    with (
        checked_files(version) as folder,
        target.session(f"plan {export_name}", create=False, missing_ok=True) as session,
    ):
        candidate = choose_candidate(folder, version, target, False, on_event, session)
        found = observe(session, export_name)
        ours = candidate.fingerprints.values()
        seen = healed(found).rewritten(ours)
        planned = plan_candidate(session, target, seen, candidate, adopt)
        pending = [describe_pending(found.state), describe_rewritten(found.damaged(ours))]
        return replace(
            planned,
            pending="; ".join(filter(None, pending)),
            paths=candidate.paths,
            anchored=is_anchored(version),
        )


def plan_candidate(
    session: Session, database: Target, observed: Observed, candidate: Candidate, adopt: bool
) -> Plan:
    """Return the plan that makes a pair live, with its geometry. Read-only."""
    entry = LedgerEntry(
        name=observed.name,
        generation=0,
        registered_model=candidate.registered_model,
        version=candidate.version,
        run_id=candidate.run_id,
        fingerprints=candidate.fingerprints,
        dims=candidate.dims,
        verification=VERIFIED if candidate.references else UNVERIFIED,
        profile=candidate.profile,
        promoted_by=this_process(),
        registry=candidate.registry,
    )
    uploads = {side: candidate.to_model(side, "") for side in SIDES}
    planned = plan_promotion(
        observed,
        entry,
        uploads,
        keep=database.keep,
        adopt=adopt,
        target=database.uri,
        title=candidate.title,
    )
    return with_geometry(session, planned, candidate, database)
