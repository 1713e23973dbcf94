"""Raw SQL: what text of others can't do, and what none can."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pytest
from click.testing import CliRunner
from test_embedded import load_pair

from oml_mlflow import PipelinePair
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import TargetError
from oml_mlflow.targets.embedded.target import EmbeddedTarget

HOSTILE = [
    "COPY notes TO '{out}'",
    "COPY (SELECT 1) TO '{out}'",
    "PREPARE q AS COPY (SELECT 1) TO '{out}'; EXECUTE q",
    "EXPORT DATABASE '{out}'",
    "IMPORT DATABASE '{folder}'",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_json('http://127.0.0.1:9/')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT getenv('HOME')",
    "ATTACH '{out}'",
    "ATTACH '{out}' (READ_WRITE)",
    "ATTACH ':memory:' AS more",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{secret}'",
    "CREATE PERSISTENT SECRET s (TYPE http)",
    "SET enable_external_access = true",
    "PRAGMA enable_external_access = true",
    "RESET enable_external_access",
    "SET lock_configuration = false",
    "RESET lock_configuration",
    "SET python_enable_replacements = true",
    "SET temp_directory = '{folder}'",
    "SET log_query_path = '{out}'",
    "PRAGMA profiling_output = '{out}'",
    "SET access_mode = 'read_write'",
    "DROP TABLE oml.models",
    "UPDATE oml.models SET fingerprint = ''",
    "DELETE FROM oml.ledger",
    "INSERT INTO notes VALUES ('x')",
    "CREATE TABLE more AS SELECT 1",
    "CREATE SCHEMA more",
    "BEGIN; COMMIT; DROP TABLE notes",
    "SELECT * FROM frame",
]


@pytest.fixture
def target(tmp_path: Path, tiny_pair: PipelinePair) -> EmbeddedTarget:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=0.5)
    load_pair(target, tiny_pair)
    target.sql("CREATE TABLE notes AS SELECT 'a cat' AS note")
    return target


@pytest.mark.parametrize("statement", HOSTILE)
def test_untrusted_text_only_reads_the_database(
    statement: str, target: EmbeddedTarget, tmp_path: Path
) -> None:
    frame = pyarrow.table({"x": ["a variable of this process"]})
    assert frame is not None
    secret, out, before = tmp_path / "secret.csv", tmp_path / "out", listed(target)
    secret.write_text("a secret\n")
    filled = statement.format(secret=secret, out=out, folder=tmp_path)
    with pytest.raises(TargetError, match="the database refused") as err:
        target.sql(filled, untrusted=True)
    assert "a secret" not in str(err.value)
    assert not out.exists()
    assert listed(target) == before
    assert target.sql("SELECT note, len(CLIP_TXT(note)) FROM notes") == [("a cat", 16)]


def listed(target: EmbeddedTarget) -> list[str]:
    return sorted(path.name for path in target.folder.rglob("*"))


def test_untrusted_text_runs_models_over_tables(target: EmbeddedTarget) -> None:
    found = target.sql(
        "SELECT note, len(clip_txt(note)) FROM notes WHERE note = ?", ["a cat"], untrusted=True
    )
    assert found == [("a cat", 16)]
    # a whole, ordinary connection is had again at once
    target.sql("INSERT INTO notes VALUES ('a dog')")
    with target.connect(untrusted=True) as connection:
        assert connection.execute("SELECT count(*) FROM notes").fetchall() == [(2,)]
        with pytest.raises(TargetError, match="held by another thread of this process"):
            target.survey()


def test_untrusted_text_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="there is no embedded database"):
        EmbeddedTarget(tmp_path / "none").sql("SELECT 1", untrusted=True)
    assert not (tmp_path / "none").exists()


def test_a_table_is_never_a_variable_of_this_process(target: EmbeddedTarget) -> None:
    frame = pyarrow.table({"x": ["a variable of this process"]})
    with pytest.raises(TargetError, match="frame does not exist"), target.connect() as connection:
        connection._raw.execute("SELECT * FROM frame")
    assert frame is not None


def test_the_command_line_says_what_sql_may_do(target: EmbeddedTarget) -> None:
    told = CliRunner().invoke(cli, ["sql", "--help"]).output
    assert "reads and writes files" in " ".join(told.split())
    where = ["--target", target.uri, "--json", "--untrusted"]
    done = CliRunner().invoke(cli, ["sql", "SELECT note FROM notes", *where])
    assert json.loads(done.output)["rows"] == [["a cat"]]
    refused = CliRunner().invoke(cli, ["sql", f"COPY notes TO '{target.folder}/out'", *where])
    assert refused.exit_code != 0
    assert not os.path.exists(target.folder / "out")
