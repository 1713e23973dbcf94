"""Texts and tables of statuses, plans, outcomes and promotions; exit codes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oml_mlflow.cli import console
from oml_mlflow.parity.policy import WARNED

if TYPE_CHECKING:
    from oml_mlflow.errors import OmlMlflowError
    from oml_mlflow.parity.difference import ClassSummary
    from oml_mlflow.planning.plan import Plan
    from oml_mlflow.promotion.run import Promotion
    from oml_mlflow.promotion.target import Target
    from oml_mlflow.reconciler.diff import Diff
    from oml_mlflow.reconciler.loop import Pass
    from oml_mlflow.reconciler.status import Outcome, Status

_DIFFERS, _RETRY, _FAILED = 3, 75, 1
_SHOWN = 20


def show_statuses(title: str, statuses: Sequence[Status]) -> None:
    """Write a table of statuses to stdout, and how many are in which state."""
    console.show_table(
        title,
        ("target", "name", "follows", "wanted", "live", "state", "why", "next step"),
        [
            (
                status.target,
                status.name,
                _follows(status),
                status.wanted,
                _live(status),
                status.state,
                "; ".join((status.text, *status.remarks)),
                status.hint,
            )
            for status in statuses
        ],
    )
    console.say(f"{tally(statuses)}.")


def tally(statuses: Sequence[Status]) -> str:
    """Return how many are in which state, such as ``2 of 3 in sync, 1 unreachable``."""
    states = Counter(status.state for status in statuses if not status.is_in_sync)
    others = "".join(f", {count} {state}" for state, count in sorted(states.items()))
    well = sum(status.is_in_sync for status in statuses)
    return f"{well} of {len(statuses)} in sync{others}"


def show_plan(plan: Diff) -> None:
    """Write a fleet plan to stdout: a line for each name that is not in sync."""
    lines, target = [], None
    for status in plan.statuses:
        if status.is_in_sync:
            continue
        if status.target != target:
            target = status.target
            lines.append(f"Target {target}" if target else "Registry")
        lines.append(_line(status))
        if status.hint:
            lines.append(f"       Next: {status.hint}")
        lines += [f"       {remark}." for remark in status.remarks]
    if plan.statuses:
        lines.append(f"{tally(plan.statuses)}.")
    console.say("\n".join([*lines, plan.summary()]))


def _line(status: Status) -> str:
    change = status.change
    if change is not None:
        sign = "~" if change.heals else "-/+" if change.live else "+"
        return f" {sign:>3} {change} ({_follows(status)}); {status.text}"
    sign = "..." if status.waits_for else "!" if status.is_error else " "
    return f" {sign:>3} {status.name} {status.state}: {status.text}"


def outcome_line(count: str, outcome: Outcome) -> str:
    """Return a line about the outcome of a change; a second one has its next step."""
    binding, done, error = outcome.change.binding, outcome.promotion, outcome.error
    text = ""
    if done is not None and done.is_filling and done.work is not None:
        filled, rows = done.work.filled
        text = f"{filled:,} of {rows:,} rows filled for {done.work.entry.origin}; to be continued"
    elif done is not None:
        text = (
            f"{done.entry.origin} live (generation {done.entry.generation}), "
            f"{done.entry.verification}, in {outcome.elapsed_s:.1f} s"
        )
    return progress_line(count, f"{binding.name} on {binding.target}", text, error)


def progress_line(
    count: str, what: str, text: str, error: OmlMlflowError | None = None, *, ok: bool = True
) -> str:
    """Return ``1 of 2  OK    what: text``, or its error and next step."""
    word = "OK" if ok and error is None else "FAIL"
    head = f"{count}  {word:<5} {what}: "
    if error is None:
        return f"{head}{text}"
    return f"{head}[{error.code}] {error.message}" + (
        f"\n  Next: {error.hint}" if error.hint else ""
    )


class Outcomes:
    """Writes a line for each outcome: at once, or after the progress bars.

    Args:
        total: How many there will be, as far as is known.
        quiet: Write nothing.
    """

    def __init__(self, total: int = 0, *, quiet: bool = False) -> None:
        self.total, self._count, self._quiet = total, 0, quiet
        self._held: list[str] = []

    def __call__(self, outcome: Outcome) -> None:
        """Write the line of an outcome, now or at the end."""
        self._count += 1
        line = outcome_line(f"{self._count} of {max(self._count, self.total)}", outcome)
        if console.err.is_terminal:
            self._held.append(line)
        elif not self._quiet:
            console.say(line)

    def all_of(self, done: Pass) -> None:
        """Write all of a pass, and its summary."""
        self.total = len(done.outcomes)
        for outcome in done.outcomes:
            self(outcome)
        self.end(done)

    def end(self, done: Pass) -> None:
        """Write a summary, and what still needs attention."""
        for line in self._held:
            console.say(line)
        failed = {
            (o.change.binding.target, o.change.binding.name) for o in done.outcomes if o.error
        }
        for status in done.statuses:
            if status.is_error and (status.target, status.name) not in failed:
                text = f"{status.name} on {status.target} {status.state}: {status.text}"
                console.say(text + (f"\n  Next: {status.hint}" if status.hint else ""))
        good = sum(outcome.error is None for outcome in done.outcomes)
        bad = len(done.outcomes) - good
        console.say(f"{good} changed, {bad} failed; {tally(done.statuses)}.")


def show_pass(done: Pass, outcomes: Outcomes | None, as_json: bool) -> None:
    """Show how a pass ended, unless that was shown already, and exit with its worst code."""
    if as_json:
        show_pass_json(done.outcomes, done.statuses)
    elif outcomes is not None and done.outcomes:
        outcomes.end(done)
    sys.exit(exit_code(done.outcomes, done.statuses))


def show_pass_json(outcomes: Sequence[Outcome], statuses: Sequence[Status]) -> None:
    """Write outcomes and statuses to stdout as one JSON document."""
    console.show_json(
        {
            "outcomes": [outcome_json(outcome) for outcome in outcomes],
            "standings": [status.to_json() for status in statuses],
        }
    )


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for programs."""
    error, done = outcome.error, outcome.promotion
    return {
        "change": {**vars(outcome.change), "binding": vars(outcome.change.binding)},
        "live": vars(done.entry) if done else None,
        "error": error_json(error) if error else None,
        "elapsed_s": round(outcome.elapsed_s, 3),
    }


