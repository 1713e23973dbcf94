"""An Oracle connection as the target's modules use it: statements in, rows out, errors ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import oracledb

from oml_mlflow.errors import TargetError
from oml_mlflow.targets import oracle_statements as sql
from oml_mlflow.targets.oracle_errors import translated

NOTHING = "Nothing was changed."


class Database:
    """An open connection.

    Args:
        connection: Of python-oracledb.
        uri: Where it leads, without secrets.
        can_write: Whether anything may be written at all.
    """

    def __init__(self, connection: Any, uri: str, *, can_write: bool) -> None:
        self.connection, self.uri, self._can_write = connection, uri, can_write
        # in the case that the catalogue has it in; one that was closed does not tell any more
        self.user = str(connection.username or "").upper()
        self._tables: set[str] | None = None

    @property
    def version(self) -> str:
        """Version of the database, such as ``23.26.1.0.0``."""
        return str(self.connection.version)

    @cached_property
    def session_id(self) -> str:
        """What tells this session from all others that are connected."""
        [(found,)] = self.rows(sql.SESSION_ID, "asking for the session's id")
        return str(found)

    @property
    def tables(self) -> set[str]:
        """Those of our tables that are there."""
        if self._tables is None:
            rows = self.rows(sql.LIST_TABLES, "looking for the tables of oml_mlflow")
            self._tables = {name for (name,) in rows}
        return self._tables

    def ensure_tables(self) -> None:
        """Make those of our tables that are missing. Writes: tables; commits."""
        self._refuse_if_read_only()
        for table, statement in sql.CREATE_TABLES.items():
            if table not in self.tables:
                self.write(statement, f"making table {table}")
                self.tables.add(table)

    def rows(
        self, statement: str, step: str, binds: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Return all rows of a query, LOBs read. Read-only.

        Args:
            statement: The query.
            step: What it is for, as an error would say it.
            binds: Values by name.
        """
        with self._step(step, NOTHING) as c:
            c.execute(statement, dict(binds or {}))
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
        return self._run(statement, step, dict(binds or {}), state)

    def ask(self, statement: str, step: str, binds: Mapping[str, Any], out: str) -> int:
        """Run a block that writes nothing; return the number that it leaves in a bind."""
        with self._step(step, NOTHING) as c:
            answer = c.var(oracledb.DB_TYPE_NUMBER)
            c.execute(statement, {**binds, out: answer})
            return int(answer.getvalue())

    def commit(self, state: str = NOTHING) -> None:
        """Commit."""
        with translated(f"the commit in {self.uri}", state=state):
            self.connection.commit()

    def rollback(self) -> None:
        """Undo what was not committed; a connection that is gone has undone it already."""
        with contextlib.suppress(oracledb.Error, OSError):
            self.connection.rollback()

    def blob(self, data: bytes) -> Any:
        """Return a temporary BLOB, which is what every release of the driver binds as a BLOB."""
        with translated(f"sending {len(data)} bytes to {self.uri}", state=NOTHING):
            return self.connection.createlob(oracledb.DB_TYPE_BLOB, data)

    def _run(self, statement: str, step: str, binds: dict[str, Any], state: str) -> int:
        with self._step(step, state) as c:
            c.execute(statement, binds)
            return int(c.rowcount)

    @contextlib.contextmanager
    def _step(self, step: str, state: str) -> Iterator[Any]:
        """Give a fresh cursor.

        One that had bytes bound sends a BLOB as a CLOB next (measured, oracledb 3.4 to 26.1).
        """
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


def _value(value: Any) -> Any:
    return value.read() if isinstance(value, oracledb.LOB) else value
