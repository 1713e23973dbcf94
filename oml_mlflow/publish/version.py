"""Write back: show on a model version, in the MLflow UI, what became of it in the databases."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.records import UNVERIFIED, LedgerEntry, now
from oml_mlflow.publish.artifacts import log_parity
from oml_mlflow.publish.description import FAILED, LIVE, SUPERSEDED, Row, merge, parse, update
from oml_mlflow.registry import is_anchored, to_version

TAG_PREFIX = "oml.target."
ARTIFACTS = "oml_mlflow"
_UNUSUAL = re.compile(r"[^\w.-]+")

# targets are promoted into at once, and a description has room for all of them
_one_writer = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Showing:
    """What became of a version under one export name of one target.

    Attributes:
        target: Name of the target.
        uri: The target, without secrets, as `Target.uri` gives it.
        name: Export name, upper-case.
        model: Registered model.
        version: Version that was to be live.
        entry: Ledger entry that is live; None if it failed.
        report: Vectors of the database against the references; None if nothing was compared.
        error: Why it failed; None if it did not.
        before: Entry that was live before: replaced if this went well, else live still.
        is_kept: Whether what was replaced is still loaded under its slot names.
        fingerprints: sha256 by side, where no entry says them.
    """

    target: str
    uri: str
    name: str
    model: str
    version: str
    entry: LedgerEntry | None = None
    report: ParityReport | None = None
    error: BaseException | None = None
    before: LedgerEntry | None = None
    is_kept: bool = True
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """What the registry was told.

    Attributes:
        warnings: What could not be shown, and why; empty if everything is.
        evidence: Where the parity table, page and plot are; empty if nowhere.
        is_settled: Whether telling it again would be in vain, or changes nothing; False if the
            registry did not answer.
    """

    warnings: tuple[str, ...] = ()
    evidence: str = ""
    is_settled: bool = True

    @property
    def ok(self) -> bool:
        """Whether everything is shown."""
        return not self.warnings


@dataclass(frozen=True)
class _Told:
    """What the registry was told of a state; `folder` is where its evidence goes, if anywhere."""

    warnings: list[str]
    folder: str = ""
    is_settled: bool = True


def publish(showing: Showing) -> Published:
    """Show on a version's page where it is live, or why it is not; and on that of the old one.

    The state is in a tag per target, in a block of the description (see
    `oml_mlflow.publish.description`), and, if vectors were compared, as table, page and plot
    among the artifacts of the version's run, or else of its logged model.

    MLflow has no way to change a description only if nobody else did meanwhile: it is read just
    before it is written and again afterwards, and written once more if what we wrote is gone.

    Returns:
        What was shown. Nothing is raised: what went wrong is in its warnings, and logged.

    Side effects: Writes tags, descriptions and artifacts to the registry and the artifact store.
    """
    return publish_all([showing])[0]


def publish_all(showings: Sequence[Showing]) -> list[Published]:
    """Show several as `publish` does: first all states, then evidence, which takes seconds."""
    told = [_show_states(showing) for showing in showings]
    return [_with_evidence(*each) for each in zip(showings, told, strict=True)]


def _show_states(showing: Showing) -> _Told:
    """Show the state of a version, and of the one before."""
    warnings: list[str] = []
    row = _to_row(showing)
    is_new, is_settled = False, False
    with _warned(warnings, f"{showing.model} v{showing.version}"):
        try:
            is_new = _show(showing.model, showing.version, row, warnings)
        except MlflowException as error:
            is_settled = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            raise
        is_settled = True
    if warnings and not is_new:
        # an unreachable registry must not be asked again and again: MLflow waits for it each time
        return _Told(warnings, is_settled=is_settled)
    old = _replaced(showing)
    if old is not None and showing.before is not None:
        with _warned(warnings, f"{old[0]} v{old[1]}"):
            _show(*old, _superseded(showing, showing.before), warnings)
    return _Told(warnings, row.evidence if is_new else "")


def _with_evidence(showing: Showing, told: _Told) -> Published:
    """Log table, page and plot, if vectors were compared."""
    evidence = ""
    if told.folder and showing.report is not None:
        with _warned(told.warnings, f"evidence of {showing.model} v{showing.version}"):
            evidence = _log_evidence(showing, showing.report, told.folder, told.warnings)
    for text in told.warnings:
        _log.warning("%s", text)
    return Published(tuple(told.warnings), evidence, told.is_settled)


def tag_key(target: str, version: str) -> str:
    """Return the key of the tag that says what became of a version in a target."""
    return f"{TAG_PREFIX}{_slug(target)[:200]}.v{version}"


@contextmanager
def _warned(warnings: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what is live is live, whether it can be shown or not
        text = str(error).splitlines() or [type(error).__name__]
        warnings.append(f"{what} can't be shown in the MLflow UI: {text[0]}")


def _show(model: str, version: str, row: Row, warnings: list[str]) -> bool:
    """Write a row into a version's description, and its tag; return whether anything changed."""
    client = mlflow.MlflowClient()
    with _one_writer:
        found = client.get_model_version(model, version)
        if row.state == LIVE and not is_anchored(to_version(found)):
            row = replace(row, result=f"{row.result}; unanchored")
        rows: tuple[Row, ...] = (row,)
        is_copy, changed = False, True
        for _ in range(2):
            block = parse(found.description)
            is_copy = is_copy or (block is not None and not _is_own(block, model, version))
            known = block.rows if block is not None and _is_own(block, model, version) else ()
            row = _settled(row, known)
            rows = update(known, row)
            merged = merge(found.description, rows, model, version)
            if merged.problem:
                what = "not changed" if merged.text is None else "shortened"
                warnings.append(
                    f"the description of {model} v{version} is {what}: {merged.problem}"
                )
            if merged.text is None:
                break
            changed = merged.text != found.description
            if not changed:
                break
            client.update_model_version(model, version, merged.text)
            found = client.get_model_version(model, version)
            if _holds(found.description, row):
                break
        else:
            warnings.append(
                f"the description of {model} v{version} is being changed by others: what we wrote "
                "is not in it."
            )
    key = tag_key(row.target, version)
    value = "; ".join(_to_tag(r, rows, model, version) for r in rows if r.target == row.target)
    if is_copy:
        for other in found.tags or {}:
            if other.startswith(TAG_PREFIX) and other != key:
                client.delete_model_version_tag(model, version, other)
    if (found.tags or {}).get(key) != value:
        client.set_model_version_tag(model, version, key, value)
        changed = True
    return changed


