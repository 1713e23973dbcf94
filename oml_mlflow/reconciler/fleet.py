"""Fleet: survey, plan and change all configured targets together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from oml_mlflow.config.bindings import DEPLOYMENT, REEMBED, Binding, Refusal, settle
from oml_mlflow.config.file import Config
from oml_mlflow.errors import (
    ApplyError,
    ConfigError,
    OmlMlflowError,
    OtherOwner,
    Pinned,
    PlanStale,
    RegistryError,
    TargetError,
    TargetLocked,
)
from oml_mlflow.events import Listener, silent
from oml_mlflow.planning.observed import Survey
from oml_mlflow.planning.records import BINDING, FAILURE, VERIFIED, WHOLE, Note, this_process
from oml_mlflow.promotion.candidate import checked_files
from oml_mlflow.promotion.hooks import Hooks, load_hooks
from oml_mlflow.promotion.options import DEFAULTS, Options
from oml_mlflow.promotion.promote import promote_files
from oml_mlflow.promotion.run import Promotion, made_meanwhile
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.desired import Desired, demand_registry, read_desired
from oml_mlflow.reconciler.diff import Diff, Proven, compare, tried
from oml_mlflow.reconciler.status import UNBOUND, Change, Outcome, Status
from oml_mlflow.registry.versions import ModelVersion, get_version
from oml_mlflow.targets import open_target

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOOKS_EVERY_S = 0.5
# for so long a name's stored vectors are made anew before other names have their turn
FILL_S = 30.0


class Fleet:
    """Every configured target.

    No state is kept between calls: the truth is in the registry and in the targets.

    Args:
        config: Targets and bindings.
        hooks: Hooks to call; the installed ones by default.
        on_event: Told of progress.
    """

    def __init__(
        self, config: Config, *, hooks: Hooks | None = None, on_event: Listener = silent
    ) -> None:
        self.config, self._on_event = config, on_event
        self._hooks = load_hooks() if hooks is None else hooks

    def open(self, name: str) -> Target:
        """Return a configured target. Nothing is connected to yet."""
        return open_declared(self.config, name)

    def survey(self, targets: Collection[str] | None = None) -> dict[str, Survey | OmlMlflowError]:
        """Return what targets hold, all by default, or why not. Read-only; one query each."""

        def look(name: str) -> Survey | OmlMlflowError:
            try:
                return self.open(name).survey()
            except OmlMlflowError as error:
                return error
            except Exception as error:  # one target's failure must not stop the others
                _log.exception("%s can't be surveyed", name)
                return TargetError(
                    f"{name} can't be surveyed: {type(error).__name__}: {error}. Nothing was "
                    "changed there.",
                    hint="see the log, and `oml-mlflow history --target` of it.",
                )

        names = [name for name in self.config.targets if targets is None or name in targets]
        return dict(zip(names, self._at_once(look, names), strict=True))

    def look(
        self,
        *,
        models: Collection[str] | None = None,
        targets: Collection[str] | None = None,
        options: Options = DEFAULTS,
    ) -> Diff:
        """Return the status of every name, and the changes that are due. Read-only.

        Args:
            models: Only bindings of these registered models; all by default.
            targets: Only these targets; all by default.
            options: See `Options`.

        Raises:
            RegistryUnreachable: If the registry does not answer, or with an error.
            OtherRegistry: If it is empty, or not the one that the ledgers name.
        """
        surveys = self.survey(self._asked(targets))
        given = [*self.config.bindings, *_deployed(surveys)]
        with_tags = any(self.config.targets[name].allow_tag_bindings for name in surveys)
        wanted = {b.model for b in given if models is None or b.model in models}
        desired = read_desired(wanted, with_tags=with_tags)
        bindings, refusals = settle(
            [*given, *desired.bindings],
            {name: target.accept for name, target in self.config.targets.items()},
            [name for name, t in self.config.targets.items() if t.allow_tag_bindings],
        )
        bindings = tuple(b for b in bindings if b.target in surveys)
        if models is not None:
            bindings = tuple(b for b in bindings if b.model in models)
            refusals = tuple(r for r in refusals if r.binding.model in models)
        if not options.take_over:
            demand_registry(desired, surveys, bindings)
        found = self._compared(surveys, bindings, refusals, desired, options)
        # a target may wait for another that was not asked for
        chosen = tuple(
            status
            for status in (*found.statuses, *_unread(desired, models))
            if (targets is None or status.target in targets)
            and (models is None or status.binding is not None or status.target == "")
        )
        return replace(found, statuses=chosen)

    def _asked(self, targets: Collection[str] | None) -> set[str] | None:
        """Return these targets and all that they wait for, so that no other holds them up."""
        if targets is None:
            return None
        found, due = set(), list(targets)
        while due:
            found.add(name := due.pop())
            due += [before for before in self.config.targets[name].after if before not in found]
        return found

    def _compared(
        self,
        surveys: Mapping[str, Survey | OmlMlflowError],
        bindings: Sequence[Binding],
        refusals: Sequence[Refusal],
        desired: Desired,
        options: Options,
    ) -> Diff:
        policies = {name: self.open(name).policy.digest for name in self.config.targets}

        def diff(proven: Proven) -> Diff:
            return compare(
                self.config.targets,
                surveys,
                bindings,
                refusals,
                desired.models,
                policies,
                options=options,
                proven=proven,
            )

        # ledgers are only read where a target waits for another
        found = diff(())
        proven = self._proven(found, bindings)
        return diff(proven) if proven else found

    def _proven(self, diff: Diff, bindings: Sequence[Binding]) -> Proven:
        """Return what earlier targets that follow another alias had live and verified once.

        A target that follows the same alias must have the version now; one with its own alias may
        have moved on since.
        """
        proven = set()
        for status in diff.statuses:
            binding = status.binding
            for before in status.waits_for if binding else ():
                assert binding is not None  # noqa: S101 -- only bound names wait
                own = [
                    b
                    for b in bindings
                    if (b.target, b.model) == (before, binding.model) and b.alias != binding.alias
                ]
                for name in {b.name for b in own}:
                    if self._had(before, name, binding.model, status.wanted):
                        proven.add((before, binding.model, status.wanted))
        return proven

    def _had(self, target: str, name: str, model: str, version: str) -> bool:
        try:
            with self.open(target).session("history", create=False, missing_ok=True) as session:
                ledger = session.journal.ledger(name)
        except OmlMlflowError:
            return False
        return any(
            (e.registered_model, e.version, e.verification) == (model, version, VERIFIED)
            for e in ledger
        )

    def apply(self, changes: Sequence[Change], options: Options = DEFAULTS) -> list[Outcome]:
        """Carry out changes, targets in parallel, and note which failed.

        Once one target of an alias has failed, no further target of that alias is begun.

        Args:
            changes: What to do; the changes of one target run in this order.
            options: See `Options`.

        Side effects: Writes models, ledger rows and notes to targets; commits. Calls hooks.
        """
        by_target: dict[str, list[Change]] = {}
        for change in changes:
            by_target.setdefault(change.binding.target, []).append(change)
        stopped: set[tuple[str, str]] = set()
        with ExitStack() as held:
            files = self._fetch(changes, held)

            def run(mine: Sequence[Change]) -> list[Outcome]:
                outcomes = []
                for change in mine:
                    follows = (change.binding.model, change.binding.alias)
                    if follows in stopped:
                        continue
                    outcome = self._run(change, files[change.uri], options)
                    if outcome.error is not None:
                        stopped.add(follows)
                    outcomes.append(outcome)
                return outcomes

            return [o for found in self._at_once(run, list(by_target.values())) for o in found]

    def _fetch(
        self, changes: Sequence[Change], held: ExitStack
    ) -> dict[str, tuple[ModelVersion, Path] | OmlMlflowError]:
        """Return version and files of every change, fetched once for all targets."""
        found: dict[str, tuple[ModelVersion, Path] | OmlMlflowError] = {}
        for uri, registry in {change.uri: change.registry for change in changes}.items():
            try:
                version = replace(get_version(uri), registry=registry)
                found[uri] = version, held.enter_context(checked_files(version))
            except OmlMlflowError as error:
                found[uri] = error
        return found

    def _run(
        self,
        change: Change,
        files: tuple[ModelVersion, Path] | OmlMlflowError,
        options: Options,
    ) -> Outcome:
        begun, binding = monotonic(), change.binding
        promotion, failure = None, None
        try:
            if isinstance(files, OmlMlflowError):
                raise files
            version, folder = files
            promotion = promote_files(
                folder,
                version,
                self.open(binding.target),
                binding.name,
                options=replace(
                    options,
                    adopt=options.adopt or change.adopt,
                    reembed=options.reembed or binding.on_new_geometry == REEMBED,
                ),
                before=change.before,
                hooks=self._hooks,
                target_name=binding.target,
                alias=binding.alias,
                fill_s=FILL_S,
                on_event=self._on_event,
            )
        except OmlMlflowError as error:
            promotion = self._done_by_others(change, error)
            failure = None if promotion else error
        except Exception as error:  # one target's failure must not stop the others
            _log.exception("%s failed", change)
            failure = ApplyError(
                f"{change} failed: {type(error).__name__}: {error}. What is live is as it was, or "
                "the next run finishes it.",
                hint="look at the log; `oml-mlflow status` shows what is live.",
            )
        self._remember(change, failure)
        return Outcome(change, promotion, failure, monotonic() - begun)

    def _done_by_others(self, change: Change, error: OmlMlflowError) -> Promotion | None:
        """Return what another process makes live, if it is the version that is wanted.

        Whoever is at work on the name is waited for, as long as its target is.
        """
        if not isinstance(error, PlanStale | TargetLocked):
            return None
        target, wanted = change.binding.target, (change.binding.model, change.version, VERIFIED)
        deadline = monotonic() + self.config.targets[target].timeout_s
        while True:
            try:
                found = self.open(target).survey().names.get(change.binding.name)
            except TargetError:
                return None
            live = found.live if found and found.state.phase == WHOLE else None
            if live and (live.registered_model, live.version, live.verification) == wanted:
                return made_meanwhile(live)
            if (isinstance(error, PlanStale) and live) or monotonic() > deadline:
                return None
            sleep(_LOOKS_EVERY_S)

    def _remember(self, change: Change, failure: OmlMlflowError | None) -> None:
        """Note what failed, so that it is not tried again; forget it once it succeeded."""
        name = change.binding.name
        if failure is not None and (failure.retryable or not _is_about_it(failure)):
            return
        target = self.open(change.binding.target)
        try:
            survey = target.survey()
            held = survey.names.get(name)
            if failure is None and (held is None or FAILURE not in held.notes):
                return
            with target.session(f"note on {name}") as session:
                if failure is None:
                    session.notes.forget(name, FAILURE)
                    return
                policies = {change.binding.target: target.policy.digest}
                content = {
                    "tried": tried(change, policies, survey),
                    "code": failure.code,
                    "message": failure.message,
                    "hint": failure.hint,
                }
                note = Note(name, FAILURE, content, written_by=this_process())
                session.notes.write(note)
        except TargetError as error:
            _log.warning("%s: the result could not be noted: %s", change, error)

    def _at_once(self, call: Callable[..., _T], values: Sequence[object]) -> list[_T]:
        """Return the results of a call for each value, several in parallel."""
        if len(values) < 2 or self.config.concurrency < 2:
            return [call(value) for value in values]
        with ThreadPoolExecutor(self.config.concurrency, "oml_mlflow") as pool:
            return list(pool.map(call, values))


def open_declared(config: Config, name: str) -> Target:
    """Return a target of a configuration. Nothing is connected to yet."""
    chosen = config.targets[name]
    return open_target(chosen.uri, timeout_s=chosen.timeout_s)


def binding_of(config: Config, target: str, name: str, survey: Survey) -> Binding | None:
    """Return the binding of an export name that counts; see `Chosen.binding`."""
    chosen = config.targets[target]
    given = [*config.bindings, *_deployed({target: survey})]
    if chosen.allow_tag_bindings:
        given += read_desired((), with_tags=True).bindings
    own = [binding for binding in given if binding.target == target]
    counted, _ = settle(own, {target: chosen.accept}, [target] * chosen.allow_tag_bindings)
    return next((b for b in counted if b.name == name.upper()), None)


def _deployed(surveys: Mapping[str, Survey | OmlMlflowError]) -> list[Binding]:
    """Return the bindings that targets keep."""
    return [
        Binding(target, name, str(note.content["model"]), str(note.content["alias"]), DEPLOYMENT)
        for target, survey in surveys.items()
        if isinstance(survey, Survey)
        for name, held in survey.names.items()
        if (note := held.notes.get(BINDING)) is not None
    ]


def _unread(desired: Desired, models: Collection[str] | None) -> list[Status]:
    return [
        Status(
            "",
            model,
            UNBOUND,
            f"the tag oml.bind of {model} can't be read: {text!r}",
            "write it as `prod -> db1 as CLIP; dev -> db2`.",
            is_error=True,
        )
        for model, text in desired.unread.items()
        if models is None or model in models
    ]


def _is_about_it(failure: OmlMlflowError) -> bool:
    """Return whether trying again would give the same."""
    return not isinstance(failure, RegistryError | ConfigError | Pinned | OtherOwner)
