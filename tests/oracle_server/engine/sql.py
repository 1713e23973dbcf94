"""Oracle's queries and DML in SQLite's spelling.

What SQLite would take, but Oracle would not, is refused here: its own keywords, ``AS`` before a
table's alias, names in quotes that turn into strings.

Known differences: ``||`` with NULL is NULL; DATE and TIMESTAMP are text inside, so that no
arithmetic is done with them; names in quotes are not case-sensitive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from oracle_server.engine.tokens import BIND, NUMBER, QUOTED, STRING, WORD, Reader, Token, split
from oracle_server.statement import OraError

# stands for a placeholder until the statement is complete
_PLACE = "\0"
_TIMES = {"SYSTIMESTAMP", "CURRENT_TIMESTAMP", "LOCALTIMESTAMP", "SYSDATE", "CURRENT_DATE"}
_SQLITE_ONLY = {"LIMIT", "PRAGMA", "CONFLICT", "GLOB", "REGEXP", "ISNULL", "NOTNULL", "INDEXED"}
_NOT_HERE = {"MERGE", "PIVOT", "ROWNUM", "INTERVAL", "RETURNING"}
_NUMBER_TYPES = {"NUMBER", "INTEGER", "INT", "BINARY_DOUBLE", "BINARY_FLOAT", "FLOAT"}
_TEXT_TYPES = {"VARCHAR2", "VARCHAR", "CHAR", "CLOB"}
_AFTER_FROM = {"WHERE", "GROUP", "ORDER", "HAVING", "UNION", "MINUS", "INTERSECT", "FETCH", "FOR"}


@dataclass
class Translated:
    """A statement for SQLite.

    Attributes:
        sql: Its text.
        without_binds: The same with NULL for each placeholder.
        params: Names of binds and variables in order, one for each placeholder.
        owners: Other users whose objects are named.
        locks: Whether rows are locked: FOR UPDATE.
        types: Types that the queries of a set operation have in common, by column.
    """

    sql: str = ""
    without_binds: str = ""
    params: list[str] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    locks: bool = False
    types: list[str] = field(default_factory=list)


class Translator:
    """Translates the tokens of one statement.

    Args:
        text: The statement.
        user: Who runs it.
        users: All users.
        find_model: Returns the attribute of a model, or raises OraError.
        variables: Placeholder for each PL/SQL variable that the statement may use.
    """

    def __init__(
        self,
        text: str,
        user: str,
        users: Collection[str],
        find_model: Callable[[str, str], str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.text, self.user, self.users = text, user, users
        self.find_model, self.variables = find_model, variables or {}
        self.done = Translated()

    def statement(self, tokens: Sequence[Token]) -> Translated:
        """Translate a whole query or DML statement."""
        for token in tokens:
            if token.upper == ";":
                raise OraError(933, "SQL command not properly ended", token.start)
        words = self._words(Reader(tokens, self.text))
        if tokens[0].upper == "DELETE" and len(tokens) > 1 and tokens[1].upper != "FROM":
            words.insert(1, "FROM")
        text = " ".join(words)
        self.done.sql = text.replace(_PLACE, "?")
        self.done.without_binds = text.replace(_PLACE, "NULL")
        return self.done

    def expression(self, tokens: Sequence[Token]) -> str:
        """Translate a part of a statement."""
        return " ".join(self._words(Reader(tokens, self.text)))

    def _words(self, reader: Reader) -> list[str]:
        out: list[str] = []
        in_from = [False]
        while reader.peek().kind:
            token = reader.take()
            upper = token.upper
            if upper == "(":
                in_from.append(False)
            elif upper == ")":
                in_from.pop()
            elif upper == "FROM":
                in_from[-1] = True
            elif upper in _AFTER_FROM:
                in_from[-1] = False
            elif upper == "AS" and in_from[-1]:
                raise OraError(933, "SQL command not properly ended", token.start)
            if not in_from:
                raise OraError(933, "SQL command not properly ended", token.start)
            follows_dot = reader.at > 1 and reader.peek(-2).upper == "."
            out += self._word(token, reader) if not follows_dot else [self._name(token)]
        return out

    def _word(self, token: Token, reader: Reader) -> list[str]:
        upper = token.upper
        if token.kind == STRING:
            value = token.value
            return ["NULL" if value is None else "'" + str(value).replace("'", "''") + "'"]
        if token.kind == NUMBER:
            return [token.text]
        if token.kind == BIND:
            self.done.params.append(":" + token.name)
            return [_PLACE]
        if token.is_name and reader.looks_at("."):
            return self._qualified(token, reader)
        if token.kind == QUOTED:
            return [self._name(token)]
        if token.kind == WORD and not reader.looks_at("(") and upper in self.variables:
            self.done.params.append(self.variables[upper])
            return [_PLACE]
        return self._keyword(token, reader)

    def _keyword(self, token: Token, reader: Reader) -> list[str]:
        upper = token.upper
        calls = reader.looks_at("(")
        if upper == "VECTOR_EMBEDDING" and calls:
            return [self._embedding(reader, token)]
        if upper == "VECTOR_DISTANCE" and calls:
            return [self._distance(reader)]
        if upper == "CAST" and calls:
            return [self._cast(reader)]
        if upper in _TIMES:
            if reader.peek().upper in ("+", "-"):
                raise OraError(3001, "unimplemented feature: arithmetic with times", token.start)
            reader.take_if("AT", "TIME", "ZONE") and reader.take()
            return ["sysdate()" if upper.endswith("DATE") else "systimestamp()"]
        if upper == "USER" and not calls:
            return ["session_user()"]
        if upper == "FETCH" and reader.peek().upper in ("FIRST", "NEXT"):
            reader.take()
            count = reader.take().text if reader.peek().kind == NUMBER else "1"
            reader.expect("ROW", "ROWS")
            reader.expect("ONLY")
            return ["LIMIT", count]
        if upper == "FOR" and reader.take_if("UPDATE"):
            self.done.locks = True
            while reader.peek().kind:
                reader.take()
            return []
        if upper in _NOT_HERE and not calls:
            raise OraError(3001, f"unimplemented feature: {upper}", token.start)
        if upper in _SQLITE_ONLY:
            raise OraError(933, "SQL command not properly ended", token.start)
        return ["EXCEPT" if upper == "MINUS" else token.text]

    def _name(self, token: Token) -> str:
        # brackets: a name in double quotes that is unknown would be a string to SQLite
        return f"[{token.name}]" if token.is_name else token.text

    def _qualified(self, token: Token, reader: Reader) -> list[str]:
        owner = token.name
        if owner == "DBMS_SESSION" and reader.peek(1).upper == "UNIQUE_SESSION_ID":
            reader.at += 2
            return ["unique_session_id()"]
        variable = f"{owner}.{reader.peek(1).name}" if reader.peek(1).is_name else ""
        if variable in self.variables:
            reader.at += 2
            self.done.params.append(self.variables[variable])
            return [_PLACE]
        if owner in (self.user, "SYS"):
            reader.take()
            if not reader.peek().is_name:
                raise OraError(903, "invalid table name", token.start)
            return [self._name(reader.take())]
        if owner in self.users:
            self.done.owners.add(owner)
        return [self._name(token)]

    def _embedding(self, reader: Reader, start: Token) -> str:
        inner = Reader(reader.parenthesised(), self.text)
        name, owner = inner.take_name(), self.user
        if inner.take_if("."):
            owner, name = name, inner.take_name()
        inner.expect("USING")
        rest = list(inner.tokens[inner.at :])
        if len(split(rest)) != 1 or len(rest) < 3 or rest[-2].upper != "AS":
            raise OraError(
                3001, "unimplemented feature: USING without one 'expression AS name'", start.start
            )
        attribute, wanted = rest[-1].name, self.find_model(owner, name)
        if attribute != wanted:
            # Unconfirmed: what Oracle does with an attribute that a model does not have.
            raise OraError(904, f'"{attribute}": invalid identifier', rest[-1].start)
        return f"vector_embedding('{owner}', '{name}', {self.expression(rest[:-2])})"

    def _distance(self, reader: Reader) -> str:
        parts = split(reader.parenthesised())
        if len(parts) not in (2, 3):
            raise OraError(909, "invalid number of arguments")
        metric = parts[2][0].upper if len(parts) == 3 else "COSINE"
        one, other = (self.expression(part) for part in parts[:2])
        return f"vector_distance({one}, {other}, '{metric}')"

    def _cast(self, reader: Reader) -> str:
        inside = reader.parenthesised()
        at = max(i for i, token in enumerate(inside) if token.upper == "AS")
        kind = inside[at + 1].upper
        if kind not in _NUMBER_TYPES | _TEXT_TYPES:
            raise OraError(3001, f"unimplemented feature: CAST to {kind}", inside[at].start)
        wanted = "NUMERIC" if kind in _NUMBER_TYPES else "TEXT"
        return f"CAST({self.expression(inside[:at])} AS {wanted})"
