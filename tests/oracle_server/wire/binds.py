"""Bind values of a request, and the names that they have in its statement."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oracle_server import statement as types
from oracle_server.statement import Bind, OraError
from oracle_server.wire.answers import TIMESTAMP_LTZ, TIMESTAMP_TZ
from oracle_server.wire.encoding import ProtocolError, decode_float, decode_number, decode_timestamp
from oracle_server.wire.json_image import decode_json
from oracle_server.wire.lobs import LobStore
from oracle_server.wire.packets import PacketStream
from oracle_server.wire.vector_image import decode_vector

MESSAGE_ROW = 7
NATIONAL_CHARSET = 2
LONGEST_INLINE = 32767

DECODERS: dict[int, Callable[[bytes], Any]] = {
    types.NUMBER: decode_number,
    types.BINARY_INTEGER: decode_number,
    types.BINARY_DOUBLE: decode_float,
    types.BINARY_FLOAT: decode_float,
    types.BOOLEAN: lambda raw: raw[-1:] == b"\1",
    types.DATE: decode_timestamp,
    types.TIMESTAMP: decode_timestamp,
    TIMESTAMP_TZ: decode_timestamp,
    TIMESTAMP_LTZ: decode_timestamp,
    types.RAW: bytes,
    types.LONG_RAW: bytes,
}

_TOKEN = re.compile(
    r"""
    n?q'\[.*?\]' | n?q'\{.*?\}' | n?q'\(.*?\)' | n?q'<.*?>' | n?q'(?P<quote>\S).*?(?P=quote)'
    | '(?:[^']|'')*' | "[^"]*" | --[^\n]* | /\*.*?\*/
    | (?<!:):\s*(?P<name>\w+|"[^"]+")
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class BindType:
    """How the values of one bind travel."""

    type: int
    size: int
    is_national: bool


def placeholders(text: str, is_plsql: bool) -> list[str]:
    """Return the names of binds in the order of their values; names never travel.

    In PL/SQL each name has one value, in SQL each place where it stands.
    """
    names: list[str] = []
    for token in _TOKEN.finditer(text):
        name = token["name"]
        if name is None:
            continue
        name = name.strip('"') if name.startswith('"') else name.upper()
        if not is_plsql or name not in names:
            names.append(name)
    return names


def read_bind_type(stream: PacketStream) -> BindType:
    """Read what is told of one bind.

    Raises:
        OraError: If it is an array or an object.
    """
    kind, _flags = stream.byte(), stream.byte()
    stream.read(2)
    size, elements = stream.integer(), stream.integer()
    stream.integer()
    object_type = stream.integer()
    if elements or object_type:
        raise OraError(3001, "binds of PL/SQL arrays and of objects are not implemented")
    stream.skip("ii")
    charset_form = stream.byte()
    stream.skip("ii")
    return BindType(kind, size, charset_form == NATIONAL_CHARSET)


def read_row(
    stream: PacketStream, bind_types: list[BindType], is_plsql: bool, lobs: LobStore
) -> list[Bind]:
    """Read one row of values; in SQL long ones come last.

    An error takes the place of a value that cannot be had: the rest has to be read before it may
    be raised.
    """
    if stream.byte() != MESSAGE_ROW:
        raise ProtocolError("row of bind values expected")
    late = [
        not is_plsql and b.size > LONGEST_INLINE and b.type not in (types.JSON, types.VECTOR)
        for b in bind_types
    ]
    row: dict[int, Bind] = {}
    for is_late in (False, True):
        for place, bind_type in enumerate(bind_types):
            if late[place] == is_late:
                value = _read_value(stream, bind_type, lobs)
                row[place] = Bind(bind_type.type, bind_type.size, value)
    return [row[place] for place in range(len(bind_types))]


def _read_value(stream: PacketStream, bind_type: BindType, lobs: LobStore) -> Any:
    kind = bind_type.type
    if kind in (types.CLOB, types.BLOB):
        locator = stream.twice_counted()
        if not locator:
            return None
        try:
            lob = lobs.find(locator)
        except OraError as error:
            return error
        if lob.kind != kind:
            return OraError(932, f"inconsistent data types: LOB of type {lob.kind} bound as {kind}")
        return lob
    if kind in (types.JSON, types.VECTOR):
        if not stream.integer():
            return None
        stream.counted()  # a locator that carries nothing but the length
        image = stream.counted() or b""
        return decode_json(image) if kind == types.JSON else decode_vector(image)
    raw = stream.counted()
    if raw is None:
        return None
    if kind in (types.VARCHAR, types.CHAR, types.LONG):
        return raw.decode("utf-16-be" if bind_type.is_national else "utf-8")
    if kind not in DECODERS:
        raise ProtocolError(f"binds of type {kind} are not implemented")
    return DECODERS[kind](raw)
