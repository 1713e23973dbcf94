"""Verification: a database's vectors and stored bytes against a version's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oml_mlflow.errors import (
    ApplyError,
    ModelTooSlow,
    OmlMlflowError,
    ParityError,
    TargetUnreachable,
)
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.files import fingerprint_file
from oml_mlflow.flavor.manifest import check_manifest
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.precision import read_precisions
from oml_mlflow.graph.profiles import Profile, get_profile
from oml_mlflow.names import SIDES, check_export_name, live_names
from oml_mlflow.parity.advice import next_steps
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.policy import FAILED, OK
from oml_mlflow.parity.probes import Probe, by_side, unsafe_reason
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.promotion.candidate import Candidate, checked_files, registered
from oml_mlflow.promotion.run import observe
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.registry.versions import MANIFEST_TAG, UNUSED, get_version, local_files, logged_tags

_WHERE_IT_IS = "The whole table is in the error's details; promote with --html FILE writes it."

_log = logging.getLogger(__name__)


def verify_pair(
    session: Session,
    target: Target,
    names: Mapping[str, str],
    probes: Sequence[Probe],
    references: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, object],
    profile: Profile,
    on_event: Listener = silent,
) -> ParityReport:
    """Embed golden probes in a database, one at a time, and compare them. Read-only.

    Args:
        session: The database.
        target: Says which probes can be sent, and how close vectors must be.
        names: In-database names of the pair, by side.
        probes: What to embed; one that raises counts as failed.
        references: Expected vectors by probe id.
        metadata: Template metadata of the pair, for its precision.
        profile: Profile of the pair.
        on_event: Told of progress.

    Raises:
        TargetUnreachable: If the connection is lost, which says nothing about vectors.
        ModelTooSlow: At the first probe that takes too long; the others would take as long.
        TargetError: If no probe at all could be embedded.
    """
    vectors: dict[str, np.ndarray] = {}
    skipped = {p.id: unsafe_reason(p) or target.skip_reason(p, profile) for p in probes}
    failures: dict[str, OmlMlflowError] = {}
    for side in SIDES:
        sent = [probe for probe in by_side(probes, side) if not skipped[probe.id]]
        for done, probe in enumerate(sent, 1):
            # one at a time, so that a refused probe costs no other its vector
            try:
                vectors[probe.id] = session.models.embed(names[side], side, [probe.value])[0]
            except (TargetUnreachable, ModelTooSlow):
                raise
            except OmlMlflowError as error:
                _log.warning("probe %s failed in the database: %s", probe.id, error)
                failures[probe.id] = error
            on_event(Event("verify", names[side], done, len(sent), "probes"))
    if failures and not vectors:
        raise next(iter(failures.values()))
    dims = next((len(vector) for vector in references.values()), 1)
    precisions = read_precisions(metadata)
    limits = {side: target.policy.limits(precisions[side], dims) for side in SIDES}
    return compare(
        "Database against the pair's references",
        probes,
        vectors,
        references,
        {probe.category: limits[probe.side] for probe in probes},
        policy=target.policy,
        skipped=skipped,
        errors={key: _refusal(error) for key, error in failures.items()},
    )


def demand_parity(report: ParityReport, title: str, where: str) -> None:
    """Raise ParityError, with the report in its details, if a class that must be right is not."""
    if report.ok:
        return
    worst = report.worst
    wrong = sum(not row.ok for row in report.rows)
    classes = {
        state: ", ".join(c.category for c in report.by_class() if c.state == state)
        for state in (FAILED, OK)
    }
    off = worst.error.rstrip(".") or f"max abs {worst.max_abs:.1e}, limit {worst.limit:.0e}"
    raise ParityError(
        f"{title}, {where}: {wrong} of {len(report.rows)} probes differ from its references, worst "
        f"{worst.probe.id} ({worst.probe.category}): {off}. Classes that failed: "
        f"{classes[FAILED] or 'none'}; right: {classes[OK] or 'none'}. The live pair is as it was.",
        hint=" ".join([*next_steps(report), _WHERE_IT_IS]),
        details={"report": report, "rows": report.to_rows()},
    )


def _refusal(error: OmlMlflowError) -> str:
    """Return why a database refused a probe, in its own words if it gave any."""
    if error.__cause__ is None:
        return error.message
    lines = str(error.__cause__).splitlines()
    return " ".join(line for line in lines if not line.startswith("Help: ")) or error.message


@dataclass(frozen=True)
class Trace:
    """The fingerprint of one pipeline's bytes in one place.

    Attributes:
        side: ``img`` or ``txt``.
        place: Where the bytes are.
        sha256: Computed from them.
        ok: Whether it is what the version's MLmodel says.
    """

    side: str
    place: str
    sha256: str
    ok: bool


def trace_bytes(
    model_uri: str, target: Target, name: str | None = None, files: Sequence[Path] = ()
) -> list[Trace]:
    """Return fingerprints of a version's bytes in every place, computed anew. Read-only.

    Args:
        model_uri: Version whose MLmodel says what the fingerprints should be.
        target: Database that holds it.
        name: Export name there; the registered model's name by default.
        files: Exported files to include; their names end in ``_img.onnx`` or ``_txt.onnx``.

    Raises:
        PackageError: If the version's files are not those that were logged.
    """
    version = get_version(model_uri)
    names = live_names(check_export_name(name or version.name))
    found: list[tuple[str, str, str]] = []
    for path in files:
        side = next((s for s in SIDES if path.stem.endswith(s)), SIDES[0])
        found.append((side, f"file {path.name}", fingerprint_file(path)))
    with local_files(version) as folder, target.session("fingerprints", create=False) as session:
        manifest = logged_tags(version).get(MANIFEST_TAG)
        if manifest is not None:
            check_manifest(folder, manifest, UNUSED)
        package = read_package(folder)
        for side in SIDES:
            path = package.paths[side]
            place = f"artifact {version.uri} {path.relative_to(package.folder)}"
            # the manifest check has just hashed the file
            sha256 = fingerprint_file(path) if manifest is None else package.fingerprints[side]
            found.append((side, place, sha256))
            place = f"database {target.uri} {names[side]}"
            found.append((side, place, session.models.fingerprint(names[side])))
    return [
        Trace(side, place, sha256, sha256 == package.fingerprints[side])
        for side, place, sha256 in sorted(found)
    ]


def verify(
    model_uri: str, target: Target, name: str | None = None, *, on_event: Listener = silent
) -> ParityReport:
    """Compare the live pair of an export name with a version's references. Read-only.

    Args:
        model_uri: Version whose references are the measure.
        target: The database.
        name: Export name in the database; the registered model's name by default.
        on_event: Told of progress.

    Returns:
        The comparison; nothing is raised for a difference.

    Raises:
        RegistryError, PackageError: See `promote`.
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    with (
        checked_files(version) as folder,
        target.session(f"verify {export_name}", create=False) as session,
    ):
        live = observe(session, export_name).live
        stored = read_package(folder).stored_profiles
        ranked = target.rank_profiles(list(stored), session.version)
        profile = live.profile if live and live.profile in stored else ranked[0] if ranked else None
        candidate = registered(read_package(folder, profile), version)
        if candidate.references is None:
            read_package(folder, profile).references()
        return verify_candidate(session, target, candidate, live_names(export_name), on_event)


def refuse_unverifiable(candidate: Candidate, unverified: bool) -> None:
    """Raise ApplyError for a pair without references, unless that is accepted."""
    if candidate.references is None and not unverified:
        reason = candidate.pair.unverifiable
        raise ApplyError(
            f"{candidate.title} can't be compared with anything: {reason}. Nothing was "
            "loaded; the live pair is as it was.",
            hint="promote it with --unverified (unverified=True) if you trust the files.",
            details={"unknown_operators": candidate.pair.unknown_operators},
        )


def demand_vectors(
    session: Session,
    database: Target,
    candidate: Candidate,
    where: str,
    on_event: Listener,
    names: Mapping[str, str],
) -> ParityReport:
    """Return the comparison; raise ParityError if it is not within limits."""
    if candidate.references is None:
        return ParityReport(f"Not compared: {candidate.pair.unverifiable}")
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
    assert candidate.references is not None  # noqa: S101 -- callers check it
    return verify_pair(
        session,
        database,
        names,
        candidate.probes,
        candidate.references.vectors,
        metadata=candidate.pair.metadata,
        profile=get_profile(candidate.pair.profile),
        on_event=on_event,
    )