def _is_own(block: Any, model: str, version: str) -> bool:
    return (block.model, block.version) == (model, version)


def _settled(row: Row, known: tuple[Row, ...]) -> Row:
    """Return a row with what is known of its place already, where it says nothing newer."""
    old = next((other for other in known if other.place == row.place), None)
    if old is None:
        return row
    if row.state == SUPERSEDED:
        return replace(row, evidence=old.evidence)
    if row.state == FAILED:
        return old if row == replace(old, since=row.since) else row
    is_same = (old.state, old.generation, old.img) == (row.state, row.generation, row.img)
    return old if is_same and not row.evidence else row


def _holds(description: str | None, row: Row) -> bool:
    block = parse(description)
    rows = block.rows if block else ()
    return any((r.place, r.state) == (row.place, row.state) for r in rows)


def _to_row(showing: Showing) -> Row:
    entry, error, report = showing.entry, showing.error, showing.report
    fingerprints = entry.fingerprints if entry else showing.fingerprints
    row = Row(
        target=showing.target,
        name=showing.name,
        state=LIVE,
        uri=showing.uri,
        since=_shown(now()),
        img=fingerprints.get(IMG, ""),
        txt=fingerprints.get(TXT, ""),
        evidence=_evidence_folder(showing) if report is not None and report.rows else "",
    )
    if error is None and entry is not None:
        since = _shown(entry.promoted_at or now())
        return replace(
            row, generation=entry.generation, since=since, result=_verdict(entry, report)
        )
    code, message, hint = "failed", str(error), ""
    if isinstance(error, OmlMlflowError):
        code, message, hint = error.code, error.message, error.hint
    live = f", live: {_origin(showing.before)}" if showing.before else ""
    return replace(
        row, state=FAILED, result=f"{code}{live}", reason=_cut(message), next_step=_cut(hint)
    )


