# ruff: noqa: T201 -- the figures belong in the log
"""Moves of an alias whose deliveries are doubled, delayed, reordered or lost, and what is counted.

Nothing here knows how a receiver works: it gets signed requests over a socket, as from MLflow.
"""

from __future__ import annotations

import http.client
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from drilled import look
from fleets import NAME
from receiving import Header, alias_body, ask, signed

from oml_mlflow.config.file import Config
from oml_mlflow.planning.records import WHOLE
from oml_mlflow.targets import open_target

LOST, ONCE, DOUBLED, DELAYED, REORDERED = "lost", "once", "doubled", "delayed", "reordered"
_FATES = {ONCE: 3, LOST: 2, DOUBLED: 2, DELAYED: 2, REORDERED: 2}
_LOADED = re.compile(r"loaded (\S+), sha256 (\w+), into (\S+)")

Load = tuple[str, str]


@dataclass
class Figures:
    """Figures of a drill.

    Attributes:
        name: What is drilled.
        sequences: How many sequences there were.
        moves: How often an alias was moved, or deleted.
        fates: What became of deliveries.
        kills: What was killed, and when.
        passes: How often a receiver looked.
        loads: How many models were loaded into targets.
        violations: How often anything was not as it must be.
    """

    name: str
    sequences: int = 0
    moves: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    loads: int = 0
    violations: int = 0
    begun: float = field(default_factory=time.monotonic)

    def blame(self, where: str, what: str) -> None:
        """Count a violation, and show it."""
        self.violations += 1
        print(f"violation: {self.name}, {where}: {what}")

    def show(self) -> None:
        fates, kills = (
            ", ".join(f"{n} {what}" for what, n in counted.most_common()) or "none"
            for counted in (self.fates, self.kills)
        )
        print(
            f"\n{self.name}: {self.sequences} sequences, {self.moves} moves; deliveries: {fates}; "
            f"killed: {kills}; {self.passes} looks, {self.loads} models loaded, "
            f"{self.violations} violations, {time.monotonic() - self.begun:.0f} s"
        )


class Network:
    """What is between MLflow and a receiver; it delivers as it likes.

    Args:
        port: Where the receiver listens on this machine.
        draw: Decides what becomes of a delivery.
        fates: Counts it.
    """

    def __init__(self, port: int, draw: random.Random, fates: Counter[str]) -> None:
        self._port, self._draw, self._fates = port, draw, fates
        self._held: list[tuple[int, list[Header], bytes]] = []
        self._moves = 0

    def carry(self, action: str, fate: str = "") -> None:
        """Take the delivery of a move, and hand over what was held until now."""
        self._moves += 1
        body = alias_body(action=action)
        headers = signed(body)
        fate = fate or self._draw.choices([*_FATES], [*_FATES.values()])[0]
        self._fates[fate] += 1
        if fate in (ONCE, DOUBLED):
            self._post(headers, body)
        self._hand_over(self._moves)
        if fate == DOUBLED and self._draw.random() < 0.5:
            self._post(headers, body, repeated=True)
        elif fate in (DOUBLED, DELAYED):
            self._held.append((self._moves + self._draw.randint(2, 4), headers, body))
        elif fate == REORDERED:
            self._held.append((self._moves + 1, headers, body))

    def end(self, *, is_lost: bool) -> None:
        """Hand over, or lose, what is still held."""
        if is_lost:
            self._fates["held, then lost"] += len(self._held)
            self._held.clear()
        self._draw.shuffle(self._held)
        self._hand_over()

    def _hand_over(self, moves: int | None = None) -> None:
        held, self._held = self._held, []
        for due, headers, body in held:
            if moves is None or due <= moves:
                self._post(headers, body)
            else:
                self._held.append((due, headers, body))

    def _post(self, headers: Iterable[Header], body: bytes, *, repeated: bool = False) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("POST", "/webhook", body, dict(headers))
            status = connection.getresponse().status
        finally:
            connection.close()
        assert status in ((200,) if repeated else (200, 202)), status


class Loads(logging.Handler):
    """Lines of the log that say what was loaded, or undone."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Loads:
        logger = logging.getLogger("oml_mlflow.promotion.run")
        self._level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("oml_mlflow.promotion.run")
        logger.removeHandler(self)
        logger.setLevel(self._level)


def judge_loads(
    figures: Figures,
    where: str,
    log: Iterable[str],
    wanted: Collection[str],
    fingerprints: Mapping[str, Mapping[str, str]],
) -> None:
    """Count violations: a model loaded twice into a target, or one that no move asked for.

    Args:
        figures: Where it is counted.
        where: Which sequence.
        log: Lines of the receiver's log, in order.
        wanted: Versions that the alias pointed to.
        fingerprints: sha256 by side, by version.
    """
    allowed = {value for version in wanted for value in fingerprints[version].values()}
    seen: set[Load] = set()
    for line in log:
        if (found := _LOADED.search(line)) is None:
            continue
        _slot, fingerprint, target = found.groups()
        figures.loads += 1
        if fingerprint not in allowed:
            figures.blame(where, f"{found[0]}, which was never wanted")
        if (target, fingerprint) in seen:
            figures.blame(where, f"{found[0]} for the second time")
        seen.add((target, fingerprint))


def judge_targets(
    figures: Figures,
    where: str,
    config: Config,
    last: str,
    wanted: Collection[str],
    fingerprints: Mapping[str, Mapping[str, str]],
) -> None:
    """Count violations: a target that is not where the alias points, or a ledger in disorder."""
    for name, configured in config.targets.items():
        target = open_target(configured.uri)
        found = look(target, NAME)
        place, live, ledger = f"{where}, {name}", found.live, found.ledger
        if live is None or live.version != last or not found.is_whole():
            figures.blame(place, f"live is {live and live.origin}, wanted {last}")
        if found.state.phase != WHOLE or found.state.work is not None:
            figures.blame(place, f"something is pending: {found.state}")
        # what a killed run loaded and nobody wants now keeps its number
        generations = [entry.generation for entry in ledger]
        if generations != sorted(set(generations)):
            figures.blame(place, f"generations {generations}")
        if ledger and found.state.generation != ledger[-1].generation:
            figures.blame(place, f"live is generation {found.state.generation}")
        for entry in ledger:
            if entry.version not in wanted or entry.fingerprints != fingerprints[entry.version]:
                figures.blame(place, f"generation {entry.generation} is {entry.origin}")
        held = Counter(model.fingerprint for model in found.models.values())
        twice = [fingerprint for fingerprint, count in held.items() if count > 1]
        if twice or len(found.models) > 2 * len(wanted):
            figures.blame(place, f"{len(found.models)} models, twice {twice}")


def wait(condition: Callable[[], bool], seconds: float, what: str) -> bool:
    """Return whether a condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not ask(condition, deadline):
        if time.monotonic() > deadline:
            print(f"waited {seconds:.0f} s in vain: {what}")
            return False
    return True
