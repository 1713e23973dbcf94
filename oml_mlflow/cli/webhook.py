"""Verbs about webhooks: serve-webhook, and webhook install, test, remove."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import config_option

_name_option = click.option(
    "--name", default="oml_mlflow", show_default=True, help="Name of the webhook in MLflow."
)


@click.command(epilog="Example: oml-mlflow serve-webhook --config /etc/oml_mlflow.toml")
@click.option("--host", help="Address to listen on; 127.0.0.1 by default.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 8765 by default.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    help="Seconds between full passes, which make up for lost deliveries; 60 by default.",
)
@config_option
def serve_webhook(host: str | None, port: int | None, interval: float | None) -> None:
    """Receive MLflow's webhooks, and follow the aliases.

    Answers POST /webhook, GET /health and GET /metrics, the latter two to anybody who can reach
    it. The secret is in OML_MLFLOW_WEBHOOK_SECRET, or in a file: secret_file in [webhook].
    """
    from oml_mlflow.commands import operate
    from oml_mlflow.webhook.receiver import serve

    flags: dict[str, Any] = {"webhook.host": host, "webhook.port": port, "poll_s": interval}
    found = console.configuration(**flags)
    _log_to_stderr()
    log = logging.getLogger("oml_mlflow")
    is_finished = serve(
        found,
        operate.following(found),
        on_start=lambda address: log.info("listening on %s", address),
        prepare=operate.prepare,
    )
    if not is_finished:
        log.warning("a promotion was left to its journal; the next start finishes it")
        sys.stderr.flush()
        # threads of the promotion would be waited for
        os._exit(75)


def _log_to_stderr() -> None:
    """Log to stderr, as a service does."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logger, handler = logging.getLogger("oml_mlflow"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


@click.group()
def webhook() -> None:
    """Make, test or remove the webhook in MLflow.

    Also shows what MLflow's server needs for it.
    """


@webhook.command(epilog="Example: oml-mlflow webhook install --url http://127.0.0.1:8765/webhook")
@click.option("--url", required=True, help="Receiver, as MLflow's server reaches it.")
@_name_option
@config_option
def install(url: str, name: str) -> None:
    """Make the webhook in MLflow, or change it.

    Its secret is the receiver's.
    """
    from oml_mlflow.webhook import setup
    from oml_mlflow.webhook.signature import find_secrets

    secret = find_secrets(console.configuration().webhook.secret_file)[0]
    with _server_settings(url):
        made, is_new = setup.install(url, secret, name)
        console.out.print(
            f"webhook {made.name} {'made' if is_new else 'changed'}: {', '.join(made.events)} to "
            f"{made.url}.\nNext: oml-mlflow webhook test"
            + (f" --name {name}" if name != setup.NAME else ""),
            markup=False,
        )


@webhook.command(epilog="Example: oml-mlflow webhook test")
@_name_option
def test(name: str) -> None:
    """Have MLflow send examples, and check who answers."""
    from oml_mlflow.webhook import setup

    with _server_settings():
        found = setup.check(name)
        console.out.print(
            f"webhook {found.name} is listed, active, and our receiver answered 200 at "
            f"{found.url} to {', '.join(found.events)}.\nA test is sent even where deliveries "
            "fail after a restart of MLflow's server: see the settings.",
            markup=False,
        )


@webhook.command(epilog="Example: oml-mlflow webhook remove")
@_name_option
def remove(name: str) -> None:
    """Remove the webhook from MLflow; nothing else changes."""
    from oml_mlflow.webhook import setup

    with _server_settings():
        gone = setup.remove(name)
        shown = ", ".join(f"{w.name} to {w.url}" for w in gone) or "nothing"
        console.out.print(
            f"removed: {shown}. It may deliver for up to {setup.CACHE_TTL_S} s more.",
            markup=False,
        )


@contextmanager
def _server_settings(url: str = "") -> Iterator[None]:
    """Limit the retries of MLflow's client, and show the settings of its server."""
    from oml_mlflow.webhook import setup

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        yield
    finally:
        console.show_table(
            "Settings of MLflow's server that its API does not show",
            ("setting", "value", "why"),
            setup.server_settings(url),
        )
