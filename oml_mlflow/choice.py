"""Choice: which of the pairs that a version holds a database can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oml_mlflow.capability import choose_profile, probe_capabilities
from oml_mlflow.errors import CapabilityMissing
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import PackagedPair, read_package
from oml_mlflow.graph.needs import Capability, needs
from oml_mlflow.names import SIDES
from oml_mlflow.planning.capabilities import CapabilityTable

if TYPE_CHECKING:
    from oml_mlflow.targets.base import Session, Target

# what is locked while capability probes run, since their scratch names are the same for all
PROBE_LOCK = "OML_MLFLOW_PROBE"


def choose_package(
    folder: Path,
    title: str,
    target: Target,
    session: Session,
    *,
    probe: bool,
    on_event: Listener = silent,
) -> PackagedPair:
    """Return the stored pair that fits a database best.

    Args:
        folder: Root of the package.
        title: What an error calls the version.
        target: Ranks the stored profiles.
        session: The database.
        probe: Ask the database, with capability probes, what it was not asked yet. Writes:
            scratch models, dropped again, and the answers; commits. Otherwise only what it
            answered before is used.
        on_event: Told of progress.

    Raises:
        CapabilityMissing: If none fits; names what the database lacks.
    """
    packages = {p: read_package(folder, p) for p in read_package(folder).stored_profiles}
    ranked = target.rank_profiles(list(packages), session.version)
    if not ranked:
        raise CapabilityMissing(
            f"{title} holds pairs for {', '.join(packages)}, none of which is for {target.uri}, "
            f"version {session.version}. Nothing was loaded.",
            hint="log it for a profile that fits too: `oml-mlflow log IMG TXT --register NAME "
            "--profile PROFILE`.",
        )
    if not target.is_probed:
        return packages[ranked[0]]
    stored = {name: pair_needs(packages[name].paths) for name in ranked}
    remembered = session.capabilities()
    if not probe:
        return packages[choose_profile(stored, ranked, remembered)]
    wanted = list(stored.values())
    table = ask(session, wanted, on_event)
    try:
        return packages[choose_profile(stored, ranked, table)]
    except CapabilityMissing:
        if table != remembered:
            raise
    # what it refused when it was asked last may have been mended since
    table = ask(session, wanted, on_event, again=True)
    return packages[choose_profile(stored, ranked, table)]


def pair_needs(paths: Mapping[str, Path]) -> tuple[Capability, ...]:
    """Return what both pipelines of a pair need of a database. Read-only."""
    found = [need for side in SIDES for need in needs(paths[side])]
    return tuple(dict.fromkeys(found))


def ask(
    session: Session,
    wanted: Sequence[tuple[Capability, ...]],
    on_event: Listener = silent,
    *,
    again: bool = False,
) -> CapabilityTable:
    """Return what a database answers to capability probes; old answers of its version are kept.

    Side effects: Writes scratch models, drops them again, and keeps the answers; commits.
    """
    table = session.capabilities()
    every = tuple(dict.fromkeys(need for needed in wanted for need in needed))
    if (
        table is not None
        and not again
        and table.database_version == session.version
        and not table.unanswered(need for need in every if need.has_probe)
    ):
        return table
    with session.lock(PROBE_LOCK, "capability probes"):
        return probe_capabilities(session, every, on_event)
