"""UNION, INTERSECT and MINUS: the types that their columns must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oracle_server.engine.tokens import NUMBER, STRING, Reader, Token, split
from oracle_server.statement import OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

_OPERATORS = {"UNION", "INTERSECT", "MINUS"}
_TEXT = {"TEXT", "VARCHAR2", "VARCHAR", "CHAR"}
_NUMBERS = {"NUMBER", "INTEGER", "INT", "BINARY_DOUBLE", "BINARY_FLOAT", "FLOAT"}
_FUNCTIONS = {
    "TO_CLOB": "CLOB",
    **dict.fromkeys(("TO_CHAR", "UPPER", "LOWER", "SUBSTR", "TRIM"), "VARCHAR2"),
    **dict.fromkeys(("COUNT", "LENGTH", "INSTR", "TO_NUMBER"), "NUMBER"),
}


def common_types(session: EngineSession, tokens: Sequence[Token], text: str) -> list[str]:
    """Return the type of each column of a query with set operations, as far as it is known.

    Nothing for a query without any, or one that begins with WITH or a parenthesis.

    Raises:
        OraError: ORA-01789 if the queries have different numbers of columns, ORA-01790 if a column
            has different types in them. NULL fits all.
    """
    queries = _queries(tokens)
    if len(queries) < 2 or any(query[0].upper != "SELECT" for query in queries):
        return []
    found = [_types(session, query, text) for query in queries]
    if len({len(kinds) for kinds in found}) > 1:
        raise OraError(1789, "query block has incorrect number of result columns")
    common = []
    for kinds in zip(*found, strict=True):
        known = {kind for kind in kinds if kind}
        if len(known) > 1:
            told = "expression must have same datatype as corresponding expression"
            raise OraError(1790, told, tokens[0].start)
        common.append(known.pop() if known else "")
    return common


def _queries(tokens: Sequence[Token]) -> list[list[Token]]:
    queries: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.upper, 0)
        if depth == 0 and token.upper in _OPERATORS:
            queries.append([])
        elif depth == 0 and token.upper == "ORDER" and len(queries) > 1:
            break  # of the whole
        elif queries[-1] or token.upper != "ALL":
            queries[-1].append(token)
    return [query for query in queries if query]


def _types(session: EngineSession, query: list[Token], text: str) -> list[str]:
    done = session.translate(query, text)
    session.compile(done)
    declared = [_type(kind) for kind in session.schema.declared_types(done)]
    listed = split(query[1 : _end_of_list(query)])
    if len(listed) != len(declared):  # SELECT *
        return declared
    return [_of_expression(part, text) or kind for part, kind in zip(listed, declared, strict=True)]


def _end_of_list(query: list[Token]) -> int:
    depth = 0
    for place, token in enumerate(query):
        depth += {"(": 1, ")": -1}.get(token.upper, 0)
        if depth == 0 and token.upper == "FROM":
            return place
    return len(query)


def _of_expression(part: list[Token], text: str) -> str:
    first = part[0]
    if len(part) == 1 and first.kind == NUMBER:
        return "NUMBER"
    if len(part) == 1 and first.kind == STRING and first.value is not None:
        return "VARCHAR2"
    if len(part) < 2 or part[1].upper != "(":
        return ""
    if first.upper == "CAST":
        inside = Reader(part[1:], text).parenthesised()
        at = max(place for place, token in enumerate(inside) if token.upper == "AS")
        return _type(inside[at + 1].upper)
    return _FUNCTIONS.get(first.upper, "")


def _type(declared: str) -> str:
    kind = declared.partition("(")[0]
    return "VARCHAR2" if kind in _TEXT else "NUMBER" if kind in _NUMBERS else kind
