"""One run on an export name: the only writer of its journal.

Promotion, rollback and drop are the same run with other steps: session and lock, finish what was
left, observe, plan, carry out, record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from oml_mlflow.errors import ApplyError, OmlMlflowError, Pinned, PlanStale
from oml_mlflow.events import Listener, silent
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.checks import Preflight
from oml_mlflow.planning.observed import Observed, unusable
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import (
    CLEANING,
    DROP,
    LOADING,
    PIN,
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
from oml_mlflow.promotion.hooks import HookContext, Hooks
from oml_mlflow.promotion.target import Session, Target

_log = logging.getLogger(__name__)
_NOTHING = ParityReport("Nothing to compare")
_NO_HOOKS = Hooks()
# compares the vectors of the models of these names, by side, or raises
Compare = Callable[[Mapping[str, str]], ParityReport]


@dataclass(frozen=True)
class Promotion:
    """What a promotion, rollback or drop did.

    Attributes:
        entry: The ledger entry that is live now.
        report: Vectors of the database against the version's references; no rows if unverified.
        work: What was done; None if nothing had to be, and nothing was written.
        finished: What an earlier run had left, and what was done about it; empty if nothing.
        swap_s: Duration of the swap in seconds.
    """

    entry: LedgerEntry
    report: ParityReport
    work: Work | None = None
    finished: str = ""
    swap_s: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return self.work is not None


def made_meanwhile(entry: LedgerEntry) -> Promotion:
    """Return what another process made live, which was to be made live here."""
    return Promotion(entry, ParityReport("Made live meanwhile by another process"))


@dataclass(frozen=True)
class Prepared:
    """A plan, and all that carrying it out needs.

    Attributes:
        plan: What to do; without work the live pair is only compared.
        compare: Compares vectors, and raises if the pair must not become live.
        context: What hooks receive.
        paths: Files to load by side.
        keep: Called once hooks have agreed, before anything is loaded.
        repaired: Damaged models that were written again, and why; empty if none.
    """

    plan: Plan
    compare: Compare
    context: HookContext
    paths: Mapping[str, Path] = field(default_factory=dict)
    keep: Callable[[], None] = lambda: None
    repaired: str = ""


# what a verb adds: its plan, from what was observed and the work that an earlier run had left
Prepare = Callable[[Session, Observed, Work | None], Prepared]


@dataclass(frozen=True)
class Run:
    """A change of what is live under an export name, whichever verb asks for it.

    Attributes:
        target: The database.
        purpose: What for, as locks, errors and a DBA's view of sessions show it.
        context: What hooks receive if it fails before there is a plan; its name is the one.
        hooks: Hooks to call.
        over_pin: Change a pinned name.
        before: Generation that must be live until then; any by default.
        loads: Whether anything may be loaded, so that the database is checked for it.
        on_event: Told of progress.
    """

    target: Target
    purpose: str
    context: HookContext
    hooks: Hooks = _NO_HOOKS
    over_pin: bool = False
    before: int | None = None
    loads: bool = False
    on_event: Listener = silent

    def change(self, prepare: Prepare) -> Promotion:
        """Plan and carry out, under the name's lock.

        Raises:
            Pinned, PlanStale: Nothing was changed.
            OmlMlflowError: Whatever `prepare`, a hook or a step raises; the message says what
                state was left.

        Side effects: Writes models and a ledger row to the target; commits. Calls hooks.
        """
        try:
            done, context = self._change(prepare)
        except OmlMlflowError as error:
            self.hooks.on_failure(replace(self.context, error=error))
            raise
        if done.changed:
            self.hooks.after_swap(replace(context, report=done.report))
        return done

    def _change(self, prepare: Prepare) -> tuple[Promotion, HookContext]:
        name, target = self.context.name, self.target
        with ExitStack() as held:
            session = held.enter_context(target.session(self.purpose))
            if self.loads:
                # before anything is written, even our tables, so that the error can name the GRANT
                Preflight(f"{name} in {target.uri}", tuple(session.checks(0))).demand()
            held.enter_context(session.lock(name, self.purpose))
            state = session.journal.state(name)
            # before anything is finished, so that a stale plan changes nothing
            self._demand_unmoved(session, state)
            finished = _finish(session, state)
            observed = observe(session, name)
            ready = prepare(session, observed, state.work)
            finished = "; ".join(filter(None, (finished, ready.repaired)))
            plan, live = ready.plan, observed.live
            if plan.work is None:
                report = ready.compare(observed.live_names) if live else _NOTHING
                entry = live or session.journal.ledger(name)[-1]
                return Promotion(entry, report, finished=finished), ready.context
            if self.loads:
                self.hooks.before_load(ready.context)
            ready.keep()
            report, swap_s = self._carry_out(session, ready)
            entry = session.journal.ledger(name)[-1]
        return Promotion(entry, report, plan.work, finished, swap_s), ready.context

    def _demand_unmoved(self, session: Session, state: LiveState) -> None:
        name = self.context.name
        where = f"{name} in {self.target.uri}"
        if self.before not in (None, state.generation):
            raise PlanStale(
                f"{where}: generation {self.before} was to be replaced, but {state.generation} is "
                "live. Nothing was changed.",
                hint="plan again: `oml-mlflow plan`, or `oml-mlflow history`.",
            )
        for note in session.notes.list(name) if not self.over_pin else ():
            if note.kind == PIN:
                since = f"{note.written_at:%Y-%m-%d %H:%M} UTC" if note.written_at else "some time"
                raise Pinned(
                    f"{where} is pinned by {note.written_by} since {since}. Nothing was changed.",
                    hint=f"`oml-mlflow unpin {name} --target …` lets it change again.",
                )

    def _carry_out(self, session: Session, ready: Prepared) -> tuple[ParityReport, float]:
        """Carry out a plan, and undo it on an error; return the comparison and the swap's time."""
        plan = ready.plan
        assert plan.work is not None  # noqa: S101 -- the caller has looked
        if plan.adoption is not None:
            _record(session, plan.adoption)
        work = replace(plan.work, holder=this_process(), started_at=now())
        session.journal.begin(work)
        report = _NOTHING
        try:
            for model in plan.uploads:
                session.models.load(model, ready.paths[model.side], self.on_event)
                _log.info(
                    "loaded %s, sha256 %s, into %s", model.name, model.fingerprint, self.target.uri
                )
            if work.incoming:
                report = ready.compare(work.incoming)
                self.hooks.after_verify(replace(ready.context, report=report))
                work = replace(work, entry=_with_parity(work.entry, report))
            begun = now()
            session.journal.swap(work)
            swap_s = (now() - begun).total_seconds()
            session.models.drop(work.drops)
            session.journal.end(work)
        except BaseException as error:  # on Ctrl-C too, what was loaded has to go
            told = _undone(session, self.target, plan, work, error)
            if told is error:
                raise
            raise told from error
        return report, swap_s


