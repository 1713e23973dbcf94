"""From the first packet to a session: service, packet size, protocol, password."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from oracle_server.statement import OraError
from oracle_server.wire.answers import AL32UTF8, MESSAGE_PARAMETER, call_error
from oracle_server.wire.encoding import ProtocolError, counted, pair, unsigned
from oracle_server.wire.packets import ACCEPT, CONNECT, REFUSE, PacketStream

MESSAGE_PROTOCOL, MESSAGE_DATA_TYPES, MESSAGE_FUNCTION, MESSAGE_FAST_AUTH = 1, 2, 3, 34
AUTH_ONE, AUTH_TWO = 118, 115
PROTOCOL_VERSION = 319
SMALLEST_SDU, LARGEST_SDU, TDU = 512, 65535, 2097152
NO_NATIVE_ENCRYPTION = 4
FAST_AUTH, HAS_END_OF_RESPONSE = 0x10000000, 0x02000000
FIELD_VERSION = 24  # of 23.4: descriptions tell the format and the dimensions of a VECTOR
VERIFIER_12C = 0x4815
SERVER_RELEASE = 387579904
MAX_OPEN_CURSORS = 300  # none would turn the client's statement cache off
UNKNOWN_SERVICE, LISTENER_ERRORS = 12514, range(12500, 12600)


@dataclass(frozen=True)
class Greeting:
    """What a client asks for in its first packet."""

    descriptor: str
    service: str
    protocol_version: int
    sdu: int


def read_greeting(stream: PacketStream) -> Greeting:
    """Read the first packet; a long descriptor comes in a second one."""
    if stream.next_packet() != CONNECT:
        raise ProtocolError("CONNECT expected")
    body = stream.body()
    version, _, _, small_sdu = struct.unpack_from(">HHHH", body)
    length, offset = struct.unpack_from(">HH", body, 16)
    (sdu,) = struct.unpack_from(">I", body, 50)
    descriptor = body[offset - 8 : offset - 8 + length]
    if not descriptor:
        stream.next_data()
        descriptor = stream.read(length)
    text = descriptor.decode()
    service = re.search(r"SERVICE_NAME=([^)]*)\)", text, re.IGNORECASE)
    return Greeting(text, service[1] if service else "", version, sdu or small_sdu)


def refuse(stream: PacketStream, code: int) -> None:
    """Answer as a listener that does not want the client."""
    error = f"(ERROR_STACK=(ERROR=(CODE={code})(EMFI=4)))"
    text = f"(DESCRIPTION=(ERR={code})(VSNNUM={SERVER_RELEASE}){error})".encode()
    stream.send_packet(REFUSE, b"\x22\0" + struct.pack(">H", len(text)) + text)


def accept(stream: PacketStream, greeting: Greeting, fast_auth: bool) -> None:
    """Take the client in and settle the packet size.

    Raises:
        ProtocolError: If the client is too old.
    """
    if greeting.protocol_version < PROTOCOL_VERSION:
        raise ProtocolError(f"clients of protocol {greeting.protocol_version} are not implemented")
    stream.sdu = max(SMALLEST_SDU, min(greeting.sdu, LARGEST_SDU))
    flags = HAS_END_OF_RESPONSE | (FAST_AUTH if fast_auth else 0)
    body = struct.pack(">7H", PROTOCOL_VERSION, 1, stream.sdu, 65535, 1, 0, 45)
    body += bytes([NO_NATIVE_ENCRYPTION] * 2 + [0] * 8)
    stream.send_packet(ACCEPT, body + struct.pack(">IIBI", stream.sdu, TDU, 0, flags))
    stream.has_long_lengths = True


def release_number(version: str) -> int:
    """Return a version such as 23.26.1.0.0 as the one number that a login tells it by."""
    major, minor, *updates = [int(part) for part in version.split(".")]
    first, second, third = [*updates, 0, 0, 0][:3]
    return major << 24 | minor << 16 | first << 12 | second << 4 | third


class Challenge:
    """The server's half of a login with the 12c verifier.

    Args:
        password: The user's; of an unknown user any.
    """

    ROUNDS, DERIVATION_ROUNDS = 4096, 3

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._salt, self._key_salt = secrets.token_bytes(16), secrets.token_bytes(16)
        salt = self._salt + b"AUTH_PBKDF2_SPEEDY_KEY"
        speedy = _derive(self._password, salt, 64, self.ROUNDS)
        self._hash = hashlib.sha512(speedy + self._salt).digest()[:32]
        self._half_key = secrets.token_bytes(32)

    def pairs(self) -> list[bytes]:
        """Return what the client needs to answer."""
        return [
            pair("AUTH_SESSKEY", _encrypt(self._hash, self._half_key)),
            pair("AUTH_VFR_DATA", self._salt.hex().upper(), VERIFIER_12C),
            pair("AUTH_PBKDF2_CSK_SALT", self._key_salt.hex().upper()),
            pair("AUTH_PBKDF2_VGEN_COUNT", str(self.ROUNDS)),
            pair("AUTH_PBKDF2_SDER_COUNT", str(self.DERIVATION_ROUNDS)),
        ]

    def proof(self, answer: Mapping[str, str]) -> str | None:
        """Return the proof that we know the password too, None if the client does not."""
        their_half = _decrypt(self._hash, answer["AUTH_SESSKEY"])[:32]
        both = (their_half + self._half_key).hex().upper().encode()
        key = _derive(both, self._key_salt, 32, self.DERIVATION_ROUNDS)
        plain = _decrypt(key, answer["AUTH_PASSWORD"])
        padding = plain[-1]
        if not 1 <= padding <= 16:
            return None
        if not hmac.compare_digest(plain[16:-padding], self._password):
            return None
        return _encrypt(key, secrets.token_bytes(16) + b"SERVER_TO_CLIENT" + bytes([16] * 16))


def _derive(password: bytes, salt: bytes, length: int, rounds: int) -> bytes:
    return PBKDF2HMAC(hashes.SHA512(), length, salt, rounds).derive(password)


def _encrypt(key: bytes, data: bytes) -> str:
    cipher = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    return (cipher.update(data) + cipher.finalize()).hex().upper()


def _decrypt(key: bytes, text: str) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).decryptor()
    return cipher.update(bytes.fromhex(text)) + cipher.finalize()


def agree_on_types(stream: PacketStream) -> tuple[bool, bytes]:
    """Read the client's protocol and data types, and answer them unless it logs in fast.

    Returns:
        Whether it logs in fast, and the answer that it is owed then.
    """
    stream.next_data()
    kind = stream.byte()
    is_fast = kind == MESSAGE_FAST_AUTH
    if is_fast:
        stream.read(3)
        kind = stream.byte()
    if kind != MESSAGE_PROTOCOL:
        raise ProtocolError(f"protocol message expected, not {kind}")
    for _ in ("versions that the client speaks", "name of its driver"):
        while stream.byte():
            pass
    if is_fast:
        stream.read(6)
    else:
        stream.reply(_protocol(), end=False)
        stream.next_data()
    _read_data_types(stream)
    types = bytes([MESSAGE_DATA_TYPES]) + b"\0\0"
    if is_fast:
        return True, _protocol() + types
    stream.reply(types, end=False)
    stream.next_data()
    return False, b""


def _protocol() -> bytes:
    compile_time, run_time = bytearray(55), bytearray(13)
    compile_time[7], compile_time[44], compile_time[52] = FIELD_VERSION, 0x2C, 3
    run_time[6] = 4  # strings of 32,767 bytes
    charsets = bytes(9) + struct.pack(">H", 2000)
    return b"".join(
        (
            bytes([MESSAGE_PROTOCOL, 6, 0]),
            b"x86_64/Linux 2.4.xx\0",
            struct.pack("<H", AL32UTF8),
            b"\1\0\0",
            struct.pack(">H", len(charsets)),
            charsets,
            counted(bytes(compile_time)),
            counted(bytes(run_time)),
        )
    )


def _read_data_types(stream: PacketStream) -> None:
    if stream.byte() != MESSAGE_DATA_TYPES:
        raise ProtocolError("data types expected")
    stream.read(5)
    stream.counted(), stream.counted()
    while stream.short():
        if stream.short():
            stream.read(4)


def _read_auth(stream: PacketStream, function: int, has_token: bool) -> tuple[str, dict[str, str]]:
    if (stream.byte(), stream.byte()) != (MESSAGE_FUNCTION, function):
        raise ProtocolError(f"login call {function} expected")
    stream.byte()
    stream.token = stream.integer() if has_token else 0
    has_user = stream.byte()
    stream.skip("iib")
    count = stream.integer()
    stream.read(2)
    user = (stream.counted() or b"").decode() if has_user else ""
    pairs = {}
    for _ in range(count):
        key, value = stream.twice_counted(), stream.twice_counted()
        pairs[key.decode().rstrip("\0")] = value.decode()
        stream.integer()
    return user, pairs


def check_password(stream: PacketStream, passwords: Mapping[str, str]) -> tuple[str, str]:
    """Check the password; the client waits for ``welcome`` or an error then.

    Returns:
        The user, and the proof that ``welcome`` takes.

    Raises:
        OraError: If the user or the password is wrong.
    """
    is_fast, owed = agree_on_types(stream)
    user, _ = _read_auth(stream, AUTH_ONE, has_token=not is_fast)
    known = {name.upper(): password for name, password in passwords.items()}
    challenge = Challenge(known.get(user.upper(), secrets.token_hex()))
    pairs = challenge.pairs()
    head = bytes([MESSAGE_PARAMETER]) + unsigned(len(pairs))
    stream.reply(owed, head, *pairs, call_error(None, False))
    stream.next_data()
    user, answer = _read_auth(stream, AUTH_TWO, has_token=True)
    proof = challenge.proof(answer)
    if proof is None or user.upper() not in known:
        raise OraError(1017, "invalid credential or not authorized; logon denied")
    return user.upper(), proof


def welcome(stream: PacketStream, service: str, version: str, number: int, proof: str) -> None:
    """Tell the client that it is in."""
    facts = (
        ("AUTH_VERSION_NO", str(release_number(version))),
        ("AUTH_SESSION_ID", str(number)),
        ("AUTH_SERIAL_NUM", "1"),
        ("AUTH_MAX_OPEN_CURSORS", str(MAX_OPEN_CURSORS)),
        ("AUTH_MAX_IDEN_LENGTH", "128"),
        ("AUTH_SC_SERVICE_NAME", service),
        ("AUTH_SC_DBUNIQUE_NAME", "FREE"),
        ("AUTH_INSTANCENAME", "FREE"),
        ("AUTH_SVR_RESPONSE", proof),
    )
    head = bytes([MESSAGE_PARAMETER]) + unsigned(len(facts))
    stream.reply(head, *(pair(key, value) for key, value in facts), call_error(None, False))
