# ruff: noqa: S608 -- names in SQL are the engine's own
"""CREATE, ALTER and DROP of tables, views and indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oracle_server.engine import ddl
from oracle_server.engine.sql import Translator
from oracle_server.engine.tokens import NUMBER, STRING, Reader, Token, split
from oracle_server.statement import OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

_LIMITS = {"VARCHAR2": 4000, "VARCHAR": 4000, "CHAR": 2000, "RAW": 2000}
_NUMBERS = {"NUMBER", "INTEGER", "INT", "SMALLINT", "FLOAT", "BINARY_DOUBLE", "BINARY_FLOAT"}
_CONSTRAINTS = {"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"}
_VECTOR_TYPES = {"FLOAT32", "FLOAT64", "INT8", "BINARY", "*"}


@dataclass
class ColumnType:
    """A column's type: for SQLite, for the checks on values, and for the dictionary."""

    sqlite: str
    data_type: str
    length: int = 22
    check: str = ""
    precision: int | None = None
    scale: int | None = None
    vector_info: str | None = None


def create(session: EngineSession, reader: Reader) -> None:
    """Run what follows CREATE."""
    is_replaced = reader.take_if("OR", "REPLACE")
    if not is_replaced and reader.take_if("TABLE"):
        _create_table(session, reader)
    elif reader.take_if("VIEW") or reader.take_if("FORCE", "VIEW"):
        _create_view(session, reader, is_replaced=is_replaced)
    elif reader.looks_at("INDEX") or reader.peek(1).upper == "INDEX" or reader.looks_at("HYBRID"):
        _create_index(session, reader)
    else:
        raise OraError(1031, "insufficient privileges")


def alter(session: EngineSession, reader: Reader) -> None:
    """Run what follows ALTER TABLE: columns are added, nothing else."""
    table = ddl.own(session, reader)
    if not reader.take_if("ADD"):
        raise OraError(3001, "unimplemented feature: ALTER TABLE other than ADD")
    inside = reader.parenthesised() if reader.looks_at("(") else list(reader.tokens[reader.at :])
    require_table(session, table)
    with session.ddl():
        for part in split(inside):
            known = "SELECT 1 FROM sys.cols WHERE owner = ? AND table_name = ? AND name = ?"
            if session.query(known, [session.user, table, part[0].name]):
                raise OraError(1430, "column being added already exists in table")
            sql = _column(session, table, Reader(part, reader.text))[0]
            ddl.query(session, f"ALTER TABLE main.[{table}] ADD COLUMN {sql}")


def drop(session: EngineSession, reader: Reader) -> None:
    """Run what follows DROP."""
    kind = reader.expect("TABLE", "VIEW", "INDEX").upper
    is_lenient = reader.take_if("IF", "EXISTS")
    name = ddl.own(session, reader)
    reader.take_if("CASCADE", "CONSTRAINTS")
    reader.take_if("PURGE")
    ddl.end(reader)
    source = {"TABLE": "tabs", "VIEW": "views", "INDEX": "indexes"}[kind]
    with session.ddl():
        where = [session.user, name]
        if not session.query(f"SELECT 1 FROM sys.{source} WHERE owner = ? AND name = ?", where):
            if is_lenient:
                return
            if kind == "INDEX":
                raise OraError(1418, "specified index does not exist")
            raise OraError(942, f'table or view "{session.user}"."{name}" does not exist')
        session.query(f"DELETE FROM sys.{source} WHERE owner = ? AND name = ?", where)
        if kind == "TABLE":
            for other in ("cols", "indexes"):
                session.query(f"DELETE FROM sys.{other} WHERE owner = ? AND table_name = ?", where)
            session.query(
                "DELETE FROM sys.privs WHERE kind = 'TABLE' AND owner = ? AND name = ?", where
            )
        if kind != "VIEW":
            ddl.query(session, f"DROP {kind} IF EXISTS main.[{name}]")


def require_table(session: EngineSession, name: str) -> None:
    """Raise ORA-00942 unless the user has a table or view of that name."""
    if not session.query(
        "SELECT 1 FROM sys.tabs WHERE owner = ?1 AND name = ?2 UNION ALL "
        "SELECT 1 FROM sys.views WHERE owner = ?1 AND name = ?2",
        [session.user, name],
    ):
        raise OraError(942, f'table or view "{session.user}"."{name}" does not exist')


def require_column(session: EngineSession, table: str, name: str) -> None:
    """Raise ORA-00904 unless a table of the user has a column of that name."""
    sql = "SELECT 1 FROM sys.cols WHERE owner = ? AND table_name = ? AND name = ?"
    if not session.query(sql, [session.user, table, name]):
        raise OraError(904, f'"{name}": invalid identifier')


