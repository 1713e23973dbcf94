"""Proposal: which of a version's pairs is meant for a database, and what would be done with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from oml_mlflow.candidate import Candidate, registered
from oml_mlflow.choice import choose_package
from oml_mlflow.errors import ApplyError
from oml_mlflow.events import Listener
from oml_mlflow.flavor.manifest import check_files
from oml_mlflow.flavor.package import read_package
from oml_mlflow.geometry_guard import with_geometry
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.graph.runtime import not_run_reason
from oml_mlflow.names import SIDES
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.plan import Plan, plan_promotion
from oml_mlflow.planning.records import UNVERIFIED, VERIFIED, LedgerEntry, this_process
from oml_mlflow.registry import UNUSED, ModelVersion, local_files, logged_tags
from oml_mlflow.targets import Target
from oml_mlflow.verification import demand_parity, verify_pair

if TYPE_CHECKING:
    from oml_mlflow.targets.base import Session


@contextlib.contextmanager
def checked_files(version: ModelVersion) -> Iterator[Path]:
    """Give a folder with a version's files for a while, whose bytes are those that were logged.

    Raises:
        RegistryError: If the files can't be had.
        PackageError: If the bytes of a file are others than the registry says, or, for a version
            without a manifest, than its MLmodel file says; twice if they were downloaded.
    """

    def check(folder: Path) -> None:
        check_files(folder, logged_tags(version), without=UNUSED)
        for profile in read_package(folder).stored_profiles:
            package = read_package(folder, profile)
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


def plan_candidate(
    session: Session, database: Target, observed: Observed, candidate: Candidate, adopt: bool
) -> Plan:
    """Return what making a pair live would do, its geometry judged. Read-only."""
    entry = LedgerEntry(
        name=observed.name,
        generation=0,
        registered_model=candidate.registered_model,
        version=candidate.version,
        run_id=candidate.run_id,
        fingerprints=candidate.fingerprints,
        dims=candidate.dims,
        verification=VERIFIED if candidate.references else UNVERIFIED,
        profile=candidate.profile,
        promoted_by=this_process(),
        registry=candidate.registry,
    )
    uploads = {side: candidate.to_model(side, "") for side in SIDES}
    planned = plan_promotion(
        observed,
        entry,
        uploads,
        keep=database.keep,
        adopt=adopt,
        target=database.uri,
        title=candidate.title,
    )
    return with_geometry(session, planned, candidate, database)


def refuse_unverifiable(candidate: Candidate, unverified: bool) -> None:
    """Raise ApplyError for a pair that can't be compared with anything, unless that is accepted."""
    if candidate.references is None and not unverified:
        reason = not_run_reason(candidate.unknown_operators)
        raise ApplyError(
            f"{candidate.title} can't be compared with anything: {reason}. Nothing was "
            "loaded; the live pair is as it was.",
            hint="promote it with --unverified (unverified=True) if you trust the files.",
            details={"unknown_operators": candidate.unknown_operators},
        )


def demand_vectors(
    session: Session,
    database: Target,
    candidate: Candidate,
    where: str,
    on_event: Listener,
    names: Mapping[str, str],
) -> ParityReport:
    """Return the comparison, or raise ParityError if it is not within limits."""
    if candidate.references is None:
        return ParityReport(f"Not compared: {not_run_reason(candidate.unknown_operators)}")
    report = verify_candidate(session, database, candidate, names, on_event)
    demand_parity(report, candidate.title, where)
    return report


def verify_candidate(
    session: Session,
    database: Target,
    candidate: Candidate,
    names: Mapping[str, str],
    on_event: Listener,
) -> ParityReport:
    """Return the comparison of models in a database with a pair's references. Read-only."""
    assert candidate.references is not None  # noqa: S101 -- callers see to it
    return verify_pair(
        session,
        database,
        names,
        candidate.probes,
        candidate.references.vectors,
        metadata=candidate.metadata,
        profile=get_profile(candidate.profile),
        on_event=on_event,
    )
