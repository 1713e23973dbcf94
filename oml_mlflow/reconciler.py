"""Reconciler: make what is live what the aliases say, once or again and again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from oml_mlflow.fleet import Outcome
from oml_mlflow.fleet_plan import Standing


@dataclass(frozen=True)
class Pass:
    """What one look at everything found and did.

    Attributes:
        standings: How every name stands afterwards.
        outcomes: What was changed, or failed to be.
    """

    standings: tuple[Standing, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(outcome.error is None for outcome in self.outcomes)


class Reconciler:
    """Looks at all bindings, or those of some models, and applies what is to be changed."""

    def run(self, models: Collection[str] | None = None, *, retry: bool = False) -> Pass:
        """Bring bound names in line with their aliases.

        Args:
            models: Only bindings of these registered models; all by default.
            retry: Try again what failed before.

        Raises:
            RegistryUnreachable, OtherRegistry: Nothing was changed.
        """
        raise NotImplementedError
