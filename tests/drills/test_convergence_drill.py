# ruff: noqa: S311 -- moves and deliveries are drawn by a fixed seed
"""Must-show M2: whatever becomes of deliveries and processes, targets end where the alias points.

Targets keep two generations besides the live one. Each sequence moves the alias over three of four
versions, so that no generation is dropped for being old: whatever is loaded twice is our mistake.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mlflow
import oracle_fixtures
import pytest
import uvicorn
from deliveries import LOST, ONCE, Figures, Loads, Network, judge_loads, judge_targets, wait
from fleets import ALIAS, ANYTHING, MODEL, NAME, NO_HOOKS
from receiving import SECRET
from registry_copies import USED, VERSIONS, Registry

from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config, TargetConfig, WebhookConfig
from oml_mlflow.reconciler.loop import Pass, Reconciler
from oml_mlflow.reconciler.status import IN_SYNC
from oml_mlflow.webhook.metrics import Metrics
from oml_mlflow.webhook.queue import WebhookQueue
from oml_mlflow.webhook.receiver import create_app
from oml_mlflow.webhook.worker import Worker

SEED = 20261125
POLL_S = 1.0
SHORT, LONG, WITH_ORACLE = 2, 200, 10


@dataclass
class Receiver:
    """A receiver in this process: the real application behind a socket, its queue and its worker.

    Attributes:
        port: Where it listens.
        queue: Its queue.
        looks: When each look began, and what came of it.
    """

    port: int
    queue: WebhookQueue
    looks: list[tuple[float, Pass]] = field(default_factory=list)

    def is_settled(self, since: float) -> bool:
        """Return whether all was in sync in a look begun since then, and nothing waits."""
        if self.queue.depth().jobs or not self.looks or self.looks[-1][0] < since:
            return False
        statuses = self.looks[-1][1].statuses
        return bool(statuses) and all(s.state == IN_SYNC for s in statuses)


@contextlib.contextmanager
def receiver(folder: Path, config: Config) -> Iterator[Receiver]:
    """Run a receiver until the block ends."""
    reconciler, metrics = Reconciler(config, hooks=NO_HOOKS), Metrics()
    listener = socket.create_server(("127.0.0.1", 0))
    found = Receiver(listener.getsockname()[1], WebhookQueue(folder / "queue.db"))

    def reconcile(models: Collection[str] | None) -> Pass:
        begun = time.monotonic()
        done = reconciler.run(models)
        found.looks.append((begun, done))
        return done

    worker = Worker(found.queue, reconcile, metrics, POLL_S)
    app = create_app(WebhookConfig(), [SECRET], found.queue, worker, metrics)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    with listener:
        worker.start()
        thread.start()
        try:
            assert wait(lambda: server.started, 30, "the receiver starts")
            yield found
        finally:
            server.should_exit = True
            assert worker.stop(60)
            thread.join(60)
            found.queue.close()


def play(
    figures: Figures, number: int, registry: Registry, folder: Path, *, with_oracle: bool
) -> None:
    """Move the alias at random; count what becomes of deliveries, and every violation."""
    draw, where = random.Random(SEED + number), f"sequence {number}"
    figures.sequences += 1
    targets = {"small": TargetConfig("small", f"embedded:///{folder / 'small'}", ANYTHING)}
    with contextlib.ExitStack() as held:
        if with_oracle:
            patch = held.enter_context(pytest.MonkeyPatch.context())
            oracle = held.enter_context(oracle_fixtures.running(patch))
            targets["big"] = TargetConfig("big", oracle.uri, ANYTHING)
        bindings = tuple(Binding(target, NAME, MODEL, ALIAS) for target in targets)
        config = Config(targets, bindings, poll_s=POLL_S)
        held.enter_context(registry.copied(folder))
        log = held.enter_context(Loads())
        with receiver(folder, config) as running:
            wanted, last = _move(figures, draw, running)
            moved_at = time.monotonic()
            if not wait(lambda: running.is_settled(moved_at), 60, where):
                figures.blame(where, f"not in sync: {running.looks[-1:]}")
        figures.passes += len(running.looks)
        judge_loads(figures, where, log.lines, wanted, registry.fingerprints)
        judge_targets(figures, where, config, last, wanted, registry.fingerprints)
    shutil.rmtree(folder)


def _move(figures: Figures, draw: random.Random, running: Receiver) -> tuple[set[str], str]:
    """Move the alias; return every version that it pointed to, and the last one."""
    client, network = mlflow.MlflowClient(), Network(running.port, draw, figures.fates)
    used = draw.sample(range(1, VERSIONS + 1), USED)
    moves = [str(draw.choice(used)) for _ in range(draw.randint(3, 10))]
    is_told = draw.random() < 0.5
    for index, version in enumerate(moves):
        is_last = index == len(moves) - 1
        if not is_last and index and draw.random() < 0.1:
            client.delete_registered_model_alias(MODEL, ALIAS)
            figures.moves += 1
            network.carry("deleted")
        client.set_registered_model_alias(MODEL, ALIAS, version)
        figures.moves += 1
        network.carry("created", (ONCE if is_told else LOST) if is_last else "")
        pause = draw.random()
        if pause < 0.3:
            # a delivery that was lost is made up for by the next look at everything
            settled = partial(running.is_settled, time.monotonic())
            assert wait(settled, 60, "a move is followed"), version
        elif pause < 0.6:
            time.sleep(draw.uniform(0, 0.3))
    network.end(is_lost=not is_told)
    return set(moves), moves[-1]


def _play_all(registry: Registry, folder: Path, numbers: range) -> Figures:
    figures = Figures("random moves and deliveries")
    for number in numbers:
        mine = folder / str(number)
        mine.mkdir()
        play(figures, number, registry, mine, with_oracle=number % WITH_ORACLE == 0)
    figures.show()
    return figures


def test_some_random_sequences_converge(four_versions: Registry, tmp_path: Path) -> None:
    figures = _play_all(four_versions, tmp_path, range(SHORT))
    assert (figures.sequences, figures.violations) == (SHORT, 0)


@pytest.mark.drill
def test_random_sequences_converge(four_versions: Registry, tmp_path: Path) -> None:
    figures = _play_all(four_versions, tmp_path, range(LONG))
    assert (figures.sequences, figures.violations) == (LONG, 0)
