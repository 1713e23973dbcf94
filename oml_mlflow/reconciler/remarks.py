"""Remarks on versions that are live or wanted, such as known faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from packaging.version import InvalidVersion, Version

from oml_mlflow.config.bindings import REEMBED
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.flavor.manifest import UNANCHORED
from oml_mlflow.planning.columns import column_steps, last_check
from oml_mlflow.planning.observed import Survey
from oml_mlflow.planning.records import PROMOTE, LedgerEntry, is_other_registry
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.promote import dry_run
from oml_mlflow.promotion.target import Target
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.status import Status
from oml_mlflow.registry.versions import CODE_TAG, MANIFEST_TAG, find_version, logged_tags

# Versions carry our code: the release that fixes a fault, and the fault of all earlier ones.
# Versions that do not name the release that logged them are older than 0.2.0.
KNOWN_FAULTS = (
    ("0.2.0", "requests can take gigabytes or start other programs, junk is embedded as text"),
)


def known_faults(code: str) -> list[str]:
    """Return the known faults of the code that a version carries.

    Args:
        code: Release of this package that logged it; empty if unknown.
    """
    try:
        logged_by = Version(code or "0")
    except InvalidVersion:
        return [f"{code!r} is no release of it"]
    return [what for mended_in, what in KNOWN_FAULTS if logged_by < Version(mended_in)]


def with_remarks(diff: Diff) -> Diff:
    """Return the plan, with remarks on each version that is live or wanted. Read-only.

    It costs one call for each version, and a second one for those without their own manifest.
    Versions that were deleted or belong to another registry get no remarks.

    Raises:
        RegistryUnreachable: If the registry does not answer, or with an error.
    """
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    statuses = []
    for status in diff.statuses:
        remarks: tuple[str, ...] = ()
        for version in _versions(status, diff):
            if version not in known:
                known[version] = tuple(_remarks(*version))
            remarks += known[version]
        survey = diff.surveys.get(status.target)
        observed = survey.names.get(status.name) if isinstance(survey, Survey) else None
        if observed and (checked := last_check(observed)):
            remarks = (*remarks, checked)
        statuses.append(replace(status, remarks=remarks))
    return replace(diff, statuses=tuple(statuses))


def with_fillings(diff: Diff, open_target: Callable[[str], Target], options: Options) -> Diff:
    """Return the plan, with what each due promotion does with stored vectors. Read-only.

    Where it takes them along, the version is fetched, and the live model embeds a few rows, so that
    rows, rate, time and space are known.

    Args:
        diff: The plan.
        open_target: Returns a target by its name.
        options: What it was made with.
    """
    statuses = []
    for status in diff.statuses:
        told = tuple(_fillings(status, open_target, options))
        statuses.append(replace(status, remarks=(*status.remarks, *told)))
    return replace(diff, statuses=tuple(statuses))


def _fillings(
    status: Status, open_target: Callable[[str], Target], options: Options
) -> Iterator[str]:
    change = status.change
    if change is None or change.kind != PROMOTE or not change.live:
        return
    if not options.reembed and change.binding.on_new_geometry != REEMBED:
        return
    allowed = replace(options, adopt=options.adopt or change.adopt, reembed=True)
    try:
        plan = dry_run(change.uri, open_target(status.target), status.name, options=allowed)
    except OmlMlflowError as error:
        yield f"what it does with stored vectors could not be asked: {error.message.rstrip('.')}"
        return
    if plan.work is not None and plan.work.columns:
        for _sign, text in column_steps(plan.work, plan.sizes):
            yield " ".join(text.split())


def _remarks(model: str, number: str) -> Iterator[str]:
    version = find_version(model, number)
    if version is None:
        return
    tags = logged_tags(version)
    if MANIFEST_TAG not in tags:
        yield f"{model} {number} is {UNANCHORED}"
    code = tags.get(CODE_TAG, "")
    if faults := known_faults(code):
        yield (
            f"{model} {number} is served by code of oml_mlflow {code or 'before 0.2.0'}, which has "
            f"known faults: {'; '.join(faults)}. `oml-mlflow relog {version.uri}` makes a version "
            "with the same bytes and today's code"
        )


def _versions(status: Status, diff: Diff) -> list[tuple[str, str]]:
    live, change = status.live, status.change
    found = []
    if live is not None and live.version and not _is_elsewhere(live, diff):
        found.append((live.registered_model, live.version))
    if change is not None and (wanted := (change.binding.model, change.version)) not in found:
        found.append(wanted)
    return found


def _is_elsewhere(live: LedgerEntry, diff: Diff) -> bool:
    model = diff.models.get(live.registered_model)
    if model is not None:
        return is_other_registry(live.registry, model.registry)
    here = next((known.registry for known in diff.models.values() if known), "")
    return is_other_registry(live.registry.partition(":")[0], here.partition(":")[0])
