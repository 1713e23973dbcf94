"""Reconciler: make live what the aliases say, once or in a loop."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module

from oml_mlflow.config.file import Config
from oml_mlflow.errors import OmlMlflowError, TargetUnreachable
from oml_mlflow.events import Listener, silent
from oml_mlflow.promotion.hooks import Hooks
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.fleet import Fleet
from oml_mlflow.reconciler.publish import publish_outcomes
from oml_mlflow.reconciler.status import Outcome, Status

MAX_BACKOFF_S = 600.0
_SLOW_IMPORTS = ("duckdb", "oracledb", "onnx", "matplotlib.figure")
_NOTHING = Diff()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """Result of one pass.

    Attributes:
        diff: What is left to do afterwards.
        outcomes: Results of the changes.
        warnings: What could not be written to the registry.
    """

    diff: Diff = _NOTHING
    outcomes: tuple[Outcome, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def statuses(self) -> tuple[Status, ...]:
        """Status of every name afterwards."""
        return self.diff.statuses

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(outcome.error is None for outcome in self.outcomes)

    @property
    def is_filling(self) -> bool:
        """Whether stored vectors are still being made, so that another pass goes on at once."""
        return any(outcome.is_filling for outcome in self.outcomes)

    @property
    def to_retry(self) -> str:
        """Code of an error for which another pass may do better; empty if there is none."""
        codes = [o.error.code for o in self.outcomes if o.error and o.error.retryable]
        if any(status.is_unreachable for status in self.statuses):
            codes.append(TargetUnreachable.code)
        return next(iter(codes), "")


class Reconciler:
    """Compares all bindings, or those of some models, with the targets, and applies changes.

    Args:
        config: Targets and bindings.
        hooks: Hooks to call; the installed ones by default.
        on_event: Told of progress.
    """

    def __init__(
        self, config: Config, *, hooks: Hooks | None = None, on_event: Listener = silent
    ) -> None:
        self.config = config
        self.fleet = Fleet(config, hooks=hooks, on_event=on_event)

    def run(
        self,
        models: Collection[str] | None = None,
        *,
        targets: Collection[str] | None = None,
        options: Options = DEFAULTS,
        only: Collection[tuple[str, str, str]] | None = None,
        diff: Diff | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        until_filled: bool = False,
    ) -> Pass:
        """Bring bound names in line with their aliases, and write the results to the registry.

        The registry is read again after every wave of changes, so that an alias that was moved
        meanwhile is followed, and a target that waits for others gets its turn.

        Args:
            models: Only bindings of these registered models; all by default.
            targets: Only these targets; all by default.
            options: See `Options`.
            only: Only these changes: target, name and version.
            diff: Result of `look` with the same arguments, to begin with; what has changed since
                fails with PlanStale.
            on_outcome: Called with the result of each change.
            until_filled: Go on until all stored vectors that change with a model are made, name
                after name for half a minute; otherwise once for each name.

        Raises:
            RegistryUnreachable, OtherRegistry: Nothing was changed.

        Side effects: Writes models, ledger rows and notes to targets, and tags and descriptions of
            versions to the registry.
        """
        diff = diff or self.fleet.look(models=models, targets=targets, options=options)
        outcomes: list[Outcome] = []
        warnings: list[str] = []
        begun: set[tuple[str, str, str]] = set()
        failed: set[tuple[str, str]] = set()
        while True:
            changes = [
                change
                for change in diff.changes
                # each change once, so that the loop ends
                if change.key not in begun
                and (only is None or change.key in only)
                and (change.binding.model, change.binding.alias) not in failed
            ]
            done = self.fleet.apply(changes, options)
            settled = [outcome for outcome in done if not outcome.is_filling]
            warnings += publish_outcomes(self.fleet, diff, settled)
            if not done:
                break
            begun |= {outcome.change.key for outcome in (settled if until_filled else done)}
            done = settled if until_filled else done
            for outcome in done:
                if outcome.error is not None:
                    failed.add((outcome.change.binding.model, outcome.change.binding.alias))
                if on_outcome:
                    on_outcome(outcome)
            outcomes += done
            try:
                diff = self.fleet.look(models=models, targets=targets, options=options)
            except OmlMlflowError as error:
                warnings.append(f"the status of all names is unknown now: {error}")
                break
        for warning in warnings:
            _log.warning("%s", warning)
        return Pass(diff, tuple(outcomes), tuple(warnings))

    def look(
        self,
        models: Collection[str] | None = None,
        *,
        targets: Collection[str] | None = None,
        options: Options = DEFAULTS,
    ) -> Diff:
        """Return the status of every name, and what `run` would change. Read-only."""
        return self.fleet.look(models=models, targets=targets, options=options)

    def watch(
        self,
        stop: threading.Event,
        *,
        interval_s: float | None = None,
        options: Options = DEFAULTS,
        on_pass: Callable[[Pass | OmlMlflowError], None] | None = None,
    ) -> None:
        """Run passes until stopped.

        While the registry does not answer, passes get rarer, down to one in ten minutes.

        Args:
            stop: Ends the loop after the current pass.
            interval_s: Seconds between passes; `poll_s` of the configuration by default.
            options: See `Options`.
            on_pass: Called with the result of every pass, or why there was none.
        """
        interval = self.config.poll_s if interval_s is None else interval_s
        missed = 0
        while not stop.is_set():
            found: Pass | OmlMlflowError
            try:
                found = self.run(options=options)
                missed = 0
            except OmlMlflowError as error:
                _log.warning("nothing was changed: %s", error)
                found, missed = error, missed + 1
            if on_pass:
                on_pass(found)
            if not (isinstance(found, Pass) and found.is_filling):
                stop.wait(backoff_s(interval, missed))


def prepare() -> None:
    """Import now what would delay the first change by seconds."""
    for name in _SLOW_IMPORTS:
        try:
            import_module(name)
        except ImportError as error:  # whoever needs it will say what to do
            _log.info("%s is not here: %s", name, error)


def backoff_s(interval_s: float, missed: int) -> float:
    """Return seconds to wait after so many failures in a row, with jitter."""
    if not missed:
        return interval_s
    spread = random.uniform(0.8, 1.2)  # noqa: S311 -- keeps two processes out of step
    return min(interval_s * 2.0**missed, max(MAX_BACKOFF_S, interval_s)) * spread
