"""What SQLite's errors are called in Oracle."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable

from oracle_server.statement import OraError

_NO_TABLE = 'table or view "{user}"."{0}" does not exist'
_NAME_USED = "name is already used by an existing object"
_VIEW = "data manipulation operation not legal on this view"
_RULES: list[tuple[str, int, str]] = [
    (r"no such (?:table|view): (?:\w+\.)?(\S+)", 942, _NO_TABLE),
    (r"no such column: (.+)", 904, '"{0}": invalid identifier'),
    (r"has no column named (\S+)", 904, '"{0}": invalid identifier'),
    (r"no such function: (\S+)", 904, '"{0}": invalid identifier'),
    (r"ambiguous column name: (\S+)", 918, '"{0}": column ambiguously specified'),
    (r"(?:table|view|index) \S+ already exists", 955, _NAME_USED),
    (r"duplicate column name: (\S+)", 957, "duplicate column name"),
    (r"cannot modify \S+ because it is a view", 1732, _VIEW),
    (r"(\d+) values for (\d+) columns", 913, "too many values or not enough values"),
    (r"wrong number of arguments to function (\w+)", 909, "invalid number of arguments"),
    (r"incomplete input", 936, "missing expression"),
    (r'near "(?:FROM|,|\))": syntax error', 936, "missing expression"),
    (r"syntax error", 933, "SQL command not properly ended"),
    (r"database is locked", 30006, "resource busy; acquire with WAIT timeout expired"),
]


def as_ora_error(
    error: sqlite3.Error, user: str, constraint: Callable[[str], str], *, is_update: bool = False
) -> OraError:
    """Return what Oracle would say.

    Args:
        error: SQLite's error.
        user: Schema that names are in.
        constraint: Returns the name of the unique constraint on a table's columns.
        is_update: Whether an UPDATE raised it.
    """
    text = str(error)
    if found := re.match(r"UNIQUE constraint failed: (.*)", text):
        name = constraint(found[1])
        columns = ", ".join(part.rpartition(".")[2] for part in found[1].split(", "))
        return OraError(
            1,
            f"unique constraint ({user}.{name}) violated on table "
            f"{user}.{found[1].partition('.')[0]} columns ({columns})",
        )
    if found := re.match(r"NOT NULL constraint failed: (\w+)\.(\w+)", text):
        where = f'("{user}"."{found[1]}"."{found[2]}")'
        if is_update:
            return OraError(1407, f"cannot update {where} to NULL")
        return OraError(1400, f"cannot insert NULL into {where}")
    if found := re.match(r"CHECK constraint failed: (\w+)(?:\|(\w*))?", text):
        return _check_failed(found[1], found[2] or "", user)
    if "FOREIGN KEY constraint failed" in text:
        return OraError(2291, f"integrity constraint ({user}.FK) violated - parent key not found")
    for pattern, code, told in _RULES:
        if found := re.search(pattern, text):
            groups = [part.upper().replace(".", '"."') for part in found.groups()]
            return OraError(code, told.format(*groups, user=user))
    return OraError(900, f"invalid SQL statement: {text}")


def _check_failed(kind: str, column: str, user: str) -> OraError:
    if kind == "size":
        return OraError(12899, f'value too large for column "{user}"."{column}"')
    if kind == "null":
        return OraError(1400, f'cannot insert NULL into ("{user}"."{column}")')
    if kind == "time":
        return OraError(1843, "not a valid month")
    if kind == "number":
        return OraError(1722, "unable to convert string value to a number")
    if kind == "dims":
        return OraError(
            51803,
            "Vector dimension count must match the dimension count specified in the column "
            f"definition ({column})",
        )
    if kind == "vector":
        return OraError(932, f"inconsistent datatypes: expected VECTOR ({column})")
    return OraError(2290, f"check constraint ({user}.{kind}) violated")
