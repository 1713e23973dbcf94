"""Observed: what a target has under an export name. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from oml_mlflow.ledger import (
    ADOPT,
    DROP,
    LOADING,
    SWAPPING,
    WHOLE,
    Dependant,
    Grant,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Work,
)
from oml_mlflow.names import SIDES, model_name, slot_name


@dataclass(frozen=True)
class Observed:
    """What a target has under an export name.

    Attributes:
        name: Export name, upper-case.
        state: What is live, and what is being done about it.
        ledger: Promotions under the name, oldest first.
        models: Every model of the schema, by name.
        grants: Privileges on models of the name.
        dependants: What depends on the live models.
    """

    name: str
    state: LiveState
    ledger: tuple[LedgerEntry, ...]
    models: Mapping[str, LoadedModel]
    grants: tuple[Grant, ...] = ()
    dependants: tuple[Dependant, ...] = ()

    @property
    def live(self) -> LedgerEntry | None:
        """The entry that is live; None if nothing is."""
        for entry in reversed(self.ledger):
            if entry.generation == self.state.generation:
                return entry if entry.action != DROP else None
        return None

    @property
    def live_names(self) -> dict[str, str]:
        """In-database names of the live pair, by side, whether they are there or not."""
        return {side: model_name(self.name, side) for side in SIDES}

    def strangers(self) -> list[LoadedModel]:
        """Return models under the live names that are not what the ledger says."""
        live = self.live
        found = []
        for side, name in self.live_names.items():
            model = self.models.get(name)
            if model is None:
                continue
            if live is None:
                found.append(model)
            elif live.action == ADOPT or (live.fingerprints and not live.fingerprints.get(side)):
                continue
            elif model.foreign or model.damage or model.fingerprint != live.fingerprints.get(side):
                found.append(model)
        return found

    def of_others(self) -> list[LoadedModel]:
        """Return strangers but for models of ours whose bytes were damaged."""
        return [model for model in self.strangers() if model.foreign or not model.damage]

    def is_whole(self) -> bool:
        """Return whether both live models are there, and what the ledger says."""
        there = all(name in self.models for name in self.live_names.values())
        return self.live is not None and there and not self.strangers()

    def damaged(self, fingerprints: Collection[str]) -> dict[str, LoadedModel]:
        """Return by fingerprint models of these bytes whose stored ones are others, or gone."""
        models = self.models.values()
        return {m.fingerprint: m for m in models if m.damage and m.fingerprint in fingerprints}

    def rewritten(self, fingerprints: Collection[str]) -> Observed:
        """Return what will be there once the bytes of damaged models are written again."""
        models = {
            name: replace(m, damage="") if m.fingerprint in fingerprints else m
            for name, m in self.models.items()
        }
        return replace(self, models=models)

    def kept(self) -> dict[int, dict[str, str]]:
        """Return slot names by side of every generation that is loaded whole but not live."""
        found: dict[int, dict[str, str]] = {}
        for entry in self.ledger:
            names = {side: slot_name(self.name, side, entry.generation) for side in SIDES}
            if all(self._is_of(names[side], side, entry) for side in SIDES):
                found[entry.generation] = names
        return found

    def loose(self) -> dict[int, dict[str, str]]:
        """Return slot names by side of models of ours that never became live, by their number.

        A run that was killed loaded them; both sides of a number need not be there.
        """
        known = {entry.generation for entry in self.ledger}
        found: dict[int, dict[str, str]] = {}
        for side, live in self.live_names.items():
            for name, model in self.models.items():
                number = name.removeprefix(f"{live}_S")
                if number == name or not number.isdigit() or int(number) in known:
                    continue
                if model.fingerprint and not model.foreign:
                    found.setdefault(int(number), {})[side] = name
        return found

    def _is_of(self, name: str, side: str, entry: LedgerEntry) -> bool:
        model = self.models.get(name)
        if model is None:
            return False
        return entry.action == ADOPT or model.fingerprint == entry.fingerprints.get(side)

    def entry(self, generation: int) -> LedgerEntry | None:
        """Return the ledger entry of a generation."""
        return next((e for e in self.ledger if e.generation == generation), None)

    def next_generation(self) -> int:
        """Return a number after all in the ledger, whose slot names are free."""
        number = max((entry.generation for entry in self.ledger), default=0) + 1
        while any(slot_name(self.name, side, number) in self.models for side in SIDES):
            number += 1
        return number


def unusable(work: Work, models: Mapping[str, LoadedModel]) -> list[str]:
    """Return what was being loaded and is not whole: without identity, nobody can tell what it is.

    Args:
        work: What was being done.
        models: What is there, by name.
    """
    found = {name: models.get(name) for name in work.uploads}
    return [
        name for name, m in found.items() if m is None or m.foreign or m.damage or not m.fingerprint
    ]


def healed(observed: Observed) -> Observed:
    """Return what a target will have once the next run has finished or undone what was begun."""
    state, models = observed.state, dict(observed.models)
    work = state.work
    if work is None or state.phase == WHOLE:
        return observed
    whole = LiveState(observed.name, state.generation)
    if state.phase == LOADING:
        for name in unusable(work, models):
            models.pop(name, None)
        return replace(observed, state=whole, models=models)
    if state.phase == SWAPPING:
        for side, slot in work.incoming.items():
            live = observed.live_names[side]
            if slot in models:
                if live in models and side in work.outgoing:
                    models[work.outgoing[side]] = models[live]
                models[live] = models.pop(slot)
        whole = LiveState(observed.name, work.entry.generation)
        observed = replace(observed, ledger=(*observed.ledger, work.entry))
    for name in work.drops:
        models.pop(name, None)
    return replace(observed, state=whole, models=models)
