"""Install, test and remove the webhook in MLflow, through its public API.

Missing deliveries are mostly due to settings of the server, which its API does not show;
`server_settings` lists them. Source: measured with MLflow 3.17.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import mlflow

from oml_mlflow.errors import ConfigError, RegistryError, RegistryRefused
from oml_mlflow.registry.answering import answering, shown_registry
from oml_mlflow.secrets import Secret
from oml_mlflow.webhook.receiver import EVENTS, PATH, TESTED

NAME = "oml_mlflow"
CACHE_TTL_S = 60
_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
_SCHEMES, _PRIVATE = "MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"
_MAKE_KEY = (
    'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
)
# enough connections at once for each of the server's processes, 4 by default, to get one
_ASKED_AT_ONCE, _PAGE = 8, 100
_TEST_HINTS = {
    401: "its secret is not the one that this webhook has: oml-mlflow webhook install, with the "
    "receiver's secret; or one of the two clocks is wrong.",
    404: f"the URL must lead to {PATH} of the receiver.",
    405: f"the URL must lead to {PATH} of the receiver.",
    503: "the receiver has too much to do, or its queue can't be written: look at its log.",
}


@dataclass(frozen=True)
class Webhook:
    """A webhook registered in MLflow.

    Attributes:
        id: MLflow's id.
        name: Its name, not necessarily unique.
        url: Address that it delivers to.
        events: Events that it delivers.
        is_active: Whether it delivers.
    """

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    is_active: bool


def install(url: str, secret: Secret, name: str = NAME) -> tuple[Webhook, bool]:
    """Create the webhook in MLflow, or update the one of that name. Writes to the registry.

    Returns:
        The webhook, and whether it is new.

    Raises:
        ConfigError: If the URL is invalid, or holds a password.
        RegistryError: If MLflow refuses it, or could not deliver.
    """
    _check_url(url)
    client = _client()
    found = [webhook for webhook in list_webhooks() if webhook.name == name]
    settings: dict[str, Any] = {
        "url": url,
        "events": list(EVENTS),
        "description": "Sends moved aliases to oml-mlflow serve-webhook.",
        "secret": secret.reveal(),
        "status": "ACTIVE",
    }
    with _asking(f"webhook {name} for {url} was not set"):
        if found:
            client.update_webhook(found[0].id, **settings)
        else:
            client.create_webhook(name, **settings)
    for written in list_webhooks():
        if written.name == name and written.url == url:
            return written, not found
    raise RegistryError(
        f"webhook {name} is not listed after it was written.", hint="oml-mlflow webhook test"
    )


def list_webhooks() -> list[Webhook]:
    """Return all webhooks; asks at once so often that every process should answer. Read-only.

    Raises:
        RegistryError: If a process of the server can't read the secrets that another wrote.
    """
    client = _client()

    def ask(_: int = 0) -> list[Any]:
        found: list[Any] = []
        page = client.list_webhooks(max_results=_PAGE)
        found += page
        while page.token:
            page = client.list_webhooks(max_results=_PAGE, page_token=page.token)
            found += page
        return found

    with _asking("webhooks can't be listed"), ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        listed, *_ = pool.map(ask, range(_ASKED_AT_ONCE))
    return [
        Webhook(
            id=w.webhook_id,
            name=w.name,
            url=w.url,
            events=tuple(f"{e.entity.value}.{e.action.value}" for e in w.events),
            is_active=w.status.is_active(),
        )
        for w in listed
    ]


def check(name: str = NAME) -> Webhook:
    """Have MLflow send examples to the receiver; return the webhook if they arrive.

    Raises:
        RegistryError: If there is no such webhook, it does not deliver what is needed, or what
            answers is not our receiver.
    """
    found = [webhook for webhook in list_webhooks() if webhook.name == name]
    again = f"oml-mlflow webhook install --url URL --name {name}"
    if not found:
        raise RegistryError(f"there is no webhook {name} in {shown_registry()}.", hint=again)
    if len(found) > 1:
        raise RegistryError(
            f"there are {len(found)} webhooks {name}: {', '.join(w.url for w in found)}.",
            hint=f"oml-mlflow webhook remove --name {name}, which removes all; then {again}",
        )
    webhook = found[0]
    missing = ", ".join(event for event in EVENTS if event not in webhook.events)
    if missing or not webhook.is_active:
        wrong = f"does not send {missing}" if missing else "is disabled"
        raise RegistryError(f"webhook {name} {wrong}.", hint=again)
    for event in EVENTS:
        with _asking(f"webhook {name} can't be tested"):
            result = _client().test_webhook(webhook.id, event)
        if result.response_status is None:
            raise RegistryError(
                f"MLflow can't deliver to {webhook.url}: {result.error_message}.",
                hint="start oml-mlflow serve-webhook where MLflow's server can reach it, and look "
                "at the server's settings.",
            )
        status, body = result.response_status, (result.response_body or "").strip()
        if status != 200 or body != TESTED:
            what = f"HTTP {status}" if status != 200 else "something else than our receiver"
            hint = _TEST_HINTS.get(status, "check what listens there; see the receiver's log.")
            raise RegistryError(f"at {webhook.url} answered {what} to {event}.", hint=hint)
    return webhook


def remove(name: str = NAME) -> list[Webhook]:
    """Remove the webhooks of a name from MLflow; return them. Writes to the registry."""
    found = [webhook for webhook in list_webhooks() if webhook.name == name]
    for webhook in found:
        with _asking(f"webhook {name} was not removed"):
            _client().delete_webhook(webhook.id)
    return found


def server_settings(url: str = "") -> list[tuple[str, str, str]]:
    """Return settings of MLflow's server that break webhooks: name, value, and why.

    Args:
        url: Address of the receiver, on which some values depend.
    """
    parts = urlsplit(url)
    schemes = "http,https" if parts.scheme == "http" else "https (default), or http,https"
    private = "true" if _is_private(parts.hostname or "") else "true, if the receiver's is private"
    return [
        (
            _KEY,
            f"a key: {_MAKE_KEY}",
            "Unset, each process makes its own: with several workers (4 by default) or after a "
            "restart nothing is delivered, and nobody is told.",
        ),
        (_SCHEMES, schemes, "Otherwise a URL with http is refused."),
        (
            _PRIVATE,
            private,
            "Otherwise addresses such as 127.0.0.1, 10.x and 192.168.x are refused.",
        ),
        (
            "certificate of the receiver",
            "of a public authority, or plain http in a private network",
            "A private authority can't be given to MLflow; deliveries are signed either way.",
        ),
        (
            "MLFLOW_WEBHOOK_CACHE_TTL",
            f"{CACHE_TTL_S} (default)",
            f"For up to {CACHE_TTL_S} s a new webhook delivers nothing, and a removed one goes on.",
        ),
        (
            "tracking URI of whoever sets aliases",
            "http(s), this server's",
            "A client that writes into the server's database directly causes no delivery; "
            "the receiver's own passes make up for that.",
        ),
    ]


def _is_private(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if is_url and (parts.username is not None or parts.query):
        raise ConfigError(
            "the webhook's URL holds a user or a query, and everybody can read it in MLflow. "
            "It was not used.",
            hint=f"take it out: deliveries are signed. Such as https://host{PATH}",
        )
    if not is_url or parts.path.strip("/") == "":
        raise ConfigError(f"{url} is no URL of a receiver.", hint=f"such as https://host{PATH}")


def _client() -> Any:
    if not mlflow.get_registry_uri().startswith(("http://", "https://")):
        raise RegistryError(
            f"the registry {shown_registry()} is no MLflow server; nothing else has webhooks.",
            hint="set MLFLOW_TRACKING_URI to http(s)://...; without a server: "
            "oml-mlflow apply --watch",
        )
    return mlflow.MlflowClient()


@contextlib.contextmanager
def _asking(failed: str) -> Iterator[None]:
    """Turn errors of MLflow's client into ours, with the next step for webhooks."""
    try:
        with answering(failed):
            yield
    except RegistryError as error:
        text = error.message
        if isinstance(error, RegistryRefused):
            error.hint = f"webhooks are for administrators of MLflow: {error.hint}"
        elif "HTTP 500" in text:
            error.hint = (
                f"most likely the server's processes can't read each other's secrets, since {_KEY} "
                "is not set, or was changed: then nothing is delivered. Set it for the server, and "
                f"restart it: {_MAKE_KEY}; if it was changed, take back the old one, or delete the "
                "rows of the table webhooks."
            )
        elif setting := _SCHEMES if "scheme" in text else _PRIVATE if "non-public" in text else "":
            error.hint = f"set {setting} for MLflow's server."
        raise
