"""Preflight: checks before anything is loaded, each with its remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oml_mlflow.errors import InvalidName
from oml_mlflow.events import Listener, silent
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.finding import Finding
from oml_mlflow.graph.needs import Capability, needs
from oml_mlflow.graph.profiles import Profile, get_profile
from oml_mlflow.names import SIDES, check_export_name, model_name, slot_name
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import FAILED, NOT_RUN, OK, SKIPPED, Check, Preflight
from oml_mlflow.planning.records import ADOPT, LOADING, WHOLE, LoadedModel
from oml_mlflow.promotion.candidate import checked_files, choose_candidate
from oml_mlflow.promotion.capabilities import ask, next_command, pair_needs
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.registry.versions import get_version

_MIB = 2**20


def preflight(
    session: Session,
    target: Target,
    export_name: str,
    package_paths: Mapping[str, Path],
    profile: Profile,
    *,
    adopt: bool = False,
    capabilities: CapabilityTable | None = None,
) -> Preflight:
    """Return every check of a database before a pair is promoted into it. Read-only.

    Args:
        session: The database, held open.
        target: The same database, for what it takes.
        export_name: Name of the pair there.
        package_paths: The pair's files by side.
        profile: Profile they were made for.
        adopt: Whether foreign models under the live names may be adopted.
        capabilities: Answers to capability probes; the kept ones by default.

    Raises:
        TargetError: If the database can't be read.
    """
    title = f"{export_name.upper()} in {target.uri}"
    names = _check_names(export_name)
    if names.state == FAILED:
        return Preflight(title, (names,))
    rows = [names, _check_models(session, export_name, adopt), _check_journal(session, export_name)]
    rows += [_check_file(side, package_paths[side], profile, target) for side in SIDES]
    rows.append(_check_capabilities(session, target, package_paths, capabilities))
    rows += session.checks(sum(path.stat().st_size for path in package_paths.values()))
    return Preflight(title, tuple(rows))


def _check_names(export_name: str) -> Check:
    """Check that both pipelines and all their slots can be in-database models.

    A reserved word can't occur: none of Oracle's ends in ``_IMG`` or ``_TXT``, as every name does
    here, or in ``_S`` and a number, as slots do. Source: "Oracle SQL Reserved Words", SQL Language
    Reference.
    """
    try:
        check_export_name(export_name)
    except InvalidName as error:
        return Check("names", FAILED, error.message, error.hint, InvalidName.code)
    longest = max((slot_name(export_name, side, 999_999) for side in SIDES), key=len)
    live = " and ".join(model_name(export_name, side) for side in SIDES)
    return Check(
        "names",
        OK,
        f"{live} are legal, and no reserved words; slots have at most {len(longest)} characters",
    )


def _check_models(session: Session, export_name: str, adopt: bool) -> Check:
    """Check who made the models that have the live names."""
    models = {model.name: model for model in session.models.list()}
    names = [model_name(export_name, side) for side in SIDES]
    found = [models[name] for name in names if name in models]
    ledger = session.journal.ledger(export_name.upper())
    is_adopted = bool(ledger) and ledger[-1].action == ADOPT
    foreign = [model for model in found if model.foreign and not is_adopted]
    if foreign and not adopt:
        return Check(
            "existing models",
            FAILED,
            f"not loaded by this package: {'; '.join(_described(m) for m in foreign)}",
            "choose another name (--name), or take them over with --adopt: they are kept, and "
            "never dropped.",
            "model-foreign",
        )
    if foreign:
        shown = "; ".join(_described(model) for model in foreign)
        return Check("existing models", OK, f"to be adopted, and kept: {shown}")
    if not found:
        return Check("existing models", OK, f"none of {' and '.join(names)} is there yet")
    return Check("existing models", OK, f"to be replaced: {'; '.join(map(_described, found))}")


def _described(model: LoadedModel) -> str:
    name, version = model.metadata.get("registered_model"), model.metadata.get("version")
    if model.foreign:
        origin = "foreign"
    else:
        origin = f"{name} version {version}" if name else "from export2db"
    return (
        f"{model.name} ({origin}, {model.size_bytes:,} bytes, loaded "
        f"{model.loaded_at:%Y-%m-%d %H:%M} UTC)"
    )


def _check_journal(session: Session, export_name: str) -> Check:
    """Report what an earlier run left; never fails, since the next run repairs it."""
    state = session.journal.state(export_name.upper())
    work = state.work
    if state.phase == WHOLE or work is None:
        live = f"generation {state.generation} is live" if state.generation else "nothing is live"
        return Check("journal", OK, f"nothing under way; {live}")
    since = f" since {work.started_at:%Y-%m-%d %H:%M} UTC" if work.started_at else ""
    if state.phase == LOADING:
        then = f"undoes it; generation {state.generation} stays live"
    else:
        then = f"finishes it; then generation {work.entry.generation} is live"
    return Check(
        "journal",
        OK,
        f"{work.entry.action} by {work.holder or 'somebody'} is under way{since} (phase "
        f"{state.phase}); the next run {then}",
    )


def _check_file(side: str, path: Path, profile: Profile, target: Target) -> Check:
    """Check a file by the rules of the profile, as `oml-mlflow check` does."""
    from oml_mlflow.graph.rules import check_file

    name = f"{side} file"
    if not target.is_probed:
        return Check(name, SKIPPED, "this process's own runtime judges it when it is loaded")
    findings = check_file(path, profile, metadata=_metadata(path))
    errors = [f for f in findings if f.is_error and not _is_asked(f, target)]
    warnings = len(findings) - sum(f.is_error for f in findings)
    size = f"{path.name}, {path.stat().st_size / _MIB:,.1f} MiB"
    if not errors:
        noted = f", {warnings} warnings of `oml-mlflow check`" if warnings else ""
        return Check(name, OK, f"{size}: keeps the rules of {profile.name}{noted}")
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Check(
        name,
        FAILED,
        f"{size}: {first.where}: {first.message.rstrip('.')} ({first.shown_code}){more}",
        first.hint,
        "graph-rejected",
    )


def _is_asked(finding: Finding, target: Target) -> bool:
    """Return whether a capability probe decides instead of the profile."""
    return finding.rule == "custom-operator" and target.is_probed


def _metadata(path: Path) -> dict[str, Any] | None:
    """Return the load metadata that a graph's own names make; None if it has none."""
    from oml_mlflow.errors import PackageError
    from oml_mlflow.graph.rules import EMBEDDING
    from oml_mlflow.graph.wire import read_header

    try:
        graph = read_header(path).graph
    except PackageError:  # the static check says so
        return None
    inputs, outputs = ([tensor.name for tensor in ends] for ends in (graph.input, graph.output))
    if len(inputs) != 1 or not outputs:
        return None
    output = outputs[0] if EMBEDDING not in outputs else EMBEDDING
    return {"function": "embedding", "embeddingOutput": output, "input": {inputs[0]: ["DATA"]}}


