"""Texts made safe for the tokenizer inside the graph.

CLIP's own tokenizer takes out its special tokens, then applies NFC and turns runs of white space
into one space. The operator does neither: it drops line breaks, stops at NUL, ends the process on
white space before a special token, and takes ``<|EndOfText|>`` for one, which to CLIP is three
words; it keeps "²³" as one word and ``'s`` behind a space as two. Doing the same here first
changes no id that CLIP's tokenizer would give. Measured with onnxruntime-extensions 0.12 to 0.15.2.
"""

from __future__ import annotations

import re
import unicodedata

from oml_mlflow.errors import InputError

# Unicode White_Space, which is what the tokenizers library's \s matches; Python's differs
_WHITE = "\t-\r\x85 \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WHITE_LISTED = "\t\n\v\f\r\x85 \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITE_LISTED += "\u2028\u2029\u202f\u205f\u3000"
_SPACE = re.compile(f"[{_WHITE}]+")
_PUNCTUATION = rf"(?:[^\w{_WHITE}]|_)+"
_NAMES = "startoftext|endoftext"
_SPECIAL = re.compile(rf"(<\|(?:{_NAMES})\|>)")
_SPACE_BEFORE_SPECIAL = re.compile(rf" (?=<\|(?:{_NAMES})\|>)")
# behind a space the operator takes 's for an apostrophe and a word; behind a letter as CLIP does
_SPACE_BEFORE_CONTRACTION = re.compile(r"(?:(?<=[^\W_])|^) (?='(?i:s|t|re|ve|m|ll|d))")
_ANY_CASE = rf"(?=[a-zA-Z]+\|>)((?i:{_NAMES}))\|>"
# a name right behind other punctuation belongs to that run of punctuation, as in CLIP's own split
_NEARLY_SPECIAL = re.compile(
    rf"<\|{_ANY_CASE}|{_PUNCTUATION}(?<=<\|)(?={_ANY_CASE})|{_PUNCTUATION}"
)
# what SQL can do of `prepare_text`: (pattern, replacement, any case); Oracle's patterns have no
# look-around, and its ranges follow NLS_SORT, so that characters are listed one by one
SQL_TEXT_STEPS = (
    (f"[{_WHITE_LISTED}]+", " ", False),
    (rf"<\|({_NAMES})\|>", r"<| \1|> ", True),
    (rf" *<\| ({_NAMES})\|> ", r"<|\1|>", False),
    ("([[:alnum:]]) '(s|t|re|ve|m|ll|d)", r"\1'\2", True),
)


def oracle_text_expression(column: str) -> str:
    """Return the SQL expression that makes a column's texts safe for the tokenizer in a database.

    Runs of white space become one space, so that line breaks don't glue words together; white
    space before a special token goes, which would end the process; special tokens in upper case,
    which to CLIP are words, are taken apart; a space between a letter and ``'s``, ``'t`` and the
    like goes; NUL characters, at which the tokenizer would stop, are removed. NFC is left out. For
    databases in the character set AL32UTF8.

    Unconfirmed: nobody has run it on Oracle; the same patterns were measured in DuckDB.

    Args:
        column: SQL expression of a text, copied verbatim.
    """
    text = f"REPLACE({column}, CHR(0))"
    for pattern, replacement, any_case in SQL_TEXT_STEPS:
        case = "i" if any_case else "c"
        wanted, given = _oracle_literal(pattern), _oracle_literal(replacement)
        text = f"REGEXP_REPLACE({text}, {wanted}, {given}, 1, 0, '{case}')"
    return text


def prepare_text(text: str, label: str = "text") -> str:
    """Return a text that the graph tokenises without harm, and CLIP's tokenizer as before.

    Args:
        text: Any text; it may be empty.
        label: How to name it in an error.

    Raises:
        InputError: If it is no text, or holds NUL or a lone surrogate.
    """
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
    # NFC would join a special token's last character with an accent behind it
    parts = [unicodedata.normalize("NFC", part) for part in _SPECIAL.split(text)]
    parts[::2] = [_NEARLY_SPECIAL.sub(_spell_out, part) for part in parts[::2]]
    spaced = _SPACE_BEFORE_SPECIAL.sub("", _SPACE.sub(" ", _apart("".join(parts))))
    return _SPACE_BEFORE_CONTRACTION.sub("", spaced)


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
