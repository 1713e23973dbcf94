# ruff: noqa: S311 -- moves and deaths are drawn by a fixed seed
"""Must-show M2, with real processes: server and receiver are killed, and targets end up right.

As in `test_convergence_drill`, a sequence moves the alias over three of four versions.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import oracle_fixtures
import pytest
from daemons import RECEIVER, Daemon, free_port, mlflow_server
from deliveries import Figures, judge_loads, judge_targets, wait
from fleets import ALIAS, MODEL, live_versions, two_targets
from mlflow.exceptions import MlflowException
from oracle_fixtures import Oracle
from receiving import SECRET
from registry_copies import USED, VERSIONS, Registry, using

from oml_mlflow.cli.main import cli
from oml_mlflow.config.file import Config
from oml_mlflow.targets.embedded.folder import MODELS_FOLDER
from oml_mlflow.webhook.signature import SECRET_ENV

SEED = 20261126
LONG, PATIENCE_S = 10, 120
FILE = """
[targets.small]
uri = "{small}"
accept = [{{ model = "*" }}]
[targets.big]
uri = "{big}"
accept = [{{ model = "*" }}]
[[bindings]]
model = "clip"
alias = "prod"
targets = ["small", "big"]
name = "CLIP"
[webhook]
database = "queue.db"
"""
NOBODY, AT_ONCE, AT_STATEMENT, AT_FILE, SERVER, SERVER_AT_STATEMENT, BOTH = (
    "nobody",
    "receiver, at once",
    "receiver, at a statement in Oracle",
    "receiver, at a file of the embedded target",
    "server, at once",
    "server, at a statement in Oracle",
    "both, at once",
)
DEATHS = {
    NOBODY: 2,
    AT_ONCE: 2,
    AT_STATEMENT: 4,
    AT_FILE: 2,
    SERVER: 1,
    SERVER_AT_STATEMENT: 1,
    BOTH: 1,
}


@dataclass
class World:
    """A server, a receiver, and two targets that follow an alias.

    Attributes:
        server: MLflow's server.
        receiver: The receiver.
        store: URI of the server's database.
        oracle: One of the targets.
        config: Both targets, as the receiver knows them.
    """

    server: Daemon
    receiver: Daemon
    store: str
    oracle: Oracle
    config: Config

    @property
    def models_folder(self) -> Path:
        """Where the embedded target keeps files."""
        return self.receiver.log.parent / "small" / MODELS_FOLDER

    def move(self, version: str) -> None:
        """Move the alias, without a delivery if the server is away."""
        for uri in (self.server.uri, self.store) if self.server.is_ready() else (self.store,):
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            with contextlib.suppress(MlflowException):
                client.set_registered_model_alias(MODEL, ALIAS, version)
                return
        raise AssertionError("the alias was not moved")

    def start(self) -> None:
        """Start what is dead, and wait until both answer."""
        for daemon in (self.server, self.receiver):
            daemon.start()
        for daemon in (self.server, self.receiver):
            assert wait(daemon.is_ready, PATIENCE_S, f"{daemon.log.name} starts"), daemon.lines()

    def has_settled(self, version: str, looks: int) -> bool:
        """Return whether all targets have a version, after two more looks than were counted."""
        if self.receiver.looks() < looks + 2:
            return False
        return set(live_versions(self.config).values()) == {version}

    def at_statement(self, number: int, act: Callable[[], None]) -> threading.Event:
        """Act before a statement that a client sends to Oracle, counted from now."""
        done, faults = threading.Event(), self.oracle.database.faults
        limit = faults.statements + number

        def count(index: int, text: str, session: object) -> None:
            if index >= limit:
                faults.before_statement = None
                act()
                done.set()

        faults.before_statement = count
        return done


@pytest.fixture(scope="module")
def server(four_versions: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A real MLflow server on a copy of the store."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(four_versions.database, folder / "mlflow.db")
    server = mlflow_server(folder)
    server.start()
    assert wait(server.is_ready, PATIENCE_S, "the server starts"), server.lines()
    yield server
    server.kill()


@contextlib.contextmanager
def world(server: Daemon, folder: Path) -> Iterator[World]:
    """Give a world whose targets are empty, with the webhook installed and the receiver up."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, oracle_fixtures.running(patch) as oracle:
        patch.chdir(folder)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        patch.setenv(SECRET_ENV, SECRET.reveal())
        config = two_targets(folder, oracle)
        uris = {name: target.uri for name, target in config.targets.items()}
        (folder / "oml_mlflow.toml").write_text(FILE.format(**uris))
        command = [*RECEIVER, "--port", str(port), "--interval", "1"]
        receiver = Daemon(command, folder / "receiver.log", port)
        store = f"sqlite:///{server.log.parent / 'mlflow.db'}"
        with using(server.uri):
            found = World(server, receiver, store, oracle, config)
            try:
                found.start()
                with contextlib.suppress(MlflowException):
                    mlflow.MlflowClient().delete_registered_model_alias(MODEL, ALIAS)
                url = f"{receiver.uri}/webhook"
                cli.main(["webhook", "install", "--url", url], standalone_mode=False)
                yield found
            finally:
                receiver.stop()
                oracle.database.faults.before_statement = None


