"""An Oracle connection: runs statements, returns rows, raises our errors."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from time import monotonic
from typing import Any

import oracledb

from oml_mlflow.deadline import within
from oml_mlflow.errors import ModelTooSlow, TargetError, TargetUnreachable
from oml_mlflow.planning.records import refuse_newer
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.errors import translated

NOTHING = "Nothing was changed."
_MANY_ROWS = 1000
# ORA-00942: no such table or view; ORA-00904: no such column
_MISSING = {"ORA-00942", "ORA-00904"}
# so that a host that is away leaves time for the next one of a description
_HOSTS_TRIED = 3

_own = threading.local()


def connect(timeout_s: float, **options: Any) -> Any:
    """Return a new connection, made in a time that covers name look-up, TLS and log-in.

    The driver limits the TCP part alone. An attempt that is given up has its sockets shut down,
    which ends it, so that neither threads nor sessions pile up; only a name look-up goes on until
    the system gives it up. A session that is made after all is closed as it is dropped. Raises
    TimeoutError, and what the driver raises.
    """
    made, is_over = [], threading.Event()

    def hear(new: socket.socket) -> None:
        made.append(new)
        if is_over.is_set():  # the driver tries the next address
            raise RuntimeError("given up")

    def call() -> Any:
        _own.hear = hear
        return oracledb.connect(tcp_connect_timeout=timeout_s / _HOSTS_TRIED, **options)

    def stop() -> None:
        is_over.set()
        for sock in made:
            with contextlib.suppress(OSError):
                # not that of TLS, which would forget a state that the driver is using
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    _prepare()
    return within(timeout_s, call, stop=stop)


@cache
def _prepare() -> None:
    """Let connections not wait for each other, and have Python tell which sockets are made.

    Source: "Audit events table" of Python's documentation; the driver shows no socket before it is
    connected, and serialises a process's first connections until its mode is fixed.
    """

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.__new__" and hasattr(_own, "hear"):
            _own.hear(arguments[0])

    sys.addaudithook(hear)
    with contextlib.suppress(oracledb.Error):  # thick mode was chosen before
        oracledb.enable_thin_mode()


def limit_calls(connection: Any, seconds: float) -> None:
    """Limit the time of a call, unless the connection is lost; then python-oracledb crashes."""
    if connection.is_healthy():
        # rounded up: 0 would be no limit
        connection.call_timeout = max(1, math.ceil(seconds * 1000))


class Database:
    """An open connection.

    Args:
        connection: Of python-oracledb.
        uri: Where it leads, without secrets.
        can_write: Whether anything may be written at all.
    """

    def __init__(self, connection: Any, uri: str, *, can_write: bool) -> None:
        self.connection, self.uri, self._can_write = connection, uri, can_write
        # upper-case, as in the catalogue; kept, since a closed connection has none
        self.user = str(connection.username or "").upper()

    @property
    def version(self) -> str:
        """Version of the database, such as ``23.26.1.0.0``."""
        return str(self.connection.version)

    @cached_property
    def session_id(self) -> str:
        """Unique id of this session among all that are connected."""
        [(found,)] = self.rows(sql.SESSION_ID, "asking for the session's id")
        return str(found)

    @property
    def tables(self) -> set[str]:
        """Those of our tables that exist."""
        return {table for table, _column in self._found}

    @property
    def has_registry(self) -> bool:
        """Whether the ledger has the column REGISTRY; earlier releases made it without."""
        return (sql.LEDGER, sql.REGISTRY) in self._found

    @property
    def later_columns(self) -> set[str]:
        """Columns of the table of registered columns that earlier releases made it without."""
        return {column for table, column in self._found if table == sql.COLUMNS}

    @cached_property
    def _found(self) -> set[tuple[str, str]]:
        step = "looking for the tables of oml_mlflow"
        try:
            rows = self.rows(f"{sql.LIST_TABLES} UNION ALL {sql.LIST_VERSIONS}", step)
        except TargetError as error:
            if not is_missing(error):
                raise
            rows = self.rows(sql.LIST_TABLES, step)
        return {(table, column) for table, column in rows}

    def refuse_newer(self) -> None:
        """Raise SchemaNewer if a newer release made our tables. Read-only."""
        noted = [text for table, text in self._found if table == sql.SCHEMA and text.isdigit()]
        refuse_newer(self.uri, max(map(int, noted), default=1), sql.SCHEMA_VERSION)

    def ensure_tables(self) -> None:
        """Create our missing tables and columns. Commits."""
        self._refuse_if_read_only()
        missing = [table for table in sql.CREATE_TABLES if table not in self.tables]
        for table in missing:
            self.write(sql.CREATE_TABLES[table], f"making table {table}")
            self._found.update({(table, ""), *(key for key in sql.ADD_COLUMNS if key[0] == table)})
        if (sql.SCHEMA, str(sql.SCHEMA_VERSION)) not in self._found:
            self.write(sql.NOTE_VERSION, f"noting the version in {sql.SCHEMA}")
            self._found.add((sql.SCHEMA, str(sql.SCHEMA_VERSION)))
        for added, block in sql.ADD_COLUMNS.items():
            if added not in self._found:
                self.write(block, f"adding a column to {added[0]}")
                self._found.add(added)

    def rows(
        self,
        statement: str,
        step: str,
        binds: Mapping[str, Any] | None = None,
        *,
        of: str = "",
        inline: bool = False,
        hint: str = "",
    ) -> list[tuple[Any, ...]]:
        """Return all rows of a query, LOBs read. Read-only.

        Args:
            statement: The query.
            step: What it is for, as errors show it.
            binds: Values by name.
            of: Table of ours that it reads: none of its rows if it is missing.
            inline: Fetch LOBs with their rows instead of by a call each, for many small ones.
            hint: What to do if it fails, unless the error has a better one.
        """
        if of and of not in self.tables:
            return []
        with self._step(step, NOTHING, hint) as c:
            if inline:
                c.arraysize = c.prefetchrows = _MANY_ROWS
            c.execute(statement, dict(binds or {}), fetch_lobs=not inline)
            return [tuple(_value(value) for value in row) for row in c]

    def write(
        self,
        statement: str,
        step: str,
        binds: Mapping[str, Any] | None = None,
        *,
        state: str = NOTHING,
    ) -> int:
        """Run a statement that writes; return how many rows it changed. DDL commits by itself."""
        self._refuse_if_read_only()
        with self._step(step, state) as c:
            c.execute(statement, dict(binds or {}))
            return int(c.rowcount)

    def insert(self, statement: str, step: str, binds: Mapping[str, Any]) -> bool:
        """Insert a row; return False, rolled back, if another session just did."""
        try:
            self.write(statement, step, binds)
        except TargetError as error:
            if isinstance(error.__cause__, oracledb.IntegrityError):
                self.rollback()
                return False
            raise
        return True

    def forget(self, table: str, statement: str, step: str, binds: Mapping[str, Any]) -> bool:
        """Delete from a table of ours, if it is there; return whether a row was. Commits."""
        if table not in self.tables:
            return False
        gone = self.write(statement, step, binds)
        self.commit()
        return gone > 0

    def ask(self, statement: str, step: str, binds: Mapping[str, Any], out: str) -> int:
        """Run a block that writes nothing; return the number in an output bind."""
        with self._step(step, NOTHING) as c:
            answer = c.var(oracledb.DB_TYPE_NUMBER)
            c.execute(statement, {**binds, out: answer})
            return int(answer.getvalue())

    @contextlib.contextmanager
    def giving_up(self, timeout_s: float, step: str) -> Iterator[None]:
        """Limit the calls of a block, and raise ModelTooSlow if they take that long."""
        before, begun = self.connection.call_timeout, monotonic()
        limit_s = min(before / 1000, timeout_s)
        limit_calls(self.connection, limit_s)
        try:
            yield
        except TargetUnreachable as error:
            if monotonic() - begun < limit_s:
                raise
            raise ModelTooSlow(
                f"{step} in {self.uri} took longer than {limit_s:g} s: {error.message}",
                hint="look for a loop without an end in its graph; if the database was only busy, "
                "try it again (`oml-mlflow apply --retry`).",
            ) from error
        finally:
            if self.connection.is_healthy():
                self.connection.call_timeout = before

    def commit(self, state: str = NOTHING) -> None:
        """Commit."""
        with translated(f"the commit in {self.uri}", state=state):
            self.connection.commit()

    def rollback(self) -> None:
        """Roll back; a lost connection has done so already."""
        with contextlib.suppress(oracledb.Error, OSError):
            self.connection.rollback()

    def blob(self, data: bytes) -> Any:
        """Return a temporary BLOB, which every release of the driver binds as a BLOB."""
        with translated(f"sending {len(data)} bytes to {self.uri}", state=NOTHING):
            return self.connection.createlob(oracledb.DB_TYPE_BLOB, data)

    @contextlib.contextmanager
    def _step(self, step: str, state: str, hint: str = "") -> Iterator[Any]:
        """Yield a fresh cursor: a used one may send a BLOB as a CLOB (oracledb 3.4 to 26.1)."""
        with translated(f"{step} in {self.uri}", state=state, user=self.user, hint=hint):
            cursor = self.connection.cursor()
            try:
                yield cursor
            finally:
                with contextlib.suppress(oracledb.Error):
                    cursor.close()

    def _refuse_if_read_only(self) -> None:
        if not self._can_write:
            raise TargetError(
                f"the session on {self.uri} was opened for reading only. Nothing was changed.",
                hint="open it with create=True.",
            )


def is_missing(error: TargetError) -> bool:
    """Return whether a table or column was not there."""
    return not _MISSING.isdisjoint(error.details.get("codes", ()))


def _value(value: Any) -> Any:
    return value.read() if isinstance(value, oracledb.LOB) else value
