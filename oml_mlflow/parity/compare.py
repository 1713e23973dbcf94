"""Compare vectors of probes with their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from oml_mlflow.graph.precision import measure_loss
from oml_mlflow.names import SIDES
from oml_mlflow.parity.difference import Difference
from oml_mlflow.parity.policy import MUST, UNIT_TOLERANCE, Limits, ParityPolicy
from oml_mlflow.parity.probes import Probe
from oml_mlflow.parity.report import ParityReport

# A right graph reaches 1.3e-5; wrong resampling, crop or statistics break 1e-4 on these probes.
DEFAULT_LIMIT = 1e-4


def compare(
    title: str,
    probes: Sequence[Probe],
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    limits: Mapping[str, float | Limits | None] | None = None,
    *,
    policy: ParityPolicy | None = None,
    skipped: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
) -> ParityReport:
    """Return the report of `vectors` against `references`.

    Args:
        title: Heading of the report.
        probes: What was embedded.
        vectors: Vectors to judge, by probe id.
        references: Vectors to judge by.
        limits: By probe id or category: largest difference of an element, or `Limits`; None:
            reported only; `DEFAULT_LIMIT` for those that are not named.
        policy: Which categories must be within limits. By default all; then only sides that have
            probes must have been compared.
        skipped: Why a probe was not sent, by probe id.
        errors: Why a probe failed, by probe id.

    Returns:
        A row for every probe. A vector that is missing, all zero, of other dims, not finite or
        not of unit length is an error, never within a limit; one not of unit length fails, too,
        where its class only warns.
    """
    rows, chosen = [], limits or {}
    for probe in probes:
        limit = chosen.get(probe.id, chosen.get(probe.category, DEFAULT_LIMIT))
        row = _difference(
            probe,
            vectors,
            references,
            limit if isinstance(limit, Limits) else Limits(limit),
            policy.level(probe.category) if policy else MUST,
        )
        if skipped and skipped.get(probe.id):
            row = replace(row, max_abs=0.0, cosine=1.0, error="", skipped=skipped[probe.id])
        elif row.error and errors and errors.get(probe.id):
            row = replace(row, error=errors[probe.id])
        rows.append(row)
    sides = SIDES if policy else ()
    return ParityReport(title, tuple(rows), _loss(rows, vectors, references), sides)


def _difference(
    probe: Probe,
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    limits: Limits,
    level: str,
) -> Difference:
    got, wanted = vectors.get(probe.id), references.get(probe.id)
    error = ""
    if got is None or wanted is None:
        error = "no vector" if got is None else "no reference"
    elif got.shape != wanted.shape:
        error = f"dims {got.shape[-1]}, wanted {wanted.shape[-1]}"
    elif not np.isfinite(got).all():
        error = "not finite"
    elif not got.any():  # it has no cosine
        error = "all zero"
    elif not abs((length := float(np.linalg.norm(got))) - 1) <= UNIT_TOLERANCE:
        # whatever its class: a distance between such vectors means something else
        error, level = f"length {length:.4g}, wanted 1", MUST
    figures = (float("inf"), -1.0)
    if not error and got is not None and wanted is not None:
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        figures = (float(np.abs(a - b).max()), cosine)
    return Difference(probe, *figures, limits.max_abs, error, limits.cosine, level)


def _loss(
    rows: Sequence[Difference],
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    loss = {}
    for side in SIDES:
        ids = [row.probe.id for row in rows if row.probe.side == side and row.has_figures]
        if ids:
            ours, theirs = (np.stack([where[i] for i in ids]) for where in (vectors, references))
            loss[side] = measure_loss(ours, theirs)
    return loss
