"""Answers of a database to capability probes: what it can run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from oml_mlflow.documents import build, read_json
from oml_mlflow.graph.needs import Capability
from oml_mlflow.planning.records import damaged_record, now

FORMAT_VERSION = "1.0"
_CODE = re.compile(r"\bORA-\d{5}\b")


@dataclass(frozen=True)
class Answer:
    """A database's answer about one capability.

    Attributes:
        capability: The capability.
        taken: Whether it has it; None if there is no answer.
        message: Its refusal, or why there is no answer.
    """

    capability: Capability
    taken: bool | None
    message: str = ""

    def __str__(self) -> str:
        """Return it for people, such as ``ai.onnx.contrib:CLIPTokenizer, refused with ORA-…``."""
        if self.taken:
            return f"{self.capability}, taken"
        if self.taken is None:
            return f"{self.capability}, {self.message}"
        code = _CODE.search(self.message)
        return f"{self.capability}, refused {f'with {code[0]}' if code else f'({self.message})'}"


@dataclass(frozen=True)
class CapabilityTable:
    """All answers of a database to capability probes.

    Attributes:
        rows: An answer for each capability.
        probed_at: When, UTC.
        database_version: Version of the database that answered.
    """

    rows: tuple[Answer, ...]
    probed_at: datetime
    database_version: str

    def missing(self, needs: Iterable[Capability]) -> list[Answer]:
        """Return the refusals of needed capabilities."""
        found = {row.capability: row for row in self.rows}
        return [found[n] for n in needs if n in found and found[n].taken is False]

    def unanswered(self, needs: Iterable[Capability]) -> list[Capability]:
        """Return the needed capabilities without an answer."""
        answered = {row.capability for row in self.rows if row.taken is not None}
        return [need for need in needs if need not in answered]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the table as a list of flat dicts."""
        shown = {True: "takes", False: "refuses", None: "not run"}
        return [
            {**asdict(r.capability), "state": shown[r.taken], "message": r.message}
            for r in self.rows
        ]

    def age(self, at: datetime | None = None) -> str:
        """Return the age of the answers, for people: ``12 minutes``, ``3 days``."""
        seconds = max(0.0, ((at or now()) - self.probed_at).total_seconds())
        for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
            if seconds >= size:
                count = int(seconds // size)
                return f"{count} {unit}{'s' if count > 1 else ''}"
        return "less than a minute"

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
        with damaged_record("of its capabilities"):
            return build(cls, read_json(text))
