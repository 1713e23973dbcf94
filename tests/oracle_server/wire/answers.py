"""Pieces of answers: errors, statuses, descriptions of columns, values of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oracle_server import statement as types
from oracle_server.statement import Column, OraError
from oracle_server.wire import encoding
from oracle_server.wire.encoding import ProtocolError, counted, signed, twice_counted, unsigned
from oracle_server.wire.json_image import encode_json
from oracle_server.wire.lobs import LobStore, as_lob
from oracle_server.wire.vector_image import encode_vector

MESSAGE_ERROR, MESSAGE_PARAMETER, MESSAGE_STATUS, MESSAGE_DESCRIBE = 4, 8, 9, 16
TRANSACTION_IN_PROGRESS = 2
AL32UTF8 = 873
TIMESTAMP_TZ, TIMESTAMP_LTZ = 181, 231
CHARACTER_TYPES = (types.VARCHAR, types.CHAR, types.LONG, types.CLOB)
LOB_TYPES = (types.CLOB, types.BLOB, types.JSON, types.VECTOR)
NO_DATA = OraError(1403, "no data found")
COLUMN_BYTES = {
    types.NUMBER: 22,
    types.BINARY_INTEGER: 22,
    types.BINARY_DOUBLE: 8,
    types.BINARY_FLOAT: 4,
    types.BOOLEAN: 1,
    types.DATE: 7,
    types.TIMESTAMP: 11,
    TIMESTAMP_TZ: 13,
    TIMESTAMP_LTZ: 11,
}
LOB_BYTES, CHARACTER_BYTES, LOB_CHUNK = 8200, 4000, 8060
IS_JSON = 0x100


def call_error(
    error: OraError | None, in_transaction: bool, cursor: int = 0, rows: int = 0
) -> bytes:
    """Return the block that ends a call: how it went, its cursor, how many rows it touched.

    The cursor's number has to ride along with an error: it makes the client drop its cursor.
    """
    code = error.code if error else 0
    return b"".join(
        (
            bytes([MESSAGE_ERROR]),
            unsigned(TRANSACTION_IN_PROGRESS if in_transaction else 0),
            unsigned(0) * 2,
            unsigned(code & 0xFFFF),
            unsigned(0) * 2,
            unsigned(cursor),
            signed(error.offset if error else 0),
            bytes(6),
            unsigned(0) * 2,
            b"\0",
            unsigned(0) * 3,
            b"\0\0",
            unsigned(0) * 6,
            unsigned(code),
            unsigned(rows),
            unsigned(0) * 2,
            counted(str(error).encode()) if error else b"",
        )
    )


def call_status(in_transaction: bool) -> bytes:
    """Return the block that ends a call which returns nothing."""
    flags = TRANSACTION_IN_PROGRESS if in_transaction else 0
    return bytes([MESSAGE_STATUS]) + unsigned(flags) + unsigned(0)


def no_parameters() -> bytes:
    """Return the empty list of parameters that every executed statement answers with."""
    return bytes([MESSAGE_PARAMETER]) + unsigned(0) * 4


def describe(columns: list[Column]) -> bytes:
    """Return the description of a result's columns."""
    parts = [bytes([MESSAGE_DESCRIBE, 0]), unsigned(0), unsigned(len(columns)), b"\1"]
    for position, column in enumerate(columns, 1):
        kind = types.NUMBER if column.type == types.BINARY_INTEGER else column.type
        is_text = kind in CHARACTER_TYPES
        scale = 0x81 if kind == types.NUMBER else 6 if kind == types.TIMESTAMP else 0
        size = LOB_BYTES if kind in LOB_TYPES else COLUMN_BYTES.get(kind, CHARACTER_BYTES)
        name = column.name.encode()
        parts += [
            bytes([kind, 0, 0, scale]),
            unsigned(size),
            unsigned(0) * 4,
            unsigned(AL32UTF8 if is_text else 0),
            bytes([1 if is_text else 0]),
            unsigned(CHARACTER_BYTES if is_text else 0),
            unsigned(0),
            b"\1",
            bytes([len(name)]),
            twice_counted(name),
            unsigned(0) * 2,
            unsigned(position),
            unsigned(IS_JSON if kind == types.JSON else 0),
            unsigned(0) * 3,
            unsigned(column.vector_dims),
            bytes([column.vector_format if kind == types.VECTOR else 0, 0]),
        ]
    return b"".join(parts) + unsigned(0) * 6


def _text(value: Any) -> bytes:
    return counted(str(value).encode())


def _raw(value: Any) -> bytes:
    return counted(bytes(value))


SCALARS: dict[int, Callable[[Any], bytes]] = {
    types.VARCHAR: _text,
    types.CHAR: _text,
    types.LONG: _text,
    types.RAW: _raw,
    types.LONG_RAW: _raw,
    types.NUMBER: lambda value: counted(encoding.encode_number(value)),
    types.BINARY_INTEGER: lambda value: counted(encoding.encode_number(value)),
    types.BINARY_DOUBLE: lambda value: counted(encoding.encode_double(value)),
    types.BINARY_FLOAT: lambda value: counted(encoding.encode_float(value)),
    types.BOOLEAN: lambda value: counted(b"\1\1" if value else b"\0"),
    types.DATE: lambda value: counted(encoding.encode_date(value)),
    types.TIMESTAMP: lambda value: counted(encoding.encode_timestamp(value)),
    TIMESTAMP_LTZ: lambda value: counted(encoding.encode_timestamp(value)),
    TIMESTAMP_TZ: lambda value: counted(encoding.encode_timestamp(value, True)),
}


def encode_value(
    kind: int, value: Any, lobs: LobStore, vector_format: int = 2, wanted: int | None = None
) -> bytes:
    """Return one value of a row or of an OUT bind.

    Args:
        kind: Type of the column or bind.
        value: The value; a CLOB is a str, a BLOB bytes, or either an object that can be read.
        lobs: Takes LOBs that are handed out as locators.
        vector_format: Format of a VECTOR.
        wanted: Type that the client asks for: LONG and LONG RAW are LOBs by their contents.
    """
    if wanted in (types.LONG, types.LONG_RAW):
        data = b"" if value is None else as_lob(kind, value).contents()
        return (counted(data) if data else b"\0") + signed(0) + unsigned(0)
    if value is None:
        return b"\0"
    if kind in SCALARS:
        return SCALARS[kind](value)
    if kind in (types.VECTOR, types.JSON):
        is_vector = kind == types.VECTOR
        image = encode_vector(value, vector_format) if is_vector else encode_json(value)
        head = unsigned(40) + unsigned(len(image)) + unsigned(LOB_CHUNK)
        return head + counted(image) + counted(bytes(40))
    if kind in (types.CLOB, types.BLOB):
        lob = as_lob(kind, value)
        locator = lobs.add(lob, is_temporary=False)
        return unsigned(40) + unsigned(lob.size) + unsigned(LOB_CHUNK) + counted(locator)
    raise ProtocolError(f"columns of type {kind} are not implemented")
