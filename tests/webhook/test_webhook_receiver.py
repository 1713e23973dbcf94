from __future__ import annotations

import json
import socket
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from receiving import (
    OTHER_SECRET,
    SECRET,
    Running,
    alias_body,
    chunked,
    head,
    read_answer,
    receiver,
    signed,
    wait_for,
)

from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config
from oml_mlflow.config.webhook import WebhookConfig
from oml_mlflow.errors import (
    ConfigError,
    ModelRefused,
    RegistryUnreachable,
    TargetLocked,
    WebhookRejected,
)
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.loop import Pass
from oml_mlflow.reconciler.status import IN_SYNC, UNREACHABLE, Change, Outcome, Status
from oml_mlflow.secrets import Secret
from oml_mlflow.webhook.metrics import Metrics
from oml_mlflow.webhook.queue import WebhookQueue
from oml_mlflow.webhook.receiver import TESTED, Receiver, serve
from oml_mlflow.webhook.signature import (
    OLD_SECRET_ENV,
    SECRET_ENV,
    check_signature,
    find_secrets,
    sign,
)
from oml_mlflow.webhook.worker import Worker, to_wait_s


def deliver(running: Running, body: bytes) -> tuple[int, bytes]:
    return running.deliver(signed(body), body)


def test_a_moved_alias_has_its_model_looked_at(tmp_path: Path) -> None:
    with receiver(tmp_path) as running:
        wait_for(lambda: running.calls() == [None])  # everything, at the start
        assert deliver(running, alias_body("clip")) == (202, b'{"status": "accepted"}')
        wait_for(lambda: running.calls()[1:] == [["clip"]])
        assert deliver(running, alias_body("größe", action="deleted"))[0] == 202
        wait_for(lambda: running.calls()[2:] == [["größe"]])
        body = alias_body("other")
        headers = signed(body)
        raw = head(headers, length=None) + chunked(body, 7)
        assert running.send([raw[i : i + 11] for i in range(0, len(raw), 11)])[0] == 202
        assert running.deliver(headers, body) == (200, b'{"status": "repeated"}')
        wait_for(lambda: running.calls()[3:] == [["other"]])


def test_what_is_not_about_aliases_is_ignored(tmp_path: Path) -> None:
    ours = {"name": "clip", "version": "1", "key": "oml.prod.state", "value": "in sync"}
    with receiver(tmp_path) as running:
        for body in (
            alias_body(entity="model_version_tag", action="set", data=ours),
            alias_body(entity="model_version", data={"name": "clip"}),
            alias_body(entity="of a later release", action="unknown", data=[]),
        ):
            assert deliver(running, body) == (200, b'{"status": "ignored"}')
        example = alias_body("example_model", "example_alias")
        assert deliver(running, example) == (200, TESTED.encode())
        wait_for(lambda: running.calls() == [None])
        assert running.metrics()["jobs"] == 0
        assert running.metrics()['deliveries_total{result="ignored"}'] == 3
        for path, method in (("/", "GET"), ("/webhook", "GET"), ("/docs", "GET"), ("/x", "POST")):
            assert running.send([head([], length=0, path=path, method=method)])[0] in (404, 405)


def test_a_delivery_that_comes_while_its_model_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    with receiver(tmp_path) as running:
        deliver(running, alias_body("clip", "a"))
        wait_for(lambda: running.calls() == [None, ["clip"]])
        for alias in ("b", "c", "d"):
            assert deliver(running, alias_body("clip", alias))[0] == 202
        (tmp_path / "gate").unlink()
        wait_for(lambda: running.metrics()["jobs"] == 0)
        assert running.calls() == [None, ["clip"], ["clip"]]


def test_a_failed_look_is_tried_again_and_shows(tmp_path: Path) -> None:
    with receiver(tmp_path) as running:
        wait_for(lambda: running.calls() == [None])
        (tmp_path / "error").write_text("registry-unreachable")
        assert deliver(running, alias_body("clip"))[0] == 202
        wait_for(lambda: running.metrics()["jobs_failing"] == 1)
        status, health = running.get("/health")
        assert (status, json.loads(health)["last_error"]) == (200, "registry-unreachable")
        (tmp_path / "error").write_text("nobody thought of this")
        wait_for(lambda: "nobody thought of this" in running.log())
        (tmp_path / "error").unlink()
        assert deliver(running, alias_body("clip", "other"))[0] == 202
        wait_for(lambda: running.metrics()["jobs"] == 0)
        health = json.loads(running.get("/health")[1])
        assert (health["status"], health["last_error"], health["failing"]) == ("ok", None, 0)
        assert running.metrics()['passes_total{result="failed"}'] >= 2


