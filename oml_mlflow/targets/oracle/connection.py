"""An Oracle connection: runs statements, returns rows, raises our errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import oracledb

from oml_mlflow.errors import TargetError
from oml_mlflow.planning.records import refuse_newer
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.errors import translated

NOTHING = "Nothing was changed."
_MANY_ROWS = 1000
# ORA-00942: no such table or view; ORA-00904: no such column
_MISSING = {"ORA-00942", "ORA-00904"}


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
            self._found.add((table, sql.REGISTRY if table == sql.LEDGER else ""))
        if (sql.SCHEMA, str(sql.SCHEMA_VERSION)) not in self._found:
            self.write(sql.NOTE_VERSION, f"noting the version in {sql.SCHEMA}")
            self._found.add((sql.SCHEMA, str(sql.SCHEMA_VERSION)))
        if not self.has_registry:
            self.write(sql.ADD_REGISTRY, f"adding a column to {sql.LEDGER}")
            self._found.add((sql.LEDGER, sql.REGISTRY))

    def rows(
        self,
        statement: str,
        step: str,
        binds: Mapping[str, Any] | None = None,
        *,
        inline: bool = False,
    ) -> list[tuple[Any, ...]]:
        """Return all rows of a query, LOBs read. Read-only.

        Args:
            statement: The query.
            step: What it is for, as errors show it.
            binds: Values by name.
            inline: Fetch LOBs with their rows instead of by a call each, for many small ones.
        """
        with self._step(step, NOTHING) as c:
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

    def ask(self, statement: str, step: str, binds: Mapping[str, Any], out: str) -> int:
        """Run a block that writes nothing; return the number in an output bind."""
        with self._step(step, NOTHING) as c:
            answer = c.var(oracledb.DB_TYPE_NUMBER)
            c.execute(statement, {**binds, out: answer})
            return int(answer.getvalue())

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
    def _step(self, step: str, state: str) -> Iterator[Any]:
        """Yield a fresh cursor: a used one may send a BLOB as a CLOB (oracledb 3.4 to 26.1)."""
        with translated(f"{step} in {self.uri}", state=state, user=self.user):
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
