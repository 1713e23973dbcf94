"""The command line in this process, which spares the seconds that a process of its own imports."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
from oracle_fixtures import PASSWORD

from oml_mlflow.cli import console
from oml_mlflow.cli.main import cli

Call, Run = Callable[..., CompletedProcess[str]], Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command, which must end with a code; give both of its streams."""

    def call(*arguments: object, code: int = 0) -> CompletedProcess[str]:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["oml-mlflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            console.run(cli)
        signal.signal(signal.SIGTERM, before)
        said = capfd.readouterr()
        assert (caught.value.code or 0) == code, said.out + said.err
        assert PASSWORD not in said.out + said.err
        assert "Traceback" not in said.err
        return CompletedProcess(arguments, code, said.out, said.err)

    return call


@pytest.fixture
def run(call: Call) -> Run:
    """Run a command; give what it wrote to stdout, and to stderr too if it was to fail."""

    def run(*arguments: object, code: int = 0) -> str:
        done = call(*arguments, code=code)
        return done.stdout + done.stderr if code else done.stdout

    return run