def test_a_lost_delivery_is_made_up_for(tmp_path: Path) -> None:
    with receiver(tmp_path, poll_s=0.2) as running:
        wait_for(lambda: running.calls() == [None] * 3)
        assert running.metrics()["last_success_timestamp_seconds"] == pytest.approx(
            time.time(), abs=30
        )


def test_bodies_and_heads_that_do_not_end_are_not_waited_for(tmp_path: Path) -> None:
    with receiver(tmp_path, {"request_timeout_s": 0.5}) as running:
        body = alias_body()
        assert running.send([head(signed(body), length=len(body)) + body[:20]])[0] == 408
        address = ("127.0.0.1", running.port)
        idle = [socket.create_connection(address, timeout=10) for _ in range(110)]
        for connection in idle[:50]:
            connection.sendall(b"POST /webhook HTTP/1.1\r\nX-Half: ")
        time_out = time.monotonic() + 10
        for connection in idle:
            connection.settimeout(max(0.1, time_out - time.monotonic()))
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass
            finally:
                connection.close()
        assert deliver(running, body)[0] == 202


def test_more_headers_than_anybody_needs(tmp_path: Path) -> None:
    with receiver(tmp_path) as running:
        body = alias_body()
        large = [(f"X-{i}", "x" * 200) for i in range(500)]
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(head([*large, *signed(body)], length=len(body))[:20_000])
            assert read_answer(connection)[0] == 400
        two = [*signed(body), ("Content-Length", "1")]
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(head(two, length=len(body)) + body)
            assert read_answer(connection)[0] == 400
        assert deliver(running, body)[0] == 202


def test_who_is_refused_learns_nothing_and_does_not_fill_the_log(tmp_path: Path) -> None:
    with receiver(tmp_path) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            body = alias_body()
            for headers in (signed(body, secret=OTHER_SECRET), signed(body, age_s=1000), []):
                connection.sendall(head(headers, length=len(body)) + body)
                status, answer_head, answer = read_answer(connection)
                assert (status, answer) == (401, b'{"status": "refused"}')
                assert b"server:" not in answer_head.lower()
        for _ in range(50):
            assert running.deliver(signed(body, secret=OTHER_SECRET), body)[0] == 401
        assert running.log().count("refused") == 3
        assert running.metrics()['refused_total{reason="signature"}'] == 51


