"""SQL within PL/SQL: static statements, which are compiled with their block, and dynamic ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from oracle_server.engine.expressions import parse
from oracle_server.engine.functions import to_inside
from oracle_server.engine.names import Expression, Frame, Names, syntax_error
from oracle_server.engine.tokens import BIND, Reader, Token, tokenize
from oracle_server.statement import OraError, Rows

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

Step = Callable[[Frame], None]


class SqlCompiler:
    """Compiles the SQL of a block.

    Args:
        session: Where it will run.
        reader: Tokens of the block.
        names: What names mean in it.
    """

    def __init__(self, session: EngineSession, reader: Reader, names: Names) -> None:
        self.session, self.reader, self.names = session, reader, names

    def need(self, *words: str) -> None:
        """Take keywords that must come next."""
        if not self.reader.take_if(*words):
            raise syntax_error(self.reader)

    def sql(self) -> Step:
        """Compile a static SELECT INTO, INSERT, UPDATE or DELETE."""
        tokens, targets = self._until_semicolon()
        text, verb = self.text(tokens), tokens[0].upper
        if verb in ("SELECT", "WITH"):
            if not targets:
                told = "PLS-00428: an INTO clause is expected in this SELECT statement"
                raise OraError(6550, told, tokens[0].start)
            query, _ = self.query(tokens)
            return lambda frame: self._store(frame, query(frame), targets)
        done = self._compiled(tokens)

        def run(frame: Frame) -> None:
            values = [frame.values[name] for name in done.params]
            found = frame.session.counted(text, lambda: frame.session.execute(done, values, verb))
            frame.rowcount = found if isinstance(found, int) else None

        return run

    def query(self, tokens: Sequence[Token]) -> tuple[Callable[[Frame], list[Any]], list[str]]:
        """Compile a query; return what runs it, and the names of its columns."""
        text = self.text(tokens)
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
                targets.append(self.target())
                while reader.take_if(","):
                    targets.append(self.target())
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

    def text(self, tokens: Sequence[Token]) -> str:
        """Return the text that tokens were made of."""
        last = tokens[-1]
        return self.reader.text[tokens[0].start : last.start + len(last.text)]

    def target(self) -> str:
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
            frame.values[slot] = fitted(value, self.names.limits.get(slot, 0))

    def dynamic(self) -> Step:
        """Compile ``EXECUTE IMMEDIATE text [INTO ...] [USING ...]``."""
        self.reader.take()
        self.need("IMMEDIATE")
        text = parse(self.reader, self.names)
        targets, given = list[str](), list[Expression]()
        if self.reader.take_if("INTO"):
            targets.append(self.target())
            while self.reader.take_if(","):
                targets.append(self.target())
        if self.reader.take_if("USING"):
            self.reader.take_if("IN")
            given.append(parse(self.reader, self.names))
            while self.reader.take_if(","):
                self.reader.take_if("IN")
                given.append(parse(self.reader, self.names))
        self.need(";")

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


def fitted(value: Any, limit: int) -> Any:
    """Return a value that fits into a VARCHAR2 variable, or fail."""
    if isinstance(value, str) and not value:
        return None
    if limit and isinstance(value, str) and len(value.encode()) > limit:
        raise OraError(6502, "PL/SQL: value or conversion error: character string buffer too small")
    return value
