"""Texts made safe for the tokenizer inside the graph.

CLIP's own tokenizer takes out its special tokens, then applies NFC and turns runs of white space
into one space. The operator does neither: it drops line breaks, stops at NUL, ends the process on
white space before a special token, and takes ``<|EndOfText|>`` for one, which to most is three
words; it keeps "²³" as one word and ``'s`` behind a space as two. Doing the same here first
changes no id that CLIP's tokenizer would give, but for U+001C to U+001F between white space and a
special token, which end the process, too, and go. Measured with onnxruntime-extensions 0.12 to
0.15.2.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import groupby

from oml_mlflow.errors import InputError

# Unicode White_Space, which is what the tokenizers library's \s matches; Python's differs
_WHITE = "\t-\r\x85 \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WHITE_LISTED = "\t\n\v\f\r\x85 \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITE_LISTED += "\u2028\u2029\u202f\u205f\u3000"
_SPACE = re.compile(f"[{_WHITE}]+")
# in lower case \u0130 ends in a mark, which belongs to the punctuation behind it
_PUNCTUATION = rf"(?:[^\w{_WHITE}]|[_\u0130])+"
_NAMES = "startoftext|endoftext"
# U+001C to U+001F, which are none to CLIP, are white space to the operator behind white space
_SPACE_BEFORE_SPECIAL = re.compile(
    rf"(?<![ \x1c-\x1f])([\x1c-\x1f]*) [ \x1c-\x1f]*(?=<\|(?:{_NAMES})\|>)"
)
# behind a space the operator takes 's for an apostrophe and a word; behind a letter as CLIP does
_SPACE_BEFORE_CONTRACTION = re.compile(r"(?:(?<=[^\W_\u0130])|^) (?='(?i:s|t|re|ve|m|ll|d))")
# NFC makes one character of up to four, and spaces are up to every second one
_RAW_PER_BYTE = 8
# the part of `prepare_text` that SQL can do: (pattern, replacement, any case); Oracle's patterns
# have no look-around, and its ranges follow NLS_SORT, so that characters are listed one by one
SQL_TEXT_STEPS = (
    (f"[{_WHITE_LISTED}]+", " ", False),
    (rf"<\|({_NAMES})\|>", r"<| \1|> ", True),
    (rf"( [ \x1c\x1d\x1e\x1f]*)?<[|] ({_NAMES})[|]> ", r"<|\2|>", False),
    ("([[:alnum:]]) '(s|t|re|ve|m|ll|d)", r"\1'\2", True),
)


def oracle_text_expression(column: str) -> str:
    """Return the SQL expression that makes a column's texts safe for the tokenizer in a database.

    Runs of white space become one space, so that line breaks don't glue words together; white
    space before a special token goes, which would end the process, and U+001C to U+001F in it;
    special tokens in upper case, which to CLIP are words, are taken apart; a space between a letter
    and ``'s``, ``'t`` and the like goes; NUL characters, at which the tokenizer would stop, are
    removed. NFC is left out. For databases in the character set AL32UTF8, and models whose special
    tokens are no others in upper case: to those of `Vocabulary.any_case` they are.

    Not confirmed on an Oracle database; the same patterns were measured in DuckDB.

    Args:
        column: SQL expression of a text, copied verbatim.
    """
    text = f"REPLACE({column}, CHR(0))"
    for pattern, replacement, any_case in SQL_TEXT_STEPS:
        case = "i" if any_case else "c"
        wanted, given = _oracle_literal(pattern), _oracle_literal(replacement)
        text = f"REGEXP_REPLACE({text}, {wanted}, {given}, 1, 0, '{case}')"
    return text


def check_text(text: str, label: str = "text") -> None:
    """Raise InputError if it is no text, or holds NUL or a lone surrogate."""
    if not isinstance(text, str):
        raise InputError(
            f"{label}: got {type(text).__name__}, wanted a string.", hint="pass text as str."
        )
    if "\0" in text:
        raise InputError(
            f"{label}: holds a NUL character, at which the tokenizer would stop.",
            hint="remove it.",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{label}: holds a lone surrogate, which is no character.", hint="remove it."
        ) from error


def prepare_text(
    text: str, label: str = "text", reach: int | None = None, any_case: Iterable[str] = ()
) -> str:
    """Return a text that is safe for the graph, and to which CLIP's tokenizer gives the same ids.

    Takes time in proportion to the text's length.

    Args:
        text: Any text; it may be empty.
        label: How to name it in an error.
        reach: Bytes, white space apart, that the model can read (`graph.reach`); the rest is left
            out. By default nothing is.
        any_case: Tokens that the model's tokenizer finds in whatever case they are written
            (`Vocabulary.any_case`). Other special tokens are words unless they are in lower case;
            behind their ``|>`` a text is split, as by transformers 5 and not by 4.

    Raises:
        InputError: See `check_text`.
    """
    check_text(text, label)
    if reach is not None:
        text = _start(text, _RAW_PER_BYTE * reach)
    special, special_in_any_case, nearly_special = _patterns(frozenset(any_case))
    parts: list[str] = []
    for i, part in enumerate(special.split(text)):
        if i % 2:
            parts.append(part)
            continue
        # NFC would join a special token's last character with an accent behind it
        pieces = special_in_any_case.split(unicodedata.normalize("NFC", _ordered(part)))
        pieces[::2] = [nearly_special.sub(_spell_out, piece) for piece in pieces[::2]]
        pieces[1::2] = [piece.lower() for piece in pieces[1::2]]
        parts += pieces
    # marks, which alone may be many more than what was kept, are in order now
    joined = "".join(parts)[: None if reach is None else _RAW_PER_BYTE * reach]
    spaced = _SPACE_BEFORE_SPECIAL.sub(r"\1", _SPACE.sub(" ", _apart(joined)))
    prepared = _SPACE_BEFORE_CONTRACTION.sub("", spaced)
    return prepared if reach is None else _within(prepared, reach)


@cache
def _patterns(any_case: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """Return what finds special tokens, those found in any case, and words that look like one."""
    names = "|".join(n for n in _NAMES.split("|") if f"<|{n}|>" not in any_case) or "(?!)"
    found = "|".join(map(re.escape, sorted(any_case, key=len, reverse=True))) or "(?!)"
    # a name right after other punctuation belongs to that run of it, as in CLIP's own split
    name = rf"(?=[a-zA-Z]+\|>)((?i:{names}))\|>"
    nearly = rf"<\|{name}|{_PUNCTUATION}(?<=<\|)(?={name})|{_PUNCTUATION}"
    return (
        re.compile(rf"(<\|(?:{names})\|>)"),
        re.compile(f"({found})", re.ASCII | re.IGNORECASE),
        re.compile(nearly),
    )


def _start(text: str, length: int) -> str:
    """Return a text's start, white space as one space, and the marks that may move into it."""
    kept, at = "", 0
    while at < len(text) and len(kept) < length:
        kept = _SPACE.sub(" ", kept + text[at : at + length])
        at += length
    end = at
    while end < len(text) and _is_mark(text[end]):
        end += 1
    return kept + text[at:end]


