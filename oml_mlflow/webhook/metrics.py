"""Metrics of the webhook receiver, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

_PREFIX = "oml_mlflow_webhook_"
_COUNTERS = {
    "deliveries": ("result", "Deliveries by result: accepted, repeated, ignored or test."),
    "refused": ("reason", "Deliveries that were refused."),
    "passes": ("result", "Passes over the registry and the targets: ok, incomplete or failed."),
    "outcomes": ("state", "Changes of targets: what was done, or the code of the error."),
}


class Metrics:
    """Counters with fixed labels: nothing that a sender wrote gets in. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._states: Counter[str] = Counter()

    def count(self, name: str, label: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._counts[name, label] += 1

    def show_states(self, states: Iterable[str]) -> None:
        """Set the number of names by state, until the next full pass."""
        found = Counter(states)
        with self._lock:
            # a state that is over is shown as 0, not left out
            self._states = Counter(dict.fromkeys(self._states, 0) | found)

    def to_text(self, gauges: Mapping[str, tuple[float, str]]) -> str:
        """Return all metrics for a scraper; gauges by name, with value and description."""
        with self._lock:
            counts, states = dict(self._counts), dict(self._states)
        lines = []
        for name, (label, text) in _COUNTERS.items():
            lines += _head(f"{name}_total", "counter", text)
            for (of, word), value in sorted(counts.items()):
                if of == name:
                    lines.append(f'{_PREFIX}{name}_total{{{label}="{word}"}} {value}')
        lines += _head("names", "gauge", "Bound names by state, at the last full pass.")
        lines += [f'{_PREFIX}names{{state="{s}"}} {n}' for s, n in sorted(states.items())]
        for name, (amount, text) in gauges.items():
            lines += [*_head(name, "gauge", text), f"{_PREFIX}{name} {amount:.15g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]
