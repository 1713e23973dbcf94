"""Results of the checks that come before a promotion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from oml_mlflow.errors import ERRORS_BY_CODE, PreflightError

OK, FAILED, SKIPPED, NOT_RUN = "ok", "failed", "skipped", "not run"


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What, in a word or two, such as ``privileges``.
        state: ``ok``, ``failed``, ``skipped`` (does not apply here) or ``not run`` (unknown).
        message: What was found.
        hint: What to do about it; the exact GRANT where a privilege is missing.
        error: Code of the error that a failed one is raised as (see `oml_mlflow.errors`).
    """

    name: str
    state: str
    message: str
    hint: str = ""
    error: str = PreflightError.code

    def to_row(self) -> dict[str, Any]:
        """Return the check as a flat dict."""
        return asdict(self)


@dataclass(frozen=True)
class Preflight:
    """All checks that come before a promotion.

    Attributes:
        title: What was checked, such as ``CLIP in oracle://…``.
        rows: The checks, in the order in which they were made.
    """

    title: str
    rows: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether none failed; one that was not run is no failure."""
        return bool(self.rows) and not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.rows if check.state == FAILED)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the checks as a list of flat dicts."""
        return [check.to_row() for check in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "title": self.title,
            "ok": self.ok,
            "checks": self.to_rows(),
        }

    def demand(self) -> None:
        """Raise the error of the first failed check; its text lists all of them.

        Raises:
            PreflightError: Or the class that the check names, such as `PrivilegeError`,
                `QuotaExceeded`, `ForeignModel`, `InvalidName` or `CapabilityMissing`.
        """
        if not self.failed:
            return
        first = self.failed[0]
        told = "; ".join(f"{check.name}: {check.message.rstrip('.')}" for check in self.failed)
        count = f"{len(self.failed)} of {len(self.rows)} checks failed"
        raise ERRORS_BY_CODE.get(first.error, PreflightError)(
            f"{self.title}: {count}: {told}. Nothing was loaded.",
            hint=first.hint or "`oml-mlflow preflight` shows every check.",
            details={"rows": self.to_rows()},
        )
