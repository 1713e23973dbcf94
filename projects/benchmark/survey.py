"""How long a survey of a target with many names takes, besides connecting.

The Oracle figure is of the tests' stand-in on loopback: it says what the query's rows cost here,
and how many statements and round trips there are, not how fast an Oracle database is.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from oml_mlflow.names import SIDES  # noqa: E402
from oml_mlflow.planning.records import FAILURE, PUBLISHED, LedgerEntry, LoadedModel, Note, now  # noqa: E402
from oml_mlflow.targets.oracle import quoting  # noqa: E402

PASSWORD = "stand-in"  # noqa: S105 -- of a server that lives as long as this script
SIZE = 1000


def content(of: str) -> bytes:
    """Return bytes that stand for a model's."""
    return of.encode().ljust(SIZE, b"\0")


def entries(names: int, generations: int) -> list[LedgerEntry]:
    """Return ledgers as if all had been promoted in turn."""
    begun = now()
    return [
        LedgerEntry(
            name=f"N{n}",
            generation=generation,
            registered_model="clip",
            version=str(generation),
            run_id="0" * 32,
            fingerprints={
                side: hashlib.sha256(content(f"{n}{side}")).hexdigest() for side in SIDES
            },
            dims=512,
            parity={"max_abs": 1e-5, "min_cosine": 0.99999},
            promoted_at=begun + timedelta(seconds=generation),
            restores=generation,
            geometry="g" * 40,
            profile="oracle-26ai",
            promoted_by="somebody@a-host pid 4711",
            registry="sqlite:1700000000000",
        )
        for n in range(names)
        for generation in range(1, generations + 1)
    ]


def fill_embedded(target: Any, ledger: list[LedgerEntry]) -> None:
    """Write ledgers, live rows, models and notes."""
    from oml_mlflow.targets.embedded.schema import LEDGER_COLUMNS, ledger_row

    with target.connect("filling") as connection:
        places = ", ".join("?" * len(LEDGER_COLUMNS))
        connection.execute("BEGIN TRANSACTION")
        connection.executemany(
            f"INSERT INTO oml.ledger ({', '.join(LEDGER_COLUMNS)}) VALUES ({places})",
            [ledger_row(entry) for entry in ledger],
        )
        for entry in {entry.name: entry for entry in ledger}.values():
            connection.execute(
                "INSERT INTO oml.live VALUES (?, ?, 'whole', NULL)", [entry.name, entry.generation]
            )
            for side, fingerprint in entry.fingerprints.items():
                of = f"{entry.name.removeprefix('N')}{side}"
                target.model_path(fingerprint).write_bytes(content(of))
                metadata = '{"registered_model": "clip"}'
                connection.execute(
                    "INSERT INTO oml.models VALUES (?, ?, ?, 512, ?, ?, now()::TIMESTAMP)",
                    [f"{entry.name}_{side.upper()}", side, fingerprint, SIZE, metadata],
                )
        connection.execute("COMMIT")


def fill_oracle(target: Any, database: Any, ledger: list[LedgerEntry]) -> None:
    """Write ledgers, live rows and models, these behind the stand-in's back."""
    from oml_mlflow.targets.oracle import statements as sql
    from oml_mlflow.targets.oracle.load import comment_text

    with target.session("filling") as session:
        db = session._db
        db.ensure_tables()
        columns = ", ".join(sql.ledger_columns())
        for entry in ledger:
            at = quoting.literal(entry.promoted_at.isoformat() if entry.promoted_at else "")
            values = ", ".join(sql._ledger_values(entry, {"img": SIZE, "txt": SIZE}, at))
            db.write(f"INSERT INTO {sql.LEDGER} ({columns}) VALUES ({values})", "filling")
        for entry in {entry.name: entry for entry in ledger}.values():
            binds = {"name": entry.name, "work": None, "changed_at": now().isoformat()}
            db.write(sql.INSERT_LIVE, "filling", binds)
            live = f"UPDATE {sql.LIVE} SET GENERATION = :g, PHASE = 'whole' WHERE NAME = :name"
            db.write(live, "filling", {"g": entry.generation, "name": entry.name})
        db.commit()
    with database._dictionary() as dictionary:
        for entry in {entry.name: entry for entry in ledger}.values():
            for side, fingerprint in entry.fingerprints.items():
                origin = {"registered_model": "clip", "version": entry.version}
                name = f"{entry.name}_{side.upper()}"
                model = LoadedModel(name, side, fingerprint, 512, SIZE, origin, now())
                row = ["VEC", name, comment_text(model), SIZE, fingerprint]
                dictionary.execute(
                    "INSERT INTO models (owner, name, comments, size_bytes, fingerprint, path, "
                    "metadata, input, output, attribute, dims, is_text, created) VALUES "
                    "(?, ?, ?, ?, ?, '', '{}', '', '', 'DATA', 512, 0, char(1) || "
                    "'2026-01-01 00:00:00')",
                    row,
                )


def write_notes(target: Any, names: int) -> None:
    """Write two notes a name."""
    with target.session("filling") as session:
        for n in range(names):
            session.notes.write(Note(f"N{n}", FAILURE, {"message": "x" * 500}))
            session.notes.write(Note(f"N{n}", PUBLISHED, {"version": "7"}))


def timed(target: Any, rounds: int) -> str:
    """Return how long surveys took, median and worst."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        found = target.survey()
        times.append((time.perf_counter() - begun) * 1000)
        assert all(held.is_whole() for held in found.names.values())
    return f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms"


@click.command()
@click.option("--names", default=20, show_default=True)
@click.option("--generations", default=50, show_default=True)
@click.option("--rounds", default=20, show_default=True)
def main(names: int, generations: int, rounds: int) -> None:
    """Fill an embedded target and the Oracle stand-in; survey both."""
    import oracledb
    from oracle_server.engine import Database, User
    from oracle_server.server import OracleServer

    from oml_mlflow.targets.embedded.target import EmbeddedTarget
    from oml_mlflow.targets.oracle.target import OracleTarget

    ledger = entries(names, generations)
    print(f"{names} names, {generations} generations each, 2 notes each, {rounds} surveys")
    with tempfile.TemporaryDirectory() as folder:
        embedded = EmbeddedTarget(Path(folder) / "database")
        fill_embedded(embedded, ledger)
        write_notes(embedded, names)
        print(f"embedded, with opening the file: {timed(embedded, rounds)}")
    os.environ["OML_MLFLOW_PASSWORD"] = PASSWORD
    with Database(users={"VEC": User(PASSWORD)}) as database, OracleServer(database) as server:
        target = OracleTarget.from_uri(f"oracle://vec@{server.dsn}")
        fill_oracle(target, database, ledger)
        write_notes(target, names)
        print(f"stand-in, with connecting: {timed(target, rounds)}")
        before = len(database.statements)
        with oracledb.connect(user="vec", password=PASSWORD, dsn=server.dsn) as connection:
            print(f"stand-in, connected: {timed(OracleTarget(connection=connection), rounds)}")
        print(f"statements a survey: {(len(database.statements) - before) / rounds:g}")


if __name__ == "__main__":
    main()
