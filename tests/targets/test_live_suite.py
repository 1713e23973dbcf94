# ruff: noqa: T201 -- what it shows belongs in the log
"""The live suite itself: it works, cleans up after itself, and is skipped in the open."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import oracledb
import pytest
from live.options import WITHOUT_DATABASE, Place, reached
from old_runtimes import OLDEST_DRIVER
from oracle_fixtures import PASSWORD, running

ROOT = Path(__file__).parents[2]


def live_suite(*options: str, driver: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OML_MLFLOW_TEST_")}
    path = [*([str(driver)] if driver else []), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    command = [sys.executable, "-m", "pytest", "tests/live", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def check_live_suite(monkeypatch: pytest.MonkeyPatch, driver: Path | None, version: str) -> None:
    with running(monkeypatch) as oracle:
        place = ["--oracle-dsn", oracle.server.dsn, "--oracle-user", "vec"]
        done = live_suite(*place, "--oracle-grantee", "app", driver=driver)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^=+ \d+ passed[^=]*=+$", done.stdout, re.MULTILINE)
        assert "SKIPPED" not in done.stdout
        reached = f"in {oracle.uri}, version 23.26.1.0.0, by python-oracledb {version}"
        assert reached in done.stdout
        assert "what version 23.26.1.0.0 takes" in done.stdout
        assert re.search(r"emoji +must +ok", done.stdout)
        assert PASSWORD not in done.stdout + done.stderr
        assert oracle.fingerprints() == {}
        left = oracle.database.open_session("VEC").query("SELECT name FROM sys.tabs")
        assert left == []


def test_runs_with_the_oldest_driver_and_leaves_nothing(
    oldest_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_live_suite(monkeypatch, oldest_driver, OLDEST_DRIVER)


@pytest.mark.drill
def test_runs_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_live_suite(monkeypatch, None, oracledb.__version__)


def test_without_a_database_it_is_skipped_and_counted() -> None:
    done = live_suite()
    assert done.returncode == 0, done.stdout + done.stderr
    [counted] = re.findall(r"live Oracle suite: (\d+) tests skipped, no database", done.stdout)
    assert f"{counted} skipped" in done.stdout
    assert WITHOUT_DATABASE in done.stdout


def test_a_database_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    told = reached(Place("oracle://vec@127.0.0.1:1/none"))
    assert told.startswith("which can't be reached: connecting to oracle://vec@127.0.0.1:1/none")
    assert PASSWORD not in told
