"""What a verb writes, wherever that goes: any encoding, a closed stdout, a full one."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oml_mlflow.cli.main import main
from oml_mlflow.cli.streams import Stream
from oml_mlflow.documents import as_json
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PROGRAM = [sys.executable, "-c", "from oml_mlflow.cli.main import main; main()"]
ODD = "SELECT '日本語 😀 …' AS word"


def verb(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a verb in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["oml-mlflow", *arguments])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # the session's own
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    EmbeddedTarget(tmp_path / "database").sql("CREATE TABLE t (a INT)")
    return f"embedded:///{tmp_path / 'database'}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16", "utf-8"])
def test_every_encoding_takes_every_text(
    place: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert verb(monkeypatch, "sql", "--target", place, ODD) == 0
    text = written.getvalue().decode(encoding)
    assert "日本語" in text or r"\u65e5\u672c\u8a9e" in text
    assert "word" in text
    assert verb(monkeypatch, "sql", "--target", place, "SELECT '日' FROM nowhere") == 1
    assert verb(monkeypatch, "sql", "--target", place, "--json", ODD) == 0
    stdout.detach()


def test_json_holds_what_json_has_no_values_for(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statement = (
        "SELECT 'NaN'::FLOAT, [1.5::FLOAT, '-inf'::FLOAT], 'a\\xFF'::BLOB, DATE '2026-01-02', "
        "1.50::DECIMAL(9, 2), MAP {'k'::BLOB: 1}, TIMESTAMP '2026-01-02 03:04:05', NULL, true"
    )
    assert verb(monkeypatch, "sql", "--target", place, "--json", statement) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["rows"] == [
        [
            *("NaN", [1.5, "-Infinity"], "Yf8=", "2026-01-02", "1.50", {"aw==": 1}),
            *("2026-01-02 03:04:05", None, True),
        ]
    ]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.decimals(),
    st.uuids(),
    st.timedeltas(),
    st.times(),
    st.complex_numbers(),
    st.sampled_from([np.float32("nan"), np.int64(5), np.ones(3, np.float32), np.bool_(True)]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.binary(), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(VALUES)
def test_any_value_becomes_json(value: Any) -> None:
    text = json.dumps(as_json(value), allow_nan=False)
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_values_keep_their_meaning() -> None:
    same = [1, "a", None, True, 1.5, [1, {"a": 2}]]
    assert as_json(same) == same
    assert as_json((math.nan, b"\0", Decimal("1.10"))) == ["NaN", "AA==", "1.10"]
    assert as_json([date(2026, 1, 2), timedelta(1)]) == ["2026-01-02", "1 day, 0:00:00"]
    assert as_json({UUID(int=0): np.float32(0.5)}) == {str(UUID(int=0)): 0.5}


class Broken(io.StringIO):
    """A stream that nothing can be written to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_stream_loses_what_cannot_be_written() -> None:
    gone, full = Stream(Broken(BrokenPipeError())), Stream(Broken(OSError(28, "No space left")))
    closed = Stream(io.StringIO())
    closed._raw.close()
    for stream in (gone, full, closed):
        assert stream.write("a word") == 6
        stream.flush()
    assert (gone.failure, full.failure) == ("", "No space left")
    assert "closed" in closed.failure


@pytest.mark.parametrize(
    ("error", "code"), [(BrokenPipeError(), 0), (OSError(28, "No space left on device"), 74)]
)
def test_what_was_done_is_done_whatever_becomes_of_stdout(
    place: str,
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert verb(monkeypatch, "sql", "--target", place, "INSERT INTO t VALUES (1)") == code
    told = capsys.readouterr().err
    assert ("error[output-failed]: what was asked for was done" in told) == bool(code)
    # an error of the verb itself is what counts
    assert verb(monkeypatch, "sql", "--target", place, "SELECT * FROM nowhere") == 1
    assert EmbeddedTarget(place.removeprefix("embedded:///")).sql("SELECT a FROM t") == [(1,)]


def test_a_page_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    from oml_mlflow.cli.console import write_page
    from oml_mlflow.errors import OutputError
    from oml_mlflow.parity.report import ParityReport

    with pytest.raises(OutputError, match=r"x\.html can't be written"):
        write_page(ParityReport("a test", []), str(tmp_path / "no" / "x.html"), "1", "dev")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_real_pipes(place: str) -> None:
    sql = [*PROGRAM, "sql", "--target", place]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*sql, "INSERT INTO t VALUES (2)"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 74
    assert b"Traceback" not in done.stderr
    # closed, all three
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *sql, "INSERT INTO t VALUES (3)"], check=False
    )
    assert closed.returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    many = [*sql, "SELECT repeat('x', 100) FROM range(5000)"]
    gone = subprocess.run(many, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (0, b"")
    folder = place.removeprefix("embedded:///")
    assert EmbeddedTarget(folder).sql("SELECT a FROM t ORDER BY a") == [(2,), (3,)]