def _create_table(session: EngineSession, reader: Reader) -> None:
    is_lenient = reader.take_if("IF", "NOT", "EXISTS")
    name = ddl.own(session, reader)
    if not reader.looks_at("("):
        raise OraError(3001, "unimplemented feature: CREATE TABLE without a list of columns")
    inside = reader.parenthesised()
    ddl.end(reader)
    user = session.database.users[session.user]
    user.require("CREATE TABLE")
    user.check_space(0)
    with session.ddl():
        if is_lenient and session.query(
            "SELECT 1 FROM sys.tabs WHERE owner = ? AND name = ?", [session.user, name]
        ):
            return
        _require_free(session, name)
        parts, keys = [], list[str]()
        for part in split(inside):
            own_reader = Reader(part, reader.text)
            if own_reader.peek().upper in _CONSTRAINTS:
                parts.append(_constraint(session, own_reader))
            else:
                sql, key = _column(session, name, own_reader)
                parts.append(sql)
                keys += [key] if key else []
        ddl.query(session, f"CREATE TABLE main.[{name}] ({', '.join(parts)})")
        session.query("INSERT INTO sys.tabs VALUES (?, ?, NULL)", [session.user, name])


def _require_free(session: EngineSession, name: str) -> None:
    if session.query(
        "SELECT 1 FROM sys.tabs WHERE owner = ?1 AND name = ?2 UNION ALL "
        "SELECT 1 FROM sys.views WHERE owner = ?1 AND name = ?2 UNION ALL "
        "SELECT 1 FROM sys.models WHERE owner = ?1 AND name = ?2",
        [session.user, name],
    ):
        raise OraError(955, "name is already used by an existing object")


def _constraint(session: EngineSession, reader: Reader) -> str:
    """Return a table's constraint as SQLite has it; columns of its key must not be NULL."""
    named = ""
    if reader.take_if("CONSTRAINT"):
        named = f"CONSTRAINT [{reader.take_name()}] "
    if reader.take_if("PRIMARY", "KEY"):
        columns = _names(reader)
        ddl.end(reader)
        checks = [f"CONSTRAINT [null|{c}] CHECK ([{c}] IS NOT NULL)" for c in columns]
        listed = ", ".join(f"[{column}]" for column in columns)
        return f"{named}PRIMARY KEY ({listed}) " + " ".join(checks)
    if reader.take_if("UNIQUE"):
        listed = ", ".join(f"[{column}]" for column in _names(reader))
        ddl.end(reader)
        return f"{named}UNIQUE ({listed})"
    return named + _translate(session, list(reader.tokens[reader.at :]), reader.text)


def _names(reader: Reader) -> list[str]:
    return [part[0].name for part in split(reader.parenthesised())]


def _column(session: EngineSession, table: str, reader: Reader) -> tuple[str, str]:
    """Record a column; return its definition for SQLite, and its name if it is the key."""
    name = reader.take_name()
    found = _type(name, reader)
    rest = list(reader.tokens[reader.at :])
    words = " ".join(token.upper for token in rest)
    if "GENERATED" in words:
        raise OraError(3001, "unimplemented feature: GENERATED columns")
    is_key = "PRIMARY KEY" in words
    is_null = "N" if is_key or "NOT NULL" in words else "Y"
    session.query(
        "INSERT INTO sys.cols VALUES (?, ?, ?, (SELECT count(*) + 1 FROM sys.cols WHERE owner = ? "
        "AND table_name = ?), ?, ?, ?, ?, ?, ?)",
        [
            *(session.user, table, name, session.user, table, found.data_type, found.length),
            *(found.precision, found.scale, is_null, found.vector_info),
        ],
    )
    checks = f" {found.check}" if found.check else ""
    must = " NOT NULL" if is_key and "NOT NULL" not in words else ""
    return f"[{name}] {found.sqlite}{_default(session, rest, reader.text)}{must}{checks}", (
        name if is_key else ""
    )


def _default(session: EngineSession, rest: list[Token], text: str) -> str:
    """Return what follows a column's type; SQLite wants defaults in parentheses."""
    if not rest or rest[0].upper != "DEFAULT":
        return " " + _translate(session, rest, text) if rest else ""
    stops = [
        i
        for i, token in enumerate(rest)
        if i > 1 and token.upper in (*_CONSTRAINTS, "NOT", "REFERENCES")
    ]
    stop = stops[0] if stops else len(rest)
    value = _translate(session, rest[1:stop], text)
    behind = _translate(session, rest[stop:], text) if rest[stop:] else ""
    return f" DEFAULT ({value}) {behind}"


def _translate(session: EngineSession, tokens: Sequence[Token], text: str) -> str:
    users = session.database.users
    return Translator(text, session.user, users, lambda *_: "").expression(tokens)


