"""Records that a target keeps: models, ledger, journal, grants and notes."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from oml_mlflow._version import __version__
from oml_mlflow.documents import build, damaged, read_json
from oml_mlflow.errors import SchemaNewer, TargetError

_SLOT = re.compile(r"_S\d+$")
VERIFIED, UNVERIFIED = "verified", "unverified"

PROMOTE, ROLLBACK, ADOPT, DROP = "promote", "rollback", "adopt", "drop"

# what is live is entirely one generation, except while swapping
WHOLE, LOADING, SWAPPING, CLEANING = "whole", "loading", "swapping", "cleaning"
PIN, BINDING, FAILURE, PUBLISHED = "pin", "binding", "failure", "published"
CHECKED = "checked"
COLUMN, KEPT_COLUMN, INDEX = "column", "kept column", "hybrid vector index"


@dataclass(frozen=True)
class LoadedModel:
    """One row of a target's catalogue.

    Attributes:
        name: In-database model name, such as ``CLIP_IMG`` or, for a slot, ``CLIP_IMG_S3``.
        side: ``img`` or ``txt``; empty if unknown.
        fingerprint: sha256 of the bytes that were loaded; empty if unknown.
        dims: Length of its embeddings; 0 if unknown.
        size_bytes: Size of the ONNX bytes.
        metadata: Template metadata, and where it came from.
        loaded_at: When, UTC.
        foreign: Whether nothing says that this package loaded it.
        damage: What happened to its stored bytes, to follow "was"; empty if they are those of
            `fingerprint`, or the database does not give them back.
    """

    name: str
    side: str
    fingerprint: str
    dims: int
    size_bytes: int
    metadata: dict[str, Any]
    loaded_at: datetime
    foreign: bool = False
    damage: str = ""


@dataclass(frozen=True)
class LedgerEntry:
    """One promotion: what became live under an export name.

    Attributes:
        name: Export name, upper-case.
        generation: 1 for the first promotion under the name, then counting.
        registered_model: Name in the registry.
        version: Version in the registry.
        run_id: MLflow run that logged it, if any.
        fingerprints: sha256 by side; empty if the pair was dropped or is not ours.
        dims: Length of the embeddings.
        parity: Largest difference to the references and smallest cosine, when verified.
        promoted_at: When, UTC; set by the target.
        verification: ``verified``: the golden probes were compared in the database;
            ``unverified``: they could not be.
        action: ``promote``, ``rollback``, ``adopt`` or ``drop``.
        restores: Generation whose models it made live: its own, except for a rollback.
        geometry: Id of the space that the vectors are in; empty if unknown.
        profile: Profile of the pair.
        promoted_by: User, host and process.
        registry: Which registry, and which model of that name there; see
            `oml_mlflow.registry.versions.Registered`. Empty if unknown.
    """

    name: str
    generation: int
    registered_model: str
    version: str
    run_id: str
    fingerprints: dict[str, str]
    dims: int
    parity: dict[str, float] = field(default_factory=dict)
    promoted_at: datetime | None = None
    verification: str = VERIFIED
    action: str = PROMOTE
    restores: int = 0
    geometry: str = ""
    profile: str = ""
    promoted_by: str = ""
    registry: str = ""

    @property
    def origin(self) -> str:
        """Where it came from, for people."""
        if self.action == ADOPT:
            return "adopted"
        return f"{self.registered_model} {self.version}" if self.registered_model else "export2db"


@dataclass(frozen=True)
class Grant:
    """A privilege on an in-database model.

    Attributes:
        model: Name of the model.
        grantee: User or role.
        privilege: ``SELECT`` or ``ALTER``.
        grantable: Whether the grantee may pass it on.
    """

    model: str
    grantee: str
    privilege: str
    grantable: bool = False


@dataclass(frozen=True)
class ColumnSwap:
    """A registered column that goes live with its models.

    Attributes:
        column: ``table.column``, as registered.
        side: Pipeline that embeds it.
        incoming: Column of the same table, which gets its name.
        outgoing: Name that the one in use gets.
        geometry: Id of the space that the incoming vectors are in.
        kept: Likewise of the outgoing ones; empty if unknown.
    """

    column: str
    side: str
    incoming: str
    outgoing: str
    geometry: str
    kept: str


@dataclass(frozen=True)
class Work:
    """What is about to be done under an export name; journaled before it is begun.

    Attributes:
        entry: What will be in the ledger once it is done.
        before: Generation that is live until then; 0 if none is.
        uploads: Names of the models loaded for it; dropped if it is given up.
        incoming: Names that become the live ones, by side.
        outgoing: Names that the live ones get, by side; a side that was not there is not listed.
        grants: Privileges that the live names must have afterwards.
        revokes: Privileges that models in `incoming` have, but must not.
        drops: Names to drop once it is recorded.
        columns: Stored vectors that go live with the models. Once the journal has them, the
            incoming models have proven right, and the columns beside are being filled.
        column_drops: Columns beside registered ones, ``table.column``, to drop once it is recorded.
        filled: Rows that have been filled for it, of how many; 0 and 0 before.
        holder: Process that does it.
        started_at: When, UTC.
    """

    entry: LedgerEntry
    before: int
    uploads: tuple[str, ...] = ()
    incoming: dict[str, str] = field(default_factory=dict)
    outgoing: dict[str, str] = field(default_factory=dict)
    grants: tuple[Grant, ...] = ()
    revokes: tuple[Grant, ...] = ()
    drops: tuple[str, ...] = ()
    columns: tuple[ColumnSwap, ...] = ()
    column_drops: tuple[str, ...] = ()
    filled: tuple[int, int] = (0, 0)
    holder: str = ""
    started_at: datetime | None = None

    def begins_as(self, other: Work) -> bool:
        """Return whether it is the same work, whoever does it and however far it is."""
        mine, theirs = self.entry, other.entry
        return (
            (mine.registered_model, mine.version, mine.fingerprints, mine.generation)
            == (theirs.registered_model, theirs.version, theirs.fingerprints, theirs.generation)
            and (self.before, self.incoming) == (other.before, other.incoming)
            and self.columns == other.columns
        )

    def to_json(self) -> str:
        """Return it as one JSON document."""
        return json.dumps(asdict(self), default=_written)

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Return what `to_json` wrote.

        Raises:
            TargetError: If it is damaged.
        """
        with damaged_record("of what was begun"):
            return build(cls, read_json(text))


