"""Promotion: make a version live in a database, if it proves right there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from oml_mlflow.apply import Promotion, carry_out, describe_pending, heal, observe
from oml_mlflow.candidate import Candidate, registered, unregistered
from oml_mlflow.choice import ask, pair_needs
from oml_mlflow.events import Listener, silent
from oml_mlflow.geometry_guard import demand_geometry, keep_vectors
from oml_mlflow.ledger import UNVERIFIED
from oml_mlflow.names import check_export_name
from oml_mlflow.observed import healed
from oml_mlflow.package import read_package
from oml_mlflow.plan import Plan
from oml_mlflow.preflight import Preflight, preflight
from oml_mlflow.probes import ParityReport
from oml_mlflow.profiles import get_profile
from oml_mlflow.proposal import (
    choose_candidate,
    demand_vectors,
    fetch_checked,
    live_names,
    plan_candidate,
    refuse_unverifiable,
    verify_candidate,
)
from oml_mlflow.registry import ModelVersion, fetch_version, get_version, tag_version
from oml_mlflow.targets import Target, open_target

if TYPE_CHECKING:
    from oml_mlflow.capability import CapabilityTable
    from oml_mlflow.targets.base import Session

__all__ = [
    "Candidate",
    "Promotion",
    "examine",
    "live_names",
    "make_live",
    "plan",
    "promote",
    "unregistered",
    "verify",
]

VERIFICATION_TAG = "oml.verification"
_Choose = Callable[["Session"], Candidate]


def promote(
    model_uri: str,
    target: Target | str,
    name: str | None = None,
    *,
    unverified: bool = False,
    adopt: bool = False,
    accept_new_geometry: bool = False,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version the live pair of an export name in a database, if it proves right there.

    What an earlier run left is finished or undone first. Then the database is asked what it can
    run, the fitting pair is loaded under slot names, the version's golden probes are embedded by
    the database in SQL, and their vectors are compared with the version's own. Only then the live
    names are swapped. The pair that was live before stays loaded under its slot names.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target or its URI.
        name: Export name in the database; the registered model's name by default.
        unverified: Promote a pair too that no runtime here could run, so that nothing can be
            compared; ledger and version then say ``unverified``. Others are compared all the same.
        adopt: Take over models of others under the live names; they are kept, and never dropped.
        accept_new_geometry: Promote a version too whose vectors can't be compared with those that
            were stored from the live one.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. Promoting what is live already writes nothing, but
        compares again.

    Raises:
        RegistryError: If the version is not there.
        PackageError: If its bytes are not those that were logged.
        InvalidName: If the name can't be that of an in-database model.
        TargetLocked: If another process holds the database or the name for too long.
        PreflightError: If a check failed, or the database can't run any of the version's pairs;
            nothing was loaded. `PrivilegeError`, `QuotaExceeded` and others likewise.
        ForeignModel: If a live name is taken by a model of others; nothing was loaded.
        GeometryChanged: If stored vectors would become worthless; nothing was loaded.
        ParityError: If a vector is not what it should be; the live pair is as it was.
        ApplyError: If a step fails, or the pair can't be compared and `unverified` is not given;
            the message says what state was left.

    Side effects: Writes models and a ledger row to the target; commits. Tags the version if it is
    unverified.
    """
    version, export_name, folder = _fetch(model_uri, name)
    refuse_unverifiable(registered(read_package(folder), version), unverified)
    database = open_target(target) if isinstance(target, str) else target
    choose = partial(choose_candidate, folder, version, database, True, on_event)
    done = _make_live(
        choose,
        version.uri,
        database,
        export_name,
        adopt=adopt,
        accept_new_geometry=accept_new_geometry,
        on_event=on_event,
    )
    if done.entry.verification == UNVERIFIED:
        tag_version(version, VERIFICATION_TAG, UNVERIFIED)
    return done


