"""SQL functions of Oracle, given to SQLite; what values are inside, and what they are outside."""

from __future__ import annotations

import datetime as dt
import re
import zlib
from array import array
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from oracle_server.engine.vectors import is_vector, pack_vector, unpack_vector
from oracle_server.statement import (
    BLOB,
    BOOLEAN,
    CLOB,
    DATE,
    NUMBER,
    RAW,
    TIMESTAMP,
    VARCHAR,
    VECTOR,
    Column,
    OraError,
)

# begins every DATE and TIMESTAMP among SQLite's strings
_TIME_MARK = "\x01"
_DATE_LENGTH = 20
_FORMATS = {
    "YYYY": "%Y",
    "MM": "%m",
    "DD": "%d",
    "HH24": "%H",
    "MI": "%M",
    "SS": "%S",
    "TZH": "+00",
    "TZM": "00",
}
_FORMAT_PART = re.compile(r'"[^"]*"|YYYY|HH24|TZH|TZM|MM|DD|MI|SS|FF[1-9]?|[-/,.;: ]|.', re.I)
_DECLARED = {
    "NUMBER": NUMBER,
    "CLOB": CLOB,
    "BLOB": BLOB,
    "RAW": RAW,
    "UTCTIME": TIMESTAMP,
    "VECTOR": VECTOR,
    "BOOLEAN": NUMBER,
}
_VECTOR_FORMATS = {"f": 2, "d": 3, "b": 4, "B": 5}


class Clob(str):
    """Text from a column of type CLOB."""


class Blob(bytes):
    """Bytes from a column of type BLOB."""


def pack_time(value: dt.datetime, *, is_date: bool = False) -> str:
    """Return a time as SQLite stores it, UTC."""
    if value.tzinfo is not None:
        value = value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return _TIME_MARK + value.isoformat(" ", "seconds" if is_date else "microseconds")


def systimestamp() -> str:
    """Return the time; the stand-in's time zone is UTC."""
    return pack_time(dt.datetime.now(dt.timezone.utc))


def sysdate() -> str:
    """Return the time to the second."""
    return pack_time(dt.datetime.now(dt.timezone.utc), is_date=True)


def is_time(value: Any) -> bool:
    """Return whether a value of SQLite is a DATE or TIMESTAMP."""
    return isinstance(value, str) and value.startswith(_TIME_MARK)


def to_inside(value: Any) -> Any:
    """Return a bound value as SQLite has it; empty text and bytes are NULL."""
    if hasattr(value, "read_at"):
        value = value.read_at(0, value.size)
    if isinstance(value, array):
        return pack_vector(value)
    if isinstance(value, dt.datetime):
        return pack_time(value)
    if isinstance(value, dt.date):
        return pack_time(dt.datetime.combine(value, dt.time()), is_date=True)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (str, bytes, bytearray)) and not value:
        return None
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise OraError(932, f"inconsistent datatypes: {type(value).__name__} can't be used in SQL")


def to_outside(value: Any) -> Any:
    """Return a value of SQLite as it leaves the engine."""
    if is_vector(value):
        return unpack_vector(value)
    if is_time(value):
        return dt.datetime.fromisoformat(value[1:])
    return value


def column(name: str, values: list[Any], declared: str = "") -> Column:
    """Describe a column by SQLite's values in it, or by its declared type if it has none.

    A client that runs a statement again counts on the types that it had before.
    """
    value = next((v for v in values if v is not None), None)
    if value is None:
        kind = VECTOR if name.startswith("VECTOR_EMBEDDING(") else VARCHAR
        return Column(name, _DECLARED.get(declared, kind))
    if is_vector(value):
        vector = unpack_vector(value)
        return Column(name, VECTOR, _VECTOR_FORMATS[vector.typecode], len(vector))
    if is_time(value):
        return Column(name, DATE if len(value) == _DATE_LENGTH else TIMESTAMP)
    for kind, number in ((Clob, CLOB), (Blob, BLOB), (bytes, RAW), (bool, BOOLEAN)):
        if isinstance(value, kind):
            return Column(name, number)
    return Column(name, NUMBER if isinstance(value, (int, float)) else VARCHAR)


