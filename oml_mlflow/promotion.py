"""Promotion: load into slots, embed the golden probes there, compare, swap, record."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.errors import ApplyError, OmlMlflowError, ParityError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.names import IMG, SIDES, TXT, check_export_name, model_name, slot_name
from oml_mlflow.package import PackagedPair, read_package
from oml_mlflow.pair import PipelinePair
from oml_mlflow.precision import read_precisions, runtime_limit
from oml_mlflow.probes import (
    ParityReport,
    Probe,
    References,
    by_side,
    compare,
    embed_probes,
    golden_probes,
    limits_by_side,
)
from oml_mlflow.registry import ModelVersion, fetch_version, get_version, tag_version
from oml_mlflow.runtime import Ends, not_run_reason, runtime_versions
from oml_mlflow.targets import Target, open_target
from oml_mlflow.targets.base import UNVERIFIED, VERIFIED, LedgerEntry, LoadedModel, Session

VERIFICATION_TAG = "oml.verification"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A pair that is to become live, what it is measured by, and where it comes from.

    Attributes:
        title: What an error calls it.
        paths: ONNX files by side.
        fingerprints: Their sha256 by side.
        dims: Length of the embeddings.
        metadata: Template metadata.
        probes: Golden probes.
        references: Vectors that the database must give for them; None if no runtime here could
            run the pair.
        ends: Names of input and output by side.
        unknown_operators: Operators that no runtime here has, by side.
        registered_model: Name in the registry; empty if it was never registered.
        version: Version in the registry; empty likewise.
        run_id: MLflow run that logged it, if any.
    """

    title: str
    paths: dict[str, Path]
    fingerprints: dict[str, str]
    dims: int
    metadata: dict[str, Any]
    probes: tuple[Probe, ...]
    references: References | None
    ends: dict[str, Ends]
    unknown_operators: dict[str, tuple[str, ...]]
    registered_model: str = ""
    version: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Promotion:
    """What a promotion did.

    Attributes:
        entry: The ledger entry that is live now.
        report: Vectors of the database against the version's references; no rows if unverified.
        changed: False if that version was live already; then nothing was written.
    """

    entry: LedgerEntry
    report: ParityReport
    changed: bool