def make_live(
    candidate: Candidate,
    database: Target,
    export_name: str,
    *,
    adopt: bool = False,
    accept_new_geometry: bool = False,
    on_event: Listener = silent,
) -> Promotion:
    """Make a pair the live one of an export name, if it proves right in the database.

    Args:
        candidate: The pair.
        database: Where to.
        export_name: Name there.
        adopt: See `promote`.
        accept_new_geometry: See `promote`.
        on_event: Told of progress.

    Returns:
        What is live now. If the candidate was live already, nothing is written.

    Raises:
        InvalidName, TargetLocked, PreflightError, ForeignModel, GeometryChanged, ParityError,
        ApplyError: See `promote`.

    Side effects: Writes models and a ledger row to the target; commits.
    """

    def choose(session: Session) -> Candidate:
        if database.is_probed:
            ask(session, [pair_needs(candidate.paths)], on_event)
        return candidate

    return _make_live(
        choose,
        candidate.title,
        database,
        check_export_name(export_name).upper(),
        adopt=adopt,
        accept_new_geometry=accept_new_geometry,
        on_event=on_event,
    )


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
    version, export_name, folder = _fetch(model_uri, name)
    database = open_target(target) if isinstance(target, str) else target
    with database.session(f"plan {export_name}", create=False, missing_ok=True) as session:
        candidate = choose_candidate(folder, version, database, False, on_event, session)
        found = observe(session, export_name)
        planned = plan_candidate(session, database, healed(found), candidate, adopt)
        pending = describe_pending(found.state)
        return replace(planned, pending=pending, paths=candidate.paths)


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
    version, export_name, folder = _fetch(model_uri, name)
    database = open_target(target) if isinstance(target, str) else target
    writes, purpose = probe and database.is_probed, f"preflight {export_name}"
    with database.session(purpose, create=writes, missing_ok=True) as session:
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
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    folder = fetch_version(version)
    database = open_target(target) if isinstance(target, str) else target
    with database.session(f"verify {export_name}", create=False) as session:
        live = observe(session, export_name).live
        stored = read_package(folder).stored_profiles
        ranked = database.rank_profiles(list(stored), session.version)
        profile = live.profile if live and live.profile in stored else ranked[0] if ranked else None
        candidate = registered(read_package(folder, profile), version)
        if candidate.references is None:
            read_package(folder, profile).references()
        return verify_candidate(session, database, candidate, live_names(export_name), on_event)


def _fetch(model_uri: str, name: str | None) -> tuple[ModelVersion, str, Path]:
    """Return a version, the export name for it, and a folder with its files, checked."""
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    return version, export_name, fetch_checked(version)


def _make_live(
    choose: _Choose,
    title: str,
    database: Target,
    export_name: str,
    *,
    adopt: bool,
    accept_new_geometry: bool,
    on_event: Listener,
) -> Promotion:
    purpose = f"promote {title}"
    with contextlib.ExitStack() as held:
        session = held.enter_context(database.session(purpose))
        # before anything is written, our tables too: what is missing is told with its GRANT
        early = Preflight(f"{export_name} in {database.uri}", tuple(session.checks(0)))
        early.demand()
        held.enter_context(session.lock(export_name, purpose))
        mended = heal(session, export_name)
        candidate = choose(session)
        planned = plan_candidate(session, database, observe(session, export_name), candidate, adopt)
        live = planned.observed.live
        if planned.work is None and live is not None:
            report = demand_vectors(
                session,
                database,
                candidate,
                f"which is live as {export_name}",
                on_event,
                live_names(export_name),
            )
            return Promotion(live, report, changed=False, healed=mended)
        preflight(
            session,
            database,
            export_name,
            candidate.paths,
            get_profile(candidate.profile),
            adopt=adopt,
        ).demand()
        demand_geometry(planned, database, accept_new_geometry)
        keep_vectors(session, planned, candidate)
        check = partial(
            demand_vectors, session, database, candidate, f"in {database.uri}", on_event
        )
        report, swap_s = carry_out(session, database, planned, candidate.paths, check, on_event)
        recorded = session.ledger(export_name)[-1]
    return Promotion(recorded, report, changed=True, healed=mended, swap_s=swap_s)