def _within(text: str, size_bytes: int) -> str:
    """Return the words of a text up to a size, the last of them cut."""
    kept = []
    for word in text.split(" "):
        if size_bytes <= 0:
            break
        if word == word.lower():
            word = word.encode()[:size_bytes].decode(errors="ignore")
            size_bytes -= len(word.encode())
        else:  # lower case may take fewer bytes, but no fewer characters
            word = word[:size_bytes]
            size_bytes -= len(word)
        kept.append(word)
    return " ".join(kept)


def _ordered(text: str) -> str:
    """Return a text with the marks of each character in NFC's order.

    Python's own ordering takes time in proportion to the square of a run of marks.
    """
    if text.isascii():
        return text
    parts: list[str] = []
    for marks, run in groupby(text, _is_mark):
        if marks:
            single = "".join(map(_decomposed, run))
            run = iter(sorted(single, key=unicodedata.combining))
        parts += run
    return "".join(parts)


@lru_cache(1024)
def _is_mark(character: str) -> bool:
    return unicodedata.combining(_decomposed(character)[0]) != 0


@lru_cache(1024)
def _decomposed(character: str) -> str:
    return unicodedata.normalize("NFD", character)


def _apart(text: str) -> str:
    """Put spaces between numbers such as "²³", which the operator takes for one word.

    Of digits 0-9 it need not be done. Only numbers of Unicode 3.2, which CLIP's tokenizer knows,
    too: characters that are new to it belong to runs of punctuation.
    """
    if text.isascii():
        return text
    kinds = [unicodedata.ucd_3_2_0.category(c)[0] for c in text]
    pairs = zip(zip(text, kinds, strict=True), zip(text[1:], kinds[1:], strict=True), strict=False)
    spaces = [
        " " if kind == after_kind == "N" and not (c + after).isascii() else ""
        for (c, kind), (after, after_kind) in pairs
    ]
    return "".join(c + space for c, space in zip(text, [*spaces, ""], strict=True))


def _oracle_literal(pattern: str) -> str:
    """Return a literal whose characters outside printable ASCII are written as UNISTR escapes."""
    pattern = pattern.replace("'", "''")
    if pattern.isascii() and pattern.isprintable():
        return f"'{pattern}'"
    escaped = (c if c.isascii() and c.isprintable() else f"\\{ord(c):04X}" for c in pattern)
    return f"UNISTR('{''.join(escaped)}')"


def _spell_out(match: re.Match[str]) -> str:
    whole, behind_punctuation = match[1], match[2]
    if whole:
        return f"<| {whole}|> "
    return f"{match[0]} " if behind_punctuation else match[0]
