"""Plan: the steps of a promotion, rollback or drop. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oml_mlflow.errors import ApplyError, ForeignModel, TargetError
from oml_mlflow.names import SIDES, slot_name
from oml_mlflow.planning.columns import ColumnSize, column_steps
from oml_mlflow.planning.geometry import Geometry
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.records import (
    ADOPT,
    DROP,
    PROMOTE,
    ROLLBACK,
    LedgerEntry,
    LoadedModel,
    Work,
    is_other_registry,
)


@dataclass(frozen=True)
class Plan:
    """What is to be done under one export name of one target.

    Attributes:
        target: URI of the target.
        observed: What was found there.
        title: What is to become live.
        work: What would be done; None if it is live already.
        uploads: Models to load first.
        adoption: What is recorded first, if foreign models are to be adopted.
        geometry: How its vectors compare with the live ones; None where that does not matter.
        pending: What an earlier run left and what is done about it first; empty if nothing.
        paths: Files to load, by side.
        anchored: Whether the registry holds a manifest of the version's files.
        sizes: What filling each of the work's columns takes; empty if nobody measured it.
    """

    target: str
    observed: Observed
    title: str
    work: Work | None
    uploads: tuple[LoadedModel, ...] = ()
    adoption: Work | None = None
    geometry: Geometry | None = None
    pending: str = ""
    paths: Mapping[str, Path] = field(default_factory=dict)
    anchored: bool = True
    sizes: tuple[ColumnSize, ...] = ()

    def to_steps(self) -> list[tuple[str, str]]:
        """Return the sign and text of each step, in the style of Terraform."""
        if self.work is None:
            return []
        work, steps = self.work, []
        if self.adoption:
            adopted = ", ".join(self.adoption.entry.fingerprints) or "live names"
            steps.append(("~", f"adopt   foreign models under {adopted}"))
        for model in self.uploads:
            size = f"{model.size_bytes / 1e6:,.1f} MB"
            steps.append(("+", f"load    {model.name}  {size}  sha256 {model.fingerprint[:12]}…"))
        if work.incoming:
            names = ", ".join(work.incoming.values())
            steps.append(("?", f"verify  golden probes embedded by {names} in SQL"))
            steps += column_steps(work, self.sizes)
            for side, slot in work.incoming.items():
                live = self.observed.live_names[side]
                outgoing = work.outgoing.get(side)
                kept = f" (the live one kept as {outgoing})" if outgoing else ""
                steps.append(("-/+", f"swap    {slot} → {live}{kept}"))
        for g in work.revokes:
            steps.append(("-", f"revoke  {g.privilege} on {g.model} from {g.grantee}"))
        for g in work.grants:
            steps.append(("~", f"grant   {g.privilege} on {g.model} to {g.grantee} again"))
        steps += [("-", f"drop    {name}") for name in work.drops]
        return steps

    def summary(self) -> str:
        """Return the last line of a plan."""
        if self.work is None:
            return f"{self.title} is live already. Nothing to do."
        return (
            f"Plan: {len(self.uploads)} to load, {1 if self.work.incoming else 0} to swap, "
            f"{len(self.work.drops)} to drop. Nothing was changed."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for programs; no secrets."""
        live = self.observed.live
        return {
            "target": self.target,
            "name": self.observed.name,
            "candidate": self.title,
            "live": live.origin if live else None,
            "live_generation": self.observed.state.generation,
            "generation": self.work.entry.generation if self.work else None,
            "geometry": str(self.geometry) if self.geometry else None,
            "dependants": [vars(dependant) for dependant in self.observed.dependants],
            "steps": [{"sign": sign, "text": text} for sign, text in self.to_steps()],
            "pending": self.pending,
            "anchored": self.anchored,
        }


def plan_promotion(
    observed: Observed,
    entry: LedgerEntry,
    uploads: Mapping[str, LoadedModel],
    *,
    keep: int,
    adopt: bool = False,
    target: str = "",
    title: str = "",
) -> Plan:
    """Return the plan that makes a pair live.

    Args:
        observed: What the target has.
        entry: The ledger entry to write; its generation is set here.
        uploads: The pair's models by side; their names are set here. Not loaded again where a
            kept generation has the same bytes.
        keep: How many generations before the live one stay loaded.
        adopt: Adopt foreign models under the live names.
        target: URI of the target.
        title: Name of the pair in errors.

    Raises:
        ForeignModel: If a foreign model has a live name, and `adopt` is not given.
    """
    live = observed.live
    if live is not None and observed.is_whole() and _is_same(live, entry):
        return Plan(target, observed, title, None)
    adoption = None
    if foreign := observed.foreign_models():
        refuse_foreign(foreign, adopt)
        adoption = _adoption(observed, entry)
        observed = _after(observed, adoption)
    kept = [g for g, names in observed.kept().items() if _is_same_bytes(observed, names, entry)]
    unfinished = {} if kept else _loaded(observed, entry)
    number = _number_of(observed, unfinished) or observed.next_generation()
    entry = replace(entry, generation=number, action=PROMOTE, restores=number)
    if kept:
        incoming, loads = observed.kept()[kept[-1]], {}
        old = observed.entry(kept[-1])
        if old is not None and _is_earlier(old, entry, live):
            entry = replace(entry, action=ROLLBACK, restores=_root(old))
    else:
        incoming = {
            side: unfinished.get(side) or slot_name(observed.name, side, number) for side in SIDES
        }
        loads = {s: replace(m, name=incoming[s]) for s, m in uploads.items() if s not in unfinished}
    work = _swap_work(observed, entry, incoming, keep)
    work = replace(work, uploads=tuple(model.name for model in loads.values()))
    return Plan(target, observed, title, work, tuple(loads.values()), adoption)


