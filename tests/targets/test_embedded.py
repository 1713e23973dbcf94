from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import numpy as np
import pytest

from oml_mlflow import PipelinePair, open_target
from oml_mlflow.errors import ConfigError, PlanStale, TargetError, TargetLocked
from oml_mlflow.files import fingerprint_file
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.planning.records import LedgerEntry, LoadedModel, Work
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PICTURES = [probe.value for probe in golden_probes() if probe.side == "img"]


def load_pair(target: EmbeddedTarget, pair: PipelinePair, generation: int = 1) -> None:
    """Load a pair and make it live, without a registry."""
    with target.session("a test") as session:
        for side in ("img", "txt"):
            model = LoadedModel(
                f"CLIP_{side.upper()}_S{generation}",
                side,
                pair.fingerprints[side],
                pair.dims,
                pair.path(side).stat().st_size,
                {"note": "ü", "registered_model": "clip", "version": "1"},
                datetime.now(timezone.utc),
            )
            session.models.load(model, pair.path(side))
        work = work_to(generation, pair)
        session.journal.begin(work)
        session.journal.swap(work)
        session.journal.end(work)


def work_to(generation: int, pair: PipelinePair) -> Work:
    names = {side: f"CLIP_{side.upper()}" for side in ("img", "txt")}
    entry = LedgerEntry("CLIP", generation, "clip", "1", "", pair.fingerprints, pair.dims)
    incoming = {side: f"{name}_S{generation}" for side, name in names.items()}
    outgoing = {side: f"{name}_S{generation - 1}" for side, name in names.items()}
    return Work(
        entry, generation - 1, incoming=incoming, outgoing=outgoing if generation > 1 else {}
    )


@pytest.fixture
def target(tmp_path: Path, tiny_pair: PipelinePair) -> EmbeddedTarget:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=0.5)
    load_pair(target, tiny_pair)
    return target