def _type(name: str, reader: Reader) -> ColumnType:
    token = reader.take()
    kind = token.upper
    given = split(reader.parenthesised()) if reader.looks_at("(") else []
    sizes = [int(part[0].text) for part in given if part and part[0].kind == NUMBER]
    if kind in _LIMITS:
        if not sizes and kind != "CHAR":
            raise OraError(906, "missing left parenthesis", token.start)
        size = sizes[0] if sizes else 1
        if not 0 < size <= _LIMITS[kind]:
            raise OraError(910, f"specified length too long for its datatype ({name})")
        unit = f"length([{name}])" if _is_in_chars(given) else f"length(CAST([{name}] AS BLOB))"
        data_type = "VARCHAR2" if kind == "VARCHAR" else kind
        check = f"CONSTRAINT [size|{name}] CHECK ({unit} <= {size})"
        return ColumnType(data_type, data_type, size, check)
    if kind in _NUMBERS:
        check = f"CONSTRAINT [number|{name}] CHECK (typeof([{name}]) <> 'text')"
        return ColumnType("NUMBER", "NUMBER", 22, check, *[*sizes, None, None][:2])
    if kind in ("TIMESTAMP", "DATE"):
        reader.take_if("WITH", "TIME", "ZONE") or reader.take_if("WITH", "LOCAL", "TIME", "ZONE")
        check = f"CONSTRAINT [time|{name}] CHECK ([{name}] IS NULL OR [{name}] LIKE char(1) || '%')"
        told = f"TIMESTAMP({sizes[0] if sizes else 6})" if kind == "TIMESTAMP" else kind
        # Python's sqlite3 has converters of its own for TIMESTAMP and DATE
        return ColumnType("UTCTIME", told, 11, check)
    if kind == "VECTOR":
        return _vector_type(name, given)
    if kind in ("CLOB", "BLOB", "BOOLEAN"):
        return ColumnType(kind, kind, 4000)
    if kind in ("JSON", "XMLTYPE", "LONG", "NVARCHAR2", "NCLOB", "INTERVAL"):
        raise OraError(3001, f"unimplemented feature: type {kind}", token.start)
    raise OraError(902, "invalid datatype", token.start)


def _is_in_chars(given: list[list[Token]]) -> bool:
    return bool(given) and given[0][-1].upper == "CHAR"


def _vector_type(name: str, given: list[list[Token]]) -> ColumnType:
    dims = given[0][0].text if given else "*"
    form = given[1][0].upper if len(given) > 1 else "*"
    if form not in _VECTOR_TYPES or not (dims == "*" or dims.isdigit()) or len(given) > 2:
        raise OraError(902, "invalid datatype")
    is_vector = f"[{name}] IS NULL OR vector_dims([{name}]) IS NOT NULL"
    check = f"CONSTRAINT [vector|{name}] CHECK ({is_vector})"
    if dims != "*":
        check += f" CONSTRAINT [dims|{name}] CHECK (vector_dims([{name}]) = {dims})"
    return ColumnType("VECTOR", "VECTOR", 8200, check, vector_info=f"VECTOR({dims},{form})")


def _create_view(session: EngineSession, reader: Reader, *, is_replaced: bool) -> None:
    name = ddl.own(session, reader)
    reader.expect("AS")
    tokens = list(reader.tokens[reader.at :])
    if not tokens:
        raise OraError(928, "missing SELECT keyword")
    session.database.users[session.user].require("CREATE VIEW")
    done = session.translate(tokens, reader.text)
    if done.params:
        raise OraError(1027, "bind variables not allowed for data definition operations")
    session.compile(done)
    text = reader.text[tokens[0].start :].strip()
    with session.ddl():
        if is_replaced:
            sql = "DELETE FROM sys.views WHERE owner = ? AND name = ?"
            session.query(sql, [session.user, name])
        _require_free(session, name)
        values = [session.user, name, text, done.sql]
        session.query("INSERT INTO sys.views VALUES (?, ?, ?, ?)", values)


def _create_index(session: EngineSession, reader: Reader) -> None:
    words = []
    while not reader.looks_at("INDEX"):
        words.append(reader.expect("UNIQUE", "HYBRID", "VECTOR").upper)
    reader.take()
    is_lenient = reader.take_if("IF", "NOT", "EXISTS")
    name = ddl.own(session, reader)
    reader.expect("ON")
    table = ddl.own(session, reader)
    inside = reader.parenthesised()
    parameters = ""
    is_ours = "VECTOR" not in words
    while reader.peek().kind:
        token = reader.take()
        if token.upper == "PARAMETERS":
            parameters = str(reader.parenthesised()[0].value or "")
        elif is_ours or token.kind == STRING:
            raise OraError(3001, f"unimplemented feature: {token.text}", token.start)
    require_table(session, table)
    # Unconfirmed: what USER_INDEXES says of hybrid vector indexes.
    kind = "NORMAL" if is_ours else "DOMAIN" if "HYBRID" in words else "VECTOR"
    owner, index_type = ("CTXSYS", "CONTEXT_V2") if kind == "DOMAIN" else (None, None)
    unique = "UNIQUE" if "UNIQUE" in words else "NONUNIQUE"
    with session.ddl():
        if session.query(
            "SELECT 1 FROM sys.indexes WHERE owner = ? AND name = ?", [session.user, name]
        ):
            if is_lenient:
                return
            raise OraError(955, "name is already used by an existing object")
        if is_ours:
            columns = _translate(session, inside, reader.text)
            sql = "UNIQUE INDEX" if unique == "UNIQUE" else "INDEX"
            ddl.query(session, f"CREATE {sql} main.[{name}] ON [{table}] ({columns})")
        session.query(
            "INSERT INTO sys.indexes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [session.user, name, kind, table, unique, owner, index_type, parameters or None],
        )
