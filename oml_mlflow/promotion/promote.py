"""Promotion: plan it, and make a pair live if its vectors prove right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from oml_mlflow.errors import OtherOwner
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import SIDES, check_export_name
from oml_mlflow.planning.columns import with_columns
from oml_mlflow.planning.observed import Observed, finished
from oml_mlflow.planning.plan import Plan, plan_promotion
from oml_mlflow.planning.records import (
    UNVERIFIED,
    VERIFIED,
    LedgerEntry,
    Work,
    is_other_registry,
    this_process,
)
from oml_mlflow.promotion.candidate import Candidate, checked_files, choose_candidate, registered
from oml_mlflow.promotion.capabilities import ask, pair_needs
from oml_mlflow.promotion.filling import column_sizes
from oml_mlflow.promotion.finish import describe_pending, describe_rewritten
from oml_mlflow.promotion.geometry import demand_geometry, keep_vectors, with_geometry
from oml_mlflow.promotion.hooks import HookContext, Hooks, load_hooks
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.preflight import preflight
from oml_mlflow.promotion.run import Prepared, Promotion, Run, observe
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.promotion.verify import demand_vectors, refuse_unverifiable
from oml_mlflow.registry.versions import (
    ModelVersion,
    get_version,
    identified,
    is_anchored,
    tag_version,
)

VERIFICATION_TAG = "oml.verification"


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
    fill_s: float | None = None,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version live whose files are already here; see `oml_mlflow.promote`.

    What an earlier run left is finished or undone first. Then the database is asked what it can
    run, the fitting pair is loaded under slot names, the version's golden probes are embedded by
    the database in SQL, and their vectors are compared with the version's own. Only then the live
    names are swapped. The pair that was live before stays loaded under slot names.

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
        fill_s: How long stored vectors may be made anew, before the next run goes on; until all
            are by default.
        on_event: Told of progress.

    Raises:
        PlanStale: If another generation than `before` is live; nothing was changed.
    """
    refuse_unverifiable(registered(read_package(folder), version), options.unverified)
    context = HookContext(
        uri=database.uri,
        target=target_name,
        name=check_export_name(name).upper(),
        registered_model=version.name,
        version=version.version,
        alias=alias,
    )
    choose = partial(choose_candidate, folder, version, database, True, on_event)
    done = _promote(
        version.uri, choose, database, context, options, hooks, before, fill_s, on_event
    )
    if done.entry.verification == UNVERIFIED:
        tag_version(version, VERIFICATION_TAG, UNVERIFIED)
    return done


