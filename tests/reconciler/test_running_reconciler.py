"""What people do by hand while a reconciler runs stays as they left it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from fleets import live_versions, move, two_targets
from oracle_fixtures import Oracle

from oml_mlflow import PipelinePair, promote, rollback, unpin
from oml_mlflow.config.file import Config
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.promotion.hooks import HookContext, Hooks
from oml_mlflow.reconciler.loop import Pass, Reconciler

INTERVAL_S, LIMIT_S = 0.05, 60


class Watched:
    """A running reconciler: its passes, and what it began to load."""

    def __init__(self) -> None:
        self.passes: list[Pass | OmlMlflowError] = []
        self.begun: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def on_pass(self, found: Pass | OmlMlflowError) -> None:
        with self._changed:
            self.passes.append(found)
            self._changed.notify_all()

    def before_load(self, context: HookContext) -> None:
        self.begun.append((context.target, context.version))

    def wait(self, is_so: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the states by target, once two passes in a row were as wanted."""
        with self._changed:
            seen, good = len(self.passes), 0
            while good < 2:
                assert self._changed.wait(LIMIT_S), "no further pass"
                for found in self.passes[seen:]:
                    states = self._states(found)
                    good = good + 1 if is_so(states) else 0
                seen = len(self.passes)
            return states

    @staticmethod
    def _states(found: Pass | OmlMlflowError) -> dict[str, str]:
        assert isinstance(found, Pass), found
        return {s.target: f"{s.state} {s.live.version if s.live else ''}" for s in found.statuses}


@contextmanager
def watching(config: Config) -> Iterator[Watched]:
    watched, stop = Watched(), threading.Event()
    reconciler = Reconciler(config, hooks=Hooks((("watched", watched),)))
    thread = threading.Thread(
        target=reconciler.watch,
        args=(stop,),
        kwargs={"interval_s": INTERVAL_S, "on_pass": watched.on_pass},
    )
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.fixture
def config(tmp_path: Path, oracle: Oracle, versions: tuple[PipelinePair, ...]) -> Config:
    return two_targets(tmp_path, oracle)


def both(state: str) -> Callable[[dict[str, str]], bool]:
    return lambda states: set(states.values()) == {state}


def test_what_is_done_by_hand_stays(config: Config, oracle: Oracle) -> None:
    with watching(config) as watched:
        for version in (1, 2):
            move(version)
            watched.wait(both(f"in sync {version}"))

        assert rollback("clip", "big", config=config).entry.version == "1"
        watched.wait(both("in sync 1"))
        move(2)
        watched.wait(both("in sync 2"))

        rollback("clip", "big", pin=True, reason="odd results", config=config)
        states = watched.wait(lambda states: states["big"] == "pinned 1")
        assert states["small"] == "in sync 2"
        assert unpin("clip", "big", config=config)
        watched.wait(both("in sync 2"))

        promote("models:/clip/1", "small", "clip", pin=True, config=config)
        states = watched.wait(lambda states: states["small"] == "pinned 1")
        assert states["big"] == "in sync 2"
        unpin("clip", "small", config=config)
        watched.wait(both("in sync 2"))
        assert str(mlflow.MlflowClient().get_model_version_by_alias("clip", "prod").version) == "2"


def test_what_failed_is_tried_once(config: Config, oracle: Oracle) -> None:
    with watching(config) as watched:
        move(1)
        watched.wait(both("in sync 1"))
        oracle.database.faults.wrong_vectors = lambda vector: vector[::-1].copy()
        move(2)
        states = watched.wait(lambda states: states["big"] == "degraded 1")
        watched.wait(lambda states: states == {"big": "degraded 1", "small": "in sync 2"})
        oracle.database.faults.wrong_vectors = None
        watched.wait(lambda states: states["big"] == "degraded 1")
        assert watched.begun.count(("big", "2")) == 1
        [big] = [status for status in Reconciler(config).look().statuses if status.target == "big"]
        assert "parity-failed" in big.text
        assert states["big"] == "degraded 1"
        move(1)
        watched.wait(both("in sync 1"))
        assert live_versions(config) == {"small": "1", "big": "1"}
