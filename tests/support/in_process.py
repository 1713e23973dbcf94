"""The command line in this process, which spares the seconds that a process of its own imports."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest
from oracle_fixtures import PASSWORD

from oml_mlflow.cli import console
from oml_mlflow.cli.main import cli

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command; give what it wrote to stdout, and to stderr too if it was to fail."""

    def call(*arguments: object, code: int = 0) -> str:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["oml-mlflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            console.run(cli)
        signal.signal(signal.SIGTERM, before)
        said = capfd.readouterr()
        shown = said.out + said.err
        assert (caught.value.code or 0) == code, shown
        assert PASSWORD not in shown
        return shown if code else said.out

    return call
