"""Tokens of Oracle's SQL and PL/SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oracle_server.statement import OraError

WORD, QUOTED, STRING, NUMBER, BIND, OP, END = "word", "quoted", "string", "number", "bind", "op", ""

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | --[^\n]* | /\*.*?\*/ )
  | (?P<string> [nN]?'(?:[^']|'')*' | [qQ]'\[.*?\]' | [qQ]'\{.*?\}' | [qQ]'\(.*?\)' | [qQ]'!.*?!' )
  | (?P<quoted> "[^"\0]+" )
  | (?P<bind> :\s*(?:\w+|"[^"]+") )
  | (?P<number> (?:\d+(?:\.\d+)? | \.\d+)(?:[eE][+-]?\d+)? )
  | (?P<word> [^\W\d_][\w$\#]* )
  | (?P<op> := | => | \|\| | <> | != | <= | >= | \.\. | [%.,;()=<>+\-*/@] )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A token: its kind, its text as written, where it starts."""

    kind: str
    text: str
    start: int

    @property
    def upper(self) -> str:
        """A keyword or operator in upper case; nothing for other tokens."""
        return self.text.upper() if self.kind in (WORD, OP) else ""

    @property
    def is_name(self) -> bool:
        """Whether it can be the name of an object."""
        return self.kind in (WORD, QUOTED)

    @property
    def name(self) -> str:
        """An identifier or bind as the catalogue has it."""
        text = self.text.lstrip(": \t\r\n") if self.kind == BIND else self.text
        return text[1:-1] if text.startswith('"') else text.upper()

    @property
    def value(self) -> str | int | float | None:
        """Value of a literal; an empty string is NULL."""
        if self.kind == NUMBER:
            return int(self.text) if self.text.isdigit() else float(self.text)
        text = self.text
        if text[0] in "qQ":
            return text[3:-2] or None
        return text[text.index("'") + 1 : -1].replace("''", "'") or None


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a statement.

    Raises:
        OraError: ORA-00911 for a character that can't begin a token, ORA-01756 for a string that
            does not end.
    """
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            if text[at] == "'":
                raise OraError(1756, "quoted string not properly terminated", at)
            raise OraError(911, f"{text[at]!r}: invalid character after position {at}", at)
        if match.lastgroup != "space":
            tokens.append(Token(str(match.lastgroup), match[0], at))
        at = match.end()
    return tokens


class Reader:
    """Walks over tokens.

    Args:
        tokens: The tokens.
        text: Text that they were made of.
    """

    def __init__(self, tokens: Sequence[Token], text: str) -> None:
        self.tokens, self.text, self.at = tokens, text, 0
        self._end = Token(END, "", len(text))

    def peek(self, ahead: int = 0) -> Token:
        """Return a token that was not taken yet; one of kind END behind the last."""
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else self._end

    def take(self) -> Token:
        """Take the next token."""
        token = self.peek()
        self.at += 1
        return token

    def looks_at(self, *words: str) -> bool:
        """Return whether these keywords or operators come next."""
        return all(self.peek(i).upper == word for i, word in enumerate(words))

    def take_if(self, *words: str) -> bool:
        """Take these keywords or operators if they come next."""
        if self.looks_at(*words):
            self.at += len(words)
            return True
        return False

    def expect(self, *words: str) -> Token:
        """Take one of these keywords or operators, or fail."""
        if self.peek().upper not in words:
            raise self.unexpected(*words)
        return self.take()

    def take_name(self) -> str:
        """Take an identifier; return it as the catalogue has it."""
        if not self.peek().is_name:
            raise self.unexpected("an identifier")
        return self.take().name

    def unexpected(self, *wanted: str) -> OraError:
        """Return the error for the token that comes next."""
        token = self.peek()
        found = token.text or "end of statement"
        return OraError(900, f"invalid SQL statement: {found!r} where {wanted}", token.start)

    def parenthesised(self) -> list[Token]:
        """Take tokens from an opening parenthesis to its closing one; return those between."""
        self.expect("(")
        depth, start = 1, self.at
        while depth:
            token = self.take()
            if token.kind == END:
                raise OraError(907, "missing right parenthesis", token.start)
            depth += {"(": 1, ")": -1}.get(token.upper, 0)
        return list(self.tokens[start : self.at - 1])


def split(tokens: Sequence[Token], separator: str = ",") -> list[list[Token]]:
    """Return runs of tokens between separators that are outside parentheses."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.upper, 0)
        if token.upper == separator and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
