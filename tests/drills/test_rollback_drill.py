# ruff: noqa: T201 -- the figures belong in the log
"""Rollback beside a running receiver: whoever of the two moves a target, the command ends well."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import RECEIVER, Daemon, free_port
from fleets import live_versions, move
from oracle_fixtures import Oracle
from receiving import SECRET, wait_for
from registry_copies import Registry
from servers import PROGRAM

from oml_mlflow.config.file import load_config
from oml_mlflow.webhook.signature import SECRET_ENV

# a round takes half a minute
SHORT, LONG = 1, 50
FILE = """
# as eager as deliveries could make it
poll_s = 0.1
[targets.small]
uri = "{small}"
accept = [{{ model = "*" }}]
[targets.big]
uri = "{big}"
accept = [{{ model = "*" }}]
[[bindings]]
model = "clip"
alias = "prod"
targets = ["small", "big"]
[webhook]
port = {port}
"""


@pytest.fixture
def receiver(
    four_versions: Registry, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemon]:
    """A receiver whose two targets have version 1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SECRET_ENV, SECRET.reveal())
    port = free_port()
    text = FILE.format(small=f"embedded:///{tmp_path / 'small'}", big=oracle.uri, port=port)
    Path("oml_mlflow.toml").write_text(text, encoding="utf-8")
    with four_versions.copied(tmp_path):
        move(1)
        daemon = Daemon(RECEIVER, tmp_path / "receiver.log", port)
        daemon.start()
        try:
            wait_for(lambda: followed("1"), 120)
            yield daemon
        finally:
            daemon.stop()


def followed(version: str) -> bool:
    return set(live_versions(load_config()).values()) == {version}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("rounds", [SHORT, pytest.param(LONG, marks=pytest.mark.drill)])
def test_rollbacks_beside_a_receiver(rounds: int, receiver: Daemon) -> None:
    by: Counter[str] = Counter()
    for _ in range(rounds):
        move(2)
        wait_for(lambda: followed("2"), 120)
        target = ("small", "big")[by.total() % 2]
        done = run("rollback", "clip", "--target", target)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("clip@prod goes from 2 to 1; with it go CLIP on big, ")
        assert "FAIL" not in done.stdout
        assert followed("1")
        ledger = json.loads(run("history", "clip", "--target", target, "--json").stdout)["ledger"]
        assert (ledger[-1]["action"], ledger[-1]["restores"]) == ("rollback", 1)
        by["the command" if "OK    CLIP on" in done.stdout else "the receiver"] += 1
    print(f"{rounds} rollbacks beside a receiver, {rounds} exit codes 0; changed by {dict(by)}")
    told = [line for line in receiver.lines() if " WARNING " in line or " ERROR " in line]
    assert not told, told