def error_json(error: OmlMlflowError) -> dict[str, str]:
    """Return an error for programs."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def exit_code(outcomes: Sequence[Outcome], statuses: Sequence[Status]) -> int:
    """Return the worst exit code: vectors differ, failed, try again."""
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error is not None}
    codes |= {
        _RETRY if status.is_unreachable else _FAILED for status in statuses if status.is_error
    }
    return worst(codes)


def looking_code(statuses: Sequence[Status]) -> int:
    """Return the exit code of a verb that only looks: 75 if a target can't be reached."""
    return _RETRY if any(status.is_unreachable for status in statuses) else 0


def worst(codes: set[int]) -> int:
    """Return the worst of some exit codes: 3 before 1 before 75."""
    return next((code for code in (_DIFFERS, _FAILED, _RETRY) if code in codes), 0)


def _follows(status: Status) -> str:
    binding = status.binding
    return f"{binding.model}@{binding.alias}" if binding else ""


def _live(status: Status) -> str:
    live = status.live
    return f"{live.origin}, generation {live.generation}" if live else "nothing"


def show_promotion_plan(planned: Plan, database: Target) -> None:
    """Show what a promotion would do."""
    from oml_mlflow.flavor.manifest import UNANCHORED

    observed, live = planned.observed, planned.observed.live
    lines = [
        f"Target {planned.target}   {observed.name}: "
        + (f"{live.origin}, generation {live.generation}" if live else "nothing live"),
        f"Wanted {planned.title}" + ("" if planned.anchored else f", {UNANCHORED}"),
    ]
    if planned.pending:
        lines.append(f"First  {planned.pending}")
    if planned.geometry is not None:
        lines.append(f"geometry: {planned.geometry}")
    lines += [f"{sign:>4} {text}" for sign, text in planned.to_steps()]
    if planned.work is not None and planned.work.incoming:
        lines.append(database.window)
    for dependant in planned.observed.dependants:
        name = f"{dependant.table}.{dependant.beside}" if dependant.beside else dependant.name
        lines.append(f"     depends on {dependant.model}: {dependant.kind} {name}")
    lines.append(planned.summary())
    console.say("\n".join(lines))


def show_done(done: Promotion, database: Target, as_json: bool) -> None:
    """Show what a promotion or rollback did."""
    entry = done.entry
    if as_json:
        facts = {"changed": done.changed, "finished": done.finished, "swap_s": done.swap_s}
        console.show_json({**facts, **vars(entry), "target": database.uri})
        return
    if done.finished:
        console.say(f"first: {done.finished}.")
    compared = f"{entry.verification}. {done.report.title}"
    if done.report.rows:
        compared = f"{done.report.summary}, largest difference {done.report.max_abs():.1e}"
        warned = [c for c in done.report.by_class() if c.state == WARNED]
        compared += "".join(f"; {c.category} {_off(c)} (only warns)" for c in warned)
    verb = "is now" if done.changed else "was already"
    swap = f" Swapped in {done.swap_s:.2f} s." if done.changed else ""
    profile = f", profile {entry.profile}" if database.is_probed and entry.profile else ""
    for column, key, reason in done.failed[:_SHOWN]:
        console.err.print(f"not embedded: {column}, key {key}: {reason}", markup=False)
    if len(done.failed) > _SHOWN:
        console.err.print(f"and {len(done.failed) - _SHOWN:,} more, which are NULL")
    console.say(
        f"{entry.name} in {database.uri} {verb} {entry.origin.replace(' ', ' version ')} "
        f"(generation {entry.generation}{profile}); {compared}.{swap}"
    )


def _off(summary: ClassSummary) -> str:
    refused = summary.count - summary.compared
    if refused:
        return f"{refused} of {summary.count} refused"
    return f"{summary.max_abs:.1e}"
