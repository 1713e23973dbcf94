"""columns, fill and verify --columns on the command line."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from drifted import promote
from in_process import Call

from oml_mlflow import PipelinePair
from oml_mlflow.cli.data import _next
from oml_mlflow.targets.embedded.target import EmbeddedTarget


@pytest.fixture
def target(tiny_pair: PipelinePair, tmp_path: Path) -> EmbeddedTarget:
    found = EmbeddedTarget(tmp_path / "database")
    promote(found, tiny_pair)
    found.sql(f"CREATE TABLE docs (id INTEGER, picture BLOB, v FLOAT[{tiny_pair.dims}])")
    found.sql("CREATE TABLE texts (id VARCHAR, body VARCHAR, v FLOAT[16])")
    found.sql("INSERT INTO texts (id, body) SELECT 'k' || i, 'text ' || i FROM range(40) t(i)")
    return found


def test_filled_and_verified(target: EmbeddedTarget, call: Call) -> None:
    where = ["--target", target.uri]
    add = ["columns", "clip", *where, "--add", "texts.v", "--source", "body", "--side", "txt"]
    assert "texts.v" in call(*add, "--key", "id").stdout
    said = call("fill", "clip", *where, "--batch", "16", "--pause", "0.01")
    assert "texts.v: 40 rows filled, 0 are left." in said.stdout
    assert "fill texts.v: 40 rows" in said.stderr
    said = call("verify", "clip", *where, "--columns", "--rows", "30", "--seed", "7")
    assert "seed 7" in said.stdout
    assert "26%" in said.stdout
    target.sql("UPDATE texts SET body = 'another' WHERE id = 'k5'")
    found = json.loads(
        call("verify", "clip", *where, "--columns", "--rows", "99", "--json", code=3).stdout
    )
    [column] = found["columns"]
    assert (column["sampled"], column["differ"], column["missing"]) == (40, ["k5"], 0)
    said = call("verify", "clip", *where, "--columns", "--rows", "99", code=3)
    assert "39 of 40 sampled rows are the live model's, 1 changed since they were" in said.stdout


def test_rows_that_cannot_be_embedded_are_named(target: EmbeddedTarget, call: Call) -> None:
    where = ["--target", target.uri]
    target.sql("INSERT INTO docs (id, picture) VALUES (7, 'no picture'::BLOB)")
    call(
        "columns",
        "clip",
        *where,
        "--add",
        "docs.v",
        "--source",
        "picture",
        "--side",
        "img",
        "--key",
        "id",
    )
    said = call("fill", "clip", *where, "--column", "docs.v")
    assert "not embedded: id 7: CLIP_IMG: a picture: 10 bytes can't be decoded" in said.stderr
    assert "docs.v: 0 rows filled, 1 are left." in said.stdout
    found = json.loads(call("fill", "clip", *where, "--json").stdout)
    [column] = found["columns"]
    assert [row["key"] for row in column["failed"]] == ["7"]
    for n in range(20):
        target.sql("INSERT INTO docs (id, picture) VALUES (?, 'none'::BLOB)", [n + 100])
    said = call("fill", "clip", *where, "--column", "docs.v", code=1)
    assert "none of 21 rows of docs.v could be embedded" in said.stderr


def test_until_is_the_next_time_that_the_clock_shows_so() -> None:
    now = datetime.now().astimezone()
    for hours in (1, 23):
        then = _next(now + timedelta(hours=hours))
        assert now < then <= now + timedelta(days=1)
        assert (then.hour, then.minute) == ((now + timedelta(hours=hours)).hour, now.minute)
