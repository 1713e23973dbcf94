"""A database in memory that runs models with onnxruntime, and can be told what to refuse."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from oml_mlflow.errors import ModelRefused, TargetError
from oml_mlflow.events import Listener, silent
from oml_mlflow.files import fingerprint_file
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import Check
from oml_mlflow.planning.records import LedgerEntry, LiveState, LoadedModel, now
from oml_mlflow.promotion.target import Journal, Models, Session


@dataclass
class SmallDatabase:
    """What `oml_mlflow.promotion.target.Session` asks of a session, as far as checks need it.

    It is its own facets: its journal and its models.

    Attributes:
        version: Version of the database.
        refused: ONNX operators that it takes no model with, as ``domain:Name``.
        errors: Errors that loading raises, by how many were tried before.
        damage: Added to every vector.
    """

    version: str = "23.26.1.0.0"
    refused: frozenset[str] = frozenset()
    errors: dict[int, TargetError] = field(default_factory=dict)
    damage: float = 0.0
    loaded: dict[str, LoadedModel] = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)
    live: LiveState | None = None
    own_checks: list[Check] = field(default_factory=list)
    table: CapabilityTable | None = None
    tried: int = 0
    dropped: list[str] = field(default_factory=list)
    uri: str = "small://here"
    is_probed: bool = True

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.onnx"

    @property
    def journal(self) -> SmallDatabase:
        return self

    models = journal

    def list(self) -> Sequence[LoadedModel]:
        return [*self.loaded.values()]

    def ledger(self, name: str | None = None) -> Sequence[LedgerEntry]:
        return [entry for entry in self.entries if name in (None, entry.name)]

    def state(self, name: str) -> LiveState:
        return self.live or LiveState(name)

    def load(self, model: LoadedModel, path: Path, on_event: Listener = silent) -> None:
        self.tried += 1
        if self.tried - 1 in self.errors:
            raise self.errors[self.tried - 1]
        assert model.name not in self.loaded
        assert fingerprint_file(path) == model.fingerprint
        assert path.stat().st_size == model.size_bytes
        for node in onnx.load(path).graph.node:
            if f"{node.domain}:{node.op_type}" in self.refused:
                raise ModelRefused(
                    f"loading {model.name} failed: ORA-54426: {node.op_type} is not known. "
                    "Nothing was changed."
                )
        self._path(model.name).write_bytes(path.read_bytes())
        self.loaded[model.name] = replace(model, loaded_at=now())

    def embed(self, model: str, side: str, values: Sequence[bytes | str]) -> np.ndarray:
        session, rows = open_session(self._path(model)), []
        for value in values:
            if isinstance(value, bytes):
                given = np.frombuffer(value, np.uint8)
            else:
                given = np.array([value], dtype=object)
            rows.append(run(session, given)[0])
        return np.stack(rows) + np.float32(self.damage)

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.dropped.append(name)
            self.loaded.pop(name, None)

    def capabilities(self) -> CapabilityTable | None:
        return self.table and CapabilityTable.from_json(self.table.to_json())

    def save_capabilities(self, table: CapabilityTable) -> None:
        self.table = table

    def checks(self, size_bytes: int) -> Sequence[Check]:
        assert size_bytes > 0
        return self.own_checks


def as_session(database: SmallDatabase) -> Any:
    """Return it as a session and as a target, of which only what is here is used."""
    asked = {
        Journal: ("ledger", "state"),
        Models: ("list", "load", "embed", "drop"),
        Session: ("capabilities", "checks"),
    }
    for facet, names in asked.items():
        assert all(hasattr(facet, name) for name in names)
    return database
