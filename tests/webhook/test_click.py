# ruff: noqa: T201 -- the figures belong in the log
"""Must-show M1: a click in the registry UI, and two databases follow; clicked back, and so do they.

Everything is a process of its own as in use: MLflow's server, the receiver, Chromium. Only the
stand-in for Oracle Database is in this one.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import clip_folders
import mlflow
import numpy as np
import oracledb
import pytest
from oracle_fixtures import PASSWORD, Oracle
from receiving import SECRET, wait_for
from registry_browser import Clicked, click_alias, require_browser
from servers import PROGRAM, fetch, free_port, mlflow_server, running

import oml_mlflow
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.targets.embedded.settings import CATALOG
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.webhook.setup import CACHE_TTL_S
from oml_mlflow.webhook.signature import SECRET_ENV

DEMO = Path(__file__).resolve().parents[2] / "projects" / "demo_model" / "demo"
LONGEST_S = 10.0
TEXT = "three small red stars"
EMBEDDED_SQL = f"SELECT CLIP_TXT('{TEXT}')"
ORACLE_SQL = f"SELECT VECTOR_EMBEDDING(CLIP_TXT USING '{TEXT}' AS DATA) FROM DUAL"  # noqa: S608
LOAD = "BEGIN DBMS_VECTOR.LOAD_ONNX_MODEL"
CONFIG = """\
# so rare that only a webhook can have done it
poll_s = 3600

[targets.small]
uri = "{small}"
accept = [{{ model = "clip", alias = "prod" }}]

[targets.big]
uri = "{big}"
accept = [{{ model = "clip", alias = "prod" }}]

[[bindings]]
model = "clip"
alias = "prod"
targets = ["small", "big"]

[webhook]
port = {port}
"""


@dataclass
class Watched:
    """A database that is asked for a vector again and again.

    Attributes:
        ask: Returns the vector that its SQL gives.
        vectors: What the versions' own files give.
        seen: Since when which version answered, in seconds since 1970.
        errors: What went wrong; not before the first answer.
        answers: How many vectors came.
    """

    ask: Callable[[], Sequence[float]]
    vectors: dict[str, np.ndarray]
    seen: list[tuple[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: int = 0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            try:
                vector = np.asarray(self.ask(), dtype=np.float32)
            except Exception as error:
                if self.seen:
                    self.errors.append(str(error))
                continue
            self.answers += 1
            version = self.version_of(vector)
            if not self.seen or self.seen[-1][0] != version:
                self.seen.append((version, time.time()))

    def version_of(self, vector: np.ndarray) -> str:
        """Return whose vector it is; far from none, and farther from all others."""
        far = {v: float(np.abs(vector - own).max()) for v, own in self.vectors.items()}
        nearest, *others = sorted(far, key=lambda version: far[version])
        assert far[nearest] < 2e-6 < 5e-6 < far[others[0]], far
        return nearest

    def wait_s(self, version: str, since: float) -> float:
        """Return how long after a moment a version answered."""
        at = wait_for(lambda: self._at(version, since), 60)
        return float(at - since)

    def _at(self, version: str, since: float) -> float | None:
        return next((at for seen, at in self.seen if seen == version and at > since), None)


@dataclass(frozen=True)
class World:
    """Everything that runs.

    Attributes:
        server: Address of MLflow's server.
        pairs: Version 1 and 2.
        embedded: The embedded target.
        oracle: The stand-in.
        watched: Both targets, by name.
        log: The receiver's log.
        webhook_age_s: How old the webhook was before the first click.
    """

    server: str
    pairs: tuple[PipelinePair, PipelinePair]
    embedded: EmbeddedTarget
    oracle: Oracle
    watched: dict[str, Watched]
    log: Path
    webhook_age_s: float

    def loaded(self) -> tuple[set[str], int]:
        """Return the embedded target's model files, and how many models Oracle was sent."""
        files = {
            f"{path.relative_to(self.embedded.folder)} {path.stat().st_mtime_ns}"
            for path in self.embedded.folder.rglob("*.onnx")
        }
        sent = sum(text.startswith(LOAD) for text in self.oracle.statements())
        return files, sent


@pytest.fixture
def demo_pairs(tmp_path: Path) -> tuple[PipelinePair, PipelinePair]:
    """The demo model, and the same after a very short fine-tuning: same geometry, other vectors."""
    tuned = clip_folders.tune(DEMO, tmp_path / "tuned", amount=5e-5)
    first, second = (
        ONNXPipeline(str(folder)).export2file("clip", tmp_path / f"pair_{number}")
        for number, folder in enumerate((DEMO, tuned), 1)
    )
    return first, second


