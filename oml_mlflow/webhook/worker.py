"""Worker of the webhook receiver: one thread that runs the reconciler."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.webhook.metrics import Metrics
from oml_mlflow.webhook.queue import Job, WebhookQueue

if TYPE_CHECKING:
    from oml_mlflow.reconciler.loop import Pass

Reconcile = Callable[[Collection[str] | None], "Pass"]

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 300.0


class Worker:
    """Runs the jobs of a queue, and a full pass at the start and periodically.

    The next full pass makes up for a lost delivery.

    Args:
        queue: Source of jobs.
        reconcile: `Reconciler.run`, for some models or all.
        metrics: Counters.
        poll_s: Seconds between full passes.
        unhealthy_s: Seconds of failures only, or within one pass, after which it is unhealthy.
        prepare: Called once before anything else, such as slow imports.

    Attributes:
        last_pass_at: Time of the last pass, in seconds since 1970; 0 if there was none.
        last_success_at: Time of the last pass that succeeded.
        last_error: Code of the error that stopped the last pass; empty if none did.
    """

    def __init__(
        self,
        queue: WebhookQueue,
        reconcile: Reconcile,
        metrics: Metrics,
        poll_s: float = 60.0,
        unhealthy_s: float = 300.0,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._prepare = prepare
        self._queue, self._reconcile, self._metrics = queue, reconcile, metrics
        self._poll_s, self._unhealthy_s = poll_s, unhealthy_s
        self._wake, self._stopping = threading.Event(), threading.Event()
        # a daemon: a promotion that outlives the grace period is left to its journal
        self._thread = threading.Thread(target=self._run, name="oml-webhook-worker", daemon=True)
        self._started_at = self.last_pass_at = self.last_success_at = 0.0
        self.last_error, self._begun_at = "", 0.0
        self._is_filling = False

    def start(self) -> None:
        """Start the thread; jobs that ran when the process died are queued again."""
        recovered = self._queue.recover()
        if recovered:
            _log.info("%d jobs were running when the receiver died; they wait again", recovered)
        self._started_at = time.time()
        self._thread.start()

    def wake(self) -> None:
        """Tell it that there is a new job."""
        self._wake.set()

    def stop(self, grace_s: float) -> bool:
        """Stop after the job that is running; return False if it still runs after that time.

        One that has taken too long already is not waited for.
        """
        grace_s = 0.0 if self._overlong() else grace_s
        self._stopping.set()
        self._wake.set()
        if self._started_at:
            self._thread.join(grace_s)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def unhealthy_reason(self) -> str:
        """Return why it is unhealthy, or nothing. Read-only."""
        if not self.is_alive:
            return "the worker does not run: see the log"
        last_good = self.last_success_at or self._started_at
        # a success clears the error; a recent failure may be transient
        failing_s = time.time() - last_good if self.last_error else 0.0
        if failing_s > self._unhealthy_s:
            return f"nothing has succeeded for {failing_s:.0f} s ({self.last_error})"
        return self._overlong()

    def _overlong(self) -> str:
        now = time.monotonic()
        taken_s = now - (self._begun_at or now)
        return f"a pass takes {taken_s:.0f} s already" if taken_s > self._unhealthy_s else ""

    def _run(self) -> None:
        if self._prepare is not None:
            self._prepare()
        next_pass = time.monotonic()
        while not self._stopping.is_set():
            # before the queue is read: a job that comes later sets it again
            self._wake.clear()
            try:
                if time.monotonic() >= next_pass:
                    self._look(None)
                    next_pass = time.monotonic() + self._poll_s
                    continue
                if (job := self._queue.take()) is not None:
                    self._work(job)
                    continue
                if self._is_filling:
                    # deliveries have had their turn
                    next_pass = time.monotonic()
                    continue
                due = self._queue.next_due()
            except sqlite3.Error as error:
                _log.error("the queue can't be used: %s", error)
                due = time.time() + 1.0
            until_pass = next_pass - time.monotonic()
            until_job = until_pass if due is None else due - time.time()
            self._wake.wait(max(0.0, min(until_pass, until_job)))

    def _work(self, job: Job) -> None:
        code = self._look((job.model,))
        if not code:
            self._queue.done(job)
            return
        wait_s = to_wait_s(job.attempts)
        _log.warning("%r is tried again in %.0f s (%s)", job.model, wait_s, code)
        self._queue.fail(job, code, wait_s)

    def _look(self, models: Collection[str] | None) -> str:
        """Reconcile; return the code of an error to retry, or an empty text."""
        started, what = time.monotonic(), "everything" if models is None else repr([*models])
        self._is_filling = False
        self._begun_at = started
        try:
            found = self._reconcile(models)
        except OmlMlflowError as error:
            _log.warning("looking at %s stopped: error[%s]: %s", what, error.code, error)
            return self._stopped(error.code)
        except Exception:
            # the thread must survive unexpected errors; they are counted and retried
            _log.exception("looking at %s stopped", what)
            return self._stopped("unexpected")
        finally:
            self._begun_at = 0.0
        self.last_error, self.last_pass_at = "", time.time()
        self.last_success_at = self.last_pass_at
        self._metrics.count("passes", "ok" if found.ok else "incomplete")
        self._is_filling = found.is_filling
        for outcome in found.outcomes:
            failed = outcome.error
            self._metrics.count("outcomes", failed.code if failed else outcome.change.kind)
            if failed is not None:
                _log.warning("%s: error[%s]: %s", outcome.change, failed.code, failed)
            else:
                _log.info("%s: done", outcome.change)
        for warning in found.warnings:
            _log.warning("%s", warning)
        if models is None:
            self._metrics.show_states(status.state for status in found.statuses)
        _log.info("looked at %s in %.1f s", what, time.monotonic() - started)
        return found.to_retry

    def _stopped(self, code: str) -> str:
        self.last_error, self.last_pass_at = code, time.time()
        self._metrics.count("passes", "failed")
        return code


def to_wait_s(attempts: int) -> float:
    """Return seconds to wait after some failures: from 1 s, doubled each time, up to 5 min.

    With jitter of up to half, so that receivers that failed together don't retry together.
    """
    longest = min(_LONGEST_WAIT_S, 2.0 ** min(attempts + 1, 20))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