def plan_rollback(observed: Observed, *, to: int | None, keep: int, target: str = "") -> Plan:
    """Return the plan that makes a kept generation live again, without loading anything.

    Args:
        observed: What the target has.
        to: Generation; by default the newest kept one from before the live one.
        keep: How many generations before the live one stay loaded.
        target: URI of the target.

    Raises:
        ApplyError: If that generation is not kept.
        ForeignModel: If a live name is taken by a foreign model.
    """
    if foreign := observed.foreign_models():
        refuse_foreign(foreign, adopt=False)
    live, kept = observed.live, observed.kept()
    shown = ", ".join(f"{g} ({e.origin})" for g in kept if (e := observed.entry(g))) or "none"
    if to is None and live is not None and live.action == ROLLBACK:
        raise ApplyError(
            f"{observed.name} in {target} went back already: generation {live.generation} is "
            f"{live.restores} ({live.origin}) again. Kept are: {shown}. Nothing was changed.",
            hint="to go to another one, name it with --to.",
        )
    if to is None:
        before = _root(live) if live else observed.state.generation + 1
        older = [g for g in kept if _root(observed.entry(g)) < before]
        to = max(older, key=lambda g: _root(observed.entry(g)), default=None)
    chosen = observed.entry(to) if to is not None else None
    if to is None or to not in kept or chosen is None:
        wanted = "no older generation" if to is None else f"generation {to}, which"
        raise ApplyError(
            f"{observed.name} can't go back: {wanted} is kept in {target}; kept are: {shown}. "
            "The live pair is as it was.",
            hint="name a kept one with --to, or promote the version again.",
        )
    for model in (observed.models[slot] for slot in kept[to].values()):
        if model.damage:
            raise TargetError(
                f"{observed.name} can't go back to generation {to} ({chosen.origin}): {model.name} "
                f"was {model.damage}. The live pair is as it was.",
                hint="promote that version again: the file is written anew.",
            )
    number = observed.next_generation()
    entry = replace(
        chosen,
        generation=number,
        action=ROLLBACK,
        restores=_root(chosen),
        parity={},
        promoted_at=None,
    )
    work = _swap_work(observed, entry, kept[to], keep)
    return Plan(target, observed, f"generation {to} ({chosen.origin})", work)


def plan_drop(observed: Observed, entry_by: str, *, target: str = "") -> Plan:
    """Return the plan that removes a live pair and its kept generations, except adopted ones."""
    if observed.live is None and not observed.kept():
        raise TargetError(
            f"there is no pair {observed.name} in {target}. Nothing was changed.",
            hint="run `oml-mlflow models`.",
        )
    if foreign := observed.foreign_models():
        refuse_foreign(foreign, adopt=False)
    names = list(observed.live_names.values()) if observed.live else []
    for generation, slots in observed.kept().items():
        entry = observed.entry(generation)
        if entry and entry.action != ADOPT:
            names += slots.values()
    for slots in observed.unfinished().values():
        names += slots.values()
    entry = LedgerEntry(
        name=observed.name,
        generation=observed.next_generation(),
        registered_model="",
        version="",
        run_id="",
        fingerprints={},
        dims=0,
        action=DROP,
        promoted_by=entry_by,
    )
    present = tuple(name for name in names if name in observed.models)
    work = Work(entry=entry, before=observed.state.generation, drops=present)
    return Plan(target, observed, "nothing", work)


def refuse_foreign(foreign: Sequence[LoadedModel], adopt: bool) -> None:
    """Raise ForeignModel for foreign models, unless they are to be adopted."""
    if adopt:
        return
    shown = "; ".join(
        f"{m.name} ({m.size_bytes:,} bytes, made {m.loaded_at:%Y-%m-%d %H:%M} UTC)" for m in foreign
    )
    raise ForeignModel(
        f"not loaded by this package, or not what the ledger says: {shown}. Nothing was changed.",
        hint="choose another name (--name), or take it over with --adopt: it is kept under a slot "
        "name and never dropped.",
        details={"models": [model.name for model in foreign]},
    )


