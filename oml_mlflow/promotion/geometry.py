"""Geometry guard: no stored vectors become incomparable unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oml_mlflow.errors import GeometryChanged, ModelTooSlow, TargetError
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import SIDES
from oml_mlflow.parity.policy import MUST
from oml_mlflow.parity.probes import Probe, unsafe_reason
from oml_mlflow.planning.columns import registered
from oml_mlflow.planning.geometry import (
    Geometry,
    LiveVectors,
    compare_geometry,
    geometry_id,
    key_vectors,
    pair_id,
)
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import KEPT_COLUMN, LedgerEntry
from oml_mlflow.promotion.candidate import Candidate
from oml_mlflow.promotion.filling import demand_columns
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.target import Session, Target

_GEOMETRY = "g-"


def with_geometry(session: Session, plan: Plan, candidate: Candidate, target: Target) -> Plan:
    """Return the plan with its geometry, compared with what is live. Read-only.

    Where the live pair's vectors were never recorded, as when others loaded it, the live models
    embed the golden probes now.
    """
    if plan.work is None:
        return plan
    observed, vectors = plan.observed, candidate.keyed_references()
    limits = candidate.limits()
    entry, live = observed.live, None
    known = _known(session, observed)
    if entry is not None and entry.geometry:
        live = LiveVectors(entry.geometry, entry.dims)
    elif entry is not None or plan.adoption is not None:
        profile = get_profile(candidate.pair.profile)
        sent = [
            probe
            for probe in candidate.probes
            if probe.is_golden
            and target.policy.level(probe.category) == MUST
            and not (unsafe_reason(probe) or target.skip_reason(probe, profile))
        ]
        measured = _measure(session, observed, sent)
        live = LiveVectors("", entry.dims if entry else 0)
        if measured:
            # the version's own id where they are equal, so that later versions find it too
            found = compare_geometry(measured, 0, known, None, limits)
            same = vectors is not None and _is_same(vectors, measured, limits)
            key = geometry_id(vectors) if same and vectors is not None else found.id
            known[key] = measured
            live = LiveVectors(key, len(next(iter(measured.values()))))
    if vectors is None and entry is not None and entry.fingerprints == candidate.pair.fingerprints:
        geometry = Geometry(entry.geometry, True, candidate.pair.dims, True, entry.dims)
    else:
        geometry = compare_geometry(vectors, candidate.pair.dims, known, live, limits)
    adoption = plan.adoption
    if adoption is not None and live is not None:
        adopted = replace(adoption.entry, geometry=live.id, dims=live.dims)
        adoption = replace(adoption, entry=adopted)
    work = replace(plan.work, entry=replace(plan.work.entry, geometry=geometry.id))
    return replace(plan, work=work, adoption=adoption, geometry=geometry)


def kept_geometry(session: Session, observed: Observed, entry: LedgerEntry) -> Geometry:
    """Compare a kept generation's geometry with the live one, from recorded vectors."""
    live = observed.live
    if live is None:
        return Geometry(entry.geometry, True, entry.dims)
    if live.geometry and live.geometry == entry.geometry:
        return Geometry(entry.geometry, True, entry.dims, True, live.dims)
    known = _known(session, observed)
    vectors = known.get(entry.geometry)
    if vectors is None or not live.geometry:
        reason = "the vectors of one of them are unknown"
        return Geometry(entry.geometry, False, entry.dims, True, live.dims, reason=reason)
    limits = dict.fromkeys(SIDES, 0.0)
    live_vectors = LiveVectors(live.geometry, live.dims)
    return compare_geometry(vectors, entry.dims, known, live_vectors, limits)


def demand_geometry(session: Session, plan: Plan, target: Target, options: Options) -> None:
    """Raise GeometryChanged, with all known dependants, unless the change is accepted.

    Where stored vectors are to be taken along, raise unless they can be; see `demand_columns`.
    """
    geometry = plan.geometry
    if options.reembed and plan.work is not None and (plan.work.columns or not _is_kept(geometry)):
        demand_columns(session, plan, target)
        return
    if geometry is None or geometry.is_same or options.accept_new_geometry:
        return
    dependants = [d for d in plan.observed.dependants if d.kind != KEPT_COLUMN]
    statements = reembedding(plan, target)
    shown = "; ".join(f"{d.kind} {d.name} (by {d.model})" for d in dependants)
    anew = ": " + " ".join(statements) if statements else "."
    raise GeometryChanged(
        f"{plan.title} has another geometry than what is live as {plan.observed.name}: "
        f"{geometry}. Vectors stored until now can't be compared with new ones. Known to depend "
        f"on it: {shown or 'nothing is registered, which does not mean that nothing does'}. "
        "Nothing was loaded; the live pair is as it was.",
        hint="promote it under another name (--name), take stored vectors along (--reembed), or "
        f"accept it (--accept-new-geometry) and re-embed what was stored{anew}",
        details={
            "geometry": str(geometry),
            "dependants": [vars(dependant) for dependant in dependants],
            "reembedding": statements,
        },
    )


def reembedding(plan: Plan, target: Target) -> list[str]:
    """Return the SQL that re-embeds registered columns."""
    return [target.reembedding(column) for column in registered(plan.observed)]


def keep_vectors(session: Session, plan: Plan, candidate: Candidate) -> None:
    """Keep a pair's own references, for a rollback, and those that stand for its geometry."""
    vectors = candidate.keyed_references()
    if vectors is None or plan.work is None:
        return
    name = plan.observed.name
    session.vectors.save(name, pair_id(candidate.pair.fingerprints), vectors)
    session.vectors.save(name, plan.work.entry.geometry, vectors)


def _is_kept(geometry: Geometry | None) -> bool:
    return geometry is None or geometry.is_same


def _known(session: Session, observed: Observed) -> dict[str, dict[str, np.ndarray]]:
    stored = session.vectors.geometries(observed.name)
    return {key: vectors for key, vectors in stored.items() if key.startswith(_GEOMETRY)}


def _measure(
    session: Session, observed: Observed, probes: Sequence[Probe]
) -> dict[str, np.ndarray]:
    """Return the vectors that the live models give; probes that fail are left out."""
    vectors: dict[str, np.ndarray] = {}
    for probe in probes:
        name = observed.live_names[probe.side]
        if name not in observed.models:
            continue
        try:
            vectors[probe.id] = session.models.embed(name, probe.side, [probe.value])[0]
        except ModelTooSlow:
            break  # the others would take as long
        except TargetError:
            continue
    return key_vectors(probes, vectors)


def _is_same(
    vectors: dict[str, np.ndarray], measured: dict[str, np.ndarray], limits: dict[str, float]
) -> bool:
    found = compare_geometry(vectors, 0, {"live": measured}, LiveVectors("live", 0), limits)
    return found.is_same
