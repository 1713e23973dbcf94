"""Scalar values as bytes: integers, strings, NUMBER, BINARY_DOUBLE, DATE and TIMESTAMP."""

from __future__ import annotations

import datetime
import decimal
import struct

LONGEST_SHORT, LONG_VALUE, CHUNK_BYTES = 252, 0xFE, 32767
NUMBER_PAIRS = 20


class ProtocolError(Exception):
    """The client sent what this server does not understand."""


def unsigned(number: int) -> bytes:
    """Return an integer of variable length: a length byte, then big-endian bytes."""
    if number == 0:
        return b"\0"
    for size in (1, 2, 4, 8):
        if number < 1 << (8 * size):
            return bytes([size]) + number.to_bytes(size, "big")
    raise OverflowError(number)


def signed(number: int) -> bytes:
    """Return an integer of variable length, with the sign in the highest bit of the length."""
    if number >= 0:
        return unsigned(number)
    magnitude = unsigned(-number)
    return bytes([magnitude[0] | 0x80]) + magnitude[1:]


def counted(data: bytes) -> bytes:
    """Return bytes after their length; long values travel in chunks."""
    if len(data) <= LONGEST_SHORT:
        return bytes([len(data)]) + data
    parts = [bytes([LONG_VALUE])]
    for start in range(0, len(data), CHUNK_BYTES):
        part = data[start : start + CHUNK_BYTES]
        parts += [unsigned(len(part)), part]
    return b"".join(parts) + b"\0"


def twice_counted(data: bytes) -> bytes:
    """Return bytes after two lengths, or one zero if there are none."""
    return unsigned(len(data)) + counted(data) if data else b"\0"


def pair(key: str, value: str, flag: int = 0) -> bytes:
    """Return a key and its value, as login messages carry them."""
    return twice_counted(key.encode()) + twice_counted(value.encode()) + unsigned(flag)


def encode_number(value: int | float | decimal.Decimal) -> bytes:
    """Return a NUMBER: an exponent byte and base-100 digits, inverted if negative."""
    exact = decimal.Decimal(str(value) if isinstance(value, float) else value)
    if not exact:
        return b"\x80"
    sign, numerals, exponent = exact.as_tuple()
    if not isinstance(exponent, int):
        raise ProtocolError(f"NUMBER cannot hold {value}")
    digits = "".join(map(str, numerals))
    if exponent % 2:
        digits, exponent = digits + "0", exponent - 1
    if len(digits) % 2:
        digits = "0" + digits
    while digits.endswith("00"):
        digits, exponent = digits[:-2], exponent + 2
    while digits.startswith("00"):
        digits = digits[2:]
    pairs = [int(digits[i : i + 2]) for i in range(0, len(digits), 2)][:NUMBER_PAIRS]
    biased = exponent // 2 + len(digits) // 2 - 1 + 193
    if not sign:
        return bytes([biased]) + bytes(p + 1 for p in pairs)
    end = b"\x66" if len(pairs) < NUMBER_PAIRS else b""
    return bytes([~biased & 0xFF]) + bytes(101 - p for p in pairs) + end


def decode_number(raw: bytes) -> int | decimal.Decimal:
    """Return what ``encode_number`` encoded, as an int where it is a whole number."""
    if raw == b"\x80":
        return 0
    positive = bool(raw[0] & 0x80)
    exponent = (raw[0] if positive else ~raw[0] & 0xFF) - 193
    body = raw[1:] if positive or raw[-1] != 0x66 else raw[1:-1]
    whole = 0
    for byte in body:
        whole = whole * 100 + (byte - 1 if positive else 101 - byte)
    places = (exponent - len(body) + 1) * 2
    if places >= 0:
        return int(whole if positive else -whole) * int(10**places)
    number = decimal.Decimal((0 if positive else 1, tuple(map(int, str(whole))), places))
    return int(number) if number == number.to_integral_value() else number.normalize()


def sortable(ieee: bytes) -> bytes:
    """Return big-endian IEEE bytes so that they sort as the numbers do."""
    if ieee[0] & 0x80:
        return bytes(~byte & 0xFF for byte in ieee)
    return bytes([ieee[0] | 0x80]) + ieee[1:]


def unsortable(raw: bytes) -> bytes:
    """Undo ``sortable``."""
    if raw[0] & 0x80:
        return bytes([raw[0] & 0x7F]) + raw[1:]
    return bytes(~byte & 0xFF for byte in raw)


def encode_double(value: float) -> bytes:
    """Return a BINARY_DOUBLE."""
    return sortable(struct.pack(">d", value))


def encode_float(value: float) -> bytes:
    """Return a BINARY_FLOAT."""
    return sortable(struct.pack(">f", value))


def decode_float(raw: bytes) -> float:
    """Return a BINARY_DOUBLE or BINARY_FLOAT, told apart by their length."""
    value: float = struct.unpack(">d" if len(raw) == 8 else ">f", unsortable(raw))[0]
    return value


def encode_date(when: datetime.date) -> bytes:
    """Return a DATE: seven bytes, to the second."""
    if not isinstance(when, datetime.datetime):
        when = datetime.datetime(when.year, when.month, when.day)
    century, year = divmod(when.year, 100)
    clock = (when.hour + 1, when.minute + 1, when.second + 1)
    return bytes([century + 100, year + 100, when.month, when.day, *clock])


def encode_timestamp(when: datetime.datetime, with_zone: bool = False) -> bytes:
    """Return a TIMESTAMP: a DATE and nanoseconds; with a zone in UTC, and its offset."""
    zone = b""
    if with_zone:
        offset = when.utcoffset() or datetime.timedelta(0)
        when = when.replace(tzinfo=None) - offset
        minutes = int(offset.total_seconds()) // 60
        hours = int(minutes / 60)
        zone = bytes([hours + 20, minutes - hours * 60 + 60])
    return encode_date(when) + struct.pack(">I", when.microsecond * 1000) + zone


def decode_timestamp(raw: bytes) -> datetime.datetime:
    """Return a DATE, TIMESTAMP or TIMESTAMP WITH TIME ZONE, told apart by their length."""
    year = (raw[0] - 100) * 100 + raw[1] - 100
    nanoseconds = struct.unpack(">I", raw[7:11])[0] if len(raw) >= 11 else 0
    clock = (raw[4] - 1, raw[5] - 1, raw[6] - 1, nanoseconds // 1000)
    when = datetime.datetime(year, raw[2], raw[3], *clock)
    if len(raw) < 13:
        return when
    offset = datetime.timedelta(hours=raw[11] - 20, minutes=raw[12] - 60)
    return (when + offset).replace(tzinfo=datetime.timezone(offset))
