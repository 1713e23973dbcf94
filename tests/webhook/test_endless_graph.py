"""Must-show M5: a version whose graph never ends, and the receiver goes on."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from daemons import Daemon, free_port
from endless_versions import log_endless
from fleets import live_versions, move, reconcile
from receiving import SECRET, alias_body, signed, wait_for
from registry_copies import Registry

from oml_mlflow import PipelinePair
from oml_mlflow.config.file import load_config
from oml_mlflow.webhook.signature import SECRET_ENV

# shorter than the default, which leaves a large model on a slow machine its time
EMBED_S, LONGEST_S = 2.0, 10.0
PROGRAM = f"""
import sys
# as where only the receiver runs; their import takes seconds
sys.modules["transformers"] = sys.modules["torch"] = None
from oml_mlflow.promotion import target
target.EMBED_TIMEOUT_S = {EMBED_S}
from oml_mlflow.cli.main import main
main()
"""
CONFIG = """\
poll_s = 3600
[targets.small]
uri = "embedded:///small"
accept = [{model = "clip"}]
[[bindings]]
model = "clip"
alias = "prod"
target = "small"
[[bindings]]
model = "clip"
alias = "second"
target = "small"
name = "SECOND"
[webhook]
unhealthy_s = 1
"""
STUCK = re.compile(r"^(\S+ \S+) .*loaded CLIP_TXT_S", re.MULTILINE)
TRIED_AGAIN = re.compile(r"^(\S+ \S+) .*promote of CLIP .* is undone", re.MULTILINE)
FOLLOWED = re.compile(r"^(\S+ \S+) .*loaded SECOND_TXT_S", re.MULTILINE)


def health(receiver: Daemon) -> tuple[int, str]:
    """Return the status of the answer, and the reason in it."""
    try:
        with urllib.request.urlopen(f"{receiver.uri}/health", timeout=5) as answer:  # noqa: S310
            return answer.status, json.load(answer)["reason"] or ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["reason"] or ""
    except OSError:
        return 0, ""


def click(receiver: Daemon, version: int) -> None:
    """Move the alias `second`, and deliver what MLflow would."""
    move(version, "second")
    body = alias_body("clip", "second")
    where = f"{receiver.uri}/webhook"
    request = urllib.request.Request(where, body, dict(signed(body)))  # noqa: S310
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        assert answer.status == 202


def seconds_between(first: re.Pattern[str], second: re.Pattern[str], log: str) -> float:
    """Return the time from the last line of one kind to the last of another."""
    begun, ended = (
        datetime.strptime(pattern.findall(log)[-1], "%Y-%m-%d %H:%M:%S,%f")
        for pattern in (first, second)
    )
    return (ended - begun).total_seconds()


def test_an_endless_graph_stops_nothing_else(
    four_versions: Registry,
    tiny_pair: PipelinePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("oml_mlflow.toml").write_text(CONFIG)
    port = free_port()
    receiver = Daemon(
        [sys.executable, "-c", PROGRAM, "serve-webhook", "--port", str(port)],
        tmp_path / "log",
        port,
        {SECRET_ENV: SECRET.reveal()},
    )
    config = load_config()
    with four_versions.copied(tmp_path):
        endless = log_endless(tiny_pair, tmp_path / "endless")
        move(1)
        move(1, "second")
        assert reconcile(config).ok
        move(endless)
        move(2, "second")
        try:
            receiver.start()
            wait_for(lambda: STUCK.search(receiver.text()), 60)
            status, reason = wait_for(lambda: found if (found := health(receiver))[1] else None)
            assert (status, reason.startswith("a pass takes")) == (503, True)
            begun = time.monotonic()
            assert receiver.stop() == 75
            assert time.monotonic() - begun < EMBED_S
            assert "model-too-slow" not in receiver.text()

            receiver.start()
            wait_for(receiver.looks, 60)
            assert seconds_between(TRIED_AGAIN, FOLLOWED, receiver.text()) < LONGEST_S
            assert health(receiver) == (200, "")
            click(receiver, 3)
            begun = time.monotonic()
            wait_for(lambda: "looked at ['clip']" in receiver.text())
            assert time.monotonic() - begun < LONGEST_S
            assert receiver.stop() == 0
        finally:
            receiver.kill()
        # noted by the second process, since the first one was stopped before that
        assert receiver.text().count("error[model-too-slow]") == 1
        assert live_versions(config) == {"small": "1"}
        assert live_versions(config, "SECOND") == {"small": "3"}
