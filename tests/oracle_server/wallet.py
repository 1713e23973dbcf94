"""A throwaway wallet, so that TLS can be tested on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_wallet(folder: Path) -> ssl.SSLContext:
    """Write ``ewallet.pem`` for clients of localhost and return the server's side of it.

    Args:
        folder: Where the wallet goes; ``wallet_location`` of the driver.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    loopback = ipaddress.ip_address("127.0.0.1")
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(loopback)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    (folder / "ewallet.pem").write_bytes(public)
    server = folder / "server.pem"
    server.write_bytes(public + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server)
    return context


def write_alias(folder: Path, alias: str, port: int, service: str = "FREEPDB1") -> None:
    """Write ``tnsnames.ora`` with an alias of a server with TLS on localhost."""
    address = f"(ADDRESS=(PROTOCOL=TCPS)(HOST=localhost)(PORT={port}))"
    (folder / "tnsnames.ora").write_text(
        f"{alias}=(DESCRIPTION={address}(CONNECT_DATA=(SERVICE_NAME={service})))\n"
    )
