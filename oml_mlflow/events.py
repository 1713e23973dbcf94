"""Progress of long calls, for callers who pass a listener; otherwise the library is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """How far a long call is.

    Attributes:
        stage: ``export``, ``validate``, ``upload``, ``verify``, ``embed`` or ``fill``.
        item: What is being processed, such as a file or a model.
        done: Units done so far.
        total: Units in all.
        unit: ``bytes``, ``probes`` or ``rows``.
    """

    stage: str
    item: str
    done: int
    total: int
    unit: str = "bytes"


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""
