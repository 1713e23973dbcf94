"""Rollback: make a kept generation live again. Drop: remove a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from oml_mlflow.errors import ApplyError, OmlMlflowError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import IMG, check_export_name
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.parity.report import ParityReport
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
from oml_mlflow.promotion.apply import Promotion, carry_out, heal, observe
from oml_mlflow.promotion.geometry import demand_geometry, kept_geometry
from oml_mlflow.promotion.hooks import HookContext, load_hooks
from oml_mlflow.promotion.promote import demand_unpinned
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.promotion.verify import demand_parity, verify_pair

_Check = Callable[[Mapping[str, str]], ParityReport]


def rollback(
    target: Target,
    name: str,
    *,
    to: int | None = None,
    unverified: bool = False,
    accept_new_geometry: bool = False,
    over_pin: bool = False,
    on_event: Listener = silent,
) -> Promotion:
    """Make a kept generation live again, without loading anything.

    It is first compared with its own reference vectors, which the target has kept, without the
    registry. Where an earlier rollback to the same generation was interrupted, it is only finished.

    Args:
        target: The database.
        name: Export name in the database.
        to: Generation; by default the newest kept one from before the live one.
        unverified: Also go back to a generation that has no reference vectors.
        accept_new_geometry: See `promote`.
        over_pin: Change a pinned name.
        on_event: Told of progress.

    Raises:
        InvalidName, TargetLocked, ForeignModel, Pinned, Vetoed, GeometryChanged, ParityError: See
            `promote`.
        ApplyError: If that generation is not kept, it has no references and `unverified` is not
            given, or a step fails; the message says what state was left.

    Side effects: Writes a ledger row to the target, and may drop kept generations; commits. Calls
    hooks.
    """
    export_name = check_export_name(name).upper()
    hooks = load_hooks()
    context = HookContext(target.uri, export_name, "", "")
    try:
        with (
            target.session(f"roll back {export_name}") as session,
            session.lock(export_name, "rollback"),
        ):
            if not over_pin:
                demand_unpinned(session, export_name, target.uri)
            # read before `heal`, which clears it
            pending = session.live_state(export_name).work
            mended = heal(session, export_name)
            observed = observe(session, export_name)
            live = observed.live
            if pending is not None and live is not None and _is_finished(pending, live, to):
                title = f"generation {live.generation} ({live.origin})"
                check = _comparison(session, target, observed, live, title, on_event)
                report = (check or _not_compared)(observed.live_names)
                return Promotion(live, report, changed=False, healed=mended)
            planned = plan_rollback(observed, to=to, keep=target.keep, target=target.uri)
            assert planned.work is not None  # noqa: S101 -- it raises where there is nothing to do
            entry = planned.work.entry
            geometry = kept_geometry(session, observed, entry)
            demand_geometry(replace(planned, geometry=geometry), target, accept_new_geometry)
            check = _comparison(session, target, observed, entry, planned.title, on_event)
            if check is None and not unverified:
                raise ApplyError(
                    f"{planned.title} has no reference vectors in {target.uri} to be compared "
                    "with. The live pair is as it was.",
                    hint="go back with --unverified (unverified=True) if you trust it.",
                )
            entry = replace(
                entry, verification=VERIFIED if check else UNVERIFIED, promoted_by=this_process()
            )
            planned = replace(planned, work=replace(planned.work, entry=entry))
            context = replace(
                context,
                registered_model=entry.registered_model,
                version=entry.version,
                fingerprints=dict(entry.fingerprints),
                live=live.origin if live else "",
            )
            compare = hooks.asked_after(check or _not_compared, context)
            report, swap_s = carry_out(session, target, planned, {}, compare, on_event)
            recorded = session.ledger(export_name)[-1]
    except OmlMlflowError as error:
        hooks.on_failure(replace(context, error=error))
        raise
    hooks.after_swap(replace(context, report=report))
    return Promotion(recorded, report, changed=True, healed=mended, swap_s=swap_s)


def _is_finished(pending: Work, live: LedgerEntry, to: int | None) -> bool:
    """Return whether `heal` has just finished the requested rollback.

    Otherwise, a second run after a crash would go back by two generations.
    """
    is_it = pending.entry.action == ROLLBACK and pending.entry.generation == live.generation
    return is_it and to in (None, live.restores)


def _comparison(
    session: Session,
    database: Target,
    observed: Observed,
    entry: LedgerEntry,
    title: str,
    on_event: Listener,
) -> _Check | None:
    """Return the comparison with the references kept of an entry's pair; None without them."""
    known = session.geometries(observed.name)
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


def drop_pair(target: Target, name: str, *, on_event: Listener = silent) -> Plan:
    """Drop a live pair and its kept generations; adopted models and the ledger stay.

    Args:
        target: The database.
        name: Export name in the database.
        on_event: Told of progress.

    Returns:
        What was done, by this call or by an interrupted one that it finished.

    Raises:
        TargetError: If there is no such pair.
        ForeignModel: If a live name is taken by a foreign model.

    Side effects: Drops models and writes a ledger row; commits.
    """
    export_name = check_export_name(name).upper()
    with (
        target.session(f"drop {export_name}") as session,
        session.lock(export_name, "drop"),
    ):
        pending = session.live_state(export_name).work
        heal(session, export_name)
        observed = observe(session, export_name)
        if pending is not None and pending.entry.action == DROP and observed.live is None:
            return Plan(target.uri, observed, "nothing", pending)
        planned = plan_drop(observed, this_process(), target=target.uri)
        carry_out(session, target, planned, {}, lambda names: ParityReport(""), on_event)
    return planned
