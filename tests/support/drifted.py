"""Targets that are changed by hand, behind this package's back, each in its own way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import oracledb
from oracle_fixtures import PASSWORD, Oracle

from oml_mlflow.files import fingerprint_file
from oml_mlflow.names import SIDES, model_name, slot_name
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.planning.records import LedgerEntry, LoadedModel, Work, now
from oml_mlflow.promotion.target import Session, Target
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.load import comment_text


class Hand(Protocol):
    """Somebody who changes a target without this package.

    Attributes:
        target: The target.
    """

    target: Any

    def drop(self, model: str) -> None:
        """Drop a model."""
        ...

    def replace(self, model: str, path: Path) -> None:
        """Put a model of others under a name that has one or not."""
        ...

    def alter(self, model: str) -> None:
        """Make a model of ours another one."""
        ...

    def age(self) -> None:
        """Make the tables those of issue 4: no notes, no registries in the ledger, no version."""
        ...

    def upgrade(self) -> None:
        """Make the tables those of a newer release, which has another journal."""
        ...


@dataclass
class EmbeddedHand:
    """Changes an embedded database."""

    target: EmbeddedTarget

    def drop(self, model: str) -> None:
        self.target.model_path(self._fingerprint(model)).unlink()

    def replace(self, model: str, path: Path) -> None:
        fingerprint = fingerprint_file(path)
        with self.target.session("a hand"):
            shutil.copy(path, self.target.model_path(fingerprint))
        self.target.sql("DELETE FROM oml.models WHERE name = ?", [model])
        self.target.sql(
            "INSERT INTO oml.models VALUES (?, '', ?, 16, ?, '{}', now()::TIMESTAMP)",
            [model, fingerprint, path.stat().st_size],
        )

    def alter(self, model: str) -> None:
        with self.target.model_path(self._fingerprint(model)).open("ab") as file:
            file.write(b"\0")

    def age(self) -> None:
        columns = ", ".join(
            name
            for (name,) in self.target.sql(
                "SELECT column_name FROM duckdb_columns() "
                "WHERE table_name = 'ledger' AND column_name <> 'registry' ORDER BY column_index"
            )
        )
        with self.target.open_file("a hand") as raw:
            raw.execute("DROP TABLE oml.notes")
            raw.execute("DROP TABLE oml.schema_versions")
            raw.execute(f"CREATE TABLE oml.old AS SELECT {columns} FROM oml.ledger")  # noqa: S608
            raw.execute("DROP TABLE oml.ledger")
            raw.execute("ALTER TABLE oml.old RENAME TO ledger")

    def upgrade(self) -> None:
        with self.target.open_file("a hand") as raw:
            raw.execute("ALTER TABLE oml.live RENAME TO journal")
            raw.execute("INSERT INTO oml.schema_versions VALUES (2), (10)")

    def _fingerprint(self, model: str) -> str:
        found = "SELECT fingerprint FROM oml.models WHERE name = ?"
        [(fingerprint,)] = self.target.sql(found, [model])
        return str(fingerprint)


@dataclass
class OracleHand:
    """Changes an Oracle schema, as its owner."""

    oracle: Oracle
    target: Target

    @contextmanager
    def cursor(self) -> Iterator[oracledb.Cursor]:
        """Give a cursor of the owner's; commit what was done with it."""
        dsn = self.oracle.server.dsn
        with oracledb.connect(user="vec", password=PASSWORD, dsn=dsn) as connection:
            yield connection.cursor()
            connection.commit()

    def drop(self, model: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(sql.DROP, model_name=model)

    def replace(self, model: str, path: Path) -> None:
        if model in self.oracle.database.models("VEC"):
            self.drop(model)
        self.oracle.database.load_foreign_model("VEC", model, path)

    def alter(self, model: str) -> None:
        with self.target.session("a hand", create=False) as session:
            [found] = [one for one in session.models.list() if one.name == model]
        identity = {**json.loads(comment_text(found)), "sha256": "0" * 64}
        with self.cursor() as cursor:
            cursor.execute(sql.comment(model, json.dumps(identity)))

    def age(self) -> None:
        columns = sql.ledger_columns()[:-1]
        listed, places = ", ".join(columns), ", ".join(f":{n + 1}" for n in range(len(columns)))
        with self.cursor() as cursor:
            read = f"SELECT {listed} FROM {sql.LEDGER}"  # noqa: S608
            rows = cursor.execute(read).fetchall()
            cursor.execute(f"DROP TABLE {sql.LEDGER}")
            cursor.execute(f"DROP TABLE {sql.NOTES}")
            cursor.execute(f"DROP TABLE {sql.SCHEMA}")
            cursor.execute(old_ledger())
            write = f"INSERT INTO {sql.LEDGER} ({listed}) VALUES ({places})"  # noqa: S608
            for row in rows:
                cursor.execute(write, row)

    def upgrade(self) -> None:
        with self.cursor() as cursor:
            cursor.execute(f"DROP TABLE {sql.LIVE}")
            for version in (2, 10):
                cursor.execute(f"INSERT INTO {sql.SCHEMA} VALUES ({version})")  # noqa: S608


def old_ledger() -> str:
    """Return the statement that made the ledger in issue 4."""
    lines = sql.CREATE_TABLES[sql.LEDGER].splitlines()
    return "\n".join(line for line in lines if not line.startswith("  REGISTRY "))


def work_to(pair: PipelinePair, generation: int, name: str = "CLIP") -> Work:
    """Return the work that makes a pair the next generation of a name."""
    entry = LedgerEntry(
        name=name,
        generation=generation,
        registered_model="clip",
        version=str(generation),
        run_id="run",
        fingerprints=pair.fingerprints,
        dims=pair.dims,
        parity={"max_abs": 1e-5},
        promoted_at=now(),
        restores=generation,
        promoted_by="me",
        registry="sqlite:1700000000000",
    )
    slots = {side: slot_name(name, side, generation) for side in SIDES}
    kept = {side: slot_name(name, side, generation - 1) for side in SIDES}
    outgoing = kept if generation > 1 else {}
    return Work(entry, generation - 1, tuple(slots.values()), slots, outgoing, holder="me")


def load(session: Session, pair: PipelinePair, work: Work) -> None:
    """Load a pair under the slot names of a work."""
    for side, slot in work.incoming.items():
        path = pair.path(side)
        origin = {"registered_model": "clip", "version": work.entry.version}
        size = path.stat().st_size
        session.models.load(
            LoadedModel(slot, side, pair.fingerprints[side], pair.dims, size, origin, now()), path
        )


def promote(target: Target, pair: PipelinePair, generation: int = 1, name: str = "CLIP") -> Work:
    """Make a pair the next generation of a name, without a registry; nothing is compared."""
    work = work_to(pair, generation, name)
    with target.session("a test") as session, session.lock(name, "a test"):
        session.journal.begin(work)
        load(session, pair, work)
        session.journal.swap(work)
        session.journal.end(work)
    return work


def live_names(name: str = "CLIP") -> list[str]:
    """Return the names of the live pair, image first."""
    return [model_name(name, side) for side in SIDES]
