"""What every target can do, whatever database it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from oml_mlflow.events import Listener, silent

VERIFIED, UNVERIFIED = "verified", "unverified"


@dataclass(frozen=True)
class LoadedModel:
    """One row of a target's catalogue.

    Attributes:
        name: In-database model name, such as ``CLIP_IMG`` or, for a slot, ``CLIP_IMG_S3``.
        side: ``img`` or ``txt``.
        fingerprint: sha256 of the bytes that were loaded.
        dims: Length of its embeddings.
        size_bytes: Size of the ONNX bytes.
        metadata: Template metadata, and where it came from.
        loaded_at: When, UTC.
    """

    name: str
    side: str
    fingerprint: str
    dims: int
    size_bytes: int
    metadata: dict[str, Any]
    loaded_at: datetime


@dataclass(frozen=True)
class LedgerEntry:
    """One promotion: what became live under an export name.

    Attributes:
        name: Export name, upper-case.
        generation: 1 for the first promotion under the name, then counting.
        registered_model: Name in the registry.
        version: Version in the registry.
        run_id: MLflow run that logged it, if any.
        fingerprints: sha256 by side.
        dims: Length of the embeddings.
        parity: Largest difference to the references and smallest cosine, when verified.
        promoted_at: When, UTC; set by the target.
        verification: ``verified``: the golden probes were compared in the database;
            ``unverified``: they could not be.
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


class Session(Protocol):
    """A database held open for one promotion or verification."""

    def list_models(self) -> list[LoadedModel]:
        """Return the catalogue. Read-only."""
        ...

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        ...

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        """Load the bytes of a file under a slot name. Writes: a model; commits."""
        ...

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, embedded by the database's own SQL. Read-only."""
        ...

    def swap(self, entry: LedgerEntry) -> None:
        """Give a generation's slots the live names and record it. Writes; commits.

        The pair that was live keeps its models under its own generation's slot names.
        """
        ...

    def drop(self, names: Sequence[str]) -> None:
        """Drop models by name; a live one is refused. Writes; commits."""
        ...

    def loaded_fingerprint(self, name: str) -> str:
        """Return the sha256 of the bytes the database runs for a model, read anew."""
        ...


class Target(Protocol):
    """A database that a pair can be promoted into."""

    @property
    def uri(self) -> str:
        """Where it is, without secrets."""
        ...

    def session(self, purpose: str, *, create: bool = True) -> AbstractContextManager[Session]:
        """Hold the database open; with `create`, make it if there is none."""
        ...
