"""Preflight: what is checked before anything is loaded, and what to do about it. Read-only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

OK, FAILED, SKIPPED, NOT_RUN = "ok", "failed", "skipped", "not run"


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What, in a word or two, such as ``privileges``.
        state: ``ok``, ``failed``, ``skipped`` (does not apply here) or ``not run`` (nobody knows).
        message: What was found.
        hint: What to do about it; the exact GRANT where a privilege is missing.
        error: Code of the error that a failed one is raised as (see `oml_mlflow.errors`).
    """

    name: str
    state: str
    message: str
    hint: str = ""
    error: str = "preflight-failed"

    def to_row(self) -> dict[str, Any]:
        """Return the check as a flat dict."""
        return asdict(self)