def promote_candidate(
    candidate: Candidate,
    database: Target,
    name: str,
    *,
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> Promotion:
    """Make a pair of any origin live, like `promote_files`."""

    def choose(session: Session) -> Candidate:
        if database.is_probed:
            ask(session, [pair_needs(candidate.pair.paths)], on_event)
        return candidate

    context = HookContext(
        uri=database.uri,
        name=check_export_name(name).upper(),
        registered_model=candidate.origin.name,
        version=candidate.origin.version,
    )
    return _promote(candidate.title, choose, database, context, options, None, None, None, on_event)


def _promote(
    title: str,
    choose: Callable[[Session], Candidate],
    database: Target,
    context: HookContext,
    options: Options,
    hooks: Hooks | None,
    before: int | None,
    fill_s: float | None,
    on_event: Listener,
) -> Promotion:
    return Run(
        database,
        f"promote {title}",
        context,
        load_hooks() if hooks is None else hooks,
        over_pin=options.over_pin,
        before=before,
        loads=True,
        fill_s=fill_s,
        on_event=on_event,
    ).change(_Steps(database, choose, context, options, on_event))


@dataclass(frozen=True)
class _Steps:
    """What a promotion adds to a run: the choice of a pair, its checks and its plan."""

    database: Target
    choose: Callable[[Session], Candidate]
    context: HookContext
    options: Options
    on_event: Listener

    def __call__(self, session: Session, observed: Observed, pending: Work | None) -> Prepared:
        """Return the plan that makes the chosen pair live, once it is checked."""
        database, options = self.database, self.options
        candidate = self.choose(session)
        self._demand_owner(observed, candidate)
        damaged = observed.damaged(candidate.pair.fingerprints.values())
        for side, fingerprint in candidate.pair.fingerprints.items():
            if fingerprint in damaged:
                session.models.load(damaged[fingerprint], candidate.pair.paths[side], self.on_event)
        plan = plan_candidate(session, database, observed.rewritten(damaged), candidate, options)
        live = plan.observed.live
        where = f"in {database.uri}"
        if plan.work is None:
            where = f"which is live as {observed.name}"
        else:
            self._demand_checks(session, plan, candidate)
        return Prepared(
            plan,
            partial(demand_vectors, session, database, candidate, where, self.on_event),
            replace(
                self.context,
                fingerprints=dict(candidate.pair.fingerprints),
                live=live.origin if live else "",
            ),
            candidate.pair.paths,
            partial(keep_vectors, session, plan, candidate),
            describe_rewritten(damaged),
        )

    def _demand_checks(self, session: Session, plan: Plan, candidate: Candidate) -> None:
        preflight(
            session,
            self.database,
            plan.observed.name,
            candidate.pair.paths,
            get_profile(candidate.pair.profile),
            adopt=self.options.adopts,
        ).demand()
        demand_geometry(session, plan, self.database, self.options)

    def _demand_owner(self, observed: Observed, candidate: Candidate) -> None:
        live = observed.live
        if live is None or not live.registered_model or self.options.take_over:
            return
        if live.registered_model != candidate.origin.name:
            owner = f"registered model {live.registered_model}"
        elif is_other_registry(live.registry, candidate.origin.registry):
            owner = f"a {live.registered_model} of another registry, or one that was deleted since"
        else:
            return
        raise OtherOwner(
            f"{observed.name} in {self.database.uri} belongs to {owner} ({live.origin}, generation "
            f"{live.generation}), not to {candidate.title}. Nothing was changed.",
            hint="choose another name (--name), or take it over with --take-over.",
        )


def dry_run(
    model_uri: str,
    target: Target,
    name: str | None = None,
    *,
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> Plan:
    """Return what promoting a version would do. Read-only: not even capability probes are run.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: The database.
        name: Export name in the database; the registered model's name by default.
        options: See `Options`; only `adopt`, `take_over` and `reembed` matter.
        on_event: Told of progress.
    """
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    with (
        checked_files(version) as folder,
        target.session(f"plan {export_name}", create=False, missing_ok=True) as session,
    ):
        candidate = choose_candidate(folder, version, target, False, on_event, session)
        found = observe(session, export_name)
        ours = candidate.pair.fingerprints.values()
        plan = plan_candidate(session, target, finished(found).rewritten(ours), candidate, options)
        pending = [describe_pending(found.state), describe_rewritten(found.damaged(ours))]
        return replace(
            plan,
            pending="; ".join(filter(None, pending)),
            paths=candidate.pair.paths,
            anchored=is_anchored(version),
            sizes=column_sizes(session, plan),
        )


def plan_candidate(
    session: Session, database: Target, observed: Observed, candidate: Candidate, options: Options
) -> Plan:
    """Return the plan that makes a pair live, with its geometry and columns. Read-only."""
    entry = LedgerEntry(
        name=observed.name,
        generation=0,
        registered_model=candidate.origin.name,
        version=candidate.origin.version,
        run_id=candidate.origin.run_id,
        fingerprints=candidate.pair.fingerprints,
        dims=candidate.pair.dims,
        verification=VERIFIED if candidate.references else UNVERIFIED,
        profile=candidate.pair.profile,
        promoted_by=this_process(),
        registry=candidate.origin.registry,
    )
    uploads = {side: candidate.to_model(side, "") for side in SIDES}
    planned = plan_promotion(
        observed,
        entry,
        uploads,
        keep=database.keep,
        adopt=options.adopts,
        target=database.uri,
        title=candidate.title,
    )
    plan = with_geometry(session, planned, candidate, database)
    if plan.work is None:
        return plan
    work = with_columns(plan.observed, plan.work, reembed=options.reembed)
    return replace(plan, work=work)
