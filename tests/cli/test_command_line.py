from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from in_process import Call

from oml_mlflow.cli.main import cli

PROGRAM = [sys.executable, "-c", "from oml_mlflow.cli.main import main; main()"]


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_from_a_folder_to_a_searchable_model(
    mlflow_store: Path, tiny_folder: Path, call: Call
) -> None:
    done = process("export", tiny_folder, "clip", "--output-dir", "pairs")
    assert "verify model references: 39 probes" in done.stderr
    files = ["pairs/clip_img.onnx", "pairs/clip_txt.onnx"]
    done = process("log", *files, "--register", "clip", "--alias", "prod", "--source", tiny_folder)
    assert "alias prod is models:/clip/1" in done.stdout

    target = ("--target", "embedded:///database")
    promoted = json.loads(process("promote", "models:/clip@prod", *target, "--json").stdout)
    assert (promoted["format_version"], promoted["changed"]) == (1, True)
    assert promoted["generation"] == 1
    again = call("promote", "models:/clip@prod", *target)
    assert "was already clip version 1 (generation 1)" in again.stdout

    traces = json.loads(call("verify", "clip", *files, "--bytes", *target, "--json").stdout)
    assert traces["equal"]
    assert len(traces["bytes"]) == 6
    assert len({trace["sha256"] for trace in traces["bytes"]}) == 2

    verified = json.loads(call("verify", "clip", *target, "--json").stdout)
    assert verified["ok"]
    assert len(verified["probes"]) == 35  # 24 golden ones, 11 of the model
    listed = json.loads(call("models", *target, "--json").stdout)
    assert [model["name"] for model in listed["models"]] == ["CLIP_IMG", "CLIP_TXT"]
    assert "generation" in call("models", *target).stdout
    found = json.loads(call("sql", "SELECT len(clip_txt('a cat')) AS n", *target, "--json").stdout)
    assert found["rows"] == [[16]]


def test_differing_bytes_exit_3(mlflow_store: Path, tiny_folder: Path, call: Call) -> None:
    call("export", tiny_folder, "clip", "--no-validate")
    call("log", "clip_img.onnx", "clip_txt.onnx", "--register", "clip")
    call("promote", "models:/clip/1")
    with Path("clip_img.onnx").open("ab") as file:
        file.write(b"\0")
    done = call("verify", "clip", "clip_img.onnx", "--bytes", code=3)
    assert "DIFFERS" in done.stdout
    stored = max(Path("database/models").glob("*.onnx"), key=lambda p: p.stat().st_size)
    stored.write_bytes(stored.read_bytes()[:-1])
    assert "was altered: its file" in call("verify", "clip", code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("promote",), 64, "Missing argument"),
        (("no-such-verb",), 64, "No such command"),
        (("log", "a.onnx", "b.onnx"), 64, "does not exist"),
        (("promote", "clip"), 1, "error[registry-lookup-failed]"),
        (("models", "--target", "mysql://scott:tiger@db"), 1, "error[config-invalid]"),
        (("models", "--target", "embedded:///none"), 1, "error[target-failed]"),
        (("history", "nobody", "--target", "embedded:///none"), 1, "error[target-failed]"),
        (("export", "no-such-folder", "clip"), 1, "error[source-unavailable]"),
        (("export", ".", "1clip"), 1, "error[name-invalid]"),
    ],
)
def test_errors_have_codes_next_steps_and_no_secrets(
    mlflow_store: Path, call: Call, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = call(*arguments, code=code)
    assert message in done.stderr
    assert done.stdout == ""
    assert "tiger" not in done.stderr
    if code == 1:
        assert "Next: " in done.stderr


def test_wrong_sql_is_an_error_not_a_traceback(mlflow_store: Path, call: Call) -> None:
    done = call("sql", "SELECT no_such_function()", code=1)
    assert "no_such_function" in done.stderr


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")


def test_help_is_light_and_complete() -> None:
    script = (
        "import sys\n"
        "from oml_mlflow.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'mlflow', 'torch', 'transformers', 'onnx', 'onnxruntime', 'duckdb', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [f"{title}:" in done.stdout for title in ("Build", "Promote", "Data", "Look", "Serve")]
    for name, command in commands(cli):
        assert name.split()[0] in done.stdout
        assert command.help
        # the first line is what `--help` lists: whole
        assert command.help.splitlines()[0].endswith(".")
        assert "..." not in command.get_short_help_str(limit=62)
        assert (command.epilog or "").startswith("Example: oml-mlflow ") != hasattr(
            command, "commands"
        )
        assert all(option.help for option in command.params if isinstance(option, click.Option))
