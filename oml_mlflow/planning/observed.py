"""Observed state: one export name in full, or a survey of all names. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from oml_mlflow.names import SIDES, model_name, slot_name
from oml_mlflow.planning.records import (
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
    Note,
    Work,
)


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
        notes: The target's notes about the name, by kind; only a survey reads them. It reads the
            live entry and the models under the live names only, and no grants or dependants.
    """

    name: str
    state: LiveState
    ledger: tuple[LedgerEntry, ...]
    models: Mapping[str, LoadedModel]
    grants: tuple[Grant, ...] = ()
    dependants: tuple[Dependant, ...] = ()
    notes: Mapping[str, Note] = field(default_factory=dict)

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

    def unmanaged(self) -> list[LoadedModel]:
        """Return models under the live names that the ledger does not account for."""
        live = self.live
        found = []
        for side, name in self.live_names.items():
            model = self.models.get(name)
            if model is None:
                continue
            if live is None:
                found.append(model)
            # the ledger has no fingerprint of what was adopted, so there is nothing to compare
            elif live.action == ADOPT or (live.fingerprints and not live.fingerprints.get(side)):
                continue
            elif model.foreign or model.damage or model.fingerprint != live.fingerprints.get(side):
                found.append(model)
        return found

    def foreign_models(self) -> list[LoadedModel]:
        """Return unmanaged models, except ours whose bytes were damaged."""
        return [model for model in self.unmanaged() if model.foreign or not model.damage]

    def is_whole(self) -> bool:
        """Return whether both live models are there and match the ledger."""
        there = all(name in self.models for name in self.live_names.values())
        return self.live is not None and there and not self.unmanaged()

    def drift(self) -> tuple[str, ...]:
        """Return each difference from the ledger as a text; none while work is under way."""
        live = self.live
        if live is None or self.state.work is not None:
            return ()
        found = []
        unmanaged = {model.name: model for model in self.unmanaged()}
        for side, name in self.live_names.items():
            if name not in self.models:
                found.append(f"{name} was dropped")
            elif (model := unmanaged.get(name)) is not None:
                found.append(_altered(model, live.fingerprints.get(side, "")))
        return tuple(found)

    def damaged(self, fingerprints: Collection[str]) -> dict[str, LoadedModel]:
        """Return by fingerprint the models of these bytes whose stored bytes are damaged."""
        models = self.models.values()
        return {m.fingerprint: m for m in models if m.damage and m.fingerprint in fingerprints}

    def rewritten(self, fingerprints: Collection[str]) -> Observed:
        """Return the state after the bytes of damaged models are written again."""
        models = {
            name: replace(m, damage="") if m.fingerprint in fingerprints else m
            for name, m in self.models.items()
        }
        return replace(self, models=models)

    def kept(self) -> dict[int, dict[str, str]]:
        """Return slot names by side of every generation that is fully loaded but not live."""
        found: dict[int, dict[str, str]] = {}
        for entry in self.ledger:
            names = {side: slot_name(self.name, side, entry.generation) for side in SIDES}
            if all(self._is_of(names[side], side, entry) for side in SIDES):
                found[entry.generation] = names
        return found

    def unfinished(self) -> dict[int, dict[str, str]]:
        """Return slot names by side, and by number, of models that a killed run left.

        They never became live; a number may have one side only.
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
        """Return the first number beyond the ledger whose slot names are free."""
        number = max((entry.generation for entry in self.ledger), default=0) + 1
        while any(slot_name(self.name, side, number) in self.models for side in SIDES):
            number += 1
        return number


def unusable(work: Work, models: Mapping[str, LoadedModel]) -> list[str]:
    """Return the models of an interrupted load that are missing, damaged or without identity."""
    found = {name: models.get(name) for name in work.uploads}
    return [
        name for name, m in found.items() if m is None or m.foreign or m.damage or not m.fingerprint
    ]


def finished(observed: Observed) -> Observed:
    """Return the state after the next run has finished or undone what was begun."""
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


@dataclass(frozen=True)
class Survey:
    """What a target holds under all export names.

    Attributes:
        uri: Where it is, without secrets.
        version: Version of the database.
        names: By export name, upper-case; names that only have a note are included.
        capabilities: Digest of the answers to capability probes; empty if they never ran.
        unmanaged: Live names, such as ``CLIP_IMG``, of models that no ledger here has.
    """

    uri: str
    version: str
    names: Mapping[str, Observed]
    capabilities: str = ""
    unmanaged: frozenset[str] = frozenset()


def assemble(
    uri: str,
    version: str,
    live: Iterable[tuple[LiveState, LedgerEntry | None]],
    models: Iterable[LoadedModel],
    notes: Iterable[Note],
    capabilities: str = "",
) -> Survey:
    """Return the survey of a target from its records.

    Args:
        uri: See `Survey`.
        version: See `Survey`.
        live: What is live and its ledger entry, for each export name.
        models: Models whose names end as those of live ones do.
        notes: Notes about names.
        capabilities: See `Survey`.
    """
    states = {state.name: (state, entry) for state, entry in live}
    noted: dict[str, dict[str, Note]] = {}
    for note in notes:
        noted.setdefault(note.name, {})[note.kind] = note
    loaded = {model.name: model for model in models}
    names = {}
    for name in sorted(states.keys() | noted.keys()):
        state, entry = states.get(name, (LiveState(name), None))
        under = [live_name for side in SIDES if (live_name := model_name(name, side)) in loaded]
        names[name] = Observed(
            name,
            state,
            (entry,) if entry else (),
            {key: loaded.pop(key) for key in under},
            notes=noted.get(name, {}),
        )
    return Survey(uri, version, names, capabilities, frozenset(loaded))


def _altered(model: LoadedModel, wanted: str) -> str:
    if model.damage:
        return f"{model.name} was {model.damage}"
    if model.foreign:
        return f"{model.name} was replaced by a foreign model ({model.size_bytes:,} bytes)"
    return f"{model.name} was altered: sha256 {model.fingerprint[:12]}… instead of {wanted[:12]}…"
