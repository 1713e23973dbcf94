"""How far vectors are from their references: of one probe, of one class."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from oml_mlflow.parity.policy import FAILED, MUST, OK, SKIPPED, WARN, WARNED, Limits
from oml_mlflow.parity.probes import Probe


@dataclass(frozen=True)
class Difference:
    """How far one probe's vector is from its reference.

    Attributes:
        probe: The probe.
        max_abs: Largest difference of an element.
        cosine: Cosine of the two.
        limit: Largest `max_abs` that is right; None: only reported.
        error: Why there are no figures.
        cosine_limit: Smallest `cosine` that is right; None: only reported.
        level: ``must`` or ``warn``: whether being over a limit is a failure.
        skipped: Why it was not compared at all.
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
        """Whether it is no failure."""
        return self.state != FAILED

    @property
    def has_figures(self) -> bool:
        """Whether two vectors were compared."""
        return not (self.error or self.skipped)

    @property
    def reason(self) -> str:
        """Why there are no figures, or nothing."""
        return self.skipped or self.error

    def to_row(self) -> dict[str, Any]:
        """Return the row as a flat dict; a figure that is not there is None."""
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
    """All probes of one class.

    Attributes:
        category: The class, such as ``accents``.
        side: ``img`` or ``txt``.
        level: ``must`` or ``warn``.
        state: That of its worst row; ``skipped`` only if all were.
        count: How many probes it has.
        compared: For how many of them there are figures.
        max_abs: Largest difference among these; not a number if there are none.
        min_cosine: Smallest cosine among these; likewise.
        limit: Largest `max_abs` that is right, or None.
        cosine_limit: Smallest cosine that is right, or None.
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
        """Return it as a flat dict; a figure that is not there is None."""
        figures = {} if self.compared else {"max_abs": None, "min_cosine": None}
        return {**asdict(self), **figures}
