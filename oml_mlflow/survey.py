"""Survey: what a target holds under all its export names, read at once. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from oml_mlflow.ledger import LedgerEntry, LiveState, LoadedModel
from oml_mlflow.names import SIDES, model_name
from oml_mlflow.observed import Observed

PIN, BINDING, FAILURE, PUBLISHED = "pin", "binding", "failure", "published"


@dataclass(frozen=True)
class Note:
    """Something that a target remembers about an export name, besides what is live.

    Attributes:
        name: Export name, upper-case.
        kind: ``pin`` (the name stays as it is), ``binding`` (what it follows, by `mlflow
            deployments`), ``failure`` (what was tried and refused, and is not tried again) or
            ``published`` (what the registry was told).
        content: Values for JSON. Never secrets.
        written_at: When, UTC; set by the target.
        written_by: User, host and process.
    """

    name: str
    kind: str
    content: Mapping[str, Any] = field(default_factory=dict)
    written_at: datetime | None = None
    written_by: str = ""


@dataclass(frozen=True)
class Held:
    """What a target holds under one export name.

    Attributes:
        observed: Live state, the ledger entry that is live (only that one), and the models under
            the live names (only those).
        notes: What it remembers about the name, by kind.
    """

    observed: Observed
    notes: Mapping[str, Note] = field(default_factory=dict)

    def drift(self) -> tuple[str, ...]:
        """Return what is not as the ledger says, one text each; empty if nothing is.

        While something is being done about the name, nothing is drift.
        """
        observed = self.observed
        live = observed.live
        if live is None or observed.state.work is not None:
            return ()
        found = []
        strangers = {model.name: model for model in observed.strangers()}
        for side, name in observed.live_names.items():
            if name not in observed.models:
                found.append(f"{name} was dropped")
            elif (model := strangers.get(name)) is not None:
                found.append(_altered(model, live.fingerprints.get(side, "")))
        return tuple(found)


@dataclass(frozen=True)
class Survey:
    """What a target holds.

    Attributes:
        uri: Where it is, without secrets.
        version: Version of the database.
        names: What is held by export name, upper-case; names with a note only are there too.
        capabilities: Digest of what capability probes found out, whenever that was; empty if they
            never ran.
        strangers: Names of models, such as ``CLIP_IMG``, that nothing here knows.
    """

    uri: str
    version: str
    names: Mapping[str, Held]
    capabilities: str = ""
    strangers: frozenset[str] = frozenset()


def assemble(
    uri: str,
    version: str,
    live: Iterable[tuple[LiveState, LedgerEntry | None]],
    models: Iterable[LoadedModel],
    notes: Iterable[Note],
    capabilities: str = "",
) -> Survey:
    """Return the survey of a target from what was read there.

    Args:
        uri: Where it is, without secrets.
        version: Version of the database.
        live: What is live, with its entry in the ledger; one for each export name.
        models: Models whose names end as those of live ones do.
        notes: What is remembered about names.
        capabilities: Digest of what capability probes found out.
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
        observed = Observed(
            name, state, (entry,) if entry else (), {key: loaded.pop(key) for key in under}
        )
        names[name] = Held(observed, noted.get(name, {}))
    return Survey(uri, version, names, capabilities, frozenset(loaded))


def _altered(model: LoadedModel, wanted: str) -> str:
    if model.damage:
        return f"{model.name} was {model.damage}"
    if model.foreign:
        return f"{model.name} was replaced by a model of others ({model.size_bytes:,} bytes)"
    return f"{model.name} was altered: sha256 {model.fingerprint[:12]}… instead of {wanted[:12]}…"