def _check_capabilities(
    session: Session,
    target: Target,
    paths: Mapping[str, Path],
    given: CapabilityTable | None,
) -> Check:
    """Check what the pair needs against the answers to capability probes."""
    name, ask = "capabilities", "ask it with `oml-mlflow preflight --probe`."
    if not target.is_probed:
        return Check(name, SKIPPED, "nothing to ask: this process runs the models")
    table = given or session.capabilities()
    if table is None:
        return Check(name, NOT_RUN, "the database was never asked what it can run", ask)
    asked = f"asked {table.age()} ago"
    if table.database_version != session.version:
        return Check(
            name,
            NOT_RUN,
            f"{asked}, when its version was {table.database_version}; it is {session.version} now",
            ask,
        )
    wanted = [need for side in SIDES for need in needs(paths[side])]
    missing, unanswered = table.missing(wanted), table.unanswered(wanted)
    if missing:
        shown = "; ".join(map(str, missing))
        return Check(
            name, FAILED, f"{shown} ({asked})", next_command(missing), "capability-missing"
        )
    if unanswered:
        # without a probe, asking again would not help
        return Check(
            name,
            NOT_RUN,
            f"no answer about {_listed(unanswered)} ({asked})",
            ask if any(need.has_probe for need in unanswered) else "",
        )
    return Check(name, OK, f"it takes {_listed(wanted)} ({asked})")


def _listed(capabilities: Sequence[Capability]) -> str:
    return "; ".join(dict.fromkeys(map(str, capabilities)))


def examine(
    model_uri: str,
    target: Target,
    name: str | None = None,
    *,
    adopt: bool = False,
    probe: bool = False,
    on_event: Listener = silent,
) -> tuple[Preflight, CapabilityTable | None]:
    """Return every check before a promotion, and the known answers to capability probes.

    Args:
        model_uri: ``models:/name@alias`` or ``models:/name/version``.
        target: The database.
        name: Export name in the database; the registered model's name by default.
        adopt: See `promote`.
        probe: Run the capability probes first; see `ask`. Otherwise read-only.
        on_event: Told of progress.

    Raises:
        RegistryError, PackageError, InvalidName, CapabilityMissing: See `promote`.
    """
    version = get_version(model_uri)
    export_name = check_export_name(name or version.name).upper()
    writes, purpose = probe and target.is_probed, f"preflight {export_name}"
    with (
        checked_files(version) as folder,
        target.session(purpose, create=writes, missing_ok=True) as session,
    ):
        stored = [read_package(folder, p) for p in read_package(folder).stored_profiles]
        if writes:
            ask(session, [pair_needs(package.paths) for package in stored], on_event, again=True)
        candidate = choose_candidate(folder, version, target, False, on_event, session)
        report = preflight(
            session,
            target,
            export_name,
            candidate.pair.paths,
            get_profile(candidate.pair.profile),
            adopt=adopt,
        )
        # a promotion that leaves stored vectors as they are is not refused for these
        rows = (*report.rows, *session.vectors.checks(export_name))
        return replace(report, rows=rows), session.capabilities()