def observe(session: Session, name: str) -> Observed:
    """Return what a target has under an export name. Read-only."""
    name = name.upper()
    models = {model.name: model for model in session.models.list()}
    observed = Observed(
        name, session.journal.state(name), tuple(session.journal.ledger(name)), models
    )
    names = list(observed.live_names.values())
    names += [slot for slots in observed.kept().values() for slot in slots.values()]
    grants = session.models.grants([known for known in names if known in models])
    return replace(observed, grants=grants, dependants=tuple(session.vectors.dependants(name)))


def _finish(session: Session, state: LiveState) -> str:
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
        session.models.drop(work.drops)
    session.journal.end(work)
    text = describe_pending(state)
    _log.warning("%s", text)
    return text


def describe_pending(state: LiveState) -> str:
    """Return what an earlier run left and what the next one does about it, or nothing."""
    work = state.work
    if state.phase == WHOLE or work is None:
        return ""
    since = f" at {work.started_at:%Y-%m-%d %H:%M} UTC" if work.started_at else ""
    if state.phase == LOADING:
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


def _record(session: Session, work: Work) -> None:
    """Record work that moves no model, such as an adoption."""
    work = replace(work, holder=this_process(), started_at=now())
    session.journal.begin(work)
    session.journal.swap(work)
    session.journal.end(work)


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
        hint="promote again; `oml-mlflow models` shows what is live.",
    )


def _leave(session: Session, work: Work) -> str:
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
