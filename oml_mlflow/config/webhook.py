"""The section ``[webhook]`` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oml_mlflow.config.values import FILE, PORT, SECONDS, SIZE, TEXT, Values

_WEBHOOK_KINDS = {
    "host": TEXT,
    "port": PORT,
    "database": FILE,
    "secret_file": FILE,
    "window_s": SECONDS,
    "max_body_bytes": SIZE,
    "request_timeout_s": SECONDS,
    "grace_s": SECONDS,
    "unhealthy_s": SECONDS,
}


@dataclass(frozen=True)
class WebhookConfig:
    """How deliveries of MLflow's webhooks are received: the section ``[webhook]``.

    Attributes:
        host: Address to listen on; only this machine by default.
        port: Port to listen on.
        database: SQLite file of the queue; one per receiver.
        secret_file: File with the secret, readable by its owner only; a second line may hold the
            previous secret. The environment takes precedence.
        window_s: How old, or how far ahead, a delivery's timestamp may be.
        max_body_bytes: Larger deliveries are refused.
        request_timeout_s: How long the head of a request, and then its body, may take to arrive.
        grace_s: How long a promotion may go on after SIGTERM.
        unhealthy_s: How long one pass may take, and failures may last, before /health answers 503.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    database: Path = Path("oml_mlflow_webhook.db")
    secret_file: Path | None = None
    window_s: float = 300.0
    max_body_bytes: int = 65_536
    request_timeout_s: float = 10.0
    grace_s: float = 30.0
    unhealthy_s: float = 300.0


def read_webhook(table: Any, values: Values) -> WebhookConfig:
    """Return the section, with what the environment says."""
    values.demand_keys(table, "webhook", _WEBHOOK_KINDS)
    found = {
        leaf: values.pick(f"webhook.{leaf}", table, kind, getattr(WebhookConfig, leaf))
        for leaf, kind in _WEBHOOK_KINDS.items()
    }
    return WebhookConfig(**found)
