"""What an Oracle schema says was promoted and is live."""

from __future__ import annotations

from typing import Any

from oml_mlflow.documents import build, read_json
from oml_mlflow.names import SIDES
from oml_mlflow.planning.records import LedgerEntry, LiveState, Work, damaged_record
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database


class OracleLedger:
    """The part of a journal that is only read."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def state(self, name: str) -> LiveState:
        """Return what is live under an export name. Read-only."""
        name = name.upper()
        step = f"reading what is live as {name}"
        rows = self._db.rows(sql.READ_LIVE, step, {"name": name}, of=sql.LIVE)
        if not rows:
            return LiveState(name)
        [(generation, phase, work)] = rows
        return LiveState(name, int(generation), phase, Work.from_json(work) if work else None)

    def ledger(self, name: str | None = None) -> list[LedgerEntry]:
        """Return promotions, oldest first. Read-only."""
        entries = [entry for entry, _sizes in self.sized()]
        if name is None:
            return entries
        # not by time, which comes from the promoters' clocks
        found = (entry for entry in entries if entry.name == name.upper())
        return sorted(found, key=lambda entry: entry.generation)

    def sized(self) -> list[tuple[LedgerEntry, dict[str, int]]]:
        """Return every entry, with the sizes of its models by side. Read-only."""
        statement = sql.read_ledger(has_registry=self._db.has_registry)
        return [
            ledger_entry(r) for r in self._db.rows(statement, "reading the ledger", of=sql.LEDGER)
        ]


def ledger_entry(row: tuple[Any, ...]) -> tuple[LedgerEntry, dict[str, int]]:
    """Return the entry of a row, and the sizes of its models by side."""
    columns = [column.lower() for column in sql.ledger_columns()]
    # Oracle has no empty text but NULL
    known: dict[str, Any] = {c: value or "" for c, value in zip(columns, row, strict=True)}
    hashes = {side: known.pop(f"{side}_sha256") for side in SIDES}
    with damaged_record(f"of {known['name']}, generation {known['generation']},"):
        sizes = {side: int(size) for side in SIDES if (size := known.pop(f"{side}_bytes"))}
        known |= {number: int(known[number] or 0) for number in ("generation", "restores", "dims")}
        known["fingerprints"] = {side: sha256 for side, sha256 in hashes.items() if sha256}
        known["parity"] = read_json(known["parity"] or "{}")
        return build(LedgerEntry, known), sizes
