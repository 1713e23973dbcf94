"""Apply a plan step by step; finish or undo what an earlier run left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oml_mlflow.errors import ApplyError, OmlMlflowError
from oml_mlflow.events import Listener
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.observed import Observed, unusable
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import (
    CLEANING,
    LOADING,
    SWAPPING,
    UNVERIFIED,
    WHOLE,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Work,
    now,
    this_process,
)
from oml_mlflow.promotion.target import Session, Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Promotion:
    """What a promotion or rollback did.

    Attributes:
        entry: The ledger entry that is live now.
        report: Vectors of the database against the version's references; no rows if unverified.
        changed: False if that version was live already; then nothing was written.
        healed: What an earlier run had left, and what was done about it; empty if nothing.
        swap_s: Duration of the swap in seconds.
    """

    entry: LedgerEntry
    report: ParityReport
    changed: bool
    healed: str = ""
    swap_s: float = 0.0


def observe(session: Session, name: str) -> Observed:
    """Return what a target has under an export name. Read-only."""
    name = name.upper()
    models = {model.name: model for model in session.list_models()}
    observed = Observed(name, session.live_state(name), tuple(session.ledger(name)), models)
    names = list(observed.live_names.values())
    names += [slot for slots in observed.kept().values() for slot in slots.values()]
    grants = session.grants([known for known in names if known in models])
    return replace(observed, grants=grants, dependants=tuple(session.dependants(name)))


def heal(session: Session, name: str) -> str:
    """Finish or undo what an earlier run left under an export name; return what was done.

    What was not yet being swapped is undone, what was is finished: its vectors were compared
    before. A model that was loaded whole stays under its slot name, so that it is not loaded again
    if it is wanted; a later promotion drops it once it is too old. The caller holds the lock.
    """
    state = session.live_state(name)
    work = state.work
    if state.phase == WHOLE or work is None:
        return ""
    if state.phase == LOADING:
        session.drop(unusable(work, {model.name: model for model in session.list_models()}))
    else:
        if state.phase == SWAPPING:
            session.swap(work)
        session.drop(work.drops)
    session.end(work)
    text = describe_pending(state)
    _log.warning("%s", text)
    return text


def describe_pending(state: LiveState) -> str:
    """Return what an earlier run left and what the next one does about it, or nothing."""
    work = state.work
    if state.phase == WHOLE or work is None:
        return ""
    since = f" at {work.started_at:%Y-%m-%d %H:%M} UTC" if work.started_at else ""
    done = (
        "undone, the live pair as it was"
        if state.phase == LOADING
        else f"finished, generation {work.entry.generation} live"
    )
    return f"the {work.entry.action} of {state.name} begun by {work.holder}{since} is {done}"


def describe_rewritten(damaged: Mapping[str, LoadedModel]) -> str:
    """Return which models' bytes are written again, and why; or nothing."""
    told = [f"{model.name} was {model.damage}" for model in damaged.values()]
    return f"{'; '.join(told)}; written again" if told else ""


def carry_out(
    session: Session,
    target: Target,
    plan: Plan,
    paths: Mapping[str, Path],
    verify: Callable[[Mapping[str, str]], ParityReport],
    on_event: Listener,
) -> tuple[ParityReport, float]:
    """Carry out a plan; on an error, undo it.

    Args:
        session: The target, its lock held.
        target: The target, for error messages.
        plan: What to do; not an empty one.
        paths: Files to load by side.
        verify: Embeds the golden probes by the models of these names and returns the comparison,
            or raises if the pair must not become live.
        on_event: Told of progress.

    Returns:
        The comparison, and the duration of the swap in seconds.

    Raises:
        ApplyError: If a step fails; the message says what state was left.
    """
    if plan.work is None:
        raise ValueError("an empty plan")
    if plan.adoption is not None:
        _record(session, plan.adoption)
    work = replace(plan.work, holder=this_process(), started_at=now())
    session.begin(work)
    report = ParityReport("Nothing to compare")
    try:
        for model in plan.uploads:
            session.load(model, paths[model.side], on_event)
            _log.info("loaded %s, sha256 %s, into %s", model.name, model.fingerprint, target.uri)
        if work.incoming:
            report = verify(work.incoming)
            work = replace(work, entry=_with_parity(work.entry, report))
        begun = now()
        session.swap(work)
        swap_s = (now() - begun).total_seconds()
        session.drop(work.drops)
        session.end(work)
    except BaseException as error:  # on Ctrl-C too, what was loaded has to go
        told = _undone(session, target, plan, work, error)
        if told is error:
            raise
        raise told from error
    return report, swap_s


def _record(session: Session, work: Work) -> None:
    """Record work that moves no model, such as an adoption."""
    work = replace(work, holder=this_process(), started_at=now())
    session.begin(work)
    session.swap(work)
    session.end(work)


def _with_parity(entry: LedgerEntry, report: ParityReport) -> LedgerEntry:
    if entry.verification == UNVERIFIED or not report.rows:
        return entry
    return replace(entry, parity={"max_abs": report.max_abs(), "min_cosine": report.min_cosine()})


def _undone(
    session: Session, target: Target, plan: Plan, work: Work, error: BaseException
) -> BaseException:
    """Undo what can be undone, and return what to raise."""
    left = _leave(session, work)
    if not isinstance(error, Exception):
        return error
    if isinstance(error, OmlMlflowError):
        if left and left not in error.message:
            return type(error)(f"{error.message} {left}", hint=error.hint, details=error.details)
        return error
    return ApplyError(
        f"{plan.title} could not be promoted into {target.uri}: {error}. "
        f"{left or 'The live pair is as it was.'}",
        hint="promote again; `oml-mlflow status` shows what is live.",
    )


def _leave(session: Session, work: Work) -> str:
    """Leave a target as it was, or else say how it is left."""
    name, generation = work.entry.name, work.entry.generation
    try:
        phase = session.live_state(name).phase
        if phase == LOADING:
            session.drop(work.uploads)
            session.end(work)
            return ""
    except Exception:  # the first error is the one to see
        _log.warning("what was loaded for %s could not be dropped", name, exc_info=True)
        loaded = f" {', '.join(work.uploads)} may be left;" if work.uploads else ""
        return (
            f"What is live could not be asked any more:{loaded} the journal holds what was begun, "
            "and the next run finishes or undoes it."
        )
    if phase == SWAPPING:
        return (
            f"The swap to generation {generation} was begun and not finished: until the next run, "
            "which finishes it, the live models may be of two generations."
        )
    if phase == CLEANING:
        return f"Generation {generation} is live; the next run drops what is too old."
    return ""
