"""Verification: golden probes embedded by a database, against what they should be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from oml_mlflow.errors import OmlMlflowError, ParityError, TargetUnreachable
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.precision import read_precisions
from oml_mlflow.graph.profiles import Profile
from oml_mlflow.names import SIDES
from oml_mlflow.parity.advice import next_steps
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.policy import FAILED, OK
from oml_mlflow.parity.probes import Probe, by_side, unsafe_reason
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.targets.base import Session, Target

_WHERE_IT_IS = "The whole table is in the error's details; promote with --html FILE writes it."

_log = logging.getLogger(__name__)


def verify_pair(
    session: Session,
    target: Target,
    names: Mapping[str, str],
    probes: Sequence[Probe],
    references: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, object],
    profile: Profile,
    on_event: Listener = silent,
) -> ParityReport:
    """Embed golden probes in a database, one at a time, and compare them. Read-only.

    Args:
        session: The database.
        target: Says which probes can be sent, and how close vectors must be.
        names: In-database names of the pair, by side.
        probes: What to embed; one that raises has no vector, and fails.
        references: Vectors that are right, by probe id.
        metadata: Template metadata of the pair, for its precision.
        profile: Profile of the pair.
        on_event: Told of progress.

    Raises:
        TargetUnreachable: If the database is lost meanwhile: that says nothing about vectors.
        TargetError: If no probe at all could be embedded.
    """
    vectors: dict[str, np.ndarray] = {}
    skipped = {p.id: unsafe_reason(p) or target.skip_reason(p, profile) for p in probes}
    failures: dict[str, OmlMlflowError] = {}
    for side in SIDES:
        sent = [probe for probe in by_side(probes, side) if not skipped[probe.id]]
        for done, probe in enumerate(sent, 1):
            try:
                vectors[probe.id] = session.embed(names[side], side, [probe.value])[0]
            except TargetUnreachable:
                raise
            except OmlMlflowError as error:
                _log.warning("probe %s failed in the database: %s", probe.id, error)
                failures[probe.id] = error
            on_event(Event("verify", names[side], done, len(sent), "probes"))
    if failures and not vectors:
        raise next(iter(failures.values()))
    dims = next((len(vector) for vector in references.values()), 1)
    precisions = read_precisions(metadata)
    limits = {side: target.policy.limits(precisions[side], dims) for side in SIDES}
    return compare(
        "Database against the pair's references",
        probes,
        vectors,
        references,
        {probe.category: limits[probe.side] for probe in probes},
        policy=target.policy,
        skipped=skipped,
        errors={key: _refusal(error) for key, error in failures.items()},
    )


def demand_parity(report: ParityReport, title: str, where: str) -> None:
    """Raise ParityError, the whole report in its details, if a class that must be right is not."""
    if report.ok:
        return
    worst = report.worst
    wrong = sum(not row.ok for row in report.rows)
    classes = {
        state: ", ".join(c.category for c in report.by_class() if c.state == state)
        for state in (FAILED, OK)
    }
    off = worst.error.rstrip(".") or f"max abs {worst.max_abs:.1e}, limit {worst.limit:.0e}"
    raise ParityError(
        f"{title}, {where}: {wrong} of {len(report.rows)} probes differ from its references, worst "
        f"{worst.probe.id} ({worst.probe.category}): {off}. Classes that failed: "
        f"{classes[FAILED] or 'none'}; right: {classes[OK] or 'none'}. The live pair is as it was.",
        hint=" ".join([*next_steps(report), _WHERE_IT_IS]),
        details={"report": report, "rows": report.to_rows()},
    )


def _refusal(error: OmlMlflowError) -> str:
    """Return what a database refused a probe with, in its own words where there are any."""
    if error.__cause__ is None:
        return error.message
    lines = str(error.__cause__).splitlines()
    return " ".join(line for line in lines if not line.startswith("Help: ")) or error.message
