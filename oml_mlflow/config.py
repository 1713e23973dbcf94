"""Configuration: targets and bindings, from flags, the environment, and `oml_mlflow.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oml_mlflow.bindings import Acceptance, Binding

REPORT, HEAL = "report", "heal"
DEFAULT_TARGET = "embedded:///database"


@dataclass(frozen=True)
class TargetConfig:
    """A named target, as its owner declares it.

    Attributes:
        name: What bindings call it.
        uri: See `open_target`; never with a password.
        accept: What may be live there; nothing by default.
        allow_tag_bindings: Whether tags of registered models may bind it, inside `accept`.
        after: Targets that must be in sync with a version, and verified, before it takes that one.
        drift: What is done about models that were changed behind our back: ``report`` or ``heal``.
        paused: Whether nothing is done here for now.
        timeout_s: How long to wait for the database.
    """

    name: str
    uri: str
    accept: tuple[Acceptance, ...] = ()
    allow_tag_bindings: bool = False
    after: tuple[str, ...] = ()
    drift: str = REPORT
    paused: bool = False
    timeout_s: float = 30.0


@dataclass(frozen=True)
class WebhookConfig:
    """How deliveries of MLflow's webhooks are received: the section ``[webhook]``.

    Attributes:
        host: Address to listen on; only this machine by default.
        port: Port to listen on.
        database: SQLite file of the queue; one per receiver.
        secret_file: File with the secret, readable by its owner only; a second line may hold the
            one before. The environment comes first.
        window_s: How old, or how far ahead, a delivery's timestamp may be.
        max_body_bytes: Larger deliveries are refused.
        request_timeout_s: How long a request may take to arrive.
        grace_s: How long a promotion may go on after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    database: Path = Path("oml_mlflow_webhook.db")
    secret_file: Path | None = None
    window_s: float = 300.0
    max_body_bytes: int = 65_536
    request_timeout_s: float = 10.0
    grace_s: float = 30.0


@dataclass(frozen=True)
class Config:
    """Everything that can be configured.

    Attributes:
        targets: Named targets.
        bindings: Bindings of the file.
        target: Target of verbs that are about one database: a name in `targets`, or a URI.
        path: The file that was read; None if there is none.
        concurrency: How many targets are changed at once.
        poll_s: How often a reconciler looks by itself.
        webhook: How deliveries are received.
    """

    targets: Mapping[str, TargetConfig] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    target: str = DEFAULT_TARGET
    path: Path | None = None
    concurrency: int = 4
    poll_s: float = 60.0
    webhook: WebhookConfig = field(default_factory=WebhookConfig)
