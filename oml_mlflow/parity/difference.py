"""Differences between vectors and their references, by probe and by class of probes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from oml_mlflow.parity.policy import FAILED, MUST, OK, SKIPPED, WARN, WARNED, Limits
from oml_mlflow.parity.probes import Probe


@dataclass(frozen=True)
class Difference:
    """The difference between one probe's vector and its reference.

    Attributes:
        probe: The probe.
        max_abs: Largest difference of an element.
        cosine: Cosine of the two.
        limit: Largest accepted `max_abs`; None: only reported.
        error: Why there are no figures.
        cosine_limit: Smallest accepted `cosine`; None: only reported.
        level: ``must`` or ``warn``: whether exceeding a limit is a failure.
        skipped: Why it was not compared.
    """

    probe: Probe
    max_abs: float
    cosine: float
    limit: float | None
    error: str = ""
    cosine_limit: float | None = None
    level: str = MUST
    skipped: str = ""

    @property
    def state(self) -> str:
        """``ok``, ``failed``, ``warned`` or ``skipped``."""
        if self.skipped:
            return SKIPPED
        limits = Limits(self.limit, self.cosine_limit)
        if not self.error and limits.keeps(self.max_abs, self.cosine):
            return OK
        return WARNED if self.level == WARN else FAILED

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return self.state != FAILED

    @property
    def has_figures(self) -> bool:
        """Whether two vectors were compared."""
        return not (self.error or self.skipped)

    @property
    def reason(self) -> str:
        """Why there are no figures; empty if there are."""
        return self.skipped or self.error

    def to_row(self) -> dict[str, Any]:
        """Return it as a flat dict; missing figures are None."""
        return {
            "probe": self.probe.id,
            "side": self.probe.side,
            "category": self.probe.category,
            "state": self.state,
            "level": self.level,
            "max_abs": self.max_abs if self.has_figures else None,
            "cosine": self.cosine if self.has_figures else None,
            "limit": self.limit,
            "cosine_limit": self.cosine_limit,
            "ok": self.ok,
            "error": self.error,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class ClassSummary:
    """The differences of one class of probes.

    Attributes:
        category: The class, such as ``accents``.
        side: ``img`` or ``txt``.
        level: ``must`` or ``warn``.
        state: State of its worst row; ``skipped`` only if all were.
        count: Number of probes.
        compared: Number of probes with figures.
        max_abs: Largest difference among these; NaN if there are none.
        min_cosine: Smallest cosine among these; likewise.
        limit: Largest accepted `max_abs`, or None.
        cosine_limit: Smallest accepted cosine, or None.
    """

    category: str
    side: str
    level: str
    state: str
    count: int
    compared: int
    max_abs: float
    min_cosine: float
    limit: float | None = None
    cosine_limit: float | None = None

    def to_row(self) -> dict[str, Any]:
        """Return it as a flat dict; missing figures are None."""
        figures = {} if self.compared else {"max_abs": None, "min_cosine": None}
        return {**asdict(self), **figures}
