"""Publish on a version's page in the MLflow UI where it is live, or why it is not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlflow
from mlflow.exceptions import MlflowException

from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.records import now
from oml_mlflow.publish.artifacts import log_parity
from oml_mlflow.publish.description import (
    FAILED,
    LIVE,
    SUPERSEDED,
    Block,
    Row,
    merge,
    parse,
    update,
)
from oml_mlflow.publish.publication import TAG_PREFIX, Publication, tag_key, tag_value
from oml_mlflow.registry.answering import NOTHING_CHANGED, answering
from oml_mlflow.registry.versions import is_anchored, to_version

# the reconciler promotes into several targets at once, and all of them share one description
_one_writer = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishResult:
    """What was published.

    Attributes:
        warnings: What could not be published, and why; empty if everything was.
        evidence: URI of the folder with parity table, page and plot; empty if there is none.
        is_settled: Whether a retry is of no use: False only if the registry did not answer.
    """

    warnings: tuple[str, ...] = ()
    evidence: str = ""
    is_settled: bool = True

    @property
    def ok(self) -> bool:
        """Whether everything was published."""
        return not self.warnings


def publish(publication: Publication) -> PublishResult:
    """Publish a version's state on its page, and on that of the version it replaced.

    The state is in a tag per target, in a block of the description (see
    `oml_mlflow.publish.description`), and, if vectors were compared, as table, page and plot
    among the artifacts of the version's run, or else of its logged model.

    MLflow has no way to change a description only if nobody else did meanwhile: it is read just
    before it is written and again afterwards, and written once more if our block is gone.

    Returns:
        What was published. Nothing is raised: failures are among the warnings, and logged.

    Side effects: Writes tags, descriptions and artifacts to the registry and the artifact store.
    """
    return publish_all([publication])[0]


def publish_all(publications: Sequence[Publication]) -> list[PublishResult]:
    """Publish several as `publish` does: first all states, then evidence, which takes seconds."""
    results = [_publish_states(each) for each in publications]
    return [_publish_evidence(*each) for each in zip(publications, results, strict=True)]


def _publish_states(publication: Publication) -> PublishResult:
    """Publish the state of a version and of the one it replaced; evidence is where to log it."""
    warnings: list[str] = []
    row = publication.to_row()
    is_new, is_settled = False, False
    with _warned(warnings, f"{publication.model} v{publication.version}"):
        try:
            is_new = _write(publication.model, publication.version, row, warnings)
        except MlflowException as error:
            is_settled = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            raise
        is_settled = True
    if warnings and not is_new:
        # an unreachable registry must not be asked again and again: MLflow waits for it each time
        return PublishResult(tuple(warnings), is_settled=is_settled)
    old = publication.replaced
    if old is not None and publication.before is not None:
        with _warned(warnings, f"{old[0]} v{old[1]}"):
            _write(*old, publication.to_superseded_row(publication.before), warnings)
    return PublishResult(tuple(warnings), row.evidence if is_new else "")


def _publish_evidence(publication: Publication, result: PublishResult) -> PublishResult:
    """Log table, page and plot, if vectors were compared; return the result of both steps."""
    warnings, evidence = list(result.warnings), ""
    if result.evidence and publication.report is not None:
        with _warned(warnings, f"evidence of {publication.model} v{publication.version}"):
            evidence = _log_evidence(publication, publication.report, result.evidence, warnings)
    for text in warnings:
        _log.warning("%s", text)
    return replace(result, warnings=tuple(warnings), evidence=evidence)


@contextmanager
def _warned(warnings: list[str], what: str) -> Iterator[None]:
    """Make a warning of any error: a promotion has succeeded, whether it is published or not."""
    failed = f"{what} can't be shown in the MLflow UI"
    try:
        with answering(failed, state=""):
            yield
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        text = text.replace(f" {NOTHING_CHANGED}", "")
        warnings.append(text if text.startswith(failed) else f"{failed}: {text}")


def _write(model: str, version: str, row: Row, warnings: list[str]) -> bool:
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
            # a copied version comes with the block and the tags of its original
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
    value = "; ".join(tag_value(r, rows, model, version) for r in rows if r.target == row.target)
    if is_copy:
        for other in found.tags or {}:
            if other.startswith(TAG_PREFIX) and other != key:
                client.delete_model_version_tag(model, version, other)
    if (found.tags or {}).get(key) != value:
        client.set_model_version_tag(model, version, key, value)
        changed = True
    return changed


def _is_own(block: Block, model: str, version: str) -> bool:
    return (block.model, block.version) == (model, version)


def _settled(row: Row, known: tuple[Row, ...]) -> Row:
    """Return a row as it is to be written: the known one of its place, if it says nothing new."""
    old = next((other for other in known if other.place == row.place), None)
    if old is None:
        return row
    if row.state == SUPERSEDED:
        return replace(row, evidence=old.evidence)
    if row.state == FAILED:
        return old if row == replace(old, since=row.since) else row
    is_same = (old.state, old.generation, old.img) == (row.state, row.generation, row.img)
    # another check of stored vectors leaves the verdict on the models as it is
    return replace(old, reason=row.reason) if is_same and not row.evidence else row


def _holds(description: str | None, row: Row) -> bool:
    block = parse(description)
    rows = block.rows if block else ()
    return any((r.place, r.state) == (row.place, row.state) for r in rows)


def _log_evidence(
    publication: Publication, report: ParityReport, folder: str, warnings: list[str]
) -> str:
    """Log table, page and plot of a comparison; return where they are."""
    version = f"{publication.model} v{publication.version}"
    facts = {
        "Target": f"{publication.target} ({publication.uri})",
        "Models": f"{publication.name}_IMG, {publication.name}_TXT",
        "Version": version,
        "Compared": f"{now():%Y-%m-%d %H:%M} UTC",
    }
    title = f"{version} as {publication.name} in {publication.target}"
    where = log_parity(report, publication.model, publication.version, folder, title, facts)
    if not where:
        warnings.append(f"no evidence of {version} was logged: it has no run and no logged model")
    return where