@pytest.fixture
def world(
    demo_pairs: tuple[PipelinePair, PipelinePair],
    _migrated_database: Path,
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    require_browser()
    folders = {name: tmp_path / name for name in ("server", "receiver")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["receiver"])
    monkeypatch.setenv(SECRET_ENV, SECRET.reveal())
    embedded = EmbeddedTarget(tmp_path / "small")
    address = f"http://127.0.0.1:{(port := free_port())}"
    Path("oml_mlflow.toml").write_text(
        CONFIG.format(small=embedded.uri, big=oracle.uri, port=port), encoding="utf-8"
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(mlflow_server(_migrated_database, folders["server"]))
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            monkeypatch.setenv(variable, server.uri)
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_registry_uri(server.uri)
        stack.callback(mlflow.set_tracking_uri, None)
        stack.callback(mlflow.set_registry_uri, None)
        command = ["webhook", "install", "--url", f"{address}/webhook"]
        subprocess.run([*PROGRAM, *command], check=True, capture_output=True)
        installed_at = time.monotonic()
        for pair in demo_pairs:
            oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
        log = folders["receiver"] / "log"
        stack.enter_context(running([*PROGRAM, "serve-webhook"], log))
        wait_for(lambda: '"last_success_at": 1' in fetch(f"{address}/health"), 60)
        # a database that runs has loaded what runs models; the stand-in's imports take seconds
        oracle.database.worker.open("", demo_pairs[0].txt)
        oracle.database.worker.forget()
        stop = threading.Event()
        watched = _watched(embedded, oracle, demo_pairs)
        for one in watched.values():
            thread = threading.Thread(target=one.watch, args=[stop])
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        # each of the server's processes knows its webhooks for so long
        wait_for(lambda: time.monotonic() - installed_at > CACHE_TTL_S + 1, CACHE_TTL_S + 30)
        age_s = time.monotonic() - installed_at
        yield World(server.uri, demo_pairs, embedded, oracle, watched, log, age_s)


def _watched(
    embedded: EmbeddedTarget, oracle: Oracle, pairs: tuple[PipelinePair, PipelinePair]
) -> dict[str, Watched]:
    vectors = {
        str(number): pair.embedder().embed_text([TEXT])[0] for number, pair in enumerate(pairs, 1)
    }

    def ask_embedded() -> Sequence[float]:
        assert (embedded.folder / CATALOG).is_file()
        [(vector,)] = embedded.sql(EMBEDDED_SQL)
        return list(vector)

    def ask_oracle() -> Sequence[float]:
        with oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection:
            [(vector,)] = connection.cursor().execute(ORACLE_SQL)
            return list(vector)

    return {"small": Watched(ask_embedded, vectors), "big": Watched(ask_oracle, vectors)}


@pytest.mark.drill
def test_a_click_and_two_databases_follow(world: World, tmp_path: Path) -> None:
    rows, before = [], world.loaded()
    for generation, version in enumerate(("1", "2", "1"), 1):
        shown = f"live as CLIP, clip v{version}, generation {generation}, verified"
        clicked = click_alias(
            world.server,
            "clip",
            version,
            "prod",
            text=shown,
            times=len(world.watched),
            screenshot=tmp_path / f"click_{generation}.png",
        )
        waits = {n: w.wait_s(version, clicked.clicked_at) for n, w in world.watched.items()}
        after = world.loaded()
        rows.append((version, waits, clicked, len(after[0] - before[0]), after[1] - before[1]))
        before = after
    for version in ("1", "2"):
        picture = tmp_path / f"version_{version}.png"
        click_alias(world.server, "clip", version, screenshot=picture)
    print(_table(world, rows), f"pictures: {tmp_path}", sep="\n")

    # into Oracle, small models came first that tell what it can run
    assert rows[0][3] == 2
    assert rows[0][4] >= 2
    assert [(files, sent) for *_, files, sent in rows[1:]] == [(2, 2), (0, 0)]
    for _, waits, clicked, *_ in rows:
        assert max(*waits.values(), clicked.wait_s) <= LONGEST_S
    own = {f"CLIP_{side.upper()}": sha for side, sha in world.pairs[0].fingerprints.items()}
    assert {n: s for n, s in world.oracle.fingerprints().items() if n in own} == own
    with world.embedded.connect() as connection:
        live = {model.name: model.fingerprint for model in connection.models()}
    assert live.items() >= own.items()
    for name, watched in world.watched.items():
        assert [version for version, _ in watched.seen] == ["1", "2", "1"], name
        assert watched.errors == [], name


def _table(world: World, rows: list[tuple[str, dict[str, float], Clicked, int, int]]) -> str:
    lines = [
        f"\nM1, webhook {world.webhook_age_s:.0f} s old; seconds after the click:",
        "click          embedded live  oracle live  UI shows both  files written  models sent",
    ]
    for number, (version, waits, clicked, files, sent) in enumerate(rows, 1):
        lines.append(
            f"{number}, version {version}   {waits['small']:12.1f} {waits['big']:12.1f} "
            f"{clicked.wait_s:14.1f} {files:14} {sent:12}"
        )
    asked = ", ".join(
        f"{name} {watched.answers} answers, {len(watched.errors)} errors"
        for name, watched in world.watched.items()
    )
    return "\n".join([*lines, f"asked all the while: {asked}"])