def test_stopping_does_not_wait_longer_than_the_grace_period(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    with receiver(tmp_path, {"grace_s": 0.3}) as running:
        deliver(running, alias_body("clip"))
        wait_for(lambda: running.calls() == [None, ["clip"]])
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert "finished: False" in running.log()
    (tmp_path / "gate").unlink()
    with receiver(tmp_path) as running:
        wait_for(lambda: running.calls()[2:] == [None, ["clip"]])
        assert "jobs were running" in running.log()
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert "finished: True" in running.log()


def test_a_pass_that_takes_too_long_shows_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    with receiver(tmp_path, {"unhealthy_s": 0.3, "grace_s": 60}) as running:
        deliver(running, alias_body("clip"))
        wait_for(lambda: running.get("/health")[0] == 503)
        health = json.loads(running.get("/health")[1])
        assert (health["status"], health["worker_alive"]) == ("failing", True)
        assert health["reason"].startswith("a pass takes")
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert "finished: False" in running.log()
    (tmp_path / "gate").unlink()
    with receiver(tmp_path) as running:
        wait_for(lambda: running.calls()[2:] == [None, ["clip"]])
        wait_for(lambda: json.loads(running.get("/health")[1])["reason"] is None)


def test_two_secrets_while_one_replaces_the_other(tmp_path: Path) -> None:
    environment = {SECRET_ENV: OTHER_SECRET.reveal(), OLD_SECRET_ENV: SECRET.reveal()}
    with receiver(tmp_path, environment=environment) as running:
        body = alias_body()
        assert running.deliver(signed(body), body)[0] == 202
        assert running.deliver(signed(body, secret=OTHER_SECRET), body)[0] == 202
        third = Secret("a third secret that nobody was told")
        assert running.deliver(signed(body, secret=third), body)[0] == 401


def test_the_signature_is_the_one_of_mlflow() -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = alias_body("größe")
    theirs = _generate_hmac_signature(SECRET.reveal(), "id", "1795439746", body.decode())
    assert theirs == sign(SECRET, "id", "1795439746", body)


def test_the_window_is_as_wide_both_ways() -> None:
    body, delivery_id = alias_body(), str(uuid.uuid4())
    headers = [(name.lower().encode(), value.encode()) for name, value in signed(body, delivery_id)]
    at = int(dict(headers)[b"x-mlflow-timestamp"])
    for now in (at - 300, at, at + 300):
        assert check_signature(headers, body, [SECRET], now) == delivery_id
    for now, reason in ((at - 301, "future"), (at + 301, "expired")):
        with pytest.raises(WebhookRejected) as caught:
            check_signature(headers, body, [SECRET], now)
        assert caught.value.details == {"reason": reason}


def test_where_the_secret_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_ENV, raising=False)
    monkeypatch.delenv(OLD_SECRET_ENV, raising=False)
    with pytest.raises(ConfigError, match="there is no secret") as caught:
        find_secrets()
    assert SECRET_ENV in caught.value.hint
    file = tmp_path / "secret"
    file.write_text(f"{OTHER_SECRET.reveal()}\n{SECRET.reveal()}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        find_secrets(file)
    assert OTHER_SECRET.reveal() not in str(caught.value)
    file.chmod(0o600)
    assert find_secrets(file) == (OTHER_SECRET, SECRET)
    monkeypatch.setenv(SECRET_ENV, SECRET.reveal())
    assert find_secrets(file) == (SECRET,)
    monkeypatch.setenv(SECRET_ENV, "short")
    with pytest.raises(ConfigError, match="fewer than 16 characters") as caught:
        find_secrets()
    assert "short" not in str(caught.value)


def test_what_is_worth_trying_again() -> None:
    binding = Binding(model="clip", alias="prod", target="db", name="CLIP")
    change = Change(binding, "1", "r:1", 0, "")
    fine = Status("db", "CLIP", IN_SYNC, "")
    assert Pass(Diff((fine,)), (Outcome(change),)).to_retry == ""
    assert Pass(Diff((fine,)), (Outcome(change, None, ModelRefused("no")),)).to_retry == ""
    failed = Outcome(change, None, TargetLocked("held"))
    assert Pass(Diff((fine,)), (Outcome(change), failed)).to_retry == "target-locked"
    away = Status("db", "*", UNREACHABLE, "")
    assert Pass(Diff((fine, away)), ()).to_retry == "target-unreachable"
    assert [1 <= to_wait_s(0) <= 2, 150 <= to_wait_s(10) <= 300, to_wait_s(10**6) <= 300]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_says_when_nothing_gets_done(tmp_path: Path) -> None:
    raised: list[BaseException] = [RegistryUnreachable("the registry is away")]

    def reconcile(models: object) -> Pass:
        if raised:
            raise raised[0]
        return Pass(Diff((Status("db", "CLIP", IN_SYNC, ""),)))

    metrics, queue = Metrics(), WebhookQueue(tmp_path / "queue.db")
    worker = Worker(queue, reconcile, metrics, poll_s=0.02, unhealthy_s=0.2)
    answers = Receiver(WebhookConfig(), [SECRET], queue, worker, metrics)
    assert answers.health().status_code == 503  # not started
    worker.start()
    assert answers.health().status_code == 200  # not for long yet
    wait_for(lambda: answers.health().status_code == 503)
    assert json.loads(answers.health().body)["last_error"] == "registry-unreachable"
    raised.clear()
    wait_for(lambda: answers.health().status_code == 200)
    assert b'names{state="in sync"} 1' in answers.metrics().body
    raised.append(SystemExit())
    wait_for(lambda: not json.loads(answers.health().body)["worker_alive"])
    assert answers.health().status_code == 503
    assert b"worker_alive 0" in answers.metrics().body
    queue.close()
    assert answers.health().status_code == 503


def test_what_can_not_be_served_is_an_error_with_a_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_ENV, SECRET.reveal())
    ours = WebhookConfig(port=0, database=tmp_path / "queue.db")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(webhook=replace(ours, port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="can't listen on"):
            serve(config, lambda models: Pass())
    queue = WebhookQueue(tmp_path / "queue.db")
    with pytest.raises(ConfigError, match="another receiver has the queue"):
        serve(Config(webhook=ours), lambda models: Pass())
    queue.close()
