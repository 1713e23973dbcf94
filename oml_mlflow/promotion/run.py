"""One run on an export name: with `finish`, the only writer of its journal.

Promotion, rollback and drop are the same run with other steps: session and lock, finish what was
left, observe, plan, carry out, record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from oml_mlflow.errors import OmlMlflowError, Pinned, PlanStale
from oml_mlflow.events import Listener, silent
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.checks import Preflight
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.observed import finished as as_finished
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import (
    PIN,
    UNVERIFIED,
    LedgerEntry,
    LiveState,
    Work,
    now,
    this_process,
)
from oml_mlflow.promotion.filling import Filling
from oml_mlflow.promotion.finish import drop_old, finish, keeping, undoing
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
        is_filling: Whether stored vectors are still being made: `entry` is live as before, and the
            next run goes on.
        failed: Rows that got no vector: column, key and reason.
    """

    entry: LedgerEntry
    report: ParityReport
    work: Work | None = None
    finished: str = ""
    swap_s: float = 0.0
    is_filling: bool = False
    failed: tuple[tuple[str, Any, str], ...] = ()

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
        fill_s: How long columns of vectors may be filled; until they are by default.
        on_event: Told of progress.
    """

    target: Target
    purpose: str
    context: HookContext
    hooks: Hooks = _NO_HOOKS
    over_pin: bool = False
    before: int | None = None
    loads: bool = False
    fill_s: float | None = None
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
        if done.changed and not done.is_filling:
            self.hooks.after_swap(replace(context, report=done.report))
        return done

    def _change(self, prepare: Prepare) -> tuple[Promotion, HookContext]:
        name = self.context.name
        with self._held(is_first=True) as session:
            state = session.journal.state(name)
            # before anything is finished, so that a stale plan changes nothing
            self._demand_unmoved(session, state)
            # what is being filled goes on, if it is what is wanted
            told = "" if state.is_filling else finish(session, state)
            observed = as_finished(observe(session, name))
            ready = prepare(session, observed, state.work)
            plan, live = ready.plan, observed.live
            pending = state.work if state.is_filling else None
            if pending and not (plan.work and plan.work.begins_as(pending)):
                pending, told = None, finish(session, state)
            told = "; ".join(filter(None, (told, ready.repaired)))
            if plan.work is None:
                report = ready.compare(observed.live_names) if live else _NOTHING
                entry = live or session.journal.ledger(name)[-1]
                return Promotion(entry, report, finished=told), ready.context
            if self.loads:
                self.hooks.before_load(ready.context)
            ready.keep()
            if pending:
                work, report = pending, ready.compare(pending.incoming)
                # its columns may have been dropped by hand
                session.journal.fill(work)
            else:
                work, report = self._load(session, ready)
            if not work.columns:
                done = self._swap(session, plan, work)
                return replace(done, report=report, finished=told), ready.context
        return replace(self._fill(plan, work), report=report, finished=told), ready.context

    @contextmanager
    def _held(self, *, is_first: bool = False) -> Iterator[Session]:
        """Hold the database open, and the name locked."""
        name, target = self.context.name, self.target
        with target.session(self.purpose) as session:
            if self.loads and is_first:
                # before anything is written, even our tables, so that the error can name the GRANT
                Preflight(f"{name} in {target.uri}", tuple(session.checks(0))).demand()
            with session.lock(name, self.purpose):
                yield session

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

    def _load(self, session: Session, ready: Prepared) -> tuple[Work, ParityReport]:
        """Load and verify what a plan brings, and undo it on an error."""
        plan, report = ready.plan, _NOTHING
        assert plan.work is not None  # noqa: S101 -- the caller has looked
        if plan.adoption is not None:
            _record(session, plan.adoption)
        work = replace(plan.work, holder=this_process(), started_at=now())
        # the journal gets the columns once the models that are to fill them have proven right
        begun = replace(work, columns=())
        session.journal.begin(begun)
        with undoing(session, self.target, plan, begun):
            for model in plan.uploads:
                session.models.load(model, ready.paths[model.side], self.on_event)
                _log.info(
                    "loaded %s, sha256 %s, into %s", model.name, model.fingerprint, self.target.uri
                )
            if work.incoming:
                report = ready.compare(work.incoming)
                self.hooks.after_verify(replace(ready.context, report=report))
                work = replace(work, entry=_with_parity(work.entry, report))
            if work.columns:
                session.journal.fill(work)
        return work, report

    def _swap(self, session: Session, plan: Plan, work: Work) -> Promotion:
        """Make live what is loaded and verified, with its columns; undo it on an error."""
        with undoing(session, self.target, plan, work):
            begun = now()
            session.journal.swap(work)
            swap_s = (now() - begun).total_seconds()
            drop_old(session, work)
            session.journal.end(work)
        entry = session.journal.ledger(work.entry.name)[-1]
        return Promotion(entry, _NOTHING, work, swap_s=swap_s)

    def _fill(self, plan: Plan, work: Work) -> Promotion:
        """Fill a promotion's columns, the database opened for each slice, and make it live."""
        filling = Filling(self.target.uri, self.on_event)
        end = None if self.fill_s is None else monotonic() + self.fill_s
        while True:
            with self._held() as session, keeping(plan, self.target):
                observed = observe(session, work.entry.name)
                if done := self._made_meanwhile(session, observed, work):
                    return done
                is_whole, work = filling.fill_slice(session, observed, work)
                if is_whole:
                    done = self._swap(session, plan, work)
                    return replace(done, failed=tuple(filling.failed))
                session.journal.fill(work)
            if end is not None and monotonic() >= end:
                assert observed.live is not None  # noqa: S101 -- else no vectors are re-embedded
                failed = tuple(filling.failed)
                return Promotion(observed.live, _NOTHING, work, is_filling=True, failed=failed)
            filling.take_turns()

    def _made_meanwhile(self, session: Session, observed: Observed, work: Work) -> Promotion | None:
        """Return what another process made of the same work; None if it is still to be filled.

        Raises:
            PlanStale: If something else was begun.
        """
        state, live = observed.state, observed.live
        if state.is_filling and state.work is not None and work.begins_as(state.work):
            self._demand_unmoved(session, state)
            return None
        if live is not None and live.generation == work.entry.generation:
            return made_meanwhile(live)
        raise PlanStale(
            f"{work.entry.name} in {self.target.uri}: another process began something else while "
            f"columns were filled for {work.entry.origin}.",
            hint="run `oml-mlflow status`.",
        )


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
