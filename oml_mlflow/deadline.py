"""Deadline: wait for a call no longer than is allowed, whatever it hangs in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from typing import TypeVar

_T = TypeVar("_T")


def within(
    seconds: float | None, call: Callable[[], _T], *, stop: Callable[[], object] = lambda: None
) -> _T:
    """Return what a call returns, or give up on it.

    Args:
        seconds: How long it may take; None for as long as it takes, in this thread.
        call: What to call, in a thread that may outlive this call, but never the process. What it
            returns or raises too late is dropped.
        stop: Called when it is given up, to end it soon.

    Raises:
        TimeoutError: If it takes longer. Other errors are those of the call.
    """
    if seconds is None:
        return call()
    future: Future[_T] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # it was given up
            try:
                future.set_result(call())
            except BaseException as error:  # whatever it is, it is raised where it is waited for
                future.set_exception(error)

    threading.Thread(target=run, name="oml-deadline", daemon=True).start()
    try:
        wait([future], seconds)
    finally:  # on Ctrl-C too; what has ended meanwhile can't be cancelled
        if future.cancel():
            stop()
    if future.cancelled():
        raise TimeoutError(f"it took longer than {seconds:g} s")
    return future.result()