def test_sql_embeds_columns_in_order_and_null_for_null(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    target.sql("CREATE TABLE pictures (id INTEGER, picture BLOB, embedding FLOAT[16])")
    with target.connect() as connection:
        rows = [(i, picture) for i, picture in enumerate([*PICTURES, None])]
        connection.executemany("INSERT INTO pictures (id, picture) VALUES (?, ?)", rows)
        connection.execute("UPDATE pictures SET embedding = CLIP_IMG(picture)")
    stored = target.sql("SELECT embedding FROM pictures ORDER BY id")
    assert stored[-1] == (None,)
    vectors = np.array([row[0] for row in stored[:-1]], np.float32)
    np.testing.assert_array_equal(vectors, tiny_pair.embedder().embed_image(PICTURES))


def test_sql_orders_by_cosine_distance(target: EmbeddedTarget, tiny_pair: PipelinePair) -> None:
    texts = ["a cat", "a dog on a beach", "the harbour at night", "coffee"]
    target.sql("CREATE TABLE notes AS SELECT unnest(?) AS note", [texts])
    found = target.sql(
        "SELECT note FROM notes ORDER BY array_cosine_distance(clip_txt(note), clip_txt(?))",
        ["a cat"],
    )
    vectors = tiny_pair.embedder().embed_text(texts)
    order = np.argsort(-(vectors @ vectors[0]), kind="stable")
    assert [row[0] for row in found] == [texts[i] for i in order]


def test_opening_the_folder_again_finds_models_and_tables(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    target.sql("CREATE TABLE notes AS SELECT 'kept' AS note")
    again = open_target(f"embedded:///{target.folder}")
    assert again.sql("SELECT note FROM notes") == [("kept",)]
    assert again.sql("SELECT len(CLIP_TXT('a cat'))") == [(tiny_pair.dims,)]
    with again.session("a test") as session:
        models = {model.name: model for model in session.models.list()}
    assert set(models) == {"CLIP_IMG", "CLIP_TXT"}
    assert models["CLIP_IMG"].metadata["note"] == "ü"
    assert models["CLIP_IMG"].size_bytes == tiny_pair.img.stat().st_size


def test_bytes_are_stored_whole_under_their_fingerprint(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    stored = sorted((target.folder / "models").iterdir())
    assert [path.stem for path in stored] == sorted(tiny_pair.fingerprints.values())
    assert [fingerprint_file(path) for path in stored] == [path.stem for path in stored]


def test_wrong_bytes_are_not_loaded(target: EmbeddedTarget, tiny_pair: PipelinePair) -> None:
    model = LoadedModel("CLIP_IMG_S9", "img", "0" * 64, 16, 1, {}, datetime.now(timezone.utc))
    with (
        target.session("a test") as session,
        pytest.raises(TargetError, match=r"wanted 000000000000…\. Nothing was loaded"),
    ):
        session.models.load(model, tiny_pair.img)
    with target.session("a test") as session:
        assert {m.name for m in session.models.list()} == {"CLIP_IMG", "CLIP_TXT"}
    assert len(list((target.folder / "models").iterdir())) == 2


def test_a_bad_picture_names_itself_and_changes_nothing(target: EmbeddedTarget) -> None:
    target.sql("CREATE TABLE pictures (picture BLOB, embedding FLOAT[16])")
    target.sql("INSERT INTO pictures (picture) VALUES (?), ('rubbish'::BLOB)", [PICTURES[0]])
    with pytest.raises(TargetError, match="7 bytes can't be decoded"):
        target.sql("UPDATE pictures SET embedding = clip_img(picture)")
    assert target.sql("SELECT count(*), count(embedding) FROM pictures") == [(2, 0)]


def test_the_database_is_held_only_for_a_statement(target: EmbeddedTarget) -> None:
    target.sql("SELECT 1")
    script = f"import duckdb; duckdb.connect({str(target.folder / 'catalog.duckdb')!r}).close()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_second_process_waits_then_names_the_holder(target: EmbeddedTarget) -> None:
    script = (
        "import duckdb, sys\n"
        f"held = duckdb.connect({str(target.folder / 'catalog.duckdb')!r})\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TargetLocked, match=rf"\(PID {holder.pid}\)") as err:
            target.sql("SELECT 1")
        assert err.value.exit_code == 75
        assert err.value.retryable
        waiting = EmbeddedTarget(target.folder, timeout_s=60)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert waiting.sql("SELECT 1") == [(1,)]


def test_a_live_model_is_never_dropped(target: EmbeddedTarget) -> None:
    with (
        target.session("a test") as session,
        pytest.raises(TargetError, match="no drop of it was begun"),
    ):
        session.models.drop(["CLIP_IMG"])


def test_swap_without_slots_leaves_the_live_pair(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    work = work_to(2, tiny_pair)
    with target.session("a test") as session:
        session.journal.begin(work)
        with pytest.raises(TargetError, match="CLIP_IMG_S2 is not loaded"):
            session.journal.swap(work)


def test_only_one_who_knows_what_is_live_may_begin(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    with target.session("a test") as session:
        with pytest.raises(PlanStale, match="generation 4 was to be followed, but 1 is live"):
            session.journal.begin(work_to(5, tiny_pair))
        session.journal.begin(work_to(2, tiny_pair))
        with pytest.raises(PlanStale, match="phase loading"):
            session.journal.begin(work_to(2, tiny_pair))


def test_a_swap_that_stopped_leaves_the_live_pair(
    target: EmbeddedTarget, tiny_pair: PipelinePair
) -> None:
    with target.session("a test") as session:
        session.journal.begin(work_to(2, tiny_pair))
    assert target.sql("SELECT len(CLIP_IMG(?))", [PICTURES[0]]) == [(16,)]
    with target.session("a test") as session:
        assert [e.generation for e in session.journal.ledger()] == [1]


def test_a_reader_makes_no_database(tmp_path: Path) -> None:
    target = EmbeddedTarget(tmp_path / "nothing")
    with (
        pytest.raises(TargetError, match="there is no embedded database"),
        target.session("status", create=False),
    ):
        pass
    assert not target.folder.exists()


@pytest.mark.parametrize("uri", ["embedded://folder", "embedded:///", "embedded:///a?b=c"])
def test_bad_uris_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of an embedded target"):
        open_target(uri)


def test_a_secret_in_a_uri_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as err:
        open_target("oracle://scott:tiger@db/pdb")
    assert "tiger" not in str(err.value)
    with pytest.raises(ConfigError) as err:
        open_target("embedded:///scott:tiger@db")
    assert "tiger" not in str(err.value)


def test_interpreter_exits_quietly(target: EmbeddedTarget) -> None:
    script = (
        "from oml_mlflow import open_target\n"
        f"target = open_target('embedded:///{target.folder}')\n"
        "print(target.sql(\"SELECT len(CLIP_TXT('a cat'))\"))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[(16,)]\n"
    assert done.stderr == ""


def beneath(target: EmbeddedTarget, statement: str) -> None:
    """Run a statement as any program that knows DuckDB can."""
    raw = duckdb.connect(str(target.folder / "catalog.duckdb"))
    raw.execute(statement)
    raw.close()


MACROS = (
    "CREATE MACRO clip_txt(x) AS lower(x)",
    "CREATE OR REPLACE FUNCTION Clip_Txt(a, b) AS a + b",
    "BEGIN; CREATE MACRO clip_img(x) AS NULL; COMMIT",
)


@pytest.mark.parametrize("statement", MACROS)
def test_a_macro_that_would_hide_a_model_is_dropped_again(
    target: EmbeddedTarget, statement: str
) -> None:
    with pytest.raises(TargetError, match=r"hides model CLIP_.*It was dropped again"):
        target.sql(statement)
    assert target.sql("SELECT len(CLIP_TXT('a')), len(CLIP_IMG(?))", [PICTURES[0]]) == [(16, 16)]
    target.sql("CREATE MACRO clip_lower(x) AS lower(x)")
    assert target.sql("SELECT clip_lower('A')") == [("a",)]


def test_a_macro_from_elsewhere_is_named_with_what_drops_it(target: EmbeddedTarget) -> None:
    beneath(target, MACROS[0])
    for statement in ("SELECT 1", "SELECT CLIP_TXT('a')", "SELECT 1; DROP MACRO clip_txt"):
        with pytest.raises(TargetError, match="macro clip_txt hides model CLIP_TXT") as caught:
            target.sql(statement)
    for untrusted in (False, True):
        with pytest.raises(TargetError, match="Nothing was changed"):
            target.sql("SELECT 1", untrusted=untrusted)
    with pytest.raises(TargetError, match="macro clip_txt"), target.session("a test") as session:
        session.models.list()
    assert "DROP MACRO" in caught.value.hint
    target.sql(caught.value.hint.split("'")[1])
    assert target.sql("SELECT len(CLIP_TXT('a'))") == [(16,)]


@pytest.mark.parametrize("name", ["clip_img", "CLIP_TXT", "clip_img_s1"])
def test_a_macro_that_was_there_first_stops_a_promotion(
    tmp_path: Path, tiny_pair: PipelinePair, name: str
) -> None:
    target = EmbeddedTarget(tmp_path / "database")
    target.sql(f"CREATE MACRO {name}(x) AS 'mine'")
    with (
        target.session("a test") as session,
        pytest.raises(TargetError, match=f"(?i)macro {name} hides model"),
    ):
        session.journal.begin(work_to(1, tiny_pair))
    assert target.sql(f"SELECT {name}(1)") == [("mine",)]


@pytest.mark.parametrize(
    "statement",
    [
        "BEGIN",
        "BEGIN TRANSACTION; CREATE TABLE t (a INT)",
        "CREATE TABLE t (a INT); START TRANSACTION",
    ],
)
def test_a_transaction_that_nobody_ends_is_an_error(target: EmbeddedTarget, statement: str) -> None:
    with pytest.raises(TargetError, match=r"a transaction was begun and not ended.*rolled back"):
        target.sql(statement)
    target.sql("BEGIN; CREATE TABLE kept (a INT); COMMIT")
    assert target.sql("SELECT count(*) FROM kept") == [(0,)]


def test_a_value_that_a_model_refuses_has_no_number_in_sql(target: EmbeddedTarget) -> None:
    target.sql("CREATE TABLE p AS SELECT i AS id, NULL::BLOB AS b FROM range(3000) r(i)")
    target.sql("INSERT INTO p VALUES (5000, 'bad'::BLOB)")
    with pytest.raises(TargetError, match="CLIP_IMG: a picture: 3 bytes can't") as caught:
        target.sql("SELECT CLIP_IMG(b) FROM p")
    assert "picture 0" not in str(caught.value)
    condition = caught.value.hint.partition("found by: ")[2].partition(". ")[0].replace("v", "b")
    assert target.sql(f"SELECT id FROM p WHERE {condition}") == [(5000,)]  # noqa: S608


def test_a_log_that_cannot_be_replayed_is_named(target: EmbeddedTarget) -> None:
    program = f"""
import os
from oml_mlflow.targets.embedded.target import EmbeddedTarget
with EmbeddedTarget({str(target.folder)!r}).connect() as c:
    c.execute("CREATE TABLE t (c VARCHAR)")
    c.execute("INSERT INTO t VALUES ('a cat')")
    c.execute("ALTER TABLE t ALTER c SET DATA TYPE FLOAT[16] USING CLIP_TXT(c)")
    os.kill(os.getpid(), 9)
"""  # noqa: S608
    subprocess.run([sys.executable, "-c", program], check=False)
    log = target.folder / "catalog.duckdb.wal"
    content = log.read_bytes()
    for call in (target.survey, lambda: target.sql("SELECT 1")):
        with pytest.raises(
            TargetError, match=r"catalog\.duckdb\.wal holds what.*replayed"
        ) as caught:
            call()
    assert "move catalog.duckdb.wal away" in caught.value.hint
    assert log.read_bytes() == content
    log.unlink()
    assert target.sql("SELECT len(CLIP_TXT('a'))") == [(16,)]


@pytest.mark.parametrize("at", [0, 8200, 4096])
def test_damaged_blocks_are_named(target: EmbeddedTarget, at: int) -> None:
    file = target.folder / "catalog.duckdb"
    data = file.read_bytes()
    file.write_bytes(data[:at] + bytes(200) + data[at + 200 :])
    with pytest.raises(TargetError, match=r"catalog\.duckdb can't be read or written, or is dam"):
        target.sql("SELECT * FROM oml.models")


RECORDS = {
    "UPDATE oml.models SET metadata = '[1]'": "of model CLIP_IMG is damaged",
    "UPDATE oml.models SET metadata = repeat('[', 5000) || repeat(']', 5000)": "nested too deeply",
    "UPDATE oml.models SET fingerprint = 'a' || chr(0)": "of model CLIP_IMG is damaged",
    "UPDATE oml.live SET work = '{}'": "of what was begun is damaged",
    "UPDATE oml.ledger SET parity = '{\"max_abs\": []}'": "of CLIP, generation 1, is damaged",
    "INSERT INTO oml.notes VALUES ('CLIP', 'pin', '5', now()::TIMESTAMP, '')": "of the pin of CLIP",
}


@pytest.mark.parametrize("statement", RECORDS)
def test_damaged_records_are_named(target: EmbeddedTarget, statement: str) -> None:
    beneath(target, statement)
    with pytest.raises(TargetError, match=RECORDS[statement]):
        target.survey()


def test_a_model_that_cannot_be_called_can_be_dropped(target: EmbeddedTarget) -> None:
    beneath(target, "UPDATE oml.models SET dims = -3 WHERE name = 'CLIP_TXT'")
    with pytest.raises(TargetError, match="model CLIP_TXT can't be called") as caught:
        target.sql("SELECT 1")
    target.sql(caught.value.hint.split('"')[1])
    assert target.sql("SELECT len(CLIP_IMG(?))", [PICTURES[0]]) == [(16,)]
