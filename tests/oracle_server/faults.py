"""Faults that a test switches on while the stand-in runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from oracle_server.statement import OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

Failing = Mapping[int, OraError] | Callable[[int, str], OraError | None]
Stall = float | threading.Event
Stalling = Mapping[int, Stall] | Callable[[int, str], Stall | None]
Hook = Callable[[int, str, "EngineSession"], None]


@dataclass
class Faults:
    """What goes wrong, read by the engine and by the wire layer; may be changed at any time.

    Statements are counted from 0: every one that a client sends, COMMIT and ROLLBACK too, and
    within a PL/SQL block every SQL statement, package call, COMMIT and ROLLBACK once more. A query
    is counted when it is executed, not when it is fetched.

    Attributes:
        refuse_login: The listener refuses every connection: with this ORA number, with ORA-12514 if
            it is True; "drop": it closes them without a word.
        drop_after_lob_bytes: The connection is closed once it received so many bytes of LOBs.
        on_lob_bytes: Called with how many bytes of LOBs the server has received so far, before it
            keeps the last of them.
        fail_statement: Statements that fail instead of running: an error by index, or a function
            of index and text that returns one or None.
        stall_statement: Statements that wait before they run: seconds, or an event to wait for, by
            index, or from a function of index and text. A break of the client ends the wait.
        quota_exceeded: The next load or insert does not fit into the tablespace.
        wrong_vectors: Changes what VECTOR_EMBEDDING computed.
        refused_operators: ``domain:Name`` of operators that no model may have, whatever the
            database otherwise accepts. Operators of ONNX itself have an empty domain.
        crash_in_rename: The connection is dropped once RENAME_MODEL has moved the old model away
            and committed that. Whether its two renames are one transaction is not documented.
        before_statement: Called with index, text and session before a statement runs. It may raise
            ConnectionDropped, as if the instance had crashed, or OraError.
        after_statement: Called likewise after one ran without error.
        statements: How many were counted.
    """

    refuse_login: int | bool | str | None = None
    drop_after_lob_bytes: int | None = None
    on_lob_bytes: Callable[[int], None] | None = None
    fail_statement: Failing | None = None
    stall_statement: Stalling | None = None
    quota_exceeded: bool = False
    wrong_vectors: Callable[[np.ndarray], np.ndarray] | None = None
    refused_operators: frozenset[str] | set[str] = frozenset()
    crash_in_rename: bool = False
    before_statement: Hook | None = None
    after_statement: Hook | None = None
    statements: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self) -> int:
        """Return the index of the statement that comes now."""
        with self._counting:
            self.statements += 1
            return self.statements - 1

    def failure(self, index: int, text: str) -> OraError | None:
        """Return the error that a statement shall fail with, if any."""
        if callable(self.fail_statement):
            return self.fail_statement(index, text)
        return self.fail_statement.get(index) if self.fail_statement else None

    def stall(self, index: int, text: str) -> Stall | None:
        """Return how long a statement shall wait, if at all."""
        if callable(self.stall_statement):
            return self.stall_statement(index, text)
        return self.stall_statement.get(index) if self.stall_statement else None
