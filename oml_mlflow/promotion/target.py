"""The port: protocols that every kind of target implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from oml_mlflow.events import Listener, silent
from oml_mlflow.planning.checks import Check
from oml_mlflow.planning.records import (
    ColumnSwap,
    Dependant,
    Grant,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Note,
    Work,
)

if TYPE_CHECKING:
    from oml_mlflow.graph.profiles import Profile
    from oml_mlflow.parity.policy import ParityPolicy
    from oml_mlflow.parity.probes import Probe
    from oml_mlflow.planning.capabilities import CapabilityTable
    from oml_mlflow.planning.checks import Check
    from oml_mlflow.planning.observed import Survey
    from oml_mlflow.planning.plan import Plan

KEPT_GENERATIONS = 2
# for one value; the largest CLIP models take seconds for a picture on a slow machine
EMBED_TIMEOUT_S = 120.0


class Journal(Protocol):
    """What was promoted, what is live, and what is under way, by export name.

    Everything that is done under an export name runs through `begin`, perhaps `Models.load` and
    `Models.embed`, then `swap`, perhaps `Models.drop`, then `end`. Each is safe to repeat: after a
    crash, the next run reads `state` and goes on from there.
    """

    def state(self, name: str) -> LiveState:
        """Return what is live under an export name. Read-only."""

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""

    def begin(self, work: Work) -> None:
        """Write work into the journal: phase ``whole`` becomes ``loading``. Commits.

        Raises:
            PlanStale: If the live generation is not ``work.before``, or something is under way.
        """

    def fill(self, work: Work) -> None:
        """Make the columns that ``work.columns`` brings, and write the work anew. Commits.

        The phase stays ``loading``; see `LiveState.is_filling`. Called again, it records how far
        the filling is.

        Raises:
            PlanStale: If this work is not under way.
        """

    def swap(self, work: Work) -> None:
        """Give incoming models the live names, and record the promotion. Writes; commits.

        Columns of vectors are swapped with them, in the same transaction.

        Phase ``loading`` becomes ``swapping``, then ``cleaning`` with ``work.entry`` in the ledger
        and its generation live. What was renamed, granted or recorded by an interrupted call is
        left as it is. Without incoming models only the record is made.

        Raises:
            PlanStale: If neither ``work.before`` nor ``work.entry.generation`` is live.
        """

    def end(self, work: Work) -> None:
        """Clear the journal: the phase becomes ``whole``. Commits."""


class Models(Protocol):
    """The models of a database."""

    def list(self) -> Sequence[LoadedModel]:
        """Return the catalogue: every model of the schema, foreign ones too. Read-only."""

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Load the bytes of a file under a free name. Writes a model; commits.

        A model with `damage` is there already: its bytes are written again, at once.

        Raises:
            TargetError: If the bytes are not those of the model's fingerprint, or the database
                refuses them; then no model of that name is there.
        """

    def drop(self, names: Sequence[str]) -> None:
        """Drop models by name; missing ones are skipped. Writes; commits."""

    def grants(self, names: Sequence[str]) -> tuple[Grant, ...]:
        """Return privileges on models that others were given. Read-only."""

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, embedded by the database's own SQL. Read-only.

        Raises:
            ModelTooSlow: If one value takes longer than `EMBED_TIMEOUT_S`.
        """

    def fingerprint(self, name: str) -> str:
        """Return the sha256 of the bytes the database runs for a model, read anew.

        Where a database does not give bytes back, the one recorded when they were loaded, once
        the catalogue's size agrees.
        """


class Notes(Protocol):
    """What is noted about export names, such as a pin; one note of a kind each."""

    def list(self, name: str | None = None) -> Sequence[Note]:
        """Return the notes about an export name, or about all. Read-only."""

    def write(self, note: Note) -> None:
        """Write a note about an export name, in place of one of its kind. Commits."""

    def forget(self, name: str, kind: str) -> bool:
        """Forget a note about an export name; return whether there was one. Commits."""


class Vectors(Protocol):
    """What is known of vectors: those that stand for a geometry, and those that are stored."""

    def geometries(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """Return vectors that stand for each geometry of an export name, by id. Read-only."""

    def save(self, name: str, geometry: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Keep the vectors that stand for a geometry, unless there are some. Commits."""

    def dependants(self, name: str) -> list[Dependant]:
        """Return what is known to depend on an export name's live models. Read-only."""

    def register_column(self, name: str, column: Dependant) -> None:
        """Remember that a table's column holds vectors of a live model. Commits.

        Raises:
            InvalidName: If a name is not valid.
            TargetError: If there is no such table or column, its key is not unique, or another
                export name has it.
        """

    def forget_column(self, name: str, column: str) -> bool:
        """Forget a registered column; return whether there was one. Commits."""

    def count(self, column: Dependant) -> tuple[int, int]:
        """Return how many rows have something to embed, and how many of them no vector."""

    def changed(self, column: Dependant) -> int:
        """Return how many rows have another source than was embedded, where that is known."""

    def missing(
        self, column: Dependant, after: Any, most: int, *, changed: bool = True
    ) -> list[Any]:
        """Return the keys of rows to embed, in their order: without a vector, or changed since.

        Without those that were noted as failures. Read-only.

        Args:
            column: A registered column with a key.
            after: Key behind which to begin; None for the first.
            most: How many to return.
            changed: Whether to look for rows that changed, too, by reading all sources.
        """

    def fill(self, column: Dependant, first: Any, last: Any) -> int:
        """Embed the rows of `missing`, from one key to another; return how many. Commits.

        Raises:
            TargetError: If one of them can't be embedded; then none is.
        """

    def note_failure(self, column: Dependant, key: Any, reason: str) -> None:
        """Leave a row out from now on, until its source changes or `retry`. Commits."""

    def checks(self, name: str) -> list[Check]:
        """Return whether registered columns in other users' tables can be filled. Read-only."""

    def retry(self, column: Dependant) -> None:
        """Forget the failures that were noted of a column. Commits."""

    def note_geometry(self, column: Dependant, geometry: str) -> None:
        """Record in which space a registered column's vectors are. Commits."""

    def demand_swap(self, swaps: Sequence[ColumnSwap], registered: Sequence[Dependant]) -> None:
        """Raise TargetError unless columns can be swapped as planned. Changes nothing.

        Args:
            swaps: What is planned.
            registered: All registered columns of the name, which must be there as registered.
        """

    def drop(self, names: Sequence[str]) -> None:
        """Drop columns, ``table.column``, that are kept beside registered ones. Commits.

        Others are left, missing ones skipped; one that the database does not let go stays, with a
        warning, and is tried again after the next promotion.
        """

    def sample(
        self, column: Dependant, most: int, seed: int
    ) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Return keys of random rows with a vector, that vector, and the live model's. Read-only.

        Args:
            column: A registered column with a key.
            most: How many rows.
            seed: The same rows for the same seed and keys.
        """


class Session(Protocol):
    """A database held open for one promotion or verification.

    Attributes:
        journal: What was promoted, is live, and is under way.
        models: The models.
        notes: Notes about export names.
        vectors: Geometries, and what depends on live models.
    """

    journal: Journal
    models: Models
    notes: Notes
    vectors: Vectors

    @property
    def version(self) -> str:
        """Version of the database, such as ``23.26.1.0.0``."""

    def is_wanted(self, since: float) -> bool:
        """Return whether others have waited for the database since a time of `time.time`."""

    def lock(self, name: str, purpose: str) -> AbstractContextManager[None]:
        """Keep other promoters away from an export name.

        Raises:
            TargetLocked: If another one, alive, holds it; says who, since when and what for.
        """

    def capabilities(self) -> CapabilityTable | None:
        """Return the answers to capability probes, if they ever ran here. Read-only."""

    def save_capabilities(self, table: CapabilityTable) -> None:
        """Keep the answers to capability probes. Commits."""

    def checks(self, size_bytes: int) -> list[Check]:
        """Return this kind of database's own checks, for so many bytes to load. Read-only."""