def _verdict(entry: LedgerEntry, report: ParityReport | None) -> str:
    if entry.verification == UNVERIFIED:
        return f"{UNVERIFIED}: no runtime here can run it"
    if report is not None and report.compared:
        return f"{entry.verification}: {report.summary}, difference up to {report.max_abs():.1e}"
    known = entry.parity.get("max_abs")
    return entry.verification + ("" if known is None else f": difference up to {known:.1e}")


def _replaced(showing: Showing) -> tuple[str, str] | None:
    """Return model and version that were replaced, if they are of the same registry."""
    old, new = showing.before, showing.entry
    if showing.error is not None or old is None or new is None or not old.registered_model:
        return None
    if (old.registered_model, old.version) == (showing.model, showing.version):
        return None
    is_same = old.registry == new.registry
    if old.registered_model != new.registered_model:
        is_same = old.registry.partition(":")[0] == new.registry.partition(":")[0]
    return (old.registered_model, old.version) if is_same or not old.registry else None


def _superseded(showing: Showing, old: LedgerEntry) -> Row:
    kept = f", kept as generation {old.generation}" if showing.is_kept else ""
    by = f"v{showing.version}"
    if old.registered_model != showing.model:
        by = f"{showing.model} {by}"
    return Row(
        target=showing.target,
        name=showing.name,
        state=SUPERSEDED,
        uri=showing.uri,
        generation=old.generation,
        since=_shown(showing.entry.promoted_at or now()) if showing.entry else "",
        img=old.fingerprints.get(IMG, ""),
        txt=old.fingerprints.get(TXT, ""),
        result=f"by {by}{kept}",
    )


def _to_tag(row: Row, rows: tuple[Row, ...], model: str, version: str) -> str:
    if row.state == LIVE:
        generation = f", generation {row.generation}" if row.generation else ""
        verdict = f", {row.result.partition(':')[0]}" if row.result else ""
        return f"live as {row.name}, {model} v{version}{generation}{verdict}"
    is_alone = sum(r.target == row.target for r in rows) == 1
    name = "" if is_alone else f"{row.name} "
    return (
        f"{name}failed: {row.result}" if row.state == FAILED else f"{name}superseded {row.result}"
    )


def _log_evidence(showing: Showing, report: ParityReport, folder: str, warnings: list[str]) -> str:
    """Log table, page and plot of a comparison; return where they are."""
    version = f"{showing.model} v{showing.version}"
    facts = {
        "Target": f"{showing.target} ({showing.uri})",
        "Models": f"{showing.name}_IMG, {showing.name}_TXT",
        "Version": version,
        "Compared": f"{now():%Y-%m-%d %H:%M} UTC",
    }
    title = f"{version} as {showing.name} in {showing.target}"
    where = log_parity(report, showing.model, showing.version, folder, title, facts)
    if not where:
        warnings.append(f"the evidence of {version} is nowhere: it has no run and no logged model")
    return where


def _evidence_folder(showing: Showing) -> str:
    # copies of a version share its run
    version = f"{_slug(showing.model)}_v{showing.version}"
    return f"{ARTIFACTS}/{_slug(showing.target)}/{version}/{_slug(showing.name)}"


def _origin(entry: LedgerEntry) -> str:
    return f"{entry.registered_model} v{entry.version}" if entry.registered_model else entry.origin


def _slug(text: str) -> str:
    return _UNUSUAL.sub("-", text).strip("-.") or "target"


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _cut(text: str) -> str:
    return text if len(text) <= 600 else f"{text[:599].rstrip()}…"
