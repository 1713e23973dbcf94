"""Signature of MLflow's webhooks: authenticity and age of a delivery.

MLflow signs ``v1,`` + base64(HMAC-SHA256(secret, ``<delivery id>.<timestamp>.<raw body>``)).
Source: measured with MLflow 3.17; older documentation has ``sha256=<hex>`` of the body.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from oml_mlflow.errors import ConfigError, WebhookRejected
from oml_mlflow.secrets import Secret, read_secret

SECRET_ENV = "OML_MLFLOW_WEBHOOK_SECRET"  # noqa: S105
OLD_SECRET_ENV = "OML_MLFLOW_WEBHOOK_SECRET_OLD"  # noqa: S105
ID, TIMESTAMP, SIGNATURE = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"

UNSIGNED, SIGNATURE_FORM, WRONG_SIGNATURE = "unsigned", "header-form", "signature"
EXPIRED, FUTURE = "expired", "future"

_SHORTEST = 16
# no dot, which separates id and timestamp in the signed text
_FORMS = {
    ID: re.compile(rb"[A-Za-z0-9_-]{1,64}"),
    TIMESTAMP: re.compile(rb"[0-9]{1,12}"),
    SIGNATURE: re.compile(rb"v1,[A-Za-z0-9+/]{43}="),
}
_WAYS = (
    f"set {SECRET_ENV}, or name a file that only you can read with secret_file in [webhook]; make "
    "a secret with: openssl rand -base64 32"
)


def find_secrets(secret_file: Path | None = None) -> tuple[Secret, ...]:
    """Return the secret, followed by the previous one if that is still accepted.

    Args:
        secret_file: Read if the environment has none; a second line holds the previous secret.

    Raises:
        ConfigError: If there is none, it is too short, or others can read its file.
    """
    given = [os.environ.get(name, "") for name in (SECRET_ENV, OLD_SECRET_ENV)]
    if not given[0] and secret_file is not None:
        given = read_secret(secret_file, "webhook secret", _WAYS).reveal().splitlines()[:2]
    if not given[0]:
        raise ConfigError("there is no secret for webhooks. Nothing was done.", hint=f"{_WAYS}.")
    secrets = tuple(Secret(value.strip()) for value in given if value.strip())
    if not secrets or any(len(secret.reveal()) < _SHORTEST for secret in secrets):
        raise ConfigError(
            f"the secret for webhooks has fewer than {_SHORTEST} characters. Nothing was done.",
            hint=f"{_WAYS}.",
        )
    return secrets


def sign(secret: Secret, delivery_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature that MLflow gives a delivery."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    digest = hmac.new(secret.reveal().encode(), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def check_signature(
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    secrets: Sequence[Secret],
    now: float,
    window_s: float = 300.0,
) -> str:
    """Return the id of a delivery, signed recently by one of our secrets.

    Args:
        headers: Names, in lower case, and values, as received.
        body: Raw body.
        secrets: Secrets to accept.
        now: Seconds since 1970.
        window_s: How old, or how far ahead, the timestamp may be.

    Raises:
        WebhookRejected: With the reason in its details, for the log and never for the sender.
    """
    found: dict[str, bytes] = {}
    for raw, value in headers:
        name = raw.decode("latin-1")
        if name in _FORMS and (name in found or not _FORMS[name].fullmatch(value)):
            raise rejected(SIGNATURE_FORM)
        if name in _FORMS:
            found[name] = value
    if len(found) < len(_FORMS):
        raise rejected(UNSIGNED)
    delivery_id, timestamp = found[ID].decode(), found[TIMESTAMP].decode()
    # a list, not a generator: the time must not depend on which secret fits
    equal = [
        hmac.compare_digest(sign(secret, delivery_id, timestamp, body).encode(), found[SIGNATURE])
        for secret in secrets
    ]
    if not any(equal):
        raise rejected(WRONG_SIGNATURE)
    ahead_s = int(timestamp) - now
    if abs(ahead_s) > window_s:
        raise rejected(FUTURE if ahead_s > 0 else EXPIRED)
    return delivery_id


def rejected(reason: str) -> WebhookRejected:
    """Return the error for a refused delivery; the reason is one of a few fixed words."""
    return WebhookRejected(
        f"a webhook delivery was refused ({reason}). Nothing was done.",
        hint="if MLflow sent it: oml-mlflow webhook test",
        details={"reason": reason},
    )
