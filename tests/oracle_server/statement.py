"""What crosses between the wire layer and the engine layer: statements, binds, rows, errors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

# Oracle's type numbers, as they travel
VARCHAR, NUMBER, BINARY_INTEGER, LONG, DATE, RAW, LONG_RAW, CHAR = 1, 2, 3, 8, 12, 23, 24, 96
BINARY_FLOAT, BINARY_DOUBLE, CLOB, BLOB, JSON, VECTOR = 100, 101, 112, 113, 119, 127
TIMESTAMP, BOOLEAN = 180, 252


class OraError(Exception):
    """An error that a database would answer with.

    Args:
        code: Number of the ORA code.
        text: What follows it.
        offset: Position in the statement.
    """

    def __init__(self, code: int, text: str, offset: int = 0) -> None:
        super().__init__(f"ORA-{code:05d}: {text}")
        self.code, self.offset = code, offset


class ConnectionDropped(Exception):
    """The engine wants the connection closed without an answer."""


@dataclass
class Bind:
    """One bind value. A BLOB or CLOB is an object with ``size``, ``read_at(offset, n)``."""

    type: int
    size: int = 0
    value: Any = None
    name: str | None = None


@dataclass
class Column:
    """One column of a result."""

    name: str
    type: int
    vector_format: int = 2
    vector_dims: int = 0


@dataclass
class Rows:
    """A result."""

    columns: list[Column]
    rows: list[tuple[Any, ...]]


@dataclass
class Call:
    """One execution of a statement: its text, its binds in order, OUT values by bind name."""

    sql: str
    binds: list[Bind]
    out: dict[str, Any] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def bind(self, name: str) -> Any:
        """Return the value bound to a name."""
        for bind in self.binds:
            if bind.name == name.upper():
                return bind.value
        raise KeyError(name)