def promote(
    model_uri: str,
    target: Target | str,
    name: str | None = None,
    *,
    unverified: bool = False,
    on_event: Listener = silent,
) -> Promotion:
    """Make a version the live pair of an export name in a database, if it proves right there.

    The pair is loaded under slot names, the version's golden probes are embedded by the database
    in SQL, and their vectors are compared with the version's own. Only then the live names are
    swapped. The pair that was live before stays loaded under its slot names.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: A target or its URI.
        name: Export name in the database; the registered model's name by default.
        unverified: Promote a pair too that no runtime here could run, so that nothing can be
            compared; ledger and version then say ``unverified``. Others are compared all the same.
        on_event: Told of progress.

    Returns:
        What is live now, and the comparison. Promoting what is live already writes nothing, but
        compares again.

    Raises:
        RegistryError: If the version is not there.
        PackageError: If its bytes are not those that were logged.
        InvalidName: If the name can't be that of an in-database model.
        TargetLocked: If another process holds the database for too long.
        ParityError: If a vector is not what it should be; the live pair is as it was.
        ApplyError: If a step fails, or the pair can't be compared and `unverified` is not given;
            the live pair is as it was.

    Side effects: Writes models and a ledger row to the target; commits. Tags the version if it is
    unverified.
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name)
    package = read_package(fetch_version(version))
    package.check_fingerprints()
    _refuse_unverifiable(package, version, unverified)
    database = open_target(target) if isinstance(target, str) else target
    done = make_live(_registered(package, version), database, export_name, on_event=on_event)
    if done.entry.verification == UNVERIFIED:
        tag_version(version, VERIFICATION_TAG, UNVERIFIED)
    return done


def make_live(
    candidate: Candidate, database: Target, export_name: str, *, on_event: Listener = silent
) -> Promotion:
    """Make a pair the live one of an export name, if it proves right in the database.

    Args:
        candidate: The pair.
        database: Where to.
        export_name: Name there.
        on_event: Told of progress.

    Returns:
        What is live now. If the candidate was live already, nothing is written.

    Raises:
        InvalidName, TargetLocked, ParityError, ApplyError: See `promote`.

    Side effects: Writes models and a ledger row to the target; commits.
    """
    export_name = check_export_name(export_name).upper()
    with database.session(f"the promotion of {candidate.title}") as session:
        live = _live(session, export_name)
        if live is not None and _is_live(session, live, candidate):
            where = f"which is live as {export_name}"
            report = _demand(session, candidate, live_names(export_name), where, on_event)
            return Promotion(live, report, changed=False)
        entry = _next_entry(export_name, live, candidate)
        slots = {side: slot_name(export_name, side, entry.generation) for side in SIDES}
        try:
            _load(session, candidate, slots, on_event)
            report = _demand(session, candidate, slots, f"in {database.uri}", on_event)
            entry = _with_parity(entry, report)
            session.swap(entry)
        except BaseException as error:
            _drop_slots(session, slots)
            if isinstance(error, OmlMlflowError) or not isinstance(error, Exception):
                raise
            raise ApplyError(
                f"{candidate.title} could not be promoted into {database.uri}: {error}. "
                "The live pair is as it was.",
                hint="promote again; `oml-mlflow status` shows what is live.",
            ) from error
        _clean(session, export_name, entry.generation)
        recorded = session.ledger(export_name)[-1]
    return Promotion(recorded, report, changed=True)


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
    package = read_package(fetch_version(version))
    database = open_target(target) if isinstance(target, str) else target
    with database.session(f"the verification of {export_name}", create=False) as session:
        candidate, names = _registered(package, version), live_names(export_name)
        return _verify(session, candidate, package.references(), names, on_event)


def unregistered(pair: PipelinePair, model_name: str, on_event: Listener = silent) -> Candidate:
    """Return a pair that is in no registry; its vectors in this process are the references."""
    probes = golden_probes()
    vectors = embed_probes(pair.embedder(), probes, on_event, "pair")
    return Candidate(
        title=f"the pair of {model_name}",
        paths={side: pair.path(side) for side in SIDES},
        fingerprints=pair.fingerprints,
        dims=pair.dims,
        metadata=pair.metadata,
        probes=probes,
        references=References(vectors, runtime_versions()),
        ends=pair.ends,
        unknown_operators=pair.unknown_operators,
    )


def live_names(export_name: str) -> dict[str, str]:
    """Return the in-database names of a live pair, by side."""
    return {side: model_name(export_name, side) for side in SIDES}


def _registered(package: PackagedPair, version: ModelVersion) -> Candidate:
    return Candidate(
        title=version.uri,
        paths=package.paths,
        fingerprints=package.fingerprints,
        dims=package.dims,
        metadata=package.metadata,
        probes=package.probes(),
        references=None if package.unverifiable else package.references(),
        ends=package.ends,
        unknown_operators=package.unknown_operators,
        registered_model=version.name,
        version=version.version,
        run_id=version.run_id,
    )


def _live(session: Session, export_name: str) -> LedgerEntry | None:
    entries = session.ledger(export_name)
    return entries[-1] if entries else None


def _is_live(session: Session, live: LedgerEntry, candidate: Candidate) -> bool:
    loaded = {model.name: model.fingerprint for model in session.list_models()}
    wanted = {name: candidate.fingerprints[side] for side, name in live_names(live.name).items()}
    origin = (candidate.registered_model, candidate.version)
    return (live.registered_model, live.version) == origin and wanted.items() <= loaded.items()


def _next_entry(export_name: str, live: LedgerEntry | None, candidate: Candidate) -> LedgerEntry:
    return LedgerEntry(
        name=export_name,
        generation=live.generation + 1 if live else 1,
        registered_model=candidate.registered_model,
        version=candidate.version,
        run_id=candidate.run_id,
        fingerprints=candidate.fingerprints,
        dims=candidate.dims,
        verification=VERIFIED if candidate.references else UNVERIFIED,
    )


def _refuse_unverifiable(package: PackagedPair, version: ModelVersion, unverified: bool) -> None:
    if package.unverifiable and not unverified:
        raise ApplyError(
            f"{version.uri} can't be compared with anything: {package.unverifiable}. Nothing was "
            "loaded; the live pair is as it was.",
            hint="promote it with --unverified (unverified=True) if you trust the files.",
            details={"unknown_operators": package.unknown_operators},
        )


def _with_parity(entry: LedgerEntry, report: ParityReport) -> LedgerEntry:
    if entry.verification == UNVERIFIED:
        return entry
    parity = {"max_abs": report.max_abs(), "min_cosine": report.min_cosine()}
    return replace(entry, parity=parity)


def _load(
    session: Session, candidate: Candidate, slots: dict[str, str], on_event: Listener
) -> None:
    origin = {
        "registered_model": candidate.registered_model,
        "version": candidate.version,
        "run_id": candidate.run_id,
    }
    for side, slot in slots.items():
        outside = {
            "ends": vars(candidate.ends[side]),
            "unknown_operators": list(candidate.unknown_operators.get(side, ())),
        }
        model = LoadedModel(
            name=slot,
            side=side,
            fingerprint=candidate.fingerprints[side],
            dims=candidate.dims,
            size_bytes=candidate.paths[side].stat().st_size,
            metadata={**candidate.metadata, **origin, **outside},
            loaded_at=datetime.now(timezone.utc),
        )
        session.load(model, candidate.paths[side], on_event)


class _InDatabase:
    """A pair in a database, as something that embeds."""

    def __init__(self, session: Session, names: dict[str, str]) -> None:
        self._session, self._names = session, names

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        return self._session.embed(self._names[IMG], IMG, pictures)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._session.embed(self._names[TXT], TXT, texts)


def _demand(
    session: Session, candidate: Candidate, names: dict[str, str], where: str, on_event: Listener
) -> ParityReport:
    """Return the comparison, or raise ParityError if it is not within limits."""
    if candidate.references is None:
        return ParityReport(f"Not compared: {not_run_reason(candidate.unknown_operators)}")
    report = _verify(session, candidate, candidate.references, names, on_event)
    _raise_if_wrong(report, candidate, where)
    return report


def _verify(
    session: Session,
    candidate: Candidate,
    references: References,
    names: dict[str, str],
    on_event: Listener,
) -> ParityReport:
    """Embed the golden probes in the database, one at a time; one that raises has no vector."""
    probes = candidate.probes
    embedder = _InDatabase(session, names)
    vectors: dict[str, np.ndarray] = {}
    failures: list[tuple[Probe, OmlMlflowError]] = []
    for side in SIDES:
        for done, probe in enumerate(side_probes := by_side(probes, side), 1):
            try:
                vectors[probe.id] = _embed_one(embedder, probe)
            except OmlMlflowError as error:
                _log.warning("probe %s failed in the database: %s", probe.id, error)
                failures.append((probe, error))
            on_event(Event("verify", names[side], done, len(side_probes), "probes"))
    if failures and not vectors:
        raise failures[0][1]
    precisions = read_precisions(candidate.metadata)
    limits = {side: runtime_limit(precisions[side], candidate.dims) for side in SIDES}
    return compare(
        "Database against the pair's references",
        probes,
        vectors,
        references.vectors,
        limits_by_side(probes, limits),
    )


def _embed_one(embedder: _InDatabase, probe: Probe) -> np.ndarray:
    if isinstance(probe.value, bytes):
        rows = embedder.embed_image([probe.value])
    else:
        rows = embedder.embed_text([probe.value])
    vector: np.ndarray = rows[0]
    return vector


def _raise_if_wrong(report: ParityReport, candidate: Candidate, where: str) -> None:
    if report.ok:
        return
    worst = report.worst
    wrong = sum(not row.ok for row in report.rows)
    raise ParityError(
        f"{candidate.title}, {where}: {wrong} of {len(report.rows)} probes differ from its "
        "references, worst "
        f"{worst.probe.id} ({worst.probe.category}) with max abs {worst.max_abs:.1e} "
        f"{worst.error}, limit {worst.limit:.0e}. The live pair is as it was.",
        hint="run `oml-mlflow verify` for the whole table."
        if candidate.registered_model
        else "the error's details hold the whole table.",
        details={"rows": report.to_rows()},
    )


def _drop_slots(session: Session, slots: dict[str, str]) -> None:
    try:
        session.drop(list(slots.values()))
    except Exception:  # the first error is the one to see
        _log.warning("slots %s could not be dropped", ", ".join(slots.values()), exc_info=True)


def _clean(session: Session, export_name: str, generation: int) -> None:
    """Drop slots of generations before the previous one; the ledger still names them."""
    kept = {
        slot_name(export_name, side, number)
        for side in SIDES
        for number in (generation, generation - 1)
    }
    prefixes = tuple(f"{model_name(export_name, side)}_S" for side in SIDES)
    old = [
        model.name
        for model in session.list_models()
        if model.name.startswith(prefixes)
        and model.name not in kept
        and model.name.rpartition("_S")[2].isdigit()
    ]
    if old:
        session.drop(old)
