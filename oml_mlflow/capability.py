"""What a database can run: found out with models of a few kilobytes, kept, and used to choose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

FORMAT_VERSION = 1
OPERATOR, ANTIALIAS, INTEGER, INPUT = "operator", "antialias", "integer", "input"
STRING, BYTES = "string", "uint8"


@dataclass(frozen=True, order=True)
class Capability:
    """One thing that a pipeline needs of a database.

    Attributes:
        kind: ``operator``: a custom operator; ``antialias``: Resize with antialias on uint8;
            ``integer``: matrix products of integers, as int8-dynamic has them; ``input``: an
            input type, and the version of the standard operators.
        input: ``string`` for texts (VARCHAR2), ``uint8`` for bytes (BLOB).
        opset: Version of the standard operators.
        ir: IR version.
        operator: ``domain:Name`` of a custom operator.
        has_probe: Whether a probe model can be made for it: not for an operator of unknown
            attributes or inputs.
    """

    kind: str
    input: str
    opset: int
    ir: int
    operator: str = ""
    has_probe: bool = True

    def __str__(self) -> str:
        """Return it for people, such as ``ai.onnx.contrib:CLIPTokenizer (string, opset 17)``."""
        what = {
            OPERATOR: self.operator,
            ANTIALIAS: "Resize with antialias on uint8",
            INTEGER: "MatMulInteger",
            INPUT: "texts (VARCHAR2)" if self.input == STRING else "bytes (BLOB)",
        }[self.kind]
        return f"{what}, opset {self.opset}, IR {self.ir}"


@dataclass(frozen=True)
class Answer:
    """What a database said about one capability.

    Attributes:
        capability: The capability.
        taken: Whether it has it; None if it was not asked, or did not answer.
        message: What it refused it with, or why there is no answer.
    """

    capability: Capability
    taken: bool | None
    message: str = ""


@dataclass(frozen=True)
class CapabilityTable:
    """What a database answered to capability probes.

    Attributes:
        rows: An answer for each capability.
        probed_at: When, UTC.
        database_version: Version of the database that answered.
    """

    rows: tuple[Answer, ...]
    probed_at: datetime
    database_version: str

    def missing(self, needs: Iterable[Capability]) -> list[Answer]:
        """Return the refusals among what is needed."""
        found = {row.capability: row for row in self.rows}
        return [found[n] for n in needs if n in found and found[n].taken is False]

    def unanswered(self, needs: Iterable[Capability]) -> list[Capability]:
        """Return what is needed and was never answered."""
        answered = {row.capability for row in self.rows if row.taken is not None}
        return [need for need in needs if need not in answered]

    def to_json(self) -> str:
        """Return it as one JSON document."""
        document = {
            "format_version": FORMAT_VERSION,
            "database_version": self.database_version,
            "probed_at": self.probed_at.isoformat(),
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> CapabilityTable:
        """Return what `to_json` wrote."""
        stored: Mapping[str, Any] = json.loads(text)
        rows = tuple(
            Answer(Capability(**row["capability"]), row["taken"], row["message"])
            for row in stored["rows"]
        )
        probed_at = datetime.fromisoformat(stored["probed_at"])
        return cls(rows, probed_at, stored["database_version"])
