"""Progress of long calls: the library is silent, callers who want to see it pass a listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One sign of progress.

    Attributes:
        stage: What is going on: ``export``, ``validate``, ``upload`` or ``verify``.
        item: What it is done to, such as a file or a model name.
        done: Units done so far.
        total: Units in all.
        unit: ``bytes`` or ``probes``.
    """

    stage: str
    item: str
    done: int
    total: int
    unit: str = "bytes"


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""
