"""Anonymous PL/SQL blocks: compiled as a whole, then run step by step.

The part of the language that a client which promotes models needs: variables, IF, cursor FOR
loops, nested blocks with handlers, static and dynamic SQL, calls of packages. Anything else is
refused with ORA-06550 before the first step runs, as Oracle does for what it can't compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from oracle_server.engine.expressions import (
    Expression,
    Frame,
    Names,
    call_routine,
    parse,
    syntax_error,
)
from oracle_server.engine.functions import to_inside
from oracle_server.engine.tokens import BIND, NUMBER, Reader, Token, tokenize
from oracle_server.statement import Call, OraError, Rows

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

Step = Callable[[Frame], None]
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


class _Compiler:
    """Turns tokens into steps."""

    def __init__(self, session: EngineSession, reader: Reader, names: Names) -> None:
        self.session, self.reader, self.names = session, reader, names

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

    def _need(self, *words: str) -> None:
        if not self.reader.take_if(*words):
            raise syntax_error(self.reader)

    def _block(self) -> Step:
        outer, steps = self.names, list[Step]()
        self.names = Names(outer.binds, outer)
        if self.reader.take_if("DECLARE"):
            while not self.reader.looks_at("BEGIN"):
                steps += self._declaration()
        self._need("BEGIN")
        body = self._steps("EXCEPTION", "END")
        handlers = list[tuple[list[str], Step]]()
        if self.reader.take_if("EXCEPTION"):
            while self.reader.take_if("WHEN"):
                handlers.append(self._handler())
        self._need("END")
        if self.reader.peek().is_name:
            self.reader.take()
        self._need(";")
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
            self._need("EXCEPTION_INIT")
            self._need("(")
            name = reader.take_name()
            self._need(",")
            self._need("-")
            self.names.exceptions[name] = int(reader.take().text)
            self._need(")")
            self._need(";")
            return []
        if not reader.peek().is_name or reader.peek().upper in ("PROCEDURE", "FUNCTION", "CURSOR"):
            raise syntax_error(reader)
        name = reader.take_name()
        if reader.take_if("EXCEPTION"):
            self.names.exceptions[name] = None
            self._need(";")
            return []
        reader.take_if("CONSTANT")
        limit, slot = self._variable(name)
        value: Expression | None = None
        if reader.take_if(":=") or reader.take_if("DEFAULT"):
            value = parse(reader, self.names)
        self._need(";")

        def run(frame: Frame) -> None:
            frame.values[slot] = None
            if value is not None:
                frame.values[slot] = _fitted(value.value(frame), limit)

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
        self._need("THEN")
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
            return self._sql()
        if upper == "EXECUTE":
            return self._dynamic()
        if upper == "RAISE":
            return self._raise()
        if upper == "RAISE_APPLICATION_ERROR":
            return self._application_error()
        if upper in ("NULL", "RETURN", "COMMIT", "ROLLBACK"):
            reader.take()
            if upper in ("COMMIT", "ROLLBACK"):
                reader.take_if("WORK")
            self._need(";")
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
            self._need("THEN")
            branches.append((condition, self._steps("ELSIF", "ELSE", "END")))
            if not self.reader.take_if("ELSIF"):
                break
        if self.reader.take_if("ELSE"):
            otherwise = self._steps("END")
        self._need("END", "IF")
        self._need(";")

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
        self._need("IN")
        if not self.reader.looks_at("("):
            raise syntax_error(self.reader)
        inside = self.reader.parenthesised()
        query, columns = self._query(inside)
        self._need("LOOP")
        outer = self.names
        self.names = Names(outer.binds, outer)
        slots = [self.names.declare(f"{name}.{column}", "") for column in columns]
        body = self._steps("END")
        self._need("END", "LOOP")
        self._need(";")
        self.names = outer

        def run(frame: Frame) -> None:
            for row in query(frame):
                frame.values.update(zip(slots, row, strict=True))
                body(frame)

        return run

    def _query(self, tokens: Sequence[Token]) -> tuple[Callable[[Frame], list[Any]], list[str]]:
        text = self._text(tokens)
        done = self._compiled(tokens)
        columns = self.session.column_names(done)

        def run(frame: Frame) -> list[Any]:
            values = [frame.values[name] for name in done.params]
            found = frame.session.counted(
                text, lambda: frame.session.execute(done, values, tokens[0].upper)
            )
            assert isinstance(found, Rows)
            frame.rowcount = len(found.rows)
            return found.rows

        return run, columns

    def _sql(self) -> Step:
        tokens, targets = self._until_semicolon()
        text, verb = self._text(tokens), tokens[0].upper
        if verb in ("SELECT", "WITH"):
            if not targets:
                told = "PLS-00428: an INTO clause is expected in this SELECT statement"
                raise OraError(6550, told, tokens[0].start)
            query, _ = self._query(tokens)
            return lambda frame: self._store(frame, query(frame), targets)
        done = self._compiled(tokens)

        def run(frame: Frame) -> None:
            values = [frame.values[name] for name in done.params]
            found = frame.session.counted(text, lambda: frame.session.execute(done, values, verb))
            frame.rowcount = found if isinstance(found, int) else None

        return run

    def _until_semicolon(self) -> tuple[list[Token], list[str]]:
        """Take a SQL statement; return it without its INTO, and the slots of that."""
        reader, tokens, targets = self.reader, list[Token](), list[str]()
        depth, is_insert = 0, reader.looks_at("INSERT")
        while not reader.looks_at(";"):
            token = reader.peek()
            if not token.kind:
                raise syntax_error(reader)
            if token.upper == "INTO" and depth == 0 and not is_insert:
                reader.take()
                targets.append(self._target())
                while reader.take_if(","):
                    targets.append(self._target())
                continue
            depth += {"(": 1, ")": -1}.get(token.upper, 0)
            tokens.append(reader.take())
        reader.take()
        return tokens, targets

    def _compiled(self, tokens: Sequence[Token]) -> Any:
        """Translate static SQL; names in it that mean columns are not variables."""
        columns = self.session.columns_of([t.name for t in tokens if t.is_name])
        slots = {n: s for n, s in self.names.slots.items() if n not in columns}
        try:
            done = self.session.translate(tokens, self.reader.text, slots)
            self.session.compile(done)
        except OraError as error:
            told = OraError(6550, f"PL/SQL: {error}", error.offset or tokens[0].start)
            raise told from error
        for name in done.params:
            if name.startswith(":") and name[1:] not in self.names.binds:
                raise OraError(1008, "not all variables bound")
        return done

    def _text(self, tokens: Sequence[Token]) -> str:
        last = tokens[-1]
        return self.reader.text[tokens[0].start : last.start + len(last.text)]

    def _target(self) -> str:
        """Take a variable or bind that something is assigned to; return its slot."""
        token = self.reader.peek()
        if token.kind == BIND:
            self.reader.take()
            if token.name not in self.names.binds:
                raise OraError(1008, "not all variables bound")
            self.names.assigned.add(":" + token.name)
            return ":" + token.name
        if not token.is_name or token.name not in self.names.slots:
            told = f"PLS-00201: identifier '{token.text}' must be declared"
            raise OraError(6550, told, token.start)
        return self.names.slots[self.reader.take().name]

    def _store(self, frame: Frame, rows: list[Any], targets: list[str]) -> None:
        if not rows:
            raise OraError(1403, "no data found")
        if len(rows) > 1:
            raise OraError(1422, "exact fetch returns more than requested number of rows")
        if len(rows[0]) != len(targets):
            raise OraError(947, "not enough values")
        for slot, value in zip(targets, rows[0], strict=True):
            frame.values[slot] = _fitted(value, self.names.limits.get(slot, 0))

    def _assignment(self) -> Step:
        slot = self._target()
        self._need(":=")
        value = parse(self.reader, self.names)
        self._need(";")
        limit = self.names.limits.get(slot, 0)

        def run(frame: Frame) -> None:
            frame.values[slot] = _fitted(value.value(frame), limit)

        return run

    def _call(self) -> Step:
        start = self.reader.peek()
        first = self.reader.at
        expression, returns = call_routine(self.reader, self.names, start.start)
        text = self._text(self.reader.tokens[first : self.reader.at])
        self._need(";")
        if returns:
            raise OraError(6550, f"PLS-00221: '{start.name}' is not a procedure", start.start)
        return lambda frame: frame.session.counted(text, lambda: expression.value(frame))

    def _raise(self) -> Step:
        self.reader.take()
        name = self.reader.take_name() if self.reader.peek().is_name else ""
        if name and name not in self.names.exceptions:
            told = f"PLS-00201: identifier '{name}' must be declared"
            raise OraError(6550, told, self.reader.peek().start)
        self._need(";")
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
        self._need("(")
        number = parse(self.reader, self.names)
        self._need(",")
        message = parse(self.reader, self.names)
        self._need(")")
        self._need(";")

        def run(frame: Frame) -> None:
            code = number.value(frame)
            if code not in _USER_CODES:
                told = f"error number argument to raise_application_error of {code} is out of range"
                raise OraError(21000, told)
            raise OraError(-code, str(message.value(frame) or ""))

        return run

    def _dynamic(self) -> Step:
        """Compile ``EXECUTE IMMEDIATE text [INTO ...] [USING ...]``."""
        self.reader.take()
        self._need("IMMEDIATE")
        text = parse(self.reader, self.names)
        targets, given = list[str](), list[Expression]()
        if self.reader.take_if("INTO"):
            targets.append(self._target())
            while self.reader.take_if(","):
                targets.append(self._target())
        if self.reader.take_if("USING"):
            self.reader.take_if("IN")
            given.append(parse(self.reader, self.names))
            while self.reader.take_if(","):
                self.reader.take_if("IN")
                given.append(parse(self.reader, self.names))
        self._need(";")

        def run(frame: Frame) -> None:
            sql = to_inside(text.value(frame))
            if sql is None:
                raise OraError(6535, "statement string in EXECUTE IMMEDIATE is NULL or 0 length")
            tokens = tokenize(sql)
            values = [expression.value(frame) for expression in given]
            if tokens[0].upper in ("BEGIN", "DECLARE"):
                raise OraError(3001, "unimplemented feature: EXECUTE IMMEDIATE of a block")
            session = frame.session
            found = session.counted(sql, lambda: session.run_statement(sql, tokens, values, {}))
            frame.rowcount = found if isinstance(found, int) else 0
            if isinstance(found, Rows) and targets:
                frame.rowcount = len(found.rows)
                self._store(frame, found.rows, targets)

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


def _fitted(value: Any, limit: int) -> Any:
    """Return a value that fits into a VARCHAR2 variable, or fail."""
    if isinstance(value, str) and not value:
        return None
    if limit and isinstance(value, str) and len(value.encode()) > limit:
        raise OraError(6502, "PL/SQL: value or conversion error: character string buffer too small")
    return value
