"""Anonymous PL/SQL blocks: compiled as a whole, then run step by step.

The part of the language that a client which promotes models needs: variables, IF, cursor FOR
loops, nested blocks with handlers, static and dynamic SQL, calls of packages. Anything else is
refused with ORA-06550 before the first step runs, as Oracle does for what it can't compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oracle_server.engine.expressions import call_routine, parse
from oracle_server.engine.names import Expression, Frame, Names, syntax_error
from oracle_server.engine.plsql_sql import SqlCompiler, Step, fitted
from oracle_server.engine.tokens import BIND, NUMBER, Reader, Token
from oracle_server.statement import Call, OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

_TYPES = {
    **dict.fromkeys(["VARCHAR2", "VARCHAR", "CHAR"], "VARCHAR2"),
    **dict.fromkeys(("NUMBER", "INTEGER", "PLS_INTEGER", "BINARY_INTEGER"), "NUMBER"),
    **dict.fromkeys(["TIMESTAMP", "DATE"], "TIMESTAMP"),
    **{name: name for name in ["BOOLEAN", "CLOB", "BLOB", "JSON", "RAW", "VECTOR"]},
}
_PREDEFINED: dict[str, int | None] = {
    "DUP_VAL_ON_INDEX": 1,
    "NO_DATA_FOUND": 1403,
    "TOO_MANY_ROWS": 1422,
    "VALUE_ERROR": 6502,
    "INVALID_NUMBER": 1722,
    "ZERO_DIVIDE": 1476,
}
_USER_CODES = range(-20999, -19999)


class _Return(Exception):
    """The block ends here."""


def run_block(session: EngineSession, call: Call, tokens: Sequence[Token]) -> None:
    """Compile and run an anonymous block; put what it assigns to binds into `call.out`.

    Raises:
        OraError: What it raises and does not handle. Changes that it has not committed are undone;
            those of before it, unless it committed, are not.
    """
    binds = {str(bind.name): bind for bind in call.binds}
    names = Names(binds)
    names.exceptions |= _PREDEFINED
    compiler = _Compiler(session, Reader(tokens, call.sql), names)
    block = compiler.whole()
    values = {f":{name}": bind.value for name, bind in binds.items()}
    frame = Frame(session, values)
    commits = session.commits
    is_nested = session.in_transaction
    if is_nested:
        session.query("SAVEPOINT block")
    try:
        _run(block, frame)
    except BaseException as error:
        if session.in_transaction:
            is_same = is_nested and session.commits == commits
            session.query("ROLLBACK TO block") if is_same else session.undo_transaction()
        if isinstance(error, OraError) and "line" in error.__dict__:
            told = str(error).partition(": ")[2]
            line = error.__dict__["line"]
            raise OraError(error.code, f"{told}\nORA-06512: at line {line}") from error
        raise
    if is_nested and session.commits == commits:
        session.query("RELEASE block")
    call.out.update({name[1:]: frame.values[name] for name in names.assigned})


def _run(step: Step, frame: Frame) -> None:
    try:
        step(frame)
    except _Return:
        pass
    except ZeroDivisionError as error:
        raise OraError(1476, "divisor is equal to zero") from error


class _Compiler(SqlCompiler):
    """Turns tokens into steps."""

    def whole(self) -> Step:
        """Compile all of the block."""
        try:
            block = self._block()
            self.reader.take_if("/")
            if self.reader.peek().kind:
                raise syntax_error(self.reader)
        except OraError as error:
            if error.code in (6550, 900):
                raise self._compile_error(error, 6550) from error
            raise
        return block

    def _compile_error(self, error: OraError, code: int) -> OraError:
        """Return an error with the line and column that it is at."""
        before = self.reader.text[: error.offset]
        line, column = before.count("\n") + 1, error.offset - (before.rfind("\n") + 1) + 1
        told = str(error).partition(": ")[2]
        if error.code == 900:
            told = str(syntax_error(self.reader)).partition(": ")[2]
        return OraError(code, f"line {line}, column {column}:\n{told}", error.offset)

    def _block(self) -> Step:
        outer, steps = self.names, list[Step]()
        self.names = Names(outer.binds, outer)
        if self.reader.take_if("DECLARE"):
            while not self.reader.looks_at("BEGIN"):
                steps += self._declaration()
        self.need("BEGIN")
        body = self._steps("EXCEPTION", "END")
        handlers = list[tuple[list[str], Step]]()
        if self.reader.take_if("EXCEPTION"):
            while self.reader.take_if("WHEN"):
                handlers.append(self._handler())
        self.need("END")
        if self.reader.peek().is_name:
            self.reader.take()
        self.need(";")
        codes = dict(self.names.exceptions)
        self.names = outer

        def run(frame: Frame) -> None:
            for step in steps:
                step(frame)
            try:
                body(frame)
            except OraError as error:
                handler = _handler_for(error, handlers, codes)
                if handler is None:
                    raise
                frame.errors.append(error)
                handler(frame)
                frame.errors.pop()

        return run

    def _declaration(self) -> list[Step]:
        reader = self.reader
        if reader.take_if("PRAGMA"):
            self.need("EXCEPTION_INIT")
            self.need("(")
            name = reader.take_name()
            self.need(",")
            self.need("-")
            self.names.exceptions[name] = int(reader.take().text)
            self.need(")")
            self.need(";")
            return []
        if not reader.peek().is_name or reader.peek().upper in ("PROCEDURE", "FUNCTION", "CURSOR"):
            raise syntax_error(reader)
        name = reader.take_name()
        if reader.take_if("EXCEPTION"):
            self.names.exceptions[name] = None
            self.need(";")
            return []
        reader.take_if("CONSTANT")
        limit, slot = self._variable(name)
        value: Expression | None = None
        if reader.take_if(":=") or reader.take_if("DEFAULT"):
            value = parse(reader, self.names)
        self.need(";")

        def run(frame: Frame) -> None:
            frame.values[slot] = None
            if value is not None:
                frame.values[slot] = fitted(value.value(frame), limit)

        return [run]

    def _variable(self, name: str) -> tuple[int, str]:
        reader, token = self.reader, self.reader.peek()
        if token.upper not in _TYPES:
            raise syntax_error(reader)
        reader.take()
        limit = 0
        if reader.looks_at("("):
            inside = reader.parenthesised()
            if token.upper.startswith("VARCHAR") and inside[0].kind == NUMBER:
                limit = int(inside[0].text)
        elif token.upper.startswith("VARCHAR"):
            told = "PLS-00215: String length constraints must be in range (1 .. 32767)"
            raise OraError(6550, told, token.start)
        return limit, self.names.declare(name, _TYPES[token.upper], limit)

    def _handler(self) -> tuple[list[str], Step]:
        listed = [self.reader.take_name()]
        while self.reader.take_if("OR"):
            listed.append(self.reader.take_name())
        for name in listed:
            if name != "OTHERS" and name not in self.names.exceptions:
                told = f"PLS-00201: identifier '{name}' must be declared"
                raise OraError(6550, told, self.reader.peek().start)
        self.need("THEN")
        return listed, self._steps("WHEN", "END")

    def _steps(self, *ends: str) -> Step:
        steps = list[Step]()
        while self.reader.peek().upper not in ends:
            steps.append(self._step())
        if not steps:
            raise syntax_error(self.reader)

        def run(frame: Frame) -> None:
            for step in steps:
                step(frame)

        return run

    def _step(self) -> Step:
        line = self.reader.text.count("\n", 0, self.reader.peek().start) + 1
        step = self._statement()

        def run(frame: Frame) -> None:
            try:
                step(frame)
            except OraError as error:
                error.__dict__.setdefault("line", line)
                raise

        return run

    def _statement(self) -> Step:
        reader, token = self.reader, self.reader.peek()
        upper = token.upper
        if upper in ("BEGIN", "DECLARE"):
            return self._block()
        if upper == "IF":
            return self._if()
        if upper == "FOR":
            return self._for()
        if upper in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
            return self.sql()
        if upper == "EXECUTE":
            return self.dynamic()
        if upper == "RAISE":
            return self._raise()
        if upper == "RAISE_APPLICATION_ERROR":
            return self._application_error()
        if upper in ("NULL", "RETURN", "COMMIT", "ROLLBACK"):
            reader.take()
            if upper in ("COMMIT", "ROLLBACK"):
                reader.take_if("WORK")
            self.need(";")
            return _simple(upper)
        if token.kind == BIND or (token.is_name and reader.peek(1).upper == ":="):
            return self._assignment()
        if token.is_name and reader.peek(1).upper == ".":
            return self._call()
        raise syntax_error(reader)

    def _if(self) -> Step:
        branches = list[tuple[Expression, Step]]()
        otherwise: Step | None = None
        self.reader.take()
        while True:
            condition = parse(self.reader, self.names)
            if condition.type not in ("BOOLEAN", "NULL"):
                told = "PLS-00382: expression is of wrong type"
                raise OraError(6550, told, self.reader.peek().start)
            self.need("THEN")
            branches.append((condition, self._steps("ELSIF", "ELSE", "END")))
            if not self.reader.take_if("ELSIF"):
                break
        if self.reader.take_if("ELSE"):
            otherwise = self._steps("END")
        self.need("END", "IF")
        self.need(";")

        def run(frame: Frame) -> None:
            for condition, step in branches:
                if condition.value(frame):
                    step(frame)
                    return
            if otherwise is not None:
                otherwise(frame)

        return run

    def _for(self) -> Step:
        """Compile ``FOR row IN (query) LOOP ... END LOOP``."""
        self.reader.take()
        name = self.reader.take_name()
        self.need("IN")
        if not self.reader.looks_at("("):
            raise syntax_error(self.reader)
        inside = self.reader.parenthesised()
        query, columns = self.query(inside)
        self.need("LOOP")
        outer = self.names
        self.names = Names(outer.binds, outer)
        slots = [self.names.declare(f"{name}.{column}", "") for column in columns]
        body = self._steps("END")
        self.need("END", "LOOP")
        self.need(";")
        self.names = outer

        def run(frame: Frame) -> None:
            for row in query(frame):
                frame.values.update(zip(slots, row, strict=True))
                body(frame)

        return run

    def _assignment(self) -> Step:
        slot = self.target()
        self.need(":=")
        value = parse(self.reader, self.names)
        self.need(";")
        limit = self.names.limits.get(slot, 0)

        def run(frame: Frame) -> None:
            frame.values[slot] = fitted(value.value(frame), limit)

        return run

    def _call(self) -> Step:
        start = self.reader.peek()
        first = self.reader.at
        expression, returns = call_routine(self.reader, self.names, start.start)
        text = self.text(self.reader.tokens[first : self.reader.at])
        self.need(";")
        if returns:
            raise OraError(6550, f"PLS-00221: '{start.name}' is not a procedure", start.start)
        return lambda frame: frame.session.counted(text, lambda: expression.value(frame))

    def _raise(self) -> Step:
        self.reader.take()
        name = self.reader.take_name() if self.reader.peek().is_name else ""
        if name and name not in self.names.exceptions:
            told = f"PLS-00201: identifier '{name}' must be declared"
            raise OraError(6550, told, self.reader.peek().start)
        self.need(";")
        code = self.names.exceptions.get(name) or 6510

        def run(frame: Frame) -> None:
            if name:
                error = OraError(code, f"PL/SQL: unhandled exception {name}")
                error.name = name  # type: ignore[attr-defined]
                raise error
            if frame.errors:
                raise frame.errors[-1]
            raise OraError(6510, "PL/SQL: RAISE outside of a handler")

        return run

    def _application_error(self) -> Step:
        self.reader.take()
        self.need("(")
        number = parse(self.reader, self.names)
        self.need(",")
        message = parse(self.reader, self.names)
        self.need(")")
        self.need(";")

        def run(frame: Frame) -> None:
            code = number.value(frame)
            if code not in _USER_CODES:
                told = f"error number argument to raise_application_error of {code} is out of range"
                raise OraError(21000, told)
            raise OraError(-code, str(message.value(frame) or ""))

        return run


def _simple(word: str) -> Step:
    """Return the step for NULL, RETURN, COMMIT or ROLLBACK."""

    def run(frame: Frame) -> None:
        session = frame.session
        if word == "RETURN":
            raise _Return
        if word == "COMMIT":
            session.counted("COMMIT", session.end_transaction)
        elif word == "ROLLBACK":
            session.counted("ROLLBACK", session.undo_transaction)

    return run


def _handler_for(
    error: OraError, handlers: list[tuple[list[str], Step]], codes: dict[str, int | None]
) -> Step | None:
    raised = getattr(error, "name", "")
    for listed, step in handlers:
        for name in listed:
            known = codes.get(name)
            if name == "OTHERS" or name == raised or (known is not None and known == error.code):
                return step
    return None
