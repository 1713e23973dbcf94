"""A user's schema in SQLite: whose tables a statement sees, and what it may do with them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oracle_server.engine import catalogue, functions
from oracle_server.engine.sql import Translated
from oracle_server.engine.sqlite_errors import as_ora_error
from oracle_server.engine.text_functions import TEXT
from oracle_server.engine.vectors import vector_dims
from oracle_server.statement import ConnectionDropped, OraError

if TYPE_CHECKING:
    from oracle_server.engine.database import Database

_POLL_MS = 20
# while another connection opens or closes the files, however short
_BUSY_S = 30
_WRITES = {
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
}


class Schema:
    """A connection to SQLite for one session.

    The user's own tables are in ``main``, those of others are attached by user name, the
    dictionary as ``sys``; catalogue views and the user's own views are temporary ones.

    Args:
        database: The database.
        user: Whose schema.
        own: SQL functions that depend on the session: number of arguments, function.
    """

    def __init__(
        self, database: Database, user: str, own: Mapping[str, tuple[int, Callable[..., Any]]]
    ) -> None:
        self._database, self.user = database, user
        self._guarded = False
        self._owners: set[str] = set()
        self._granted: set[tuple[str, str, str]] = set()
        self._raised: BaseException | None = None
        self._views: tuple[Any, ...] = ()
        self.sqlite = self._connect(own)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run SQL of the engine's own on the dictionary."""
        guarded, self._guarded = self._guarded, False
        try:
            return self.sqlite.execute(sql, values).fetchall()
        finally:
            self._guarded = guarded

    def run(
        self, done: Translated, sql: str, values: list[Any], *, is_update: bool = False
    ) -> tuple[sqlite3.Cursor, list[tuple[Any, ...]]]:
        """Run a user's statement; return the cursor and all rows."""
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

    def try_to_begin(self) -> bool:
        """Begin a transaction that writes, unless another session has one for some time."""
        self.sqlite.execute(f"PRAGMA busy_timeout = {_POLL_MS}")
        try:
            self.sqlite.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return False
            raise
        finally:
            self.sqlite.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000}")
        return True

    def declared_types(self, done: Translated) -> list[str]:
        """Return the declared types of a query's columns; nothing for expressions."""
        self.query(f"CREATE TEMP VIEW [ query ] AS {done.without_binds}")
        try:
            return [row[2].upper() for row in self.query("PRAGMA temp.table_info([ query ])")]
        finally:
            self.query("DROP VIEW temp.[ query ]")

    def refresh_views(self) -> None:
        """Make the user's views, as temporary ones: only those may name catalogue views."""
        found = tuple(self.query("SELECT name, sql FROM sys.views WHERE owner = ?", [self.user]))
        if found == self._views:
            return
        for name, _ in self._views:
            self.query(f"DROP VIEW temp.[{name}]")
        for name, sql in found:
            self.query(f"CREATE TEMP VIEW [{name}] AS {sql}")
        self._views = found

    def _connect(self, own: Mapping[str, tuple[int, Callable[..., Any]]]) -> sqlite3.Connection:
        database = self._database
        connection = sqlite3.connect(
            database.schema_file(self.user),
            timeout=_BUSY_S,
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
        self._add_functions(connection, own)
        views = catalogue.views(self.user, database.users[self.user], database.version)
        for name, query in views.items():
            connection.execute(f"CREATE TEMP VIEW [{name}] AS {query}")
        self._catalogue = set(views)
        connection.set_authorizer(self._authorize)
        return connection

    def _add_functions(
        self, connection: sqlite3.Connection, own: Mapping[str, tuple[int, Callable[..., Any]]]
    ) -> None:
        def kept(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*values: Any) -> Any:
                try:
                    return function(*values)
                except (OraError, ConnectionDropped) as error:
                    self._raised = error
                    raise

            return called

        plain = {**functions.PLAIN, **TEXT}
        for name, (count, function) in plain.items():
            connection.create_function(name, count, kept(function))
        for name, (count, function) in own.items():
            connection.create_function(name, count, kept(function))
        connection.create_function("vector_dims", 1, vector_dims, deterministic=True)
        self._functions = functions.SHARED | set(plain) | set(own) | {"vector_dims"}

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
