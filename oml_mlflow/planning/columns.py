"""Stored vectors in a plan: which columns go live with the models, and which stay. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.observed import Observed
from oml_mlflow.planning.records import (
    CHECKED,
    COLUMN,
    KEPT_COLUMN,
    ColumnSwap,
    Dependant,
    Work,
)

_HOUR_S, _MINUTE_S = 3600, 60


@dataclass(frozen=True)
class ColumnSize:
    """What it takes to fill a column that goes live.

    Attributes:
        rows: Rows that have something to embed.
        seconds: How long the live model takes for them, by a few of them; 0 if none has a vector.
        size_bytes: Space of their vectors.
    """

    rows: int
    seconds: float
    size_bytes: int

    def __str__(self) -> str:
        """Return it as a plan shows it."""
        rate = f" at {self.rows / self.seconds:,.1f} a second" if self.seconds else ""
        took = shown_s(self.seconds) if self.seconds else "time unknown"
        return f"{self.rows:,} rows{rate}, {took}, {self.size_bytes / 1e6:,.1f} MB"


def registered(observed: Observed) -> list[Dependant]:
    """Return the registered columns of a name."""
    return [dependant for dependant in observed.dependants if dependant.kind == COLUMN]


def with_columns(observed: Observed, work: Work, *, reembed: bool) -> Work:
    """Return work with the columns that go live with its models, and those that are too old.

    A column beside a registered one is kept as long as a generation with its geometry.

    Args:
        observed: What the target has.
        work: A promotion or rollback, with its geometry.
        reembed: Take registered columns along that hold another geometry's vectors.
    """
    if not work.incoming:
        return work
    columns = tuple(_swaps(observed, work)) if reembed else ()
    return replace(work, columns=columns, column_drops=_beyond(observed, work, columns))


def column_steps(work: Work, sizes: Sequence[ColumnSize]) -> list[tuple[str, str]]:
    """Return the sign and text of the steps with columns, in the style of Terraform."""
    steps = []
    for number, swap in enumerate(work.columns):
        stored = swap.column.rpartition(".")[2]
        size = f": {sizes[number]}" if sizes else ""
        steps.append(("+", f"fill    {swap.incoming} beside {swap.column}{size}"))
        kept = f"(the one in use kept as {swap.outgoing})"
        steps.append(("-/+", f"swap    {swap.incoming} → {stored} {kept}"))
    return steps + [("-", f"drop    column {name}") for name in work.column_drops]


def places(observed: Observed, work: Work) -> list[Dependant]:
    """Return the columns to fill for some work, each with the model in its slot."""
    columns = {column.name: column for column in registered(observed)}
    return [
        replace(
            columns[swap.column],
            model=work.incoming[swap.side],
            geometry=swap.geometry,
            beside=swap.incoming,
        )
        for swap in work.columns
        if swap.column in columns
    ]


def last_check(observed: Observed) -> str:
    """Return when stored vectors were checked last, and what that has shown; or nothing."""
    note = observed.notes.get(CHECKED)
    if note is None or note.written_at is None:
        return ""
    at = f"stored vectors as of {note.written_at:%Y-%m-%d %H:%M} UTC"
    if note.content.get("generation") != observed.state.generation:
        return f"{at} were of another generation: `oml-mlflow verify {observed.name} --columns`"
    return f"{at}: {note.content.get('said')}"


def shown_s(seconds: float) -> str:
    """Return a duration for people, such as ``about 3 min``."""
    if seconds >= 2 * _HOUR_S:
        return f"about {seconds / _HOUR_S:,.1f} h"
    if seconds >= 2 * _MINUTE_S:
        return f"about {seconds / _MINUTE_S:,.0f} min"
    return f"about {max(seconds, 1):.0f} s"


def _swaps(observed: Observed, work: Work) -> list[ColumnSwap]:
    live, new = observed.live, work.entry.geometry
    beside = [d for d in observed.dependants if d.kind == KEPT_COLUMN]
    found = []
    for column in registered(observed):
        was = column.geometry or (live.geometry if live else "")
        if was == new:
            continue
        taken = {d.beside for d in beside if d.table == column.table}
        there = [d.beside for d in beside if (d.name, d.geometry) == (column.name, new)]
        incoming = there[0] if there else _free(column.stored, work.entry.generation, taken)
        outgoing = _free(column.stored, work.before, {*taken, incoming})
        side = TXT if column.model.endswith(f"_{TXT}".upper()) else IMG
        found.append(ColumnSwap(column.name, side, incoming, outgoing, new, was))
    return found


def _free(stored: str, generation: int, taken: Collection[str]) -> str:
    """Return ``embedding_g2`` for generation 2, or the next number that is free."""
    while (name := f"{stored}_g{generation}") in taken:
        generation += 1
    return name


def _beyond(observed: Observed, work: Work, columns: Sequence[ColumnSwap]) -> tuple[str, ...]:
    """Return the columns beside registered ones whose geometry no generation has any more."""
    going, live = {*work.drops, *work.incoming.values()}, observed.live
    kept = [g for g, names in observed.kept().items() if not going & set(names.values())]
    wanted = {entry.geometry for g in kept if (entry := observed.entry(g))}
    wanted.add(work.entry.geometry)
    if live is not None and not set(work.outgoing.values()) & going:
        wanted.add(live.geometry)
    incoming = {(swap.column, swap.incoming) for swap in columns}
    beside = [
        (d.name, d.beside, d.geometry) for d in observed.dependants if d.kind == KEPT_COLUMN
    ] + [(swap.column, swap.outgoing, swap.kept) for swap in columns]
    return tuple(
        f"{column.rpartition('.')[0]}.{name}"
        for column, name, geometry in beside
        if geometry not in wanted and (column, name) not in incoming
    )