def _swap_work(
    observed: Observed, entry: LedgerEntry, incoming: Mapping[str, str], keep: int
) -> Work:
    before = observed.state.generation
    outgoing = {
        side: slot_name(observed.name, side, before)
        for side, name in observed.live_names.items()
        if name in observed.models
    }
    for name in outgoing.values():
        if name in observed.models:
            raise ForeignModel(
                f"{name}, the name to keep the live pair under, is taken. Nothing was changed.",
                hint="rename or drop that model, then promote again.",
            )
    live_of = {name: side for side, name in observed.live_names.items()}
    grants = tuple(grant for grant in observed.grants if grant.model in live_of)
    wanted = {(live_of[g.model], g.grantee, g.privilege) for g in grants}
    side_of = {slot: side for side, slot in incoming.items()}
    revokes = tuple(
        grant
        for grant in observed.grants
        if grant.model in side_of
        and (side_of[grant.model], grant.grantee, grant.privilege) not in wanted
    )
    return Work(
        entry=entry,
        before=before,
        incoming=dict(incoming),
        outgoing=outgoing,
        grants=grants,
        revokes=revokes,
        drops=_beyond(observed, set(incoming.values()), outgoing, keep),
    )


def _beyond(
    observed: Observed, incoming: set[str], outgoing: Mapping[str, str], keep: int
) -> tuple[str, ...]:
    """Return the slots beyond `keep`; a killed run's models count as a generation."""
    spare = {**observed.unfinished(), **observed.kept()}
    loaded = [g for g, names in spare.items() if not incoming & set(names.values())]
    # adopted models are kept for good
    ours = [g for g in loaded if (e := observed.entry(g)) is None or e.action != ADOPT]
    newest = sorted(ours, key=lambda g: _root(observed.entry(g)) or g, reverse=True)
    live = observed.live
    is_ours = live is not None and live.action != ADOPT
    old = newest[max(keep - is_ours, 0) :]
    names = [name for g in sorted(old) for name in spare[g].values()]
    if is_ours and keep == 0:
        names += outgoing.values()
    return tuple(names)


def _adoption(observed: Observed, entry: LedgerEntry) -> Work:
    found = {side: "" for side, name in observed.live_names.items() if name in observed.models}
    adopted = LedgerEntry(
        name=observed.name,
        generation=observed.next_generation(),
        registered_model="",
        version="",
        run_id="",
        fingerprints=found,
        dims=max((observed.models[observed.live_names[side]].dims for side in found), default=0),
        action=ADOPT,
        # vectors stored so far came from the pair that the ledger names
        geometry=observed.live.geometry if observed.live else "",
        promoted_by=entry.promoted_by,
    )
    return Work(entry=adopted, before=observed.state.generation)


def _after(observed: Observed, adoption: Work) -> Observed:
    entry = adoption.entry
    state = replace(observed.state, generation=entry.generation)
    return replace(observed, state=state, ledger=(*observed.ledger, entry))


def _is_same(live: LedgerEntry, entry: LedgerEntry) -> bool:
    if is_other_registry(live.registry, entry.registry):
        return False
    return (live.registered_model, live.version, live.fingerprints) == (
        entry.registered_model,
        entry.version,
        entry.fingerprints,
    )


def _is_earlier(kept: LedgerEntry, entry: LedgerEntry, live: LedgerEntry | None) -> bool:
    """Return whether an entry goes back: its version was live before a later one that is now."""
    if live is None or live.registered_model != entry.registered_model:
        return False
    numbers = (entry.version, live.version)
    return (
        _is_same(kept, entry)
        and all(map(str.isdigit, numbers))
        and (int(entry.version) < int(live.version))
    )


def _is_same_bytes(observed: Observed, names: Mapping[str, str], entry: LedgerEntry) -> bool:
    return all(
        not observed.models[name].foreign
        and observed.models[name].fingerprint == entry.fingerprints[side]
        for side, name in names.items()
    )


def _loaded(observed: Observed, entry: LedgerEntry) -> dict[str, str]:
    """Return by side which models of a pair a killed run has loaded already."""
    return {
        side: name
        for _number, names in sorted(observed.unfinished().items())
        for side, name in names.items()
        if observed.models[name].fingerprint == entry.fingerprints[side]
    }


def _number_of(observed: Observed, unfinished: Mapping[str, str]) -> int | None:
    """Return the number that a killed run gave this pair, if it is still usable."""
    for number, names in observed.unfinished().items():
        newest = max((entry.generation for entry in observed.ledger), default=0)
        if number > newest and names and names == {side: unfinished.get(side) for side in names}:
            return number
    return None


def _root(entry: LedgerEntry | None) -> int:
    """Return the generation that an entry goes back to: its own, unless it is a rollback."""
    return (entry.restores or entry.generation) if entry else 0
