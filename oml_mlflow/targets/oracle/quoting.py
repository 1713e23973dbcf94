"""Identifiers and text literals in Oracle's SQL."""

from __future__ import annotations

import re

from oml_mlflow.errors import TargetError

_PLAIN = re.compile(r"[A-Z][A-Z0-9_$#]*")


def literal(text: str) -> str:
    """Return a text literal; quotes in it are doubled."""
    if "\0" in text:
        raise TargetError("a NUL character can't be part of a statement. Nothing was run.")
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Return a quoted identifier; the name is in the catalogue's case.

    Raises:
        TargetError: If it holds a double quote or NUL, which no identifier can.
    """
    if not name or '"' in name or "\0" in name:
        raise TargetError(f"{name!r} is no name that SQL can hold. Nothing was run.")
    return f'"{name}"'


def model_token(name: str) -> str:
    """Return a model's name for SQL, quoted only where it has to be.

    Every example in the documentation has it unquoted.
    """
    return name if _PLAIN.fullmatch(name) else quote_name(name)
