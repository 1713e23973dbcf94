"""Columns of vectors that a name's models fill: declared, filled and checked, in both kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import oracledb
import pytest
from drifted import promote
from oracle_fixtures import PASSWORD, running

from oml_mlflow import PipelinePair, open_target
from oml_mlflow.commands.columns import check_columns, columns, fill
from oml_mlflow.errors import GeometryChanged, TargetError
from oml_mlflow.events import Event
from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.promotion.target import Target

PICTURES = [p.value for p in golden_probes() if p.category == "png"]
ROWS = 30


class Table:
    """A table ``DOCS``: ID, BODY, V, and PICS with pictures, in a target of either kind."""

    def __init__(self, target: Target, run: Callable[..., list[tuple[Any, ...]]]) -> None:
        self.target, self.run = target, run

    def vectors(self, table: str = "DOCS") -> dict[int, np.ndarray | None]:
        """Return what is stored, by ID."""
        found = self.run(f"SELECT ID, V FROM {table}")  # noqa: S608
        return {int(k): None if v is None else np.asarray(v, np.float32) for k, v in found}


@pytest.fixture(params=["embedded", "oracle"])
def table(
    request: pytest.FixtureRequest,
    tiny_pair: PipelinePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Table]:
    dims = tiny_pair.dims
    if request.param == "embedded":
        target = open_target(f"embedded:///{tmp_path / 'database'}")
        promote(target, tiny_pair)
        target.sql(f"CREATE TABLE DOCS (ID INTEGER, BODY VARCHAR, V FLOAT[{dims}])")
        target.sql(f"CREATE TABLE PICS (ID INTEGER, BODY BLOB, V FLOAT[{dims}])")
        yield Table(target, lambda text, *values: target.sql(text, list(values)))
        return
    with running(monkeypatch) as oracle:
        target = oracle.target()
        promote(target, tiny_pair)
        dsn = target.uri.partition("@")[2]
        with oracledb.connect(user="vec", password=PASSWORD, dsn=dsn) as connection:

            def run(text: str, *values: Any) -> list[tuple[Any, ...]]:
                with connection.cursor() as cursor:
                    for number in range(len(values)):
                        text = text.replace("?", f":{number + 1}", 1)
                    cursor.execute(text, list(values))
                    connection.commit()
                    return cursor.fetchall() if cursor.description else []

            run(f"CREATE TABLE DOCS (ID NUMBER, BODY VARCHAR2(200), V VECTOR({dims}, FLOAT32))")
            run(f"CREATE TABLE PICS (ID NUMBER, BODY BLOB, V VECTOR({dims}, FLOAT32))")
            yield Table(target, run)


def declared(table: Table, name: str = "DOCS", side: str = TXT, **more: str) -> None:
    chosen = {"source": "BODY", "key": "ID", **more}
    columns("clip", table.target, add=f"{name}.V", side=side, **chosen)


def test_texts_are_filled_by_batches_and_what_cannot_be_is_told(
    table: Table, tiny_pair: PipelinePair
) -> None:
    texts = {n: f"text number {n}" for n in range(ROWS)}
    for n, text in texts.items():
        table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", n, text)
    table.run("INSERT INTO DOCS (ID) VALUES (?)", 1000)
    declared(table)
    told: list[Event] = []
    [done] = fill("clip", table.target, batch=7, on_event=told.append)
    assert (done.rows, done.left, done.failed) == (ROWS, 0, ())
    assert [event.done for event in told] == [7, 14, 21, 28, 30]
    stored = table.vectors()
    assert stored.pop(1000) is None
    wanted = tiny_pair.embedder().embed_text([texts[n] for n in sorted(stored)])
    np.testing.assert_allclose(np.stack([stored[n] for n in sorted(stored)]), wanted, atol=1e-5)
    [again] = fill("clip", table.target)
    assert (again.rows, again.left) == (0, 0)


def test_a_picture_that_cannot_be_decoded_stops_nothing(
    table: Table, tiny_pair: PipelinePair
) -> None:
    for n in range(6):
        table.run("INSERT INTO PICS (ID, BODY) VALUES (?, ?)", n, PICTURES[n % len(PICTURES)])
    table.run("INSERT INTO PICS (ID, BODY) VALUES (?, ?)", 3000, b"no picture")
    declared(table, "PICS", IMG)
    if "oracle" in table.target.uri:
        pytest.skip("there the decoder ends the server's process on such bytes")
    [done] = fill("clip", table.target, batch=4)
    assert (done.rows, done.left) == (6, 1)
    [(key, reason)] = done.failed
    assert key == 3000
    assert "can't be decoded" in reason
    stored = table.vectors("PICS")
    wanted = tiny_pair.embedder().embed_image([PICTURES[n % len(PICTURES)] for n in range(6)])
    np.testing.assert_allclose(np.stack([stored[n] for n in range(6)]), wanted, atol=1e-5)


def test_what_the_live_model_did_not_fill_is_found_and_not_mixed(table: Table) -> None:
    for n in range(ROWS):
        table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", n, f"text {n}")
    declared(table)
    fill("clip", table.target)
    [found] = check_columns("clip", table.target, rows=20, seed=3)
    assert (found.ok, found.rows, found.missing, found.sampled) == (True, ROWS, 0, 20)
    assert found.finds(0.01) == pytest.approx(1 - 0.99**20)
    copied = "UPDATE DOCS SET V = (SELECT V FROM DOCS WHERE ID = 12) WHERE ID = 11"
    table.run(copied)
    [found] = check_columns("clip", table.target, rows=ROWS)
    assert ([int(key) for key in found.differ], found.ok) == ([11], False)
    table.run(copied.replace("ID = 11", "ID <> 12"))
    table.run("UPDATE DOCS SET V = NULL WHERE ID = 20")
    with pytest.raises(GeometryChanged, match="28 of 29 rows differ"):
        fill("clip", table.target)
    assert table.vectors()[20] is None


def test_a_key_that_is_none_and_a_second_claim_are_refused(table: Table) -> None:
    for n in (1, 2, 2):
        table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", n, "a")
    with pytest.raises(TargetError, match=r"ID is no key for DOCS\.V"):
        declared(table)
    table.run("DELETE FROM DOCS WHERE ID = 2")
    table.run("INSERT INTO DOCS (BODY) VALUES (?)", "b")
    with pytest.raises(TargetError, match=r"ID is no key for DOCS\.V"):
        declared(table)
    table.run("DELETE FROM DOCS WHERE ID IS NULL")
    declared(table)
    with pytest.raises(TargetError, match=r"is registered for CLIP\. Nothing was changed"):
        columns("other", table.target, add="docs.v", source="BODY", side=TXT)
    with pytest.raises(TargetError, match="no column with a key is registered for OTHER"):
        fill("other", table.target)
    columns("ghost", table.target, add="PICS.V", source="BODY", side=IMG, key="ID")
    for verb in (fill, check_columns):
        with pytest.raises(
            TargetError, match=r"GHOST_IMG, which PICS\.V is registered for, is not"
        ):
            verb("ghost", table.target)
    declared(table, key="")
    with pytest.raises(TargetError, match="registered without a key"):
        fill("clip", table.target, column="DOCS.V")
    with pytest.raises(TargetError, match=r"DOCS\.X is not registered"):
        fill("clip", table.target, column="DOCS.X")


def test_a_fill_ends_in_time_and_goes_on(table: Table) -> None:
    for n in range(ROWS):
        table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", n, f"text {n}")
    declared(table)
    past = datetime.now().astimezone() - timedelta(seconds=1)
    [done] = fill("clip", table.target, until=past)
    assert (done.rows, done.left) == (0, ROWS)

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill("clip", table.target, batch=10, on_event=stop)
    assert sum(v is not None for v in table.vectors().values()) == 10
    [done] = fill("clip", table.target, batch=10)
    assert (done.rows, done.left) == (20, 0)


def test_rows_that_change_during_a_fill(table: Table, tiny_pair: PipelinePair) -> None:
    """At the end each row's vector is its source's, or the check names it."""
    chosen = random.Random(5)  # noqa: S311 -- the same sequences each time
    embedder = tiny_pair.embedder()
    for n in range(ROWS):
        table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", n, f"text {n}")
    declared(table)
    fresh = iter(range(100, 1000))

    def change(event: Event) -> None:
        number = chosen.randrange(ROWS)
        action = chosen.choice(("insert", "update", "clear", "delete"))
        if action == "insert":
            new = next(fresh)
            table.run("INSERT INTO DOCS (ID, BODY) VALUES (?, ?)", new, f"text {new}")
        elif action == "delete":
            table.run("DELETE FROM DOCS WHERE ID = ?", number)
        else:
            cleared = "'changed', V = NULL" if action == "clear" else "'changed'"
            table.run(f"UPDATE DOCS SET BODY = {cleared} WHERE ID = ?", number)  # noqa: S608

    fill("clip", table.target, batch=3, on_event=change)
    [done] = fill("clip", table.target) if table.vectors() else [None]
    assert done is not None
    assert done.left == 0
    [found] = check_columns("clip", table.target, rows=1000)
    named = {int(key) for key in found.differ}
    texts = {int(k): t for k, t in table.run("SELECT ID, BODY FROM DOCS")}
    for key, vector in table.vectors().items():
        right = np.abs(vector - embedder.embed_text(texts[key])[0]).max() <= 1e-4
        assert right != (key in named)