def with_clobs(row: tuple[Any, ...], types: Sequence[str]) -> tuple[Any, ...]:
    """Return a row whose texts in columns of type CLOB are CLOBs."""
    return tuple(
        Clob(value) if kind == "CLOB" and value is not None else value
        for value, kind in zip(row, types, strict=True)
    )


def _format(value: dt.datetime, wanted: str) -> str:
    out = []
    for part in _FORMAT_PART.findall(wanted):
        upper = part.upper()
        if part.startswith('"'):
            out.append(part[1:-1])
        elif upper.startswith("FF"):
            out.append(f"{value.microsecond:06d}000"[: int(upper[2:] or 6)])
        elif upper in _FORMATS:
            out.append(value.strftime(_FORMATS[upper]))
        elif part in "-/,.;: ":
            out.append(part)
        else:
            raise OraError(1821, "date format not recognized")
    return "".join(out)


def to_char(value: Any, *wanted: str) -> str | None:
    """TO_CHAR of a number, a text, or a time with a format."""
    if value is None:
        return None
    if is_time(value):
        default = "YYYY-MM-DD HH24:MI:SS.FF6"
        return _format(to_outside(value), wanted[0] if wanted else default)
    if wanted:
        raise OraError(3001, "unimplemented feature: TO_CHAR of a number with a format")
    return str(value)


def to_timestamp(value: str | None, wanted: str) -> str | None:
    """TO_TIMESTAMP of a text with a format."""
    if value is None:
        return None
    pattern = ""
    for part in _FORMAT_PART.findall(wanted):
        upper = part.upper()
        if upper.startswith("FF"):
            pattern += "%f"
        elif upper in _FORMATS and not upper.startswith("TZ"):
            pattern += _FORMATS[upper]
        else:
            pattern += part.strip('"')
    try:
        return pack_time(dt.datetime.strptime(value, pattern))
    except ValueError as error:
        raise OraError(1843, "not a valid month") from error


def to_number(value: Any) -> Any:
    """TO_NUMBER of a text."""
    try:
        if value is None or isinstance(value, (int, float)):
            return value
        return int(value) if re.fullmatch(r"\s*[-+]?\d+\s*", value) else float(value)
    except ValueError as error:
        raise OraError(1722, "unable to convert string value to a number") from error


def nvl(value: Any, other: Any) -> Any:
    """NVL."""
    return other if value is None else value


def nvl2(value: Any, present: Any, absent: Any) -> Any:
    """NVL2."""
    return absent if value is None else present


def decode(value: Any, *cases: Any) -> Any:
    """DECODE: NULL equals NULL."""
    for i in range(0, len(cases) - 1, 2):
        if cases[i] == value:
            return cases[i + 1]
    return cases[-1] if len(cases) % 2 else None


def greatest(*values: Any) -> Any:
    """GREATEST: NULL if any is."""
    return None if None in values else max(values)


def least(*values: Any) -> Any:
    """LEAST: NULL if any is."""
    return None if None in values else min(values)


def identity(value: Any) -> Any:
    """SYS_EXTRACT_UTC, where all times are UTC already; TO_CLOB."""
    return value


def ora_hash(value: Any, most: int = 2**32 - 1, seed: int = 0) -> int:
    """Return a hash of a value from 0 to `most`; not Oracle's own, which is not documented."""
    return zlib.crc32(f"{value}\0{seed}".encode()) % (int(most) + 1)


PLAIN = {
    "systimestamp": (0, systimestamp),
    "sysdate": (0, sysdate),
    "sys_extract_utc": (1, identity),
    "to_clob": (1, identity),
    "to_char": (-1, to_char),
    "to_timestamp": (2, to_timestamp),
    "to_number": (1, to_number),
    "nvl": (2, nvl),
    "nvl2": (3, nvl2),
    "decode": (-1, decode),
    "greatest": (-1, greatest),
    "least": (-1, least),
    "ora_hash": (-1, ora_hash),
    "mod": (2, lambda a, b: None if a is None or b is None else a - b * int(a / b)),
}
# functions of SQLite that Oracle has too, with the same meaning
_SHARED = (
    "count sum avg min max upper lower length substr instr trim ltrim rtrim replace coalesce "
    "nullif abs round floor ceil like row_number rank dense_rank lag lead first_value last_value"
)
SHARED = frozenset(_SHARED.split())
