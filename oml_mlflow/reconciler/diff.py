"""Diff: every bound name as it should be and as it is. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oml_mlflow.config.bindings import Binding, Refusal
from oml_mlflow.config.file import HEAL as HEAL_POLICY
from oml_mlflow.config.file import TargetConfig
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.names import SIDES, model_name
from oml_mlflow.planning.observed import Observed, Survey
from oml_mlflow.planning.records import (
    FAILURE,
    PIN,
    PROMOTE,
    UNVERIFIED,
    VERIFIED,
    WHOLE,
    LedgerEntry,
    Note,
    is_other_registry,
)
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.reconciler.status import (
    DEGRADED,
    FILLING,
    FINISH,
    HEAL,
    IN_SYNC,
    OUT_OF_SYNC,
    PAUSED,
    PINNED,
    UNBOUND,
    UNREACHABLE,
    Change,
    Status,
)
from oml_mlflow.registry.versions import PAUSE_TAG, Registered

# (target, model, version) that was once live and verified there
Proven = Collection[tuple[str, str, str]]
_TAKE_OVER = "choose another name, or take it over: `oml-mlflow apply --take-over`."


@dataclass(frozen=True)
class Diff:
    """The registry against all targets at one time: status of every name, and what is due.

    Attributes:
        statuses: One for each bound name, each refused binding, each name that is live but not
            bound, and each target that can't be reached; by target and name.
        surveys: What each target holds, or why that is unknown.
        models: Registered models by name; None for one that is not there.
    """

    statuses: tuple[Status, ...] = ()
    surveys: Mapping[str, Survey | OmlMlflowError] = field(default_factory=dict)
    models: Mapping[str, Registered | None] = field(default_factory=dict)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Changes that are due now."""
        return tuple(s.change for s in self.statuses if s.change is not None)

    def summary(self) -> str:
        """Return the last line of a plan."""
        kinds = [change.kind for change in self.changes]
        waiting = sum(bool(s.waits_for) for s in self.statuses)
        later = f" {waiting} more once the targets before have it." if waiting else ""
        away = sorted({s.target for s in self.statuses if s.is_unreachable})
        unknown = f" Not known: {', '.join(away)}." if away else ""
        if not self.changes and not waiting:
            return f"Nothing to do{' elsewhere' if away else ''}.{unknown}"
        return (
            f"Plan: {kinds.count(PROMOTE)} to promote, {kinds.count(HEAL)} to heal, "
            f"{kinds.count(FINISH)} to finish, 0 to drop.{later}{unknown} Nothing was changed."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; no secrets."""
        return {
            "summary": self.summary(),
            # the key in all plan files and --json documents so far
            "standings": [status.to_json() for status in self.statuses],
        }


def compare(
    targets: Mapping[str, TargetConfig],
    surveys: Mapping[str, Survey | OmlMlflowError],
    bindings: Sequence[Binding],
    refusals: Sequence[Refusal],
    models: Mapping[str, Registered | None],
    policies: Mapping[str, str],
    *,
    options: Options = DEFAULTS,
    proven: Proven = (),
) -> Diff:
    """Return how names and targets differ from what is declared.

    Args:
        targets: Every configured target.
        surveys: What each target holds, or why that is unknown.
        bindings: Bindings that count.
        refusals: Bindings that do not.
        models: Registered models by name; None for one that is not there.
        policies: Digest of each target's parity policy.
        options: See `Options`.
        proven: What was live and verified earlier, for targets with `after`.
    """
    statuses = []
    for binding in bindings:
        survey = surveys[binding.target]
        if isinstance(survey, OmlMlflowError):
            statuses.append(_unreachable(binding.target, binding.name, survey, binding))
            continue
        observed = survey.names.get(binding.name)
        status = _Judge(targets[binding.target], survey, observed, policies, options).judge(
            binding, models.get(binding.model)
        )
        statuses.append(status)
    statuses = [_in_order(s, targets, statuses, proven) for s in statuses]
    for refusal in refusals:
        statuses.append(_refused(refusal, surveys.get(refusal.binding.target)))
    bound = {(s.target, s.name) for s in statuses}
    for target, survey in surveys.items():
        if isinstance(survey, OmlMlflowError):
            if target not in {s.target for s in statuses}:
                statuses.append(_unreachable(target, "*", survey))
            continue
        for name, observed in survey.names.items():
            live = observed.live
            if live is not None and (target, name) not in bound:
                statuses.append(_free(target, name, observed))
    ordered = sorted(statuses, key=lambda s: (s.target, s.name, s.state))
    return Diff(tuple(ordered), surveys, models)


@dataclass(frozen=True)
class _Judge:
    """What the status of one bound name depends on."""

    target: TargetConfig
    survey: Survey
    observed: Observed | None
    policies: Mapping[str, str]
    options: Options

    def judge(self, binding: Binding, model: Registered | None) -> Status:
        live = self.observed.live if self.observed else None
        wanted = model.aliases.get(binding.alias, "") if model else ""
        status = Status(
            binding.target, binding.name, "", "", binding=binding, wanted=wanted, live=live
        )
        # what somebody decided by hand comes before anything that the registry says
        if pin := self._note(PIN):
            return replace(status, state=PINNED, text=_pinned(pin), hint=_unpin(status))
        if self.target.paused:
            hint = f"set paused = false for targets.{self.target.name}."
            return replace(status, state=PAUSED, text="the target is paused", hint=hint)
        if model is not None and _is_on(model.tags.get(PAUSE_TAG, "")):
            text = f"registered model {model.name} is paused by its tag {PAUSE_TAG}"
            return replace(status, state=PAUSED, text=text, hint="remove that tag.")
        if model is None or not wanted:
            return replace(status, state=UNBOUND, **_absent(binding, model))
        if (other := self._other_owner(live, binding, model)) and not self.options.take_over:
            return replace(status, state=DEGRADED, is_error=True, **other)
        return self._compared(status, model)

    def _compared(self, status: Status, model: Registered) -> Status:
        observed, live, binding = self.observed, status.live, status.binding
        assert binding is not None  # noqa: S101 -- judge gives it
        change = Change(
            binding,
            status.wanted,
            model.registry,
            observed.state.generation if observed else 0,
            live.origin if live else "",
        )
        if observed is not None and observed.state.phase != WHOLE:
            text = "an earlier run did not finish; the next one finishes or undoes it"
            change, state = replace(change, kind=FINISH), OUT_OF_SYNC
            if observed.state.is_filling and (work := observed.state.work):
                done, rows = work.filled
                state, text = FILLING, f"{done:,} of {rows:,} rows for {work.entry.origin}"
            return self._unless_failed(replace(status, state=state, text=text, change=change))
        if observed is not None and live is not None and _is_wanted(live, binding, status.wanted):
            if drift := observed.drift():
                return self._drifted(replace(status, drift=drift), change)
            if live.verification != VERIFIED:
                text = f"{live.origin} is live, but could not be compared with anything"
                return replace(status, state=UNVERIFIED, text=text)
            return replace(status, state=IN_SYNC, text=f"{live.origin}, verified")
        text = f"{live.origin if live else 'nothing'} is live, @{binding.alias} is {status.wanted}"
        names = {model_name(binding.name, side) for side in SIDES}
        unmanaged = sorted(names & self.survey.unmanaged)
        if live is None and unmanaged and not self.options.adopts:
            text = f"{', '.join(unmanaged)}: loaded by others, and not touched"
            return replace(status, state=DEGRADED, text=text, hint=_TAKE_OVER, is_error=True)
        change = replace(change, adopt=self.options.adopts)
        return self._unless_failed(replace(status, state=OUT_OF_SYNC, text=text, change=change))

    def _drifted(self, status: Status, change: Change) -> Status:
        text = "; ".join(status.drift)
        if self.target.drift != HEAL_POLICY and not self.options.heal:
            hint = "`oml-mlflow apply --heal` loads it again; what others loaded is kept."
            return replace(status, state=DEGRADED, text=text, hint=hint, is_error=True)
        change = replace(change, kind=HEAL, adopt=True)
        return self._unless_failed(replace(status, state=DEGRADED, text=text, change=change))

    def _unless_failed(self, status: Status) -> Status:
        """Return the status without its change if the same change failed before."""
        failure, change = self._note(FAILURE), status.change
        if failure is None or change is None or self.options.retry:
            return status
        if dict(failure.content.get("tried", {})) != tried(change, self.policies, self.survey):
            return status
        said = failure.content
        text = (
            f"{change.binding.model} {change.version} failed{_at(failure)} "
            f"({said.get('code')}): {said.get('message')} It is not tried again by itself."
        )
        again = f"then run `oml-mlflow apply --retry --target {status.target}`."
        hint = f"{said.get('hint')} {again}" if said.get("hint") else again
        return replace(status, state=DEGRADED, text=text, hint=hint, change=None, is_error=True)

    def _other_owner(
        self, live: LedgerEntry | None, binding: Binding, model: Registered
    ) -> dict[str, Any] | None:
        if live is None:
            return None
        hint = _TAKE_OVER
        if live.registered_model != binding.model:
            text = f"{binding.name} belongs to {live.origin}, not to {binding.model}"
            return {"text": text, "hint": hint}
        if is_other_registry(live.registry, model.registry):
            text = f"{binding.name} belongs to a {binding.model} of another registry, or to one "
            return {"text": text + "that was deleted and re-created", "hint": hint}
        return None

    def _note(self, kind: str) -> Note | None:
        return self.observed.notes.get(kind) if self.observed else None


def tried(change: Change, policies: Mapping[str, str], survey: Survey) -> dict[str, str]:
    """Return what a failure depends on; a change is tried again once any of it differs."""
    held = survey.names.get(change.binding.name)
    # once what was left is undone, the same change is a promotion
    is_undone = change.kind == FINISH and held and held.state.phase == WHOLE
    return {
        "model": change.binding.model,
        "version": change.version,
        "registry": change.registry,
        "kind": PROMOTE if is_undone else change.kind,
        "policy": policies.get(change.binding.target, ""),
        "capabilities": survey.capabilities,
    }


def _in_order(
    status: Status,
    targets: Mapping[str, TargetConfig],
    statuses: Sequence[Status],
    proven: Proven,
) -> Status:
    """Return the status without its change while a target in `after` lacks the version."""
    change = status.change
    if change is None:
        return status
    waits = tuple(
        before
        for before in targets[status.target].after
        if (before, change.binding.model, change.version) not in proven
        and not any(
            s.target == before
            and s.state == IN_SYNC
            and s.live is not None
            and (s.live.registered_model, s.live.version) == (change.binding.model, change.version)
            for s in statuses
        )
    )
    if not waits:
        return status
    text = f"{status.text}; waits until {', '.join(waits)} has it, verified"
    return replace(status, text=text, change=None, waits_for=waits)


def _is_wanted(live: LedgerEntry, binding: Binding, wanted: str) -> bool:
    return (live.registered_model, live.version) == (binding.model, wanted)


def _absent(binding: Binding, model: Registered | None) -> dict[str, Any]:
    if model is None:
        text = f"there is no registered model {binding.model}"
        hint = "register it, set MLFLOW_TRACKING_URI to where it is, or remove the binding."
    else:
        text = f"{binding.model} has no alias {binding.alias}"
        hint = "set the alias, or remove the binding."
    return {"text": f"{text}; what is live stays", "hint": hint}


def _pinned(pin: Note) -> str:
    since = f" since {pin.written_at:%Y-%m-%d %H:%M} UTC" if pin.written_at else ""
    reason = f": {pin.content['reason']}" if pin.content.get("reason") else ""
    return f"pinned by {pin.written_by}{since}{reason}"


def _unpin(status: Status) -> str:
    return f"`oml-mlflow unpin {status.name} --target {status.target}` lets it follow again."


def _unreachable(
    target: str, name: str, error: OmlMlflowError, binding: Binding | None = None
) -> Status:
    return Status(target, name, UNREACHABLE, error.message, error.hint, binding, is_error=True)


def _refused(refusal: Refusal, survey: Survey | OmlMlflowError | None) -> Status:
    binding = refusal.binding
    observed = survey.names.get(binding.name) if isinstance(survey, Survey) else None
    return Status(
        binding.target,
        binding.name,
        UNBOUND,
        f"the binding to {binding.model}@{binding.alias} does not count: {refusal.reason}",
        refusal.hint,
        binding,
        live=observed.live if observed else None,
        is_error=True,
    )


def _free(target: str, name: str, observed: Observed) -> Status:
    live, pin = observed.live, observed.notes.get(PIN)
    status = Status(
        target, name, UNBOUND, "no binding; it stays", live=live, drift=observed.drift()
    )
    if pin is not None:
        return replace(status, state=PINNED, text=_pinned(pin), hint=_unpin(status))
    return status


def _at(note: Note) -> str:
    return f" at {note.written_at:%Y-%m-%d %H:%M} UTC" if note.written_at else ""


def _is_on(text: str) -> bool:
    return text.strip().lower() not in ("", "false", "no", "0", "off")
