# ruff: noqa: S608 -- names in SQL are the engine's own
"""Statements that define objects or give privileges: each commits by itself, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oracle_server.engine import tables
from oracle_server.engine.sqlite_errors import as_ora_error
from oracle_server.engine.tokens import STRING, Reader, Token
from oracle_server.statement import OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

_TABLE_PRIVILEGES = {"SELECT", "READ", "INSERT", "UPDATE", "DELETE", "ALTER", "INDEX", "REFERENCES"}


def run(session: EngineSession, text: str, tokens: Sequence[Token]) -> None:
    """Run one DDL statement.

    Raises:
        OraError: If it fails; ORA-00900 if there is no such statement, ORA-03001 for one that
            Oracle has and the stand-in has not.
    """
    reader = Reader(tokens, text)
    verb = reader.take().upper
    if verb == "CREATE":
        tables.create(session, reader)
    elif verb == "ALTER" and reader.take_if("TABLE"):
        tables.alter(session, reader)
    elif verb == "DROP":
        tables.drop(session, reader)
    elif verb == "COMMENT":
        _comment(session, reader)
    elif verb in ("GRANT", "REVOKE"):
        _grant(session, reader, is_grant=verb == "GRANT")
    elif verb in ("ALTER", "TRUNCATE", "MERGE", "CALL", "LOCK", "SET", "RENAME", "EXPLAIN"):
        raise OraError(3001, f"unimplemented feature: {text[:60]}")
    else:
        raise OraError(900, "invalid SQL statement")


def end(reader: Reader) -> None:
    """Fail unless the statement ends here."""
    if reader.peek().kind:
        raise OraError(933, "SQL command not properly ended", reader.peek().start)


def own(session: EngineSession, reader: Reader) -> str:
    """Take the name of an object in the user's own schema."""
    name = reader.take_name()
    if not reader.take_if("."):
        return name
    if name != session.user:
        raise OraError(1031, "insufficient privileges")
    return reader.take_name()


def query(session: EngineSession, sql: str, values: Sequence[Any] = ()) -> None:
    """Run SQL of the engine's own in the user's schema; give its errors Oracle's names."""
    try:
        session.query(sql, values)
    except session.sqlite.Error as error:
        raise as_ora_error(error, session.user, lambda _: "") from error


def _comment(session: EngineSession, reader: Reader) -> None:
    reader.expect("ON")
    if reader.take_if("MINING", "MODEL"):
        name = own(session, reader)
        session.models.comment(name, _comment_text(reader))
        return
    if reader.take_if("TABLE"):
        table, name = own(session, reader), ""
    else:
        reader.expect("COLUMN")
        table = reader.take_name()
        reader.expect(".")
        name = reader.take_name()
    text = _comment_text(reader)
    tables.require_table(session, table)
    if not name:
        with session.ddl():
            sql = "UPDATE sys.tabs SET comments = ? WHERE owner = ? AND name = ?"
            session.query(sql, [text, session.user, table])
    else:
        tables.require_column(session, table, name)
        session.end_transaction()


def _comment_text(reader: Reader) -> str | None:
    reader.expect("IS")
    token = reader.take()
    if token.kind != STRING:
        raise OraError(1780, "string literal required", token.start)
    end(reader)
    return str(token.value) if token.value is not None else None


def _grant(session: EngineSession, reader: Reader, *, is_grant: bool) -> None:
    privileges = [_privilege(reader)]
    while reader.take_if(","):
        privileges.append(_privilege(reader))
    if not reader.take_if("ON"):
        raise OraError(1031, "insufficient privileges")
    kind = "MINING MODEL" if reader.take_if("MINING", "MODEL") else "TABLE"
    allowed = {"SELECT", "ALTER"} if kind == "MINING MODEL" else _TABLE_PRIVILEGES
    if not allowed.issuperset(privileges):
        if kind == "MINING MODEL":
            raise OraError(40361, "only SELECT and ALTER are valid for mining models")
        raise OraError(990, "missing or invalid privilege")
    name = own(session, reader)
    reader.expect("TO" if is_grant else "FROM")
    grantees = [_grantee(session, reader)]
    while reader.take_if(","):
        grantees.append(_grantee(session, reader))
    option = "YES" if is_grant and reader.take_if("WITH", "GRANT", "OPTION") else "NO"
    end(reader)
    model = _granted_object(session, kind, name)
    with session.ddl():
        for grantee in grantees:
            for privilege in privileges:
                row = [kind, model, session.user, None if model else name, grantee, privilege]
                _record(session, row, option, is_grant=is_grant)


def _record(session: EngineSession, row: list[Any], option: str, *, is_grant: bool) -> None:
    kind, model, owner, name, grantee, privilege = row
    where = (
        "kind = ? AND model_id IS ? AND owner = ? AND name IS ? AND grantee = ? AND privilege = ?"
    )
    had = session.query(f"SELECT grantable FROM sys.privs WHERE {where}", row)
    if not is_grant and not had:
        raise OraError(1927, "cannot REVOKE privileges you did not grant")
    session.query(f"DELETE FROM sys.privs WHERE {where}", row)
    if is_grant:
        # a grant without the option does not take the option away
        option = "YES" if had and had[0][0] == "YES" else option
        values = [kind, model, owner, name, owner, grantee, privilege, option]
        session.query("INSERT INTO sys.privs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _privilege(reader: Reader) -> str:
    words = []
    while reader.peek().upper not in ("ON", "TO", "FROM", ",", ""):
        words.append(reader.take().upper)
    return " ".join(words)


def _grantee(session: EngineSession, reader: Reader) -> str:
    name = reader.take_name()
    if name not in session.database.users and name != "PUBLIC":
        raise OraError(1917, f"user or role '{name}' does not exist")
    if name == session.user:
        raise OraError(1749, "Cannot GRANT or REVOKE privileges to or from yourself.")
    return name


def _granted_object(session: EngineSession, kind: str, name: str) -> int | None:
    if kind == "MINING MODEL":
        model = session.models.find(session.user, name)
        if model is None:
            # Guess: the code that GRANT has for a model that is not there is not documented.
            raise OraError(40203, f"model {name} does not exist")
        return model.id
    tables.require_table(session, name)
    return None
