"""Rollback: make a kept generation live again. Drop: remove a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oml_mlflow.errors import ApplyError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import IMG, check_export_name
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.columns import with_columns
from oml_mlflow.planning.geometry import pair_id, probe_key
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.plan import Plan, plan_drop, plan_rollback
from oml_mlflow.planning.records import (
    DROP,
    ROLLBACK,
    UNVERIFIED,
    VERIFIED,
    LedgerEntry,
    Work,
    this_process,
)
from oml_mlflow.promotion.geometry import demand_geometry, kept_geometry
from oml_mlflow.promotion.hooks import HookContext, load_hooks
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.run import Compare, Prepared, Promotion, Run
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.promotion.verify import demand_parity, verify_pair


def roll_back(
    target: Target,
    name: str,
    *,
    to: int | None = None,
    options: Options = DEFAULTS,
    on_event: Listener = silent,
) -> Promotion:
    """Make a kept generation live again, without loading anything; see `oml_mlflow.rollback`.

    It is first compared with its own reference vectors, which the target has kept, without the
    registry. Where an earlier rollback to the same generation was interrupted, it is only finished.

    Args:
        target: The database.
        name: Export name there.
        to: Generation; by default the newest kept one from before the live one.
        options: See `Options`.
        on_event: Told of progress.
    """

    def prepare(session: Session, observed: Observed, pending: Work | None) -> Prepared:
        live = observed.live
        if live is not None and is_finished(pending, live, to):
            title = f"generation {live.generation} ({live.origin})"
            compare = _comparison(session, target, observed, live, title, on_event)
            nothing = Plan(target.uri, observed, title, None)
            return Prepared(nothing, compare or _not_compared, context)
        plan = plan_rollback(observed, to=to, keep=target.keep, target=target.uri)
        assert plan.work is not None  # noqa: S101 -- it raises where there is nothing to do
        entry = plan.work.entry
        geometry = kept_geometry(session, observed, entry)
        moved = with_columns(observed, plan.work, reembed=options.reembed)
        plan = replace(plan, work=moved, geometry=geometry)
        demand_geometry(session, plan, target, options)
        compare = _comparison(session, target, observed, entry, plan.title, on_event)
        if compare is None and not options.unverified:
            raise ApplyError(
                f"{plan.title} has no reference vectors in {target.uri} to be compared "
                "with. The live pair is as it was.",
                hint="go back with --unverified (unverified=True) if you trust it.",
            )
        verification = VERIFIED if compare else UNVERIFIED
        entry = replace(entry, verification=verification, promoted_by=this_process())
        facts = replace(
            context,
            registered_model=entry.registered_model,
            version=entry.version,
            fingerprints=dict(entry.fingerprints),
            live=live.origin if live else "",
        )
        plan = replace(plan, work=replace(moved, entry=entry))
        return Prepared(plan, compare or _not_compared, facts)

    export_name = check_export_name(name).upper()
    context = HookContext(target.uri, export_name, "", "")
    return Run(
        target,
        f"roll back {export_name}",
        context,
        load_hooks(),
        over_pin=options.over_pin,
        on_event=on_event,
    ).change(prepare)


def is_finished(pending: Work | None, live: LedgerEntry, to: int | None) -> bool:
    """Return whether the requested rollback was begun earlier, and is finished with what is live.

    Otherwise, a second run after a crash would go back by two generations.
    """
    if pending is None or pending.entry.action != ROLLBACK:
        return False
    return pending.entry.generation == live.generation and to in (None, live.restores)


def _comparison(
    session: Session,
    database: Target,
    observed: Observed,
    entry: LedgerEntry,
    title: str,
    on_event: Listener,
) -> Compare | None:
    """Return the comparison with the references kept of an entry's pair; None without them."""
    known = session.vectors.geometries(observed.name)
    references = known.get(pair_id(entry.fingerprints)) if entry.fingerprints else None
    if references is None:
        return None
    probes = [probe for probe in golden_probes() if probe_key(probe) in references]
    vectors = {probe.id: references[probe_key(probe)] for probe in probes}

    def check(names: Mapping[str, str]) -> ParityReport:
        report = verify_pair(
            session,
            database,
            names,
            probes,
            vectors,
            metadata=observed.models[names[IMG]].metadata,
            profile=get_profile(entry.profile),
            on_event=on_event,
        )
        demand_parity(report, title, f"in {database.uri}")
        return report

    return check if probes else None


def _not_compared(names: Mapping[str, str]) -> ParityReport:
    return ParityReport("Not compared: no reference vectors are kept")


def drop_pair(target: Target, name: str, *, on_event: Listener = silent) -> Promotion:
    """Drop a live pair and its kept generations; adopted models and the ledger stay.

    Args:
        target: The database.
        name: Export name there.
        on_event: Told of progress.

    Returns:
        What was done, by this call or by an interrupted one that it finished.

    Raises:
        TargetError: If there is no such pair.
        ForeignModel: If a live name is taken by a foreign model.

    Side effects: Drops models and writes a ledger row; commits. A pin does not keep it.
    """
    export_name = check_export_name(name).upper()
    context = HookContext(target.uri, export_name, "", "")

    def prepare(session: Session, observed: Observed, pending: Work | None) -> Prepared:
        if pending is not None and pending.entry.action == DROP and observed.live is None:
            return Prepared(Plan(target.uri, observed, "nothing", None), _not_compared, context)
        plan = plan_drop(observed, this_process(), target=target.uri)
        return Prepared(plan, _not_compared, context)

    run = Run(target, f"drop {export_name}", context, over_pin=True, on_event=on_event)
    return run.change(prepare)