@dataclass(frozen=True)
class LiveState:
    """What is live under an export name, and what is being done about it.

    Attributes:
        name: Export name, upper-case.
        generation: The live one; 0 if there never was any.
        phase: ``whole``, ``loading``, ``swapping`` or ``cleaning``; both live models are of
            `generation` in all of them but ``swapping``.
        work: What is being done, unless whole.
    """

    name: str
    generation: int = 0
    phase: str = WHOLE
    work: Work | None = None

    @property
    def is_filling(self) -> bool:
        """Whether stored vectors are being made beside those in use; releases before see a load."""
        return self.phase == LOADING and self.work is not None and bool(self.work.columns)


@dataclass(frozen=True)
class Dependant:
    """Something in a database whose content was made with a live model.

    Attributes:
        kind: ``column``, ``kept column`` (beside a registered one, with another geometry's
            vectors), ``view`` or ``hybrid vector index``.
        name: ``table.column``, or the object's name.
        model: Live model, such as ``CLIP_IMG``; of a kept column being filled, that in its slot.
        source: Column or expression that was embedded, of a registered column.
        key: Column that tells a registered column's rows apart; empty if it was not named, then
            the column can be re-embedded as a whole only.
        geometry: Id of the space that its vectors are in; empty if unknown.
        beside: Column of the same table that holds the vectors, where that is not the registered
            name itself.
        modified: Column of the same table with the time of a row's last change, if it was named.
    """

    kind: str
    name: str
    model: str
    source: str = ""
    key: str = ""
    geometry: str = ""
    beside: str = ""
    modified: str = ""

    @property
    def table(self) -> str:
        """Table of a column."""
        return self.name.rpartition(".")[0]

    @property
    def stored(self) -> str:
        """Column of the table that holds the vectors."""
        return self.beside or self.name.rpartition(".")[2]


def demand_unique(column: Dependant, is_unique: bool) -> None:
    """Raise TargetError if a registered column's key does not tell all rows apart."""
    if not is_unique:
        raise TargetError(
            f"{column.key} is no key for {column.name}: rows share a value, or have none. Nothing "
            "was changed.",
            hint="name a column whose values are unique, and never NULL.",
        )


def refuse_claimed(column: Dependant, names: Sequence[str]) -> None:
    """Raise TargetError if another export name has a column already."""
    if names:
        raise TargetError(
            f"{column.name} is registered for {', '.join(names)}. Nothing was changed.",
            hint=f"`oml-mlflow columns {names[0]} --remove {column.name}` forgets that.",
        )


def refuse_unplanned(names: Sequence[str], state: Callable[[str], LiveState]) -> None:
    """Raise TargetError for a live name among those to drop that no journal lists as such."""
    for name in names:
        if _SLOT.search(name) or not name.endswith(("_IMG", "_TXT")):
            continue
        # both endings have the same length
        work = state(name[: -len("_IMG")]).work
        if work is None or name not in work.drops:
            raise TargetError(
                f"{name} is a live name, and no drop of it was begun. Nothing was dropped.",
                hint="use `oml-mlflow drop NAME --yes`.",
            )


def damaged_record(what: str) -> AbstractContextManager[None]:
    """Turn what a damaged record of a target raises into TargetError."""
    hint = (
        "nothing but oml_mlflow writes its tables: restore them from a backup, or find out who "
        "changed them."
    )
    return damaged(f"the target's record {what} is damaged", TargetError, hint=hint)


def refuse_newer(uri: str, found: int, known: int) -> None:
    """Raise SchemaNewer if the version of a target's tables is above the one that is known."""
    if found > known:
        raise SchemaNewer(
            f"the tables in {uri} are of version {found}, made by a newer release of oml_mlflow: "
            f"this one, {__version__}, knows version {known}. Nothing was read or changed.",
            hint="upgrade oml_mlflow here: pip install --upgrade oml-mlflow.",
        )


def is_other_registry(one: str, other: str) -> bool:
    """Return whether two identities of registry and model differ in a part that both know."""
    parts = zip(one.split(":"), other.split(":"), strict=False)
    return any(a and b and a != b for a, b in parts)


def this_process() -> str:
    """Return user, host and process, as locks and the ledger show them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


def now() -> datetime:
    """Return the time, UTC, to the microsecond."""
    return datetime.now(timezone.utc)


def _written(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    raise TypeError(type(value))


@dataclass(frozen=True)
class Note:
    """A note that a target keeps about an export name.

    Attributes:
        name: Export name, upper-case.
        kind: ``pin`` (the name stays as it is), ``binding`` (what it follows, by `mlflow
            deployments`), ``failure`` (what was refused, and is not tried again), ``published``
            (what was written to the registry) or ``checked`` (what comparing stored vectors with
            the live models has shown).
        content: Values for JSON. Never secrets.
        written_at: When, UTC; set by the target.
        written_by: User, host and process.
    """

    name: str
    kind: str
    content: Mapping[str, Any] = field(default_factory=dict)
    written_at: datetime | None = None
    written_by: str = ""
