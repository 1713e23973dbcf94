"""Deadline: wait for a call no longer than is allowed, whatever it hangs in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_T = TypeVar("_T")


def within(
    seconds: float | None,
    call: Callable[[], _T],
    *,
    stop: Callable[[], object] = lambda: None,
    discard: Callable[[_T], object] = lambda late: None,
) -> _T:
    """Return what a call returns, or give up on it.

    It runs in a thread of its own, which may outlive this call, but never the process.

    Args:
        seconds: How long it may take; None to wait as long as it takes, in this thread.
        call: What to call.
        stop: Ends the call if it can; called once it is given up, from the waiting thread.
        discard: Called with what a call that was given up returns after all, in its thread.

    Raises:
        TimeoutError: If it takes longer. Other errors are those of the call.
    """
    if seconds is None:
        return call()
    future: Future[_T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # whatever it is, it is raised where it is waited for
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)
            else:
                discard(result)

    threading.Thread(target=run, name="oml-deadline", daemon=True).start()
    is_late = False
    try:
        wait([future], seconds)
    finally:  # on Ctrl-C too
        # only what has not ended can be cancelled: late or not is decided once
        if is_late := future.cancel():
            stop()
    if is_late:
        raise TimeoutError(f"it took longer than {seconds:g} s")
    return future.result()