class Target(Protocol):
    """A database that a pair can be promoted into.

    Attributes:
        keep: How many generations before the live one stay loaded.
        policy: How close vectors must be to their references.
    """

    keep: int
    policy: ParityPolicy

    @property
    def uri(self) -> str:
        """Where it is, without secrets."""

    @property
    def is_probed(self) -> bool:
        """Whether what it can run has to be found out with capability probes."""

    @property
    def swaps_columns(self) -> bool:
        """Whether columns of vectors can go live in one transaction with their models."""

    @property
    def window(self) -> str:
        """What a reader may see while a pair is swapped; shown with a plan."""

    def script(self, plan: Plan) -> str:
        """Return what a plan would run, as SQL for a DBA.

        Raises:
            ConfigError: If the database is not one that a DBA runs SQL in.
        """

    def session(
        self, purpose: str, *, create: bool = True, missing_ok: bool = False
    ) -> AbstractContextManager[Session]:
        """Hold the database open.

        Args:
            purpose: What for, as errors and a DBA's view of sessions show it.
            create: Make missing tables once something is written. Otherwise nothing at all is
                written, and missing tables read as empty.
            missing_ok: Without `create`, treat a missing database as an empty one, where one could
                be made.
        """

    def survey(self) -> Survey:
        """Return what is held under all export names, with one query. Read-only.

        A database that is not there, or has none of our tables, holds nothing.

        Raises:
            TargetUnreachable, LoginRefused, TargetLocked: See `session`.
        """

    def rank_profiles(self, stored: Sequence[str], version: str) -> list[str]:
        """Return the stored profiles that may fit a database version, best first."""

    def skip_reason(self, probe: Probe, profile: Profile) -> str:
        """Return why a golden probe can't be sent to it, or nothing."""

    def reembedding(self, dependant: Dependant) -> str:
        """Return the SQL that re-embeds a registered column."""
