"""The journal in Oracle, and the swap: run or resume it, settle its grants, undo it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from oml_mlflow.errors import (
    ConfigError,
    OmlMlflowError,
    PlanStale,
    TargetError,
    TargetUnreachable,
)
from oml_mlflow.names import model_name
from oml_mlflow.planning.records import (
    CLEANING,
    LOADING,
    SWAPPING,
    Grant,
    LiveState,
    LoadedModel,
    Work,
    now,
)
from oml_mlflow.targets.oracle import quoting
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import NOTHING, Database
from oml_mlflow.targets.oracle.ledger import OracleLedger
from oml_mlflow.targets.oracle.load import comment_text
from oml_mlflow.targets.oracle.models import OracleModels

_log = logging.getLogger(__name__)
_PENDING = (
    "The journal holds what is pending: PHASE in OML_MLFLOW_LIVE is 'swapping', and the pair may "
    "be mixed until it is finished."
)


@dataclass(frozen=True)
class Names:
    """The names that one pipeline has during a swap.

    Attributes:
        slot: Name of the incoming model before.
        live: Its name afterwards.
        kept: Name of the outgoing model afterwards; empty if there is none.
    """

    slot: str
    live: str
    kept: str


def names_by_side(work: Work) -> dict[str, Names]:
    """Return the names of each pipeline that is swapped."""
    return {
        side: Names(slot, model_name(work.entry.name, side), work.outgoing.get(side, ""))
        for side, slot in work.incoming.items()
    }


class OracleJournal(OracleLedger):
    """The journal of a schema; see `Journal`."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self._models = OracleModels(db)

    def begin(self, work: Work) -> None:
        """Write work into the journal: ``whole`` becomes ``loading``. Commits."""
        self._db.ensure_tables()
        name, step = work.entry.name, f"beginning generation {work.entry.generation}"
        binds = {"name": name, "work": work.to_json(), "changed_at": utc_text()}
        if self._db.write(sql.BEGIN_WORK, step, {**binds, "generation": work.before}) == 0:
            state = self.state(name)
            is_new = work.before == 0 and state == LiveState(name)
            if not is_new or self._db.write(sql.INSERT_LIVE, step, binds) == 0:
                self._db.rollback()
                raise _stale(work, state)
        self._db.commit()

    def end(self, work: Work) -> None:
        """Clear the journal: the phase becomes ``whole``. Commits.

        Raises:
            TargetError: If a swap is under way: that has to be finished first.
        """
        name = work.entry.name
        step = f"ending generation {work.entry.generation}"
        if self._db.write(sql.END_WORK, step, {"name": name, "changed_at": utc_text()}) == 0:
            self._db.rollback()
            if self.state(name).phase == SWAPPING:
                raise TargetError(
                    f"{step} of {name} in {self._db.uri}: its swap is not finished. {_PENDING}",
                    hint="promote again: what is pending is finished first.",
                )
        self._db.commit()

    def fill(self, work: Work) -> None:
        """Refuse; see `OracleTarget.swaps_columns`."""
        raise ConfigError(
            "columns are not swapped with models here. Nothing was changed.",
            hint="use `oml-mlflow promote --sql`.",
        )

    def swap(self, work: Work) -> None:
        """Give incoming models the live names and record it. Writes; commits.

        What an interrupted call has done is found in the catalogue and left as it is. If the
        database refuses a step, the renames are undone as far as possible.
        """
        name = work.entry.name
        state = self.state(name)
        is_recorded = state.generation == work.entry.generation and state.phase == CLEANING
        if not is_recorded:
            if state.generation != work.before or state.phase not in (LOADING, SWAPPING):
                raise _stale(work, state)
            if state.phase == LOADING:
                # with the parity measured since `begin`, for a run that may have to finish it
                binds = {"name": name, "work": work.to_json()}
                self._db.write(sql.NOTE_WORK, f"noting what {name} is about to be", binds)
                self._db.commit()
            before = {model.name: model for model in self._models.list()}
            self._run_block(work, before)
            self._keep_comments(work, before)
        self._settle_grants(work)

    def _settle_grants(self, work: Work) -> None:
        """Make the grants on the live names those of the work. Commits.

        Whether grants follow a rename is unconfirmed, so they are compared afterwards.
        """
        live = [names.live for names in names_by_side(work).values()]
        if not live:
            return
        found = set(self._models.grants(live))
        wanted = {given for given in work.grants if given.model in live}
        state = f"{work.entry.name} is swapped; grants on it may be missing or too many."
        # a grant that may be passed on replaces the same one that may not, and has to go first
        for given in sorted(found - wanted, key=_order):
            self._db.write(sql.revoke(given), f"taking a grant on {given.model} back", state=state)
        for given in sorted(wanted - found, key=_order):
            self._db.write(sql.grant(given), f"a grant on {given.model}", state=state)

    def _run_block(self, work: Work, before: Mapping[str, LoadedModel]) -> None:
        name, sizes, renames = work.entry.name, {}, []
        for side, names in names_by_side(work).items():
            found = before.get(names.slot)
            if found is not None:
                renames.append(_next_rename(names, before))
            elif names.live not in before or (names.kept and names.kept not in before):
                raise TargetError(
                    f"{names.slot} is not loaded in {self._db.uri}, so that it can't become "
                    f"{names.live}. {NOTHING}",
                    hint="promote again; `oml-mlflow models` shows what is there.",
                )
            sizes[side] = (found or before[names.live]).size_bytes
        block = sql.swap_block(
            work.entry,
            work.before,
            sizes,
            revokes=self._pending_revokes(work, before),
            renames=renames,
            grants=work.grants if work.incoming else (),
            at=quoting.literal(utc_text(work.entry.promoted_at)),
        )
        try:
            self._db.write(block, f"the swap of {name}", state=_PENDING)
        except (PlanStale, TargetUnreachable):
            raise
        except OmlMlflowError as error:
            self._db.rollback()
            if not self._undo(work):
                raise
            message = error.message.replace(_PENDING, "The live pair is as it was.")
            raise type(error)(message, hint=error.hint, details=error.details) from error

    def _pending_revokes(self, work: Work, before: Mapping[str, LoadedModel]) -> Sequence[Grant]:
        slots = [slot for slot in work.incoming.values() if slot in before]
        if not work.revokes or not slots:
            return ()
        given = set(self._models.grants(slots))
        return [grant for grant in work.revokes if grant in given]

    def _keep_comments(self, work: Work, before: Mapping[str, LoadedModel]) -> None:
        """Write the comment of a renamed model again if the rename lost it."""
        after = {model.name: model for model in self._models.list()}
        for names in names_by_side(work).values():
            for old, new in ((names.live, names.kept), (names.slot, names.live)):
                model, found = before.get(old), after.get(new)
                if model is None or model.foreign or found is None:
                    continue
                if found.foreign or found.metadata != model.metadata:
                    text = comment_text(model)
                    state = f"{work.entry.name} is swapped; {new} has no comment."
                    self._db.write(sql.comment(new, text), f"the comment on {new}", state=state)

    def _undo(self, work: Work) -> bool:
        """Undo renames after a refusal; return whether the live pair is as it was."""
        try:
            if self.state(work.entry.name).phase != SWAPPING:
                return True
            loaded = {model.name for model in self._models.list()}
            for names in names_by_side(work).values():
                has_moved = not names.kept or names.kept in loaded
                if names.slot not in loaded and names.live in loaded and has_moved:
                    self._rename(names.live, names.slot)
                    loaded -= {names.live}
                if names.kept in loaded and names.live not in loaded:
                    self._rename(names.kept, names.live)
            name, generation = work.entry.name, work.before
            binds = {"name": name, "generation": generation, "changed_at": utc_text()}
            self._db.write(sql.UNDO_SWAP, f"undoing the swap of {name}", binds)
            self._db.commit()
        except OmlMlflowError:
            _log.warning("the swap of %s could not be undone", work.entry.name, exc_info=True)
            return False
        with contextlib.suppress(OmlMlflowError):
            self._settle_grants(work)
        return True

    def _rename(self, old: str, new: str) -> None:
        self._db.write(f"BEGIN {sql.rename(old, new)}; END;", f"renaming {old} back to {new}")


def _next_rename(names: Names, before: Mapping[str, LoadedModel]) -> tuple[str, str, str]:
    if names.live not in before:
        return names.slot, names.live, ""
    if not names.kept or names.kept in before:
        taken = names.kept or names.live
        raise TargetError(
            f"{taken} is taken, so that {names.slot} can't become {names.live}. {NOTHING}",
            hint="`oml-mlflow models` shows what is there; promote again.",
        )
    return names.slot, names.live, names.kept


def _stale(work: Work, state: LiveState) -> PlanStale:
    under_way = f", and {state.work.holder} is at work on it" if state.work else ""
    return PlanStale(
        f"generation {state.generation} of {work.entry.name} is live (phase {state.phase})"
        f"{under_way}; wanted generation {work.before}. {NOTHING}",
        hint="plan again; `oml-mlflow history` shows who changed what.",
    )


def _order(given: Grant) -> tuple[str, str, str]:
    return given.model, given.grantee, given.privilege


def utc_text(at: datetime | None = None) -> str:
    """Return a time, now by default, as the tables hold it."""
    return (at or now()).astimezone(timezone.utc).isoformat(timespec="microseconds")
