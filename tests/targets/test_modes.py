"""What holds names or states is its owner's only; what may hold a password is not repeated."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_embedded import load_pair

from oml_mlflow import PipelinePair, connect, open_target
from oml_mlflow.cli.main import main
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import ConfigError
from oml_mlflow.promotion.options import Options
from oml_mlflow.reconciler.diff import Diff
from oml_mlflow.reconciler.plan_file import write_plan
from oml_mlflow.targets.embedded.database import make_file
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.webhook.queue import Delivery, WebhookQueue


@pytest.fixture(params=[0o000, 0o022], ids=["umask 000", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the mode of every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}


def write_queue(path: Path) -> WebhookQueue:
    queue = WebhookQueue(path)
    queue.accept(Delivery("1", "model_version_alias.created", "clip", "prod"))
    return queue


@pytest.mark.usefixtures("_umask")
def test_an_embedded_database_is_its_owners(tmp_path: Path, tiny_pair: PipelinePair) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    for target in (EmbeddedTarget(folder), EmbeddedTarget(tmp_path / "new")):
        load_pair(target, tiny_pair)
        with target.connect() as connection:
            connection.execute("CREATE TABLE notes AS SELECT 'a name' AS note")
            found = modes(target.folder)
            assert found.keys() > {"catalog.duckdb", "catalog.duckdb.wal"}
            assert set(found.values()) == {0o600}, found
        assert set(modes(target.folder).values()) == {0o600}
        assert "catalog.duckdb.wal" not in modes(target.folder)
        assert stat.S_IMODE((target.folder / "models").stat().st_mode) == 0o700
        target.sql("SELECT 1")
        assert "catalog.duckdb.wal" not in modes(target.folder)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.usefixtures("_umask")
def test_the_queue_and_a_plan_are_their_owners(tmp_path: Path) -> None:
    queue = write_queue(tmp_path / "queue.db")
    write_plan(tmp_path / "plan", Diff(()), Options(), "", ())
    found = modes(tmp_path)
    queue.close()
    assert found.keys() >= {"queue.db", "queue.db-wal", "plan"}
    assert set(found.values()) == {0o600}, found


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o600), (0o666, 0o660), (0o664, 0o660), (0o660, 0o660)]
)
def test_others_are_shut_out_of_what_an_old_release_made(
    before: int, after: int, tmp_path: Path, tiny_pair: PipelinePair
) -> None:
    target = EmbeddedTarget(tmp_path / "database")
    load_pair(target, tiny_pair)
    write_queue(tmp_path / "queue.db").close()
    write_plan(tmp_path / "plan", Diff(()), Options(), "", ())
    paths = [target.folder / "catalog.duckdb", tmp_path / "queue.db", tmp_path / "plan"]
    for path in paths:
        path.chmod(before)
    target.sql("SELECT 1")
    write_queue(tmp_path / "queue.db").close()
    write_plan(tmp_path / "plan", Diff(()), Options(), "", ())
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [after] * 3


def test_shutting_others_out_keeps_the_locks(tmp_path: Path, tiny_pair: PipelinePair) -> None:
    """To close a file that this process has open would let another process in."""
    target = EmbeddedTarget(tmp_path / "database")
    load_pair(target, tiny_pair)
    other = f"import duckdb; duckdb.connect({str(target.folder / 'catalog.duckdb')!r})"
    with target.connect():
        make_file(target.folder / "catalog.duckdb")
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, check=False)
    assert b"Conflicting lock" in done.stderr


def test_a_plan_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        write_plan(tmp_path / "none" / "plan", Diff(()), Options(), "", ())


def test_an_unusable_queue_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be used as a queue"):
        WebhookQueue(tmp_path / "none" / "queue.db")
    assert sqlite3.sqlite_version


SECRET = "t1ger"  # noqa: S105
GIVEN = [
    f"scott/{SECRET}@host",
    f"scott/{SECRET}@tns",
    f"scott/{SECRET}@ss@host:1521/svc",
    f"scott:{SECRET}@host",
    f"scott/{SECRET}",
    f"oracle://scott:{SECRET}@host/svc",
    f"oracle://scott/{SECRET}@host/svc",
    f"oracle://scott%2F{SECRET}@host/svc",
    f"oracle://scott%3A{SECRET}@host/svc",
    f"oracle://scott@{SECRET}@host/svc",
    f"oracle://scott/{SECRET}",
    f"oracle://scott:{SECRET}",
    f"oracle://scott:a?{SECRET}@host/svc",
    f"oracle://scott:a?{SECRET}=b@host/svc",
    f"oracle://scott@host/svc?password={SECRET}",
    f"oracle:scott/{SECRET}@host",
    f"jdbc:oracle:thin:scott/{SECRET}@host:1521:svc",
    f"jdbc:oracle:thin:scott/{SECRET}@//host:1521/svc",
    f"embedded://scott/{SECRET}",
    f"embedded:///scott:{SECRET}@host",
]


def told(error: BaseException) -> str:
    """Return all that an error says, with what led to it."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


@pytest.mark.parametrize("given", GIVEN)
def test_a_target_that_may_hold_a_password_is_not_repeated(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "oml.toml"
    quoted = json.dumps(given)
    ways = [
        lambda: open_target(given),
        lambda: connect(target=given),
        lambda: load_config(flags={"target": given}),
        lambda: load_config(environ={"OML_MLFLOW_TARGET": given}),
        lambda: open_target(Config().choose(given).uri),
    ]
    documents = [
        f"target = {quoted}",
        f"[targets.db]\nuri = {quoted}",
        f"[targets.{quoted}]\nuri = 'embedded:///x'",
        f"[targets.db]\nuri = 'embedded:///x'\nafter = [{quoted}]",
        f"[[bindings]]\nmodel = 'clip'\nalias = 'prod'\ntarget = {quoted}",
    ]
    for document in documents:
        ways.append(lambda document=document: (file.write_text(document), load_config(file)))
    for way in ways:
        with pytest.raises(ConfigError) as err:
            way()
        # what led to it shows this file's own lines, which hold no value
        assert SECRET not in told(err.value)


@pytest.mark.parametrize("verb", ["status", "models", "promote", "sql", "pin", "rollback"])
@pytest.mark.parametrize("given", [GIVEN[0], GIVEN[2], GIVEN[11]])
def test_the_command_line_repeats_none(
    verb: str,
    given: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oml_mlflow.toml").write_text("[targets.dev]\nuri = 'embedded:///x'\n")
    subject = {"promote": ["models:/clip/1"], "sql": ["SELECT 1"], "pin": ["c"], "rollback": ["c"]}
    monkeypatch.setattr(
        sys, "argv", ["oml-mlflow", verb, *subject.get(verb, []), "--target", given]
    )
    with pytest.raises(SystemExit) as err:
        main()
    assert err.value.code == 1
    said = "".join(capsys.readouterr())
    assert "target" in said
    assert SECRET not in said


def test_a_plain_name_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no target 'prodd'"):
        Config().choose("prodd")
