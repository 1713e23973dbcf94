"""User hooks around a promotion; before the swap they may veto it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points

from oml_mlflow.errors import ConfigError, OmlMlflowError, Vetoed
from oml_mlflow.parity.report import ParityReport

GROUP = "oml_mlflow.hooks"
BEFORE_LOAD, AFTER_VERIFY = "before_load", "after_verify"
AFTER_SWAP, ON_FAILURE = "after_swap", "on_failure"
STAGES = (BEFORE_LOAD, AFTER_VERIFY, AFTER_SWAP, ON_FAILURE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HookContext:
    """What a hook receives.

    Attributes:
        uri: The target, without secrets.
        target: Its name in the configuration; empty if it has none.
        name: Export name, upper-case.
        registered_model: Registered model.
        version: Its version that is to be live.
        alias: Alias that it was found by; empty if the version was given.
        fingerprints: sha256 by side.
        live: What was live before, for people; empty if nothing was.
        report: Vectors of the database against the version's references; None before they were
            compared.
        error: Why it failed; None unless it did.
    """

    uri: str
    name: str
    registered_model: str
    version: str
    target: str = ""
    alias: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    live: str = ""
    report: ParityReport | None = None
    error: BaseException | None = None

    @property
    def title(self) -> str:
        """What is promoted, under which name, into which target."""
        return f"{self.registered_model} v{self.version} as {self.name} in {self.uri}"


@dataclass(frozen=True)
class Hooks:
    """Hook objects in the order of their names.

    Attributes:
        found: Name of each entry point, and what it loaded.
    """

    found: tuple[tuple[str, object], ...] = ()

    def before_load(self, context: HookContext) -> None:
        """Announce that checks passed and bytes are about to be loaded.

        Raises:
            Vetoed: If a hook raises; nothing was loaded.
        """
        self._ask(BEFORE_LOAD, context)

    def after_verify(self, context: HookContext) -> None:
        """Announce that the vectors are right and the names are about to be swapped.

        Raises:
            Vetoed: If a hook raises; the caller drops what was loaded.
        """
        self._ask(AFTER_VERIFY, context)

    def asked_after(
        self, check: Callable[[Mapping[str, str]], ParityReport], context: HookContext
    ) -> Callable[[Mapping[str, str]], ParityReport]:
        """Return the comparison, followed by `after_verify`."""

        def ask(names: Mapping[str, str]) -> ParityReport:
            report = check(names)
            self.after_verify(replace(context, report=report))
            return report

        return ask

    def after_swap(self, context: HookContext) -> None:
        """Announce that the version is live. A hook that raises is only logged."""
        self._tell(AFTER_SWAP, context)

    def on_failure(self, context: HookContext) -> None:
        """Announce that the version did not become live. A hook that raises is only logged."""
        self._tell(ON_FAILURE, context)

    def _ask(self, stage: str, context: HookContext) -> None:
        for name, call in self._calls(stage):
            try:
                call(context)
            except (Exception, SystemExit) as error:  # whatever it raises is a veto
                raise Vetoed(
                    f"hook {name!r} stopped {context.title} ({stage}): {_said(error)}. "
                    "The live pair is as it was.",
                    hint="resolve what the hook objects to, then promote again.",
                    details={"hook": name, "stage": stage},
                ) from error

    def _tell(self, stage: str, context: HookContext) -> None:
        for name, call in self._calls(stage):
            try:
                call(context)
            except (Exception, SystemExit):  # too late for a veto
                _log.warning(
                    "hook %r failed after %s (%s)", name, context.title, stage, exc_info=True
                )

    def _calls(self, stage: str) -> list[tuple[str, Callable[[HookContext], object]]]:
        return [(name, getattr(hook, stage)) for name, hook in self.found if hasattr(hook, stage)]


def load_hooks() -> Hooks:
    """Return what the entry points of group ``oml_mlflow.hooks`` load, ordered by name.

    Each loads a module, an object, or a class that is called without arguments; it has one or
    more of ``before_load``, ``after_verify``, ``after_swap`` and ``on_failure``.

    Raises:
        ConfigError: If one can't be loaded, or has none of these: skipping it could lose a veto.
    """
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            hook = point.load()
            if inspect.isclass(hook):
                hook = hook()
        except (Exception, SystemExit) as error:
            raise _unusable(point.name, point.value, f"can't be loaded: {_said(error)}") from error
        present = [stage for stage in STAGES if hasattr(hook, stage)]
        if not present:
            raise _unusable(point.name, point.value, f"has none of {', '.join(STAGES)}")
        for stage in present:
            if not callable(getattr(hook, stage)):
                raise _unusable(point.name, point.value, f"has a {stage} that can't be called")
        found.append((point.name, hook))
    return Hooks(tuple(found))


def _unusable(name: str, value: str, reason: str) -> ConfigError:
    return ConfigError(
        f"hook {name!r} ({value}) {reason}. Nothing was promoted, since it might have objected.",
        hint=f"fix it, or uninstall the package that brings this entry point of {GROUP}.",
    )


def _said(error: BaseException) -> str:
    text = error.message if isinstance(error, OmlMlflowError) else str(error)
    return (text or type(error).__name__).rstrip(".")
