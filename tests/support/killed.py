"""One promotion or rollback in a process of its own, which dies where it is told to.

Children are forked from a server that has imported everything: a drill has hundreds of them.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PRELOADED = [
    "mlflow",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "duckdb",
    "onnxruntime",
    "oracledb",
    "oml_mlflow.promotion.promote",
    "oml_mlflow.promotion.rollback",
    "oml_mlflow.targets.embedded.target",
    "oml_mlflow.targets.oracle.target",
]
_WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Job:
    """What the child does.

    Attributes:
        action: ``promote`` or ``rollback``.
        target: URI of the target.
        model_uri: Version to promote.
        name: Export name.
        environment: Set before anything else.
        slice_s: Take stored vectors along, and hold the database for so long; None not to.
    """

    action: str
    target: str
    model_uri: str
    name: str
    environment: tuple[tuple[str, str], ...]
    slice_s: float | None = None


def run(job: Job, report: Any = None) -> None:
    """Do the job; this is the child."""
    os.environ.update(dict(job.environment))
    from oml_mlflow import promote, rollback
    from oml_mlflow.promotion import filling
    from oml_mlflow.targets import open_target

    allowed = {"accept_new_geometry": True}
    if job.slice_s is not None:
        filling.SLICE_S, filling.TURN_S, allowed = job.slice_s, 0.0, {"reembed": True}
    if job.action == "promote":
        promote(job.model_uri, open_target(job.target), job.name, **allowed)
    else:
        rollback(job.name, open_target(job.target), **allowed)


def run_counting(job: Job, kill_at: int, before: bool, count: Any) -> None:
    """Do the job, and die before or after step number `kill_at` of an embedded database.

    A step is an SQL statement, or a call that changes a file of the database. What such a call
    returns is not seen: after it means before the next step, or at the end.
    """
    from oml_mlflow.targets.embedded.connection import Connection

    steps = [0]

    def step(done: bool) -> None:
        if not done:
            steps[0] += 1
            count.value = steps[0]
        is_reached = steps[0] == kill_at and done != before
        is_passed = kill_at > 0 and steps[0] > kill_at
        if is_reached or is_passed:
            os.kill(os.getpid(), signal.SIGKILL)

    plain: Callable[..., Connection] = Connection.execute

    def execute(self: Connection, statement: str, parameters: Any = None) -> Connection:
        step(False)
        result = plain(self, statement, parameters)
        step(True)
        return result

    folder = str(Path(job.target.removeprefix("embedded:///")))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_ours = any(str(a).startswith(folder) for a in arguments if isinstance(a, str | Path))
        writes = event in _WRITING or (event == "open" and str(arguments[1] or "")[:1] in "wax+")
        if is_ours and writes:
            step(False)

    Connection.execute = execute  # type: ignore[method-assign]
    sys.addaudithook(watch)
    run(job)
    if kill_at > 0:
        os.kill(os.getpid(), signal.SIGKILL)


def run_without_room(job: Job, most_bytes: int, told: Any) -> None:
    """Do the job where no file can be longer than so many bytes; tell the error, or nothing."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        run(job)
    except Exception as error:
        told.put((getattr(error, "code", type(error).__name__), str(error)))
    else:
        told.put(("", ""))


def queue() -> Any:
    """Return what a child can tell something by."""
    return _context.Queue()


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Start a child."""
    process = _context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def attempt(job: Job, prepared: Path, kill_at: int, before: bool) -> int:
    """Do the job in a copy of a prepared database, and die at a step; return how many it made."""
    folder = Path(job.target.removeprefix("embedded:///"))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder)
    count = counter()
    child = start(run_counting, job, kill_at, before, count)
    child.join(60)
    assert child.exitcode == (0 if kill_at == 0 else -9), child.exitcode
    return int(count.value)


def every_step(steps: int) -> list[tuple[int, bool]]:
    """Return each step twice: to die before it, and after it."""
    return [(step, before) for step in range(1, steps + 1) for before in (True, False)]


def counter() -> Any:
    """Return a number that a child can write."""
    return _context.Value("i", 0)
