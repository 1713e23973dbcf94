# ruff: noqa: S608 -- names in SQL are the engine's own
"""One session: a user's connection to the database, its transaction and its statements."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from oracle_server.engine import catalogue, ddl, functions, plsql
from oracle_server.engine.models import Models
from oracle_server.engine.privileges import quota_exceeded
from oracle_server.engine.sql import Translated, Translator
from oracle_server.engine.sqlite_errors import as_ora_error
from oracle_server.engine.tokens import Token, tokenize
from oracle_server.engine.vectors import to_vector, vector_dims, vector_distance
from oracle_server.statement import Call, ConnectionDropped, OraError, Rows

if TYPE_CHECKING:
    from oracle_server.engine.database import Database

QUERIES, CHANGES = ("SELECT", "WITH", "("), ("INSERT", "UPDATE", "DELETE")
_WRITES = {
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
}
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
        self._guarded = False
        self._owners: set[str] = set()
        self._granted: set[tuple[str, str, str]] = set()
        self._raised: BaseException | None = None
        self._views: tuple[Any, ...] = ()
        self.sqlite = self._connect()
        self.models = Models(self)
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
        while not self.sqlite.in_transaction:
            try:
                self.sqlite.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                self.check_cancelled()
                if "locked" not in str(error) or time.monotonic() > end:
                    raise as_ora_error(error, self.user, lambda _: "") from error

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

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run SQL of the engine's own on the dictionary."""
        guarded, self._guarded = self._guarded, False
        try:
            return self.sqlite.execute(sql, values).fetchall()
        finally:
            self._guarded = guarded

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
        self._refresh_views()
        users = self.database.users
        return Translator(text, self.user, users, self._attribute, variables).statement(tokens)

    def execute(self, done: Translated, values: Sequence[Any], verb: str) -> int | Rows:
        """Run a translated statement with values for its placeholders."""
        inside = [functions.to_inside(value) for value in values]
        if verb in CHANGES:
            return self._change(done, inside, verb)
        if done.locks:
            self.begin()
        cursor, rows = self._guard(done, done.sql, inside)
        names = [part[0].upper().replace(" ", "") for part in cursor.description]
        declared = self._declared() if any(None in row for row in rows) or not rows else {}
        columns = [
            functions.column(name, [row[i] for row in rows], declared.get(name, ""))
            for i, name in enumerate(names)
        ]
        return Rows(columns, [tuple(functions.to_outside(v) for v in row) for row in rows])

    def _declared(self) -> dict[str, str]:
        """Return the declared types of the columns of the user's tables, by name of the column.

        A driver that executes a statement again counts on the types it saw before, also where
        there was no value.
        """
        sql = (
            "SELECT p.name, p.type FROM main.sqlite_master m, pragma_table_info(m.name) p "
            "WHERE m.type = 'table'"
        )
        return {name.upper(): declared.upper() for name, declared in self.query(sql)}

    def compile(self, done: Translated) -> None:
        """Raise the error that a statement would have for the names in it."""
        self._guard(done, "EXPLAIN " + done.sql, [None] * len(done.params))

    def column_names(self, done: Translated) -> list[str]:
        """Return the names of a query's columns."""
        sql = f"SELECT * FROM ({done.sql}) LIMIT 0"
        cursor, _ = self._guard(done, sql, [None] * len(done.params))
        return [part[0].upper() for part in cursor.description]

    def columns_of(self, tables: Sequence[str]) -> set[str]:
        """Return the names of the columns of those of the user's tables that are named."""
        marks = ", ".join("?" * len(tables))
        sql = f"SELECT name FROM sys.cols WHERE owner = ? AND table_name IN ({marks})"
        return {row[0] for row in self.query(sql, [self.user, *tables])}

    def evaluate(self, sql: str, values: Sequence[Any]) -> Any:
        """Return the one value of a query of the engine's own that calls a function."""
        return self._guard(Translated(sql), sql, list(values))[1][0][0]

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
            count = self._guard(done, done.sql, inside, is_update=verb == "UPDATE")[0].rowcount
            if verb != "DELETE":
                self.database.users[self.user].check_space(self.used_bytes())
        except BaseException:
            if self.sqlite.in_transaction:
                self.sqlite.execute("ROLLBACK TO change")
                self.sqlite.execute("RELEASE change")
            raise
        self.sqlite.execute("RELEASE change")
        return count

    def _guard(
        self, done: Translated, sql: str, values: list[Any], *, is_update: bool = False
    ) -> tuple[sqlite3.Cursor, list[tuple[Any, ...]]]:
        # asked for before: SQLite's authorizer must not run statements
        self._granted = self._read_grants() if done.owners else set()
        self._owners, self._raised, self._guarded = done.owners, None, True
        try:
            cursor = self.sqlite.execute(sql, values)
            return cursor, cursor.fetchall()
        except sqlite3.Error as error:
            if self._raised is not None:
                raise self._raised from error
            raise as_ora_error(error, self.user, self._constraint, is_update=is_update) from error
        finally:
            self._guarded = False

    def _connect(self) -> sqlite3.Connection:
        database = self.database
        connection = sqlite3.connect(
            database.schema_file(self.user),
            timeout=database.lock_wait_s,
            isolation_level=None,
            detect_types=sqlite3.PARSE_DECLTYPES,
            check_same_thread=False,
            cached_statements=0,
        )
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA case_sensitive_like=ON")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("ATTACH ? AS sys", [str(database.folder / "sys.db")])
        for other in database.users:
            if other != self.user:
                connection.execute(f"ATTACH ? AS [{other}]", [str(database.schema_file(other))])
        self._add_functions(connection)
        views = catalogue.views(self.user, database.users[self.user], database.version)
        for name, query in views.items():
            connection.execute(f"CREATE TEMP VIEW [{name}] AS {query}")
        self._catalogue = set(views)
        # only now: the last session to close empties the log, and a new one has to wait for that
        connection.execute(f"PRAGMA busy_timeout = {int(_POLL_S * 1000)}")
        connection.set_authorizer(self._authorize)
        return connection

    def _add_functions(self, connection: sqlite3.Connection) -> None:
        def kept(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*values: Any) -> Any:
                try:
                    return function(*values)
                except (OraError, ConnectionDropped) as error:
                    self._raised = error
                    raise

            return called

        for name, (count, function) in functions.PLAIN.items():
            connection.create_function(name, count, kept(function))
        own: dict[str, tuple[int, Callable[..., Any]]] = {
            "session_user": (0, lambda: self.user),
            "unique_session_id": (0, lambda: self.unique_id),
            "used_bytes": (0, self.used_bytes),
            "sys_context": (2, self.context),
            "vector_embedding": (3, lambda owner, name, v: self.models.embed(owner, name, v)),
            "vector_distance": (3, vector_distance),
            "to_vector": (1, to_vector),
        }
        for name, (count, function) in own.items():
            connection.create_function(name, count, kept(function))
        connection.create_function("vector_dims", 1, vector_dims, deterministic=True)
        self._functions = functions.SHARED | set(functions.PLAIN) | set(own) | {"vector_dims"}

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

    def _refresh_views(self) -> None:
        """Make the user's views, as temporary ones: only those may name catalogue views."""
        found = tuple(self.query("SELECT name, sql FROM sys.views WHERE owner = ?", [self.user]))
        if found == self._views:
            return
        for name, _ in self._views:
            self.query(f"DROP VIEW temp.[{name}]")
        for name, sql in found:
            self.query(f"CREATE TEMP VIEW [{name}] AS {sql}")
        self._views = found

    def _constraint(self, columns: str) -> str:
        table = columns.partition(".")[0]
        text = self.query("SELECT sql FROM main.sqlite_master WHERE name = ?", [table])
        wanted = sorted(part.rpartition(".")[2].upper() for part in columns.split(", "))
        for name, listed in re.findall(
            r"CONSTRAINT \[(\w+)\] (?:PRIMARY KEY|UNIQUE) \(([^)]*)\)", text[0][0] if text else ""
        ):
            if sorted(part.strip(" []").upper() for part in listed.split(",")) == wanted:
                return str(name)
        return f"SYS_C_{table}"

    def _authorize(
        self, action: int, one: str | None, two: str | None, schema: str | None, view: str | None
    ) -> int:
        """Decide whether a user's statement may do something; SQLite asks while it compiles."""
        if not self._guarded:
            return sqlite3.SQLITE_OK
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if str(two).lower() in self._functions:
                return sqlite3.SQLITE_OK
            self._raised = OraError(904, f'"{str(two).upper()}": invalid identifier')
            return sqlite3.SQLITE_DENY
        privilege = "SELECT" if action == sqlite3.SQLITE_READ else _WRITES.get(action)
        table = str(one).upper()
        if privilege is None or table.startswith("SQLITE_"):
            self._raised = self._missing(schema, table)
            return sqlite3.SQLITE_DENY
        is_read = privilege == "SELECT"
        if schema in ("main", "temp", None) or (
            is_read and schema == "sys" and view in self._catalogue
        ):
            return sqlite3.SQLITE_OK
        if schema in self._owners and (schema, table, privilege) in self._granted:
            return sqlite3.SQLITE_OK
        self._raised = self._missing(schema if schema in self._owners else None, table)
        return sqlite3.SQLITE_DENY

    def _read_grants(self) -> set[tuple[str, str, str]]:
        query = "SELECT owner, name, privilege FROM sys.privs WHERE grantee IN (?, 'PUBLIC')"
        return set(self.query(query, [self.user]))

    def _missing(self, schema: str | None, table: str) -> OraError:
        owner = schema if schema in self._owners else self.user
        return OraError(942, f'table or view "{owner}"."{table}" does not exist')


sqlite3.register_converter("CLOB", lambda value: functions.Clob(value.decode()))
sqlite3.register_converter("BLOB", functions.Blob)
