"""What the command line shows of all targets: standings, plans, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oml_mlflow import console
from oml_mlflow.reconciler.status import HEAL, IN_SYNC, UNREACHABLE, FleetPlan, Standing

if TYPE_CHECKING:
    from oml_mlflow.reconciler.fleet import Outcome
    from oml_mlflow.reconciler.loop import Pass

_DIFFERS, _RETRY, _FAILED = 3, 75, 1


def show_standings(title: str, standings: Sequence[Standing]) -> None:
    """Write a table to stdout, and in how many of them all is well."""
    console.show_table(
        title,
        ("target", "name", "follows", "wanted", "live", "state", "why", "next step"),
        [
            (
                standing.target,
                standing.name,
                _follows(standing),
                standing.wanted,
                _live(standing),
                standing.state,
                "; ".join((standing.text, *standing.remarks)),
                standing.hint,
            )
            for standing in standings
        ],
    )
    well = sum(standing.state == IN_SYNC for standing in standings)
    console.out.print(f"{well} of {len(standings)} in sync.", markup=False)


def show_plan(plan: FleetPlan) -> None:
    """Write what is to be changed to stdout, one line each, and what keeps others from it."""
    lines, target = [], None
    for standing in plan.standings:
        if standing.state == IN_SYNC:
            continue
        if standing.target != target:
            target = standing.target
            lines.append(f"Target {target}" if target else "Registry")
        lines.append(_line(standing))
        if standing.hint:
            lines.append(f"       Next: {standing.hint}")
        lines += [f"       {remark}." for remark in standing.remarks]
    same = sum(standing.state == IN_SYNC for standing in plan.standings)
    if same:
        lines.append(f"In sync: {same} of {len(plan.standings)}.")
    console.out.print("\n".join([*lines, plan.summary()]), markup=False)


def _line(standing: Standing) -> str:
    change = standing.change
    if change is not None:
        sign = "~" if change.kind == HEAL else "-/+" if change.live else "+"
        return f" {sign:>3} {change} ({_follows(standing)}); {standing.text}"
    sign = "..." if standing.waits_for else "!" if standing.is_error else " "
    return f" {sign:>3} {standing.name} {standing.state}: {standing.text}"


def outcome_line(number: int, total: int, outcome: Outcome) -> str:
    """Return one line about a change that was done or failed; its next step is on the second."""
    binding, done, error = outcome.change.binding, outcome.promotion, outcome.error
    return progress_line(
        number,
        total,
        f"{binding.name} on {binding.target}",
        f"{done.entry.origin} live (generation {done.entry.generation}), "
        f"{done.entry.verification}, in {outcome.elapsed_s:.1f} s"
        if done is not None
        else "",
        error,
    )


def progress_line(
    number: int, total: int, what: str, text: str, error: Any = None, *, ok: bool = True
) -> str:
    """Return ``1 of 2  OK    what: text``, or its error and next step."""
    word = "OK" if ok and error is None else "FAIL"
    head = f"{number} of {max(number, total)}  {word:<5} {what}: "
    if error is None:
        return f"{head}{text}"
    return f"{head}[{error.code}] {error.message}" + (
        f"\n  Next: {error.hint}" if error.hint else ""
    )


class Outcomes:
    """Writes a line for each change that was done or failed: as it comes, or once bars are gone."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total, self._count, self._quiet = total, 0, quiet
        self._held: list[str] = []

    def __call__(self, outcome: Outcome) -> None:
        """Write the line of an outcome, now or at the end."""
        self._count += 1
        line = outcome_line(self._count, self._total, outcome)
        if console.err.is_terminal:
            self._held.append(line)
        elif not self._quiet:
            console.out.print(line, markup=False)

    def end(self, done: Pass) -> None:
        """Write what it came to, and what still needs somebody."""
        for line in self._held:
            console.out.print(line, markup=False)
        failed = {
            (o.change.binding.target, o.change.binding.name) for o in done.outcomes if o.error
        }
        for standing in done.standings:
            if standing.is_error and (standing.target, standing.name) not in failed:
                text = f"{standing.name} on {standing.target} {standing.state}: {standing.text}"
                more = f"\n  Next: {standing.hint}" if standing.hint else ""
                console.out.print(text + more, markup=False)
        well = sum(standing.state == IN_SYNC for standing in done.standings)
        good = sum(outcome.error is None for outcome in done.outcomes)
        console.out.print(
            f"{good} changed, {len(done.outcomes) - good} failed; {well} of "
            f"{len(done.standings)} in sync.",
            markup=False,
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


def error_json(error: Any) -> dict[str, str]:
    """Return an error for programs."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def exit_code(outcomes: Sequence[Outcome], standings: Sequence[Standing]) -> int:
    """Return the exit code of the worst: vectors differ, something is to be done, try again."""
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error is not None}
    codes |= {
        _RETRY if standing.state == UNREACHABLE else _FAILED
        for standing in standings
        if standing.is_error
    }
    return worst(codes)


def worst(codes: set[int]) -> int:
    """Return the exit code that stands for all: 3 before 1 before 75."""
    return next((code for code in (_DIFFERS, _FAILED, _RETRY) if code in codes), 0)


def _follows(standing: Standing) -> str:
    binding = standing.binding
    return f"{binding.model}@{binding.alias}" if binding else ""


def _live(standing: Standing) -> str:
    live = standing.live
    return f"{live.origin}, generation {live.generation}" if live else "nothing"
