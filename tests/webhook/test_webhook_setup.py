from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from cryptography.fernet import Fernet
from receiving import OTHER_SECRET, SECRET, wait_for
from servers import PROGRAM, Server, fetch, free_port, mlflow_server, running

from oml_mlflow.cli.main import cli
from oml_mlflow.errors import ConfigError, RegistryError, RegistryUnreachable
from oml_mlflow.webhook.receiver import EVENTS
from oml_mlflow.webhook.setup import check, install, list_webhooks, server_settings
from oml_mlflow.webhook.signature import SECRET_ENV


@pytest.fixture(scope="module")
def server(_migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server that may deliver to this machine."""
    folder = tmp_path_factory.mktemp("server")
    settings = {"MLFLOW_WEBHOOK_CACHE_TTL": "1", "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "0"}
    with mlflow_server(_migrated_database, folder, workers=1, **settings) as found:
        yield found


@pytest.fixture(scope="module")
def address(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the real `oml-mlflow serve-webhook` listens."""
    folder, port = tmp_path_factory.mktemp("receiver"), free_port()
    command = [*PROGRAM, "serve-webhook", "--port", str(port), "--interval", "3600"]
    settings = {SECRET_ENV: SECRET.reveal(), "MLFLOW_TRACKING_URI": server.uri}
    with running(command, folder / "log", **settings):
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/health"), 60)
        yield f"http://127.0.0.1:{port}/webhook"


@pytest.fixture(autouse=True)
def registry(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[mlflow.MlflowClient]:
    """Work with the server, in a folder without a configuration, without other webhooks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(SECRET_ENV, SECRET.reveal())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_registry_uri(server.uri)
    client = mlflow.MlflowClient()
    yield client
    with sqlite3.connect(server.database) as database:
        database.execute("UPDATE webhooks SET deleted_timestamp = 1")
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def run(*arguments: str) -> None:
    cli.main(list(arguments), standalone_mode=False)


def accepted(address: str) -> int:
    metrics = fetch(address.replace("/webhook", "/metrics"))
    found = re.search(r'deliveries_total\{result="accepted"\} (\d+)', metrics)
    return int(found[1]) if found else 0


def test_from_install_to_a_moved_alias(
    address: str, registry: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run("webhook", "install", "--url", address)
    shown = capsys.readouterr()
    assert f"webhook oml_mlflow made: {', '.join(EVENTS)} to {address}." in shown.out
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in shown.out
    run("webhook", "test")
    assert f"our receiver answered 200 at {address}" in capsys.readouterr().out

    registry.create_registered_model("clip")
    info = registry.create_run("0").info
    registry.create_model_version("clip", f"{info.artifact_uri}/clip", info.run_id)
    wait_for(lambda: _moves(registry, address))
    before = accepted(address)
    registry.set_registered_model_alias("clip", "prod", "1")
    registry.delete_registered_model_alias("clip", "prod")
    wait_for(lambda: accepted(address) == before + 2)

    run("webhook", "install", "--url", address)
    assert "webhook oml_mlflow changed" in capsys.readouterr().out
    assert len(list_webhooks()) == 1
    run("webhook", "remove")
    shown = capsys.readouterr()
    assert f"removed: oml_mlflow to {address}. It may deliver for up to 60 s" in shown.out
    assert list_webhooks() == []
    run("webhook", "remove")
    assert "removed: nothing" in capsys.readouterr().out
    assert SECRET.reveal() not in shown.out + shown.err


def _moves(registry: mlflow.MlflowClient, address: str) -> bool:
    """Move an alias until deliveries come: MLflow remembers which webhooks there are."""
    registry.set_registered_model_alias("clip", "other", "1")
    return accepted(address) > 0


def test_a_secret_that_the_receiver_does_not_have(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(address, OTHER_SECRET)
    with pytest.raises(RegistryError, match="answered HTTP 401") as caught:
        run("webhook", "test")
    assert "its secret is not the one" in caught.value.hint
    assert "Settings of MLflow's server" in capsys.readouterr().out
    install(address, SECRET)
    assert check().url == address


def test_what_else_answers_or_does_not(address: str, server: Server) -> None:
    for url, text in (
        (address.replace("/webhook", "/elsewhere"), "answered HTTP 404"),
        (f"{server.uri}/health?", "answered"),
        (f"http://127.0.0.1:{free_port()}/webhook", "can't deliver to"),
    ):
        install(url.rstrip("?"), SECRET, "t")
        with pytest.raises(RegistryError, match=text):
            check("t")


def test_a_webhook_that_sends_too_little(registry: mlflow.MlflowClient, address: str) -> None:
    with pytest.raises(RegistryError, match="there is no webhook") as caught:
        check("t")
    assert "webhook install" in caught.value.hint
    registry.create_webhook("t", address, [EVENTS[0]], secret=SECRET.reveal())
    with pytest.raises(RegistryError, match=rf"does not send {EVENTS[1]}"):
        check("t")
    install(address, SECRET, "t")
    registry.update_webhook(list_webhooks()[0].id, status="DISABLED")
    with pytest.raises(RegistryError, match="is disabled"):
        check("t")
    registry.create_webhook("t", address, [EVENTS[0]], secret=SECRET.reveal())
    with pytest.raises(RegistryError, match="there are 2 webhooks"):
        check("t")
    run("webhook", "remove", "--name", "t")
    assert list_webhooks() == []


def test_a_key_that_was_changed_is_named(server: Server, address: str) -> None:
    install(address, SECRET)
    with sqlite3.connect(server.database) as database:
        other = Fernet(Fernet.generate_key()).encrypt(b"x" * 20).decode()
        database.execute("UPDATE webhooks SET secret = ?", (other,))
    with pytest.raises(RegistryError, match="HTTP 500") as caught:
        check()
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in str(caught.value)


def test_urls_that_are_refused(server: Server) -> None:
    for url in ("ftp://host/webhook", "https://", "host/webhook", "https://host", "http://[::1/x"):
        with pytest.raises(ConfigError, match="is no URL of a receiver"):
            install(url, SECRET)
    for url in ("https://scott:tiger@host/webhook", "https://host/webhook?token=tiger"):
        with pytest.raises(ConfigError, match="holds a user or a query") as caught:
            install(url, SECRET)
        assert "tiger" not in str(caught.value)
    with pytest.raises(RegistryError, match="Webhook name 'a b' is invalid"):
        install("https://host/webhook", SECRET, "a b")
    assert list_webhooks() == []


def test_registries_without_webhooks(tmp_path: Path) -> None:
    mlflow.set_registry_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(RegistryError, match="is no MLflow server") as caught:
        list_webhooks()
    assert "MLFLOW_TRACKING_URI" in caught.value.hint
    mlflow.set_registry_uri(f"http://user:tiger@127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnreachable, match="does not answer") as caught:
        list_webhooks()
    assert "tiger" not in str(caught.value)


def test_settings_that_a_receiver_needs() -> None:
    near = {name: value for name, value, _ in server_settings("http://10.1.2.3/webhook")}
    far = {name: value for name, value, _ in server_settings("https://hooks.example.com/webhook")}
    assert near["MLFLOW_WEBHOOK_ALLOWED_SCHEMES"] == "http,https"
    assert near["MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"] == "true"
    assert far["MLFLOW_WEBHOOK_ALLOWED_SCHEMES"].startswith("https (default)")
    assert far["MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"].startswith("true, if")


def test_a_secret_is_asked_for_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv(SECRET_ENV)
    with pytest.raises(ConfigError, match="there is no secret"):
        run("webhook", "install", "--url", address)
    done = subprocess.run([*PROGRAM, "serve-webhook"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error[config-invalid]: there is no secret for webhooks" in done.stderr
    health = json.loads(fetch(address.replace("/webhook", "/health")))
    assert health["worker_alive"]
