"""What is published of a version: its state under one name of one target. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.records import UNVERIFIED, LedgerEntry, now
from oml_mlflow.publish.description import FAILED, LIVE, SUPERSEDED, Row
from oml_mlflow.registry.versions import EVIDENCE_FOLDER

TAG_PREFIX = "oml.target."
_UNUSUAL = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Publication:
    """The state of a version under one export name of one target, to be published.

    Attributes:
        target: Name of the target.
        uri: The target, without secrets, as `Target.uri` gives it.
        name: Export name, upper-case.
        model: Registered model.
        version: Version that was promoted.
        entry: Ledger entry that is live; None if the promotion failed.
        report: Vectors of the database against the references; None if nothing was compared.
        error: Why the promotion failed; None if it did not.
        before: Entry that was live before: replaced by a promotion, still live after a failed one.
        is_kept: Whether the replaced models are still loaded under their slot names.
        fingerprints: sha256 by side, for a version without a ledger entry.
        checked: When stored vectors were checked last, and what that has shown; or empty.
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
    checked: str = ""

    @property
    def evidence_folder(self) -> str:
        """Folder of its evidence; the version is part of it, since copies share a run."""
        version = f"{_slug(self.model)}_v{self.version}"
        return f"{EVIDENCE_FOLDER}/{_slug(self.target)}/{version}/{_slug(self.name)}"

    @property
    def replaced(self) -> tuple[str, str] | None:
        """Model and version that were replaced, if they are of the same registry."""
        old, new = self.before, self.entry
        if self.error is not None or old is None or new is None or not old.registered_model:
            return None
        if (old.registered_model, old.version) == (self.model, self.version):
            return None
        is_same = old.registry == new.registry
        if old.registered_model != new.registered_model:
            is_same = old.registry.partition(":")[0] == new.registry.partition(":")[0]
        return (old.registered_model, old.version) if is_same or not old.registry else None

    def to_row(self) -> Row:
        """Return the row of the version itself."""
        entry, error, report = self.entry, self.error, self.report
        fingerprints = entry.fingerprints if entry else self.fingerprints
        row = Row(
            target=self.target,
            name=self.name,
            state=LIVE,
            uri=self.uri,
            since=_minute(now()),
            img=fingerprints.get(IMG, ""),
            txt=fingerprints.get(TXT, ""),
            evidence=self.evidence_folder if report is not None and report.rows else "",
        )
        if error is None and entry is not None:
            since = _minute(entry.promoted_at or now())
            result = _verdict(entry, report)
            row = replace(row, generation=entry.generation, since=since, result=result)
            return replace(row, reason=_cut(self.checked))
        code, message, hint = "failed", str(error), ""
        if isinstance(error, OmlMlflowError):
            code, message, hint = error.code, error.message, error.hint
        live = f", live: {_origin(self.before)}" if self.before else ""
        return replace(
            row, state=FAILED, result=f"{code}{live}", reason=_cut(message), next_step=_cut(hint)
        )

    def to_superseded_row(self, old: LedgerEntry) -> Row:
        """Return the row of the version that was replaced."""
        kept = f", kept as generation {old.generation}" if self.is_kept else ""
        by = f"v{self.version}"
        if old.registered_model != self.model:
            by = f"{self.model} {by}"
        return Row(
            target=self.target,
            name=self.name,
            state=SUPERSEDED,
            uri=self.uri,
            generation=old.generation,
            since=_minute(self.entry.promoted_at or now()) if self.entry else "",
            img=old.fingerprints.get(IMG, ""),
            txt=old.fingerprints.get(TXT, ""),
            result=f"by {by}{kept}",
        )


def tag_key(target: str, version: str) -> str:
    """Return the key of the tag with the state of a version in a target."""
    return f"{TAG_PREFIX}{_slug(target)[:200]}.v{version}"


def tag_value(row: Row, rows: tuple[Row, ...], model: str, version: str) -> str:
    """Return the text of a row in its target's tag; `rows` are all rows of the version."""
    if row.state == LIVE:
        generation = f", generation {row.generation}" if row.generation else ""
        verdict = f", {row.result.partition(':')[0]}" if row.result else ""
        return f"live as {row.name}, {model} v{version}{generation}{verdict}"
    is_alone = sum(r.target == row.target for r in rows) == 1
    name = "" if is_alone else f"{row.name} "
    return (
        f"{name}failed: {row.result}" if row.state == FAILED else f"{name}superseded {row.result}"
    )


def _verdict(entry: LedgerEntry, report: ParityReport | None) -> str:
    if entry.verification == UNVERIFIED:
        return f"{UNVERIFIED}: no runtime here can run it"
    if report is not None and report.compared:
        return f"{entry.verification}: {report.summary}, difference up to {report.max_abs():.1e}"
    known = entry.parity.get("max_abs")
    return entry.verification + ("" if known is None else f": difference up to {known:.1e}")


def _origin(entry: LedgerEntry) -> str:
    return f"{entry.registered_model} v{entry.version}" if entry.registered_model else entry.origin


def _slug(text: str) -> str:
    return _UNUSUAL.sub("-", text).strip("-.") or "target"


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _cut(text: str) -> str:
    return text if len(text) <= 600 else f"{text[:599].rstrip()}…"
