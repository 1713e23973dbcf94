"""Fleet: all configured targets at once: survey, plan, apply."""

from __future__ import annotations

from dataclasses import dataclass

from oml_mlflow.apply import Promotion
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.fleet_plan import Change


@dataclass(frozen=True)
class Outcome:
    """What came of a change.

    Attributes:
        change: What was to be done.
        promotion: What was done; None if it failed.
        error: Why it failed; None if it did not.
    """

    change: Change
    promotion: Promotion | None = None
    error: OmlMlflowError | None = None
