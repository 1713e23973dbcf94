"""What an earlier run left, or an error leaves: finished, undone, or said."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from oml_mlflow.errors import ApplyError, OmlMlflowError
from oml_mlflow.planning.observed import unusable
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import (
    CLEANING,
    DROP,
    LOADING,
    SWAPPING,
    WHOLE,
    LiveState,
    LoadedModel,
    Work,
)
from oml_mlflow.promotion.target import Session, Target

_log = logging.getLogger(__name__)
EMBEDDED_KEPT = (
    "The live pair and its columns are as they were; what was embedded is kept, and the next run "
    "goes on."
)


def finish(session: Session, state: LiveState) -> str:
    """Finish or undo what an earlier run left under an export name; return what was done.

    What was not yet being swapped is undone, what was is finished: its vectors were compared
    before. A model that was loaded whole stays under its slot name, so that it is not loaded again
    if it is wanted; a later promotion drops it once it is too old.
    """
    work = state.work
    if state.phase == WHOLE or work is None:
        return ""
    if state.phase == LOADING:
        session.models.drop(unusable(work, {model.name: model for model in session.models.list()}))
    else:
        if state.phase == SWAPPING:
            session.journal.swap(work)
        drop_old(session, work)
    session.journal.end(work)
    text = describe_pending(state)
    _log.warning("%s", text)
    return text


def drop_old(session: Session, work: Work) -> None:
    """Drop the models and columns that are too old once some work is recorded. Commits."""
    session.models.drop(work.drops)
    session.vectors.drop(work.column_drops)


def describe_pending(state: LiveState) -> str:
    """Return what an earlier run left and what the next one does about it, or nothing."""
    work = state.work
    if state.phase == WHOLE or work is None:
        return ""
    since = f" at {work.started_at:%Y-%m-%d %H:%M} UTC" if work.started_at else ""
    if state.is_filling:
        done = "given up, the live pair and its columns as they were"
    elif state.phase == LOADING:
        done = "undone, the live pair as it was"
    elif work.entry.action == DROP:
        done = "finished, nothing live"
    else:
        done = f"finished, generation {work.entry.generation} live"
    return f"the {work.entry.action} of {state.name} begun by {work.holder}{since} is {done}"


def describe_rewritten(damaged: Mapping[str, LoadedModel]) -> str:
    """Return which models' bytes are written again, and why; or nothing."""
    told = [f"{model.name} was {model.damage}" for model in damaged.values()]
    return f"{'; '.join(told)}; written again" if told else ""


@contextmanager
def undoing(session: Session, target: Target, plan: Plan, work: Work) -> Iterator[None]:
    """Undo what can be undone of some work on an error, and say what could not."""
    try:
        yield
    except BaseException as error:  # on Ctrl-C too, what was loaded has to go
        left = leave(session, work)
        kept = EMBEDDED_KEPT if work.columns else "The live pair is as it was."
        told = _said(error, left or kept, left, plan, target)
        if told is error:
            raise
        raise told from error


@contextmanager
def keeping(plan: Plan, target: Target) -> Iterator[None]:
    """Say of an error that what was embedded is kept; nothing is undone."""
    try:
        yield
    except Exception as error:
        told = _said(error, EMBEDDED_KEPT, EMBEDDED_KEPT, plan, target)
        if told is error:
            raise
        raise told from error


def _said(error: BaseException, state: str, more: str, plan: Plan, target: Target) -> BaseException:
    """Return what to raise: an error of ours with `more` to say, or ours for another's."""
    if not isinstance(error, Exception):
        return error
    if isinstance(error, OmlMlflowError):
        if more and more not in error.message:
            return type(error)(f"{error.message} {more}", hint=error.hint, details=error.details)
        return error
    return ApplyError(
        f"{plan.title} could not be promoted into {target.uri}: {str(error).rstrip('.')}. {state}",
        hint="promote again; `oml-mlflow models` shows what is live.",
    )


def leave(session: Session, work: Work) -> str:
    """Leave a target as it was, or else say how it is left."""
    name, generation = work.entry.name, work.entry.generation
    try:
        phase = session.journal.state(name).phase
        if phase == LOADING:
            session.models.drop(work.uploads)
            session.journal.end(work)
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