def judge(
    figures: Figures, where: str, found: World, registry: Registry, last: str, wanted: set[str]
) -> None:
    """Start what is dead, wait until all is settled, and count what is wrong."""
    found.start()
    looks = found.receiver.looks()
    if not wait(lambda: found.has_settled(last, looks), PATIENCE_S, where):
        figures.blame(where, "\n".join(found.receiver.lines()[-40:]))
    found.receiver.stop()
    figures.sequences += 1
    figures.passes += found.receiver.looks()
    log = found.receiver.lines()
    figures.fates["accepted"] += sum(" accepted model_version_alias" in line for line in log)
    judge_loads(figures, where, log, wanted, registry.fingerprints)
    judge_targets(figures, where, found.config, last, wanted, registry.fingerprints)


def play(figures: Figures, draw: random.Random, found: World, moves: list[str]) -> None:
    """Move the alias while server and receiver die at random."""
    for version in moves:
        found.move(version)
        figures.moves += 1
        death = draw.choices([*DEATHS], [*DEATHS.values()])[0]
        is_seen = _kill(found, death, draw)
        figures.kills[death if is_seen else f"nobody, since there was no {death}"] += 1
        if draw.random() < 0.7:
            found.receiver.start()
        if draw.random() < 0.7:
            found.server.start()
        if draw.random() < 0.5:
            found.start()


def _kill(found: World, death: str, draw: random.Random) -> bool:
    """Kill somebody, now or at a moment to come; return whether that came."""
    victim = found.server if "server" in death else found.receiver
    if death == NOBODY:
        return True
    if death in (AT_STATEMENT, SERVER_AT_STATEMENT):
        found.start()
        done = found.at_statement(draw.randrange(90), victim.kill)
        is_reached = done.wait(8)
        found.oracle.database.faults.before_statement = None
        return is_reached
    if death == AT_FILE:
        found.start()
        folder = found.models_folder
        before, limit = set(folder.glob("*")), draw.randint(1, 2)
        if not wait(lambda: len(set(folder.glob("*")) - before) >= limit, 10, death):
            return False
    else:
        time.sleep(draw.uniform(0, 2))
    victim.kill()
    if death == BOTH:
        found.server.kill()
    return True


def test_a_receiver_that_was_away_while_the_alias_moved(
    four_versions: Registry, server: Daemon, tmp_path: Path
) -> None:
    figures = Figures("receiver killed, alias moved three times")
    with world(server, tmp_path) as found:
        found.move("1")
        looks = found.receiver.looks()
        assert wait(lambda: found.has_settled("1", looks), PATIENCE_S, "the first move")
        found.receiver.kill()
        for version in ("2", "3", "2"):
            found.move(version)
        found.start()
        looks = found.receiver.looks()
        assert wait(lambda: found.has_settled("2", looks), PATIENCE_S, "the last move")
        figures.moves, figures.kills[AT_ONCE] = 4, 1
        # and now with more that dies, while a version is being loaded too
        done = found.at_statement(60, found.receiver.kill)
        found.move("4")
        assert done.wait(PATIENCE_S)
        figures.moves, figures.kills[AT_STATEMENT] = 5, 1
        found.server.kill()
        figures.kills[SERVER] = 1
        # 3 is not among the wanted: nobody looked while the alias pointed there
        judge(figures, "scripted", found, four_versions, "4", {"1", "2", "4"})
    figures.show()
    assert figures.violations == 0
    # a line may be missing in each target, where the receiver was killed before it
    assert 10 <= figures.loads <= 12


@pytest.mark.drill
def test_random_sequences_converge_although_processes_die(
    four_versions: Registry, server: Daemon, tmp_path: Path
) -> None:
    figures = Figures("server and receiver killed")
    for number in range(LONG):
        draw, folder = random.Random(SEED + number), tmp_path / str(number)
        used = draw.sample(range(1, VERSIONS + 1), USED)
        moves = ["0"]
        for _ in range(draw.randint(3, 6)):
            moves.append(str(draw.choice([n for n in used if str(n) != moves[-1]])))
        del moves[0]
        folder.mkdir()
        with world(server, folder) as found:
            play(figures, draw, found, moves)
            where = f"sequence {number}"
            judge(figures, where, found, four_versions, moves[-1], set(moves))
        figures.show()
    assert (figures.sequences, figures.violations) == (LONG, 0)
