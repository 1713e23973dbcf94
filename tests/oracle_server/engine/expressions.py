"""Expressions of PL/SQL: parsed and typed before the block runs, as Oracle compiles them."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

from oracle_server import statement as types
from oracle_server.engine import functions
from oracle_server.engine.names import BIND_TYPES, Expression, Frame, Names, syntax_error
from oracle_server.engine.packages import find_routine
from oracle_server.engine.tokens import BIND, NUMBER, STRING, Reader
from oracle_server.statement import OraError

# evaluated by SQLite, like those of SQL
_SQL_FUNCTIONS = {
    **dict.fromkeys(("UPPER", "LOWER", "SUBSTR", "TRIM", "LTRIM", "RTRIM"), "VARCHAR2"),
    **dict.fromkeys(("REPLACE", "TO_CHAR"), "VARCHAR2"),
    **dict.fromkeys(["LENGTH", "INSTR", "ABS", "ROUND", "FLOOR", "MOD", "TO_NUMBER"], "NUMBER"),
    **dict.fromkeys(["TO_TIMESTAMP", "SYS_EXTRACT_UTC"], "TIMESTAMP"),
    **dict.fromkeys(["NVL", "COALESCE", "GREATEST", "LEAST"], ""),
    "SYS_CONTEXT": "VARCHAR2",
}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_RECKONED: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def parse(reader: Reader, names: Names) -> Expression:
    """Parse an expression.

    Raises:
        OraError: ORA-06550 with what PL/SQL says; its position is that of the token.
    """
    return _Parser(reader, names).disjunction()


def call_routine(reader: Reader, names: Names, start: int) -> tuple[Expression, str]:
    """Parse ``package.name(arguments)``; return the call and the type it returns, if any."""
    package = reader.take_name()
    reader.expect(".")
    name = reader.take_name()
    if package in ("SYS", "CTXSYS") and reader.take_if("."):
        package, name = name, reader.take_name()
    routine = find_routine(package, name, start)
    positional, named = list[Expression](), dict[str, Expression]()
    if reader.take_if("("):
        while not reader.take_if(")"):
            if reader.peek().is_name and reader.peek(1).upper == "=>":
                key = reader.take_name().lower()
                reader.take()
                named[key] = parse(reader, names)
            elif named:
                raise syntax_error(reader)
            else:
                positional.append(parse(reader, names))
            if not reader.looks_at(")") and not reader.take_if(","):
                raise syntax_error(reader)
    first = routine.bind([e.type for e in positional], {key: e.type for key, e in named.items()})
    if first is None:
        told = f"PLS-00306: wrong number or types of arguments in call to '{name}'"
        raise OraError(6550, told, start)
    given = dict(zip(first, positional, strict=True)) | named

    def value(frame: Frame) -> Any:
        arguments = {key: expression.value(frame) for key, expression in given.items()}
        return routine.run(frame.session, arguments)

    return Expression(routine.returns, value), routine.returns


class _Parser:
    def __init__(self, reader: Reader, names: Names) -> None:
        self.reader, self.names = reader, names

    def disjunction(self) -> Expression:
        left = self._conjunction()
        while self.reader.take_if("OR"):
            left = _logical(left, self._conjunction(), is_or=True)
        return left

    def _conjunction(self) -> Expression:
        left = self._negation()
        while self.reader.take_if("AND"):
            left = _logical(left, self._negation(), is_or=False)
        return left

    def _negation(self) -> Expression:
        if self.reader.take_if("NOT"):
            inner = self._negation()

            def value(frame: Frame) -> bool | None:
                found = inner.value(frame)
                return None if found is None else not found

            return Expression("BOOLEAN", value)
        return self._comparison()

    def _comparison(self) -> Expression:
        left = self._sum()
        reader = self.reader
        if reader.peek().upper in _COMPARED:
            compare, right = _COMPARED[reader.take().upper], self._sum()
            return _strict("BOOLEAN", lambda a, b: compare(*_alike(a, b)), left, right)
        if reader.take_if("IS"):
            is_not = reader.take_if("NOT")
            if not reader.take_if("NULL"):
                raise syntax_error(reader)
            return Expression("BOOLEAN", lambda f: (left.value(f) is None) != is_not)
        is_not = reader.looks_at("NOT", "IN") and reader.take_if("NOT")
        if reader.take_if("IN"):
            if not reader.take_if("("):
                raise syntax_error(reader)
            options = [self.disjunction()]
            while reader.take_if(","):
                options.append(self.disjunction())
            if not reader.take_if(")"):
                raise syntax_error(reader)
            return Expression(
                "BOOLEAN", lambda f: (left.value(f) in [o.value(f) for o in options]) != is_not
            )
        return left

    def _sum(self) -> Expression:
        left = self._product()
        while (sign := self.reader.peek().upper) in ("+", "-", "||"):
            self.reader.take()
            right = self._product()
            left = _concatenated(left, right) if sign == "||" else _reckoned(sign, left, right)
        return left

    def _product(self) -> Expression:
        left = self._primary()
        while (sign := self.reader.peek().upper) in ("*", "/"):
            self.reader.take()
            left = _reckoned(sign, left, self._primary())
        return left

    def _primary(self) -> Expression:
        reader, token = self.reader, self.reader.peek()
        upper = token.upper
        if token.kind in (STRING, NUMBER):
            constant = reader.take().value
            return Expression("NUMBER" if token.kind == NUMBER else "VARCHAR2", lambda _: constant)
        if token.kind == BIND:
            return self._bind()
        if upper == "-":
            reader.take()
            inner = self._primary()
            return _strict("NUMBER", operator.neg, inner)
        if reader.take_if("("):
            inner = self.disjunction()
            if not reader.take_if(")"):
                raise syntax_error(reader)
            return inner
        if upper in ("TRUE", "FALSE", "NULL"):
            reader.take()
            fixed = {"TRUE": True, "FALSE": False, "NULL": None}[upper]
            return Expression("NULL" if fixed is None else "BOOLEAN", lambda _: fixed)
        return self._named()

    def _bind(self) -> Expression:
        name = self.reader.take().name
        if name not in self.names.binds:
            raise OraError(1008, "not all variables bound")
        bind = self.names.binds[name]

        def value(frame: Frame) -> Any:
            found = frame.values[":" + name]
            return None if isinstance(found, (str, bytes)) and not found else found

        # NULL is sent as text by clients that know nothing better
        is_null = bind.value is None and bind.type == types.VARCHAR
        return Expression("NULL" if is_null else BIND_TYPES[bind.type], value)

    def _named(self) -> Expression:
        reader, token = self.reader, self.reader.peek()
        upper = token.upper
        if not token.is_name:
            raise syntax_error(reader)
        if token.name in self.names.slots and reader.peek(1).upper != ".":
            slot = self.names.slots[reader.take().name]
            return Expression(self.names.types[slot], lambda f: f.values[slot])
        record = f"{token.name}.{reader.peek(2).name}" if reader.peek(2).is_name else ""
        if record in self.names.slots:
            reader.at += 3
            slot = self.names.slots[record]
            return Expression("", lambda f: f.values[slot])
        if reader.take_if("SQL", "%"):
            return self._attribute()
        if upper in ("SQLERRM", "SQLCODE", "SYSTIMESTAMP", "SYSDATE", "USER"):
            reader.take()
            return _pseudo(upper)
        if upper == "JSON" and reader.peek(1).upper == "(":
            return self._json()
        if upper in _SQL_FUNCTIONS and reader.peek(1).upper == "(":
            return self._function(upper)
        if reader.peek(1).upper == ".":
            expression, returns = call_routine(reader, self.names, token.start)
            if not returns:
                told = f"PLS-00222: no function with name '{token.name}' exists in this scope"
                raise OraError(6550, told, token.start)
            return expression
        told = f"PLS-00201: identifier '{token.name}' must be declared"
        raise OraError(6550, told, token.start)

    def _attribute(self) -> Expression:
        word = self.reader.take().upper
        if word == "ROWCOUNT":
            return Expression("NUMBER", lambda f: f.rowcount)
        if word in ("FOUND", "NOTFOUND"):
            return Expression(
                "BOOLEAN",
                lambda f: None if f.rowcount is None else (f.rowcount > 0) == (word == "FOUND"),
            )
        self.reader.at -= 1
        raise syntax_error(self.reader)

    def _json(self) -> Expression:
        self.reader.at += 2
        inner = self.disjunction()
        if not self.reader.take_if(")"):
            raise syntax_error(self.reader)

        def value(frame: Frame) -> Any:
            text = functions.to_inside(inner.value(frame))
            if isinstance(text, bytes):
                text = text.decode("utf-16-be" if inner.type == "CLOB" else "utf-8")
            try:
                return None if text is None else json.loads(text)
            except ValueError as error:
                raise OraError(40441, "JSON syntax error") from error

        return Expression("JSON", value)

    def _function(self, name: str) -> Expression:
        self.reader.at += 2
        arguments = [self.disjunction()]
        while self.reader.take_if(","):
            arguments.append(self.disjunction())
        if not self.reader.take_if(")"):
            raise syntax_error(self.reader)

        def value(frame: Frame) -> Any:
            inside = [functions.to_inside(a.value(frame)) for a in arguments]
            marks = ", ".join("?" * len(inside))
            return functions.to_outside(
                frame.session.evaluate(f"SELECT {name.lower()}({marks})", inside)
            )

        return Expression(_SQL_FUNCTIONS[name] or arguments[0].type, value)


def _pseudo(word: str) -> Expression:
    if word == "SQLERRM":
        return Expression(
            "VARCHAR2",
            lambda f: str(f.errors[-1]) if f.errors else "ORA-0000: normal, successful completion",
        )
    if word == "SQLCODE":
        return Expression("NUMBER", lambda f: _sqlcode(f.errors[-1].code) if f.errors else 0)
    if word == "USER":
        return Expression("VARCHAR2", lambda f: f.session.user)
    clock = functions.systimestamp if word == "SYSTIMESTAMP" else functions.sysdate
    return Expression("TIMESTAMP", lambda _: functions.to_outside(clock()))


def _sqlcode(code: int) -> int:
    return 100 if code == 1403 else -code


def _strict(kind: str, function: Callable[..., Any], *parts: Expression) -> Expression:
    """Return an expression that is NULL if a part of it is."""

    def value(frame: Frame) -> Any:
        values = [part.value(frame) for part in parts]
        return None if None in values else function(*values)

    return Expression(kind, value)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Make a text a number where the other side is one."""
    if isinstance(a, str) and isinstance(b, (int, float)):
        return functions.to_number(a), b
    if isinstance(b, str) and isinstance(a, (int, float)):
        return a, functions.to_number(b)
    return a, b


def _reckoned(sign: str, left: Expression, right: Expression) -> Expression:
    for part in (left, right):
        if part.type not in ("NUMBER", "VARCHAR2", "NULL", ""):
            raise OraError(
                6550, f"PLS-00306: wrong number or types of arguments in call to '{sign}'"
            )
    function = _RECKONED[sign]
    return _strict(
        "NUMBER",
        lambda a, b: function(functions.to_number(a), functions.to_number(b)),
        left,
        right,
    )


def _concatenated(left: Expression, right: Expression) -> Expression:
    def value(frame: Frame) -> str | None:
        parts = [functions.to_char(functions.to_inside(e.value(frame))) for e in (left, right)]
        return "".join(part for part in parts if part is not None) or None

    return Expression("VARCHAR2", value)


def _logical(left: Expression, right: Expression, *, is_or: bool) -> Expression:
    """AND and OR with three values."""

    def value(frame: Frame) -> bool | None:
        first = left.value(frame)
        if first is is_or:
            return is_or
        second = right.value(frame)
        if second is is_or:
            return is_or
        return None if None in (first, second) else not is_or

    return Expression("BOOLEAN", value)
