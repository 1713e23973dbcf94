"""A reconciler's pass over a small and a large registry, side by side, with its calls counted.

A real `mlflow server` on loopback answers; its access log counts the calls. Targets are an embedded
database and the tests' Oracle stand-in, ten names each, in sync. Nothing here says how fast an
Oracle database is.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "stand-in"  # noqa: S105 -- of a server that lives as long as this script
BOUND, VERSIONS, TEXT = 20, 5, 3000
# a registry call of the client, as uvicorn logs it
_CALL = re.compile(r'"(?:GET|POST) /api/2\.0/mlflow/')


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run an MLflow server on a folder's store; give its address and its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [Path(sys.executable).with_name("mlflow"), "server", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):  # noqa: S310
                    break
            except OSError:
                time.sleep(0.2)
        yield uri, log
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def fill(database: Path, count: int) -> None:
    """Write registered models that nothing is bound to, each with five versions."""
    with sqlite3.connect(database) as raw:
        models = {row[1] for row in raw.execute("PRAGMA table_info(registered_models)")}
        text, now = "x" * TEXT, int(time.time() * 1000)
        extra = {"workspace": "default"} if "workspace" in models else {}
        for number in range(count):
            name = f"other{number:04d}"
            row = {"name": name, "creation_time": now, "last_updated_time": now, **extra}
            _insert(raw, "registered_models", {**row, "description": text})
            for version in range(1, VERSIONS + 1):
                row = {
                    "name": name,
                    "version": version,
                    "creation_time": now,
                    "last_updated_time": now,
                    "description": text,
                    "source": "nowhere",
                    "current_stage": "None",
                    "status": "READY",
                    "storage_location": "nowhere",
                    **extra,
                }
                _insert(raw, "model_versions", row)


def _insert(raw: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    places = ", ".join("?" for _ in row)
    raw.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", list(row.values()))


def bind(source: str, model_id: str) -> None:
    """Register the models that are bound: five versions each, all of one logged pair."""
    import mlflow

    client = mlflow.MlflowClient()
    for number in range(BOUND):
        name = f"bound{number:02d}"
        client.create_registered_model(name, description="x" * TEXT)
        for _ in range(VERSIONS):
            client.create_model_version(name, source, description="x" * TEXT, model_id=model_id)
        client.set_registered_model_alias(name, "prod", "1")


def prepared(folder: Path, pair: Path, oracle: str, others: int) -> Any:
    """Return a configuration whose names are all in sync, over a registry of a size."""
    import mlflow

    import oml_mlflow
    from oml_mlflow.config.bindings import Acceptance, Binding
    from oml_mlflow.config.file import Config, TargetConfig

    logged = oml_mlflow.log_model(
        oml_mlflow.PipelinePair.from_files(pair / "clip_img.onnx", pair / "clip_txt.onnx"),
        name="clip",
    )
    bind(logged.model_uri, logged.model_id)
    fill(folder / "mlflow.db", others)
    targets = {
        "small": TargetConfig("small", f"embedded:///{folder / 'small'}", (Acceptance(),)),
        "big": TargetConfig("big", oracle, (Acceptance(),)),
    }
    bindings = tuple(
        Binding("small" if n < BOUND // 2 else "big", f"B{others}N{n}", f"bound{n:02d}", "prod")
        for n in range(BOUND)
    )
    config = Config(targets, bindings)
    assert mlflow.get_registry_uri().startswith("http")
    return config


@click.command()
@click.option("--models", default=1000, show_default=True, help="Registered models.")
@click.option("--fewer", default=100, show_default=True, help="In the smaller registry.")
@click.option("--rounds", default=7, show_default=True, help="Passes over each.")
def main(models: int, fewer: int, rounds: int) -> None:
    """Compare a pass over a large registry with one over a small one."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OML_MLFLOW_PASSWORD": PASSWORD}
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    import mlflow
    from oracle_server.engine import Database, User
    from oracle_server.server import OracleServer

    from oml_mlflow import ONNXPipeline
    from oml_mlflow.reconciler.loop import Reconciler

    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        database = held.enter_context(Database(users={"VEC": User(PASSWORD)}))
        oracle = held.enter_context(OracleServer(database))
        demo = str(ROOT / "projects" / "demo_model" / "demo")
        ONNXPipeline(demo).export2file("clip", folder / "pair")
        worlds = {}
        for count in (fewer, models):
            place = folder / str(count)
            place.mkdir()
            uri, log = held.enter_context(served(place))
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
            address = f"oracle://vec@{oracle.dsn}"
            config = prepared(place, folder / "pair", address, count - BOUND)
            begun = time.perf_counter()
            done = Reconciler(config).run()
            assert done.ok, [outcome.error for outcome in done.outcomes]
            print(
                f"{count} models x {VERSIONS} versions, {BOUND} bindings: all promoted in "
                f"{time.perf_counter() - begun:.0f} s"
            )
            worlds[count] = uri, log, config
        times: dict[int, list[float]] = {count: [] for count in worlds}
        for _ in range(rounds):
            for count, (uri, log, config) in worlds.items():
                mlflow.set_tracking_uri(uri)
                mlflow.set_registry_uri(uri)
                lines, statements = _lines(log), len(database.statements)
                begun = time.perf_counter()
                found = Reconciler(config).run()
                times[count].append(time.perf_counter() - begun)
                assert found.outcomes == ()
                assert {s.state for s in found.statuses if s.binding} == {"in sync"}
                time.sleep(0.2)  # the server writes its log a little later
                calls = len(_CALL.findall(log.read_text()[lines:]))
                queries = len(database.statements) - statements
                assert calls <= BOUND + 2, calls
                assert queries == 1, queries
        for count, seconds in times.items():
            print(
                f"{count} models: a pass {statistics.median(seconds):.2f} s (median of {rounds}, "
                f"{min(seconds):.2f} to {max(seconds):.2f}; limit 3), {calls} registry calls "
                f"(limit {BOUND + 2}), {queries} query of the Oracle target"
            )
        ratios = [large / small for small, large in zip(*times.values(), strict=True)]
        print(
            f"ratio {models} to {fewer} models: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}; limit 0.8 to 1.2)"
        )


def _lines(log: Path) -> int:
    return len(log.read_text())


if __name__ == "__main__":
    main()
