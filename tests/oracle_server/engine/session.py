# ruff: noqa: S608 -- names in SQL are the engine's own
"""One session: a user's connection to the database, its transaction and its statements."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from oracle_server.engine import ddl, functions, plsql
from oracle_server.engine.models import Models
from oracle_server.engine.privileges import quota_exceeded
from oracle_server.engine.schema import Schema
from oracle_server.engine.set_operations import common_types
from oracle_server.engine.sql import Translated, Translator
from oracle_server.engine.tokens import Token, tokenize
from oracle_server.engine.vectors import to_vector, vector_distance
from oracle_server.statement import Call, OraError, Rows

if TYPE_CHECKING:
    from oracle_server.engine.database import Database

QUERIES, CHANGES = ("SELECT", "WITH", "("), ("INSERT", "UPDATE", "DELETE")
_POLL_S = 0.02
T = TypeVar("T")


class EngineSession:
    """What a client talks to.

    Attributes:
        user: Its user, upper-case.
        unique_id: What DBMS_SESSION.UNIQUE_SESSION_ID returns.
        module: Set by the client, as are `action` and `client_info`.
        models: Mining models, as this user sees them.
    """

    def __init__(self, database: Database, user: str, number: int) -> None:
        self.database, self.user, self.number = database, user, number
        self.unique_id = f"{number:04X}{number * 7919 % 65536:04X}0001"
        self.module = self.action = self.client_info = ""
        self.output: list[str] = []
        self.call: Call | None = None
        self.commits = 0
        self._lock = threading.RLock()
        self.models = Models(self)
        self.schema = Schema(database, user, self._functions())
        self.sqlite, self.query = self.schema.sqlite, self.schema.query
        database.alive.add(self.unique_id)

    # what the wire layer calls

    def handle(self, call: Call) -> int | Rows | None:
        """Run one statement.

        Returns:
            Rows of a query, the number of rows that DML changed, or nothing.

        Raises:
            OraError: If it fails.
            ConnectionDropped: If the connection shall be closed without an answer.
        """
        with self._lock:
            self.call = call
            tokens = tokenize(call.sql)
            if not tokens:
                raise OraError(900, "invalid SQL statement")
            return self.counted(call.sql, lambda: self._dispatch(call, tokens))

    def commit(self) -> None:
        """Commit, when the client asks for it other than by a statement."""
        with self._lock:
            self.counted("COMMIT", self.end_transaction)

    def rollback(self) -> None:
        """Roll back, when the client asks for it other than by a statement."""
        with self._lock:
            self.counted("ROLLBACK", self.undo_transaction)

    def close(self) -> None:
        """End the session: it is not alive any more, and what it did not commit is undone."""
        with self._lock:
            if self.unique_id not in self.database.alive:
                return
            self.database.alive.discard(self.unique_id)
            self.undo_transaction()
            self.sqlite.close()

    @property
    def in_transaction(self) -> bool:
        """Whether something is not committed yet."""
        return self.sqlite.in_transaction

    # what the other modules of the engine call

    def counted(self, text: str, run: Callable[[], T]) -> T:
        """Run one statement among the faults that are switched on."""
        faults = self.database.faults
        index = faults.count()
        self.database.log(self.unique_id, text)
        if faults.before_statement is not None:
            faults.before_statement(index, text, self)
        stall = faults.stall(index, text)
        if stall is not None:
            self.wait(stall)
        self.check_cancelled()
        failure = faults.failure(index, text)
        if failure is not None:
            raise failure
        found = run()
        if faults.after_statement is not None:
            faults.after_statement(index, text, self)
        return found

    def wait(self, stall: float | threading.Event) -> None:
        """Wait some seconds or for an event; a break of the client ends it."""
        end = None if isinstance(stall, threading.Event) else time.monotonic() + stall
        while end is None or time.monotonic() < end:
            self.check_cancelled()
            if isinstance(stall, threading.Event):
                if stall.wait(_POLL_S):
                    return
            else:
                threading.Event().wait(_POLL_S)

    def check_cancelled(self) -> None:
        """Raise ORA-01013 after a break of the client."""
        if self.call is not None and self.call.cancelled.is_set():
            raise OraError(1013, "user requested cancel of current operation")

    def begin(self) -> None:
        """Begin a transaction that writes; wait while another session has one."""
        end = time.monotonic() + self.database.lock_wait_s
        while not self.sqlite.in_transaction and not self.schema.try_to_begin():
            self.check_cancelled()
            if time.monotonic() > end:
                raise OraError(30006, "resource busy; acquire with WAIT timeout expired")

    def end_transaction(self) -> None:
        """Commit."""
        self.commits += 1
        if self.sqlite.in_transaction:
            self.sqlite.execute("COMMIT")

    def undo_transaction(self) -> None:
        """Roll back."""
        if self.sqlite.in_transaction:
            self.sqlite.execute("ROLLBACK")

    @contextlib.contextmanager
    def ddl(self) -> Iterator[None]:
        """Commit before and after what is done inside, as Oracle does around DDL."""
        self.end_transaction()
        self.begin()
        try:
            yield
        except BaseException:
            self.undo_transaction()
            raise
        self.end_transaction()

    def used_bytes(self) -> int:
        """Return how much of the tablespace the user's models and tables take."""
        models = self.query(
            "SELECT coalesce(sum(size_bytes), 0) FROM sys.models WHERE owner = ?", [self.user]
        )[0][0]
        pages, size = self.query("PRAGMA main.page_count"), self.query("PRAGMA main.page_size")
        return int(models + pages[0][0] * size[0][0])

    def translate(
        self, tokens: Sequence[Token], text: str, variables: Mapping[str, str] | None = None
    ) -> Translated:
        """Translate a query or DML statement for SQLite."""
        self.schema.refresh_views()
        users = self.database.users
        return Translator(text, self.user, users, self._attribute, variables).statement(tokens)

    def execute(self, done: Translated, values: Sequence[Any], verb: str) -> int | Rows:
        """Run a translated statement with values for its placeholders."""
        inside = [functions.to_inside(value) for value in values]
        if verb in CHANGES:
            return self._change(done, inside, verb)
        if done.locks:
            self.begin()
        cursor, rows = self.schema.run(done, done.sql, inside)
        names = [part[0].upper().replace(" ", "") for part in cursor.description]
        listed = [[row[i] for row in rows] for i in range(len(names))]
        is_open = any(all(v is None for v in values) for values in listed)
        declared = self.schema.declared_types(done) if is_open else [""] * len(names)
        if done.types:
            declared = [kind or told for kind, told in zip(done.types, declared, strict=True)]
            rows = [functions.with_clobs(row, done.types) for row in rows]
            listed = [[row[i] for row in rows] for i in range(len(names))]
        columns = [functions.column(*parts) for parts in zip(names, listed, declared, strict=True)]
        return Rows(columns, [tuple(functions.to_outside(v) for v in row) for row in rows])

    def compile(self, done: Translated) -> None:
        """Raise the error that a statement would have for the names in it."""
        self.schema.run(done, "EXPLAIN " + done.sql, [None] * len(done.params))

    def column_names(self, done: Translated) -> list[str]:
        """Return the names of a query's columns."""
        sql = f"SELECT * FROM ({done.sql}) LIMIT 0"
        cursor, _ = self.schema.run(done, sql, [None] * len(done.params))
        return [part[0].upper() for part in cursor.description]

    def columns_of(self, tables: Sequence[str]) -> set[str]:
        """Return the names of the columns of those of the user's tables that are named."""
        marks = ", ".join("?" * len(tables))
        sql = f"SELECT name FROM sys.cols WHERE owner = ? AND table_name IN ({marks})"
        return {row[0] for row in self.query(sql, [self.user, *tables])}

    def evaluate(self, sql: str, values: Sequence[Any]) -> Any:
        """Return the one value of a query of the engine's own that calls a function."""
        return self.schema.run(Translated(sql), sql, list(values))[1][0][0]

    # the rest

    def _dispatch(self, call: Call, tokens: list[Token]) -> int | Rows | None:
        verb = tokens[0].upper
        if verb in ("BEGIN", "DECLARE"):
            plsql.run_block(self, call, tokens)
            return None
        values = [bind.value for bind in call.binds]
        return self.run_statement(
            call.sql, tokens, values, {str(b.name): b.value for b in call.binds}
        )

    def run_statement(
        self, text: str, tokens: Sequence[Token], values: Sequence[Any], named: Mapping[str, Any]
    ) -> int | Rows | None:
        """Run a statement that is no PL/SQL block.

        Args:
            text: The statement.
            tokens: Its tokens.
            values: A value for each placeholder in order.
            named: Values by name, if there are not as many.
        """
        verb = tokens[0].upper
        if verb in QUERIES or verb in CHANGES:
            done = self.translate(tokens, text)
            done.types = common_types(self, tokens, text) if verb == "SELECT" else []
            if len(done.params) != len(values):
                if any(name[1:] not in named for name in done.params):
                    raise OraError(1008, "not all variables bound")
                values = [named[name[1:]] for name in done.params]
            return self.execute(done, values, verb)
        if verb in ("COMMIT", "ROLLBACK"):
            if [t.upper for t in tokens[1:]] not in ([], ["WORK"]):
                raise OraError(3001, f"unimplemented feature: {text}")
            self.end_transaction() if verb == "COMMIT" else self.undo_transaction()
            return None
        if values:
            raise OraError(1027, "bind variables not allowed for data definition operations")
        ddl.run(self, text, tokens)
        return None

    def _change(self, done: Translated, inside: list[Any], verb: str) -> int:
        self.begin()
        if verb != "DELETE" and self.database.faults.quota_exceeded:
            raise quota_exceeded()
        self.sqlite.execute("SAVEPOINT change")
        try:
            count = self.schema.run(done, done.sql, inside, is_update=verb == "UPDATE")[0].rowcount
            if verb != "DELETE":
                self.database.users[self.user].check_space(self.used_bytes())
        except BaseException:
            if self.sqlite.in_transaction:
                self.sqlite.execute("ROLLBACK TO change")
                self.sqlite.execute("RELEASE change")
            raise
        self.sqlite.execute("RELEASE change")
        return count

    def _functions(self) -> dict[str, tuple[int, Callable[..., Any]]]:
        """Return the SQL functions that depend on the session."""
        return {
            "session_user": (0, lambda: self.user),
            "unique_session_id": (0, lambda: self.unique_id),
            "used_bytes": (0, self.used_bytes),
            "sys_context": (2, self.context),
            "vector_embedding": (3, lambda owner, name, v: self.models.embed(owner, name, v)),
            "vector_distance": (3, vector_distance),
            "to_vector": (1, to_vector),
        }

    def context(self, namespace: str, parameter: str) -> str | None:
        """SYS_CONTEXT of the namespace USERENV."""
        if namespace.upper() != "USERENV":
            return None
        found = {
            "MODULE": self.module,
            "ACTION": self.action,
            "CLIENT_INFO": self.client_info,
            "CURRENT_SCHEMA": self.user,
            "CURRENT_USER": self.user,
            "SESSION_USER": self.user,
            "SID": str(self.number),
            "DB_NAME": "FREEPDB1",
            "CON_NAME": "FREEPDB1",
        }
        if parameter.upper() not in found:
            raise OraError(2003, "invalid USERENV parameter")
        return found[parameter.upper()] or None

    def _attribute(self, owner: str, name: str) -> str:
        return self.models.find_for_scoring(owner, name).attribute
