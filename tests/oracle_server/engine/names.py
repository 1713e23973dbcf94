"""What a PL/SQL block is compiled with and runs on: names, typed expressions, values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oracle_server import statement as types
from oracle_server.engine.tokens import Reader
from oracle_server.statement import Bind, OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

BIND_TYPES = {
    types.VARCHAR: "VARCHAR2",
    types.CHAR: "VARCHAR2",
    types.LONG: "VARCHAR2",
    types.NUMBER: "NUMBER",
    types.BINARY_INTEGER: "NUMBER",
    types.BINARY_FLOAT: "NUMBER",
    types.BINARY_DOUBLE: "NUMBER",
    types.RAW: "RAW",
    types.LONG_RAW: "RAW",
    types.CLOB: "CLOB",
    types.BLOB: "BLOB",
    types.JSON: "JSON",
    types.VECTOR: "VECTOR",
    types.BOOLEAN: "BOOLEAN",
    types.DATE: "TIMESTAMP",
    types.TIMESTAMP: "TIMESTAMP",
}


@dataclass
class Frame:
    """What a running block works on.

    Attributes:
        values: Variables by slot, and binds by ``:NAME``.
        rowcount: SQL%ROWCOUNT.
        errors: Errors that are being handled, the innermost last.
    """

    session: EngineSession
    values: dict[str, Any]
    rowcount: int | None = None
    errors: list[OraError] = field(default_factory=list)


@dataclass(frozen=True)
class Expression:
    """An expression: its type, and how to evaluate it."""

    type: str
    value: Callable[[Frame], Any]


class Names:
    """What names mean in a block: binds, and variables of this block and those around it.

    Args:
        binds: Binds by name.
        outer: Names of the block around.
    """

    def __init__(self, binds: dict[str, Bind], outer: Names | None = None) -> None:
        self.binds, self.outer = binds, outer
        self.slots: dict[str, str] = dict(outer.slots) if outer else {}
        self.types: dict[str, str] = outer.types if outer else {}
        self.limits: dict[str, int] = outer.limits if outer else {}
        self.exceptions: dict[str, int | None] = dict(outer.exceptions) if outer else {}
        self.assigned: set[str] = outer.assigned if outer else set()

    def declare(self, name: str, kind: str, limit: int = 0) -> str:
        """Add a variable, of at most `limit` bytes if that is given; return its slot."""
        slot = f"{name}#{len(self.types)}"
        self.slots[name], self.types[slot], self.limits[slot] = slot, kind, limit
        return slot


def syntax_error(reader: Reader) -> OraError:
    """Return PLS-00103 for the token that comes next."""
    token = reader.peek()
    found = token.text or "end-of-file"
    return OraError(
        6550, f'PLS-00103: Encountered the symbol "{found}" where it is not expected', token.start
    )
