"""Examination: what a promotion would do, whether a database is fit, and whether it is right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from oml_mlflow.apply import describe_pending, describe_rewritten, observe
from oml_mlflow.candidate import registered
from oml_mlflow.choice import ask, pair_needs
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import check_export_name, live_names
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.checks import Preflight
from oml_mlflow.planning.observed import healed
from oml_mlflow.planning.plan import Plan
from oml_mlflow.preflight import preflight
from oml_mlflow.proposal import checked_files, choose_candidate, plan_candidate, verify_candidate
from oml_mlflow.registry import get_version, identified, is_anchored
from oml_mlflow.targets import Target, open_target

if TYPE_CHECKING:
    from oml_mlflow.planning.capabilities import CapabilityTable


def plan(
    model_uri: str,
    target: Target | str,
    name: str | None = None,
    *,
    adopt: bool = False,
    on_event: Listener = silent,
) -> Plan:
    """Return what `promote` would do. Read-only: the database is not even asked what it can run.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target or its URI.
        name: Export name in the database; the registered model's name by default.
        adopt: See `promote`.
        on_event: Told of progress.

    Raises:
        RegistryError, PackageError, InvalidName, ForeignModel, CapabilityMissing: See `promote`.
    """
    version = identified(get_version(model_uri))
    export_name = check_export_name(name or version.name).upper()
    database = open_target(target) if isinstance(target, str) else target
    with (
        checked_files(version) as folder,
        database.session(f"plan {export_name}", create=False, missing_ok=True) as session,
    ):
        candidate = choose_candidate(folder, version, database, False, on_event, session)
        found = observe(session, export_name)
        ours = candidate.fingerprints.values()
        seen = healed(found).rewritten(ours)
        planned = plan_candidate(session, database, seen, candidate, adopt)
        pending = [describe_pending(found.state), describe_rewritten(found.damaged(ours))]
        return replace(
            planned,
            pending="; ".join(filter(None, pending)),
            paths=candidate.paths,
            anchored=is_anchored(version),
        )


def examine(
    model_uri: str,
    target: Target | str,
    name: str | None = None,
    *,
    adopt: bool = False,
    probe: bool = False,
    on_event: Listener = silent,
) -> tuple[Preflight, CapabilityTable | None]:
    """Return every check that comes before a promotion, and what the database is known to take.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target or its URI.
        name: Export name in the database; the registered model's name by default.
        adopt: See `promote`.
        probe: Ask the database what it can run. Writes scratch models, drops them again, and keeps
            the answers; commits. Otherwise read-only.
        on_event: Told of progress.

    Raises:
        RegistryError, PackageError, InvalidName, CapabilityMissing: See `promote`.
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    database = open_target(target) if isinstance(target, str) else target
    writes, purpose = probe and database.is_probed, f"preflight {export_name}"
    with (
        checked_files(version) as folder,
        database.session(purpose, create=writes, missing_ok=True) as session,
    ):
        stored = [read_package(folder, p) for p in read_package(folder).stored_profiles]
        if writes:
            ask(session, [pair_needs(package.paths) for package in stored], on_event, again=True)
        candidate = choose_candidate(folder, version, database, False, on_event, session)
        report = preflight(
            session,
            database,
            export_name,
            candidate.paths,
            get_profile(candidate.profile),
            adopt=adopt,
        )
        return report, session.capabilities()


def verify(
    model_uri: str, target: Target | str, name: str | None = None, *, on_event: Listener = silent
) -> ParityReport:
    """Compare the live pair of an export name with a version's references. Read-only.

    Args:
        model_uri: Version whose references are the measure.
        target: A target or its URI.
        name: Export name in the database; the registered model's name by default.
        on_event: Told of progress.

    Returns:
        The comparison; nothing is raised for a difference.

    Raises:
        RegistryError, PackageError: See `promote`.
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    database = open_target(target) if isinstance(target, str) else target
    with (
        checked_files(version) as folder,
        database.session(f"verify {export_name}", create=False) as session,
    ):
        live = observe(session, export_name).live
        stored = read_package(folder).stored_profiles
        ranked = database.rank_profiles(list(stored), session.version)
        profile = live.profile if live and live.profile in stored else ranked[0] if ranked else None
        candidate = registered(read_package(folder, profile), version)
        if candidate.references is None:
            read_package(folder, profile).references()
        return verify_candidate(session, database, candidate, live_names(export_name), on_event)
