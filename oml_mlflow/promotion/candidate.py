"""Candidate: the pair to make live, chosen from a version or a fresh export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oml_mlflow.errors import CapabilityMissing, PackageError
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.manifest import check_files
from oml_mlflow.flavor.package import PackagedPair, read_package
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.graph.runtime import runtime_versions
from oml_mlflow.names import SIDES
from oml_mlflow.pair.embedder import GRAPH
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.parity.probes import Probe, References, embed_probes, golden_probes
from oml_mlflow.planning.geometry import key_vectors
from oml_mlflow.planning.records import LoadedModel, now
from oml_mlflow.promotion.capabilities import ask, choose_profile, pair_needs
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.registry.versions import UNUSED, ModelVersion, local_files, logged_tags

_UNREGISTERED = ModelVersion("", "")


@dataclass(frozen=True)
class Candidate:
    """A pair that is to become live, its references, and its origin.

    Attributes:
        title: Its name in errors.
        pair: The pair.
        probes: Golden probes.
        references: Vectors that the database must give for them; None if no runtime here could
            run the pair or another profile's pair of the same version.
        origin: Its version in the registry; of an empty name if it was never registered.
    """

    title: str
    pair: PipelinePair
    probes: tuple[Probe, ...]
    references: References | None
    origin: ModelVersion = _UNREGISTERED

    def limits(self) -> dict[str, float]:
        """Return by side how far an element may differ between runtimes of the same file."""
        precisions = read_precisions(self.pair.metadata)
        return {side: runtime_limit(precisions[side], self.pair.dims) for side in SIDES}

    def keyed_references(self) -> dict[str, np.ndarray] | None:
        """Return the reference vectors by probe and content."""
        return key_vectors(self.probes, self.references.vectors) if self.references else None

    def to_model(self, side: str, name: str) -> LoadedModel:
        """Return one of its pipelines as a row of a target's catalogue."""
        pair, origin = self.pair, self.origin
        outside = {
            "registered_model": origin.name,
            "version": origin.version,
            "run_id": origin.run_id,
            "profile": pair.profile,
            "ends": vars(pair.ends[side]),
            "unknown_operators": list(pair.unknown_operators.get(side, ())),
        }
        return LoadedModel(
            name=name,
            side=side,
            fingerprint=pair.fingerprints[side],
            dims=pair.dims,
            size_bytes=pair.path(side).stat().st_size,
            metadata={**pair.metadata, **outside},
            loaded_at=now(),
        )


def registered(package: PackagedPair, version: ModelVersion) -> Candidate:
    """Return one profile's pair of a model version."""
    return Candidate(version.uri, package, package.probes(), _references(package), version)


def unregistered(pair: PipelinePair, model_name: str, on_event: Listener = silent) -> Candidate:
    """Return a pair that is in no registry; its vectors in this process are the references."""
    probes = golden_probes()
    vectors = embed_probes(pair.embedder(GRAPH), probes, on_event, "pair")
    references = References(vectors, runtime_versions())
    return Candidate(f"the pair of {model_name}", pair, probes, references)


def _references(package: PackagedPair) -> References | None:
    """Return a pair's own references, or those of the same version for another profile.

    A version's pairs are made from one model and share its encoders: where no runtime here can run
    one, because its decode operator is a database's own, another one's vectors are the reference.
    """
    for profile in (package.profile, *package.stored_profiles):
        other = read_package(package.folder, profile)
        if not other.unverifiable:
            return other.references()
    if not package.unverifiable:
        raise PackageError("the package holds no reference vectors.", hint="log the pair again.")
    return None


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
        title: Name of the version in errors.
        target: Ranks the stored profiles.
        session: The database.
        probe: Run capability probes where answers are missing; see `ask`. Otherwise only earlier
            answers are used.
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
    # an earlier refusal may be outdated: ask again before giving up
    table = ask(session, wanted, on_event, again=True)
    return packages[choose_profile(stored, ranked, table)]


@contextlib.contextmanager
def checked_files(version: ModelVersion) -> Iterator[Path]:
    """Yield a folder with a version's files, whose bytes are those that were logged.

    Raises:
        RegistryError: If the files can't be read or downloaded.
        PackageError: If a file's bytes differ from the manifest in the registry or, for a version
            without one, from its MLmodel file; a download is tried twice.
    """

    def check(folder: Path) -> None:
        check_files(folder, logged_tags(version), without=UNUSED)
        for profile in read_package(folder).stored_profiles:
            package = read_package(folder, profile)
            # reading them is what checks them
            package.probes()
            if not package.unverifiable:
                package.references()

    with local_files(version, check) as folder:
        yield folder


def choose_candidate(
    folder: Path,
    version: ModelVersion,
    database: Target,
    probe: bool,
    on_event: Listener,
    session: Session,
) -> Candidate:
    """Return the pair of a version that fits a database best; see `choose_package`."""
    package = choose_package(folder, version.uri, database, session, probe=probe, on_event=on_event)
    return registered(package, version)
