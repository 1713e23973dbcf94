"""Bindings: which alias an export name of a target follows. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from oml_mlflow.names import showable

FILE, TAG, DEPLOYMENT = "file", "tag", "deployment"
REFUSE, REEMBED = "refuse", "reembed"


@dataclass(frozen=True, order=True)
class Binding:
    """A registered model's alias that an export name of a target follows.

    Attributes:
        target: Name of the target in the configuration.
        name: Export name there, upper-case.
        model: Registered model.
        alias: Its alias, which is the only desired state.
        source: Where it was made: ``file`` (`oml_mlflow.toml`), ``tag`` (of the registered model)
            or ``deployment`` (`mlflow deployments`, kept in the target).
        on_new_geometry: What becomes of a version whose vectors can't be compared with those
            stored: ``refuse``, or ``reembed``, which takes registered columns along.
    """

    target: str
    name: str
    model: str
    alias: str
    source: str = FILE
    on_new_geometry: str = REFUSE

    @property
    def place(self) -> tuple[str, str]:
        """Return target and export name, which only one binding may have."""
        return self.target, self.name

    def __str__(self) -> str:
        return f"{self.model}@{self.alias} → {self.target} as {self.name}"


@dataclass(frozen=True)
class Acceptance:
    """What a target accepts: shell patterns, ``*`` for everything.

    Attributes:
        model: Registered models.
        alias: Aliases.
        name: Export names, compared upper-case.
    """

    model: str = "*"
    alias: str = "*"
    name: str = "*"

    def takes(self, model: str, alias: str | None, name: str) -> bool:
        """Return whether a model's alias may be live under a name; alias None: a fixed version."""
        return (
            fnmatchcase(model, self.model)
            and (alias is None or fnmatchcase(alias, self.alias))
            and fnmatchcase(name.upper(), self.name.upper())
        )


@dataclass(frozen=True)
class Refusal:
    """A binding that does not count, and why.

    Attributes:
        binding: The binding.
        reason: Why, for people.
        hint: What to do about it.
    """

    binding: Binding
    reason: str
    hint: str


def settle(
    bindings: Iterable[Binding],
    accepted: Mapping[str, Sequence[Acceptance]],
    tags_allowed: Iterable[str],
) -> tuple[tuple[Binding, ...], tuple[Refusal, ...]]:
    """Return bindings that count, and those that do not.

    Args:
        bindings: From all sources; duplicates count once.
        accepted: What each target accepts; a target that is not listed is unknown.
        tags_allowed: Targets that tags of registered models may bind.
    """
    allowed = set(tags_allowed)
    counted: dict[tuple[str, str], Binding] = {}
    clashing: set[tuple[str, str]] = set()
    found: list[Binding] = []
    refusals: list[Refusal] = []
    for binding in sorted(set(bindings), key=lambda b: (b, b.source)):
        if binding.target not in accepted:
            known = ", ".join(sorted(accepted)) or "none"
            reason = f"there is no target {showable(binding.target)!r}; there are {known}"
            refusals.append(Refusal(binding, reason, "add it to oml_mlflow.toml."))
        elif binding.source == TAG and binding.target not in allowed:
            reason = f"target {binding.target} takes no bindings from tags"
            hint = (
                f"set allow_tag_bindings = true for targets.{binding.target}, or bind in the file."
            )
            refusals.append(Refusal(binding, reason, hint))
        elif not any(
            rule.takes(binding.model, binding.alias, binding.name)
            for rule in accepted[binding.target]
        ):
            reason = f"target {binding.target} does not accept {binding.model}@{binding.alias} as "
            rule = (
                f'{{model = "{binding.model}", alias = "{binding.alias}", name = "{binding.name}"}}'
            )
            hint = f"its owner adds {rule} to accept of targets.{binding.target}."
            refusals.append(Refusal(binding, reason + binding.name, hint))
        else:
            found.append(binding)
    for binding in found:
        other = counted.setdefault(binding.place, binding)
        if (other.model, other.alias) != (binding.model, binding.alias):
            clashing.add(binding.place)
    for binding in found:
        if binding.place in clashing:
            others = ", ".join(str(b) for b in found if b.place == binding.place and b != binding)
            reason = f"{binding.name} of {binding.target} is bound twice: also by {others}"
            refusals.append(Refusal(binding, reason, "remove one of the two; neither counts."))
    kept = tuple(b for place, b in sorted(counted.items()) if place not in clashing)
    return kept, tuple(refusals)
