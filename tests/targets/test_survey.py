"""Surveys and notes, the same in both kinds of target."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drifted import EmbeddedHand, Hand, OracleHand, live_names, load, promote, work_to
from oracle_fixtures import Oracle, running

from oml_mlflow.errors import InvalidName, SchemaNewer, TargetLocked
from oml_mlflow.graph.needs import Capability
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.planning.capabilities import Answer, CapabilityTable
from oml_mlflow.planning.observed import Survey
from oml_mlflow.planning.records import (
    BINDING,
    FAILURE,
    LOADING,
    PIN,
    LiveState,
    Note,
    now,
    this_process,
)
from oml_mlflow.targets.embedded.settings import CATALOG
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.connection import Database

IMG, TXT = live_names()
DEADLINE_S = 60


@pytest.fixture(params=["embedded", "oracle"])
def hand(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hand]:
    if request.param == "embedded":
        yield EmbeddedHand(EmbeddedTarget(tmp_path / "database", timeout_s=5))
        return
    with running(monkeypatch) as oracle:
        yield OracleHand(oracle, oracle.target())


def queries(hand: Hand) -> list[str]:
    """Return what was executed, where that can be seen."""
    return hand.oracle.statements() if isinstance(hand, OracleHand) else []


def test_a_survey_is_what_a_session_reads(hand: Hand, tiny_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)
    work = promote(hand.target, tiny_pair, 2)
    promote(hand.target, tiny_pair, 1, "OTHER")
    found = hand.target.survey()
    assert list(found.names) == ["CLIP", "OTHER"]
    assert (found.uri, found.unmanaged, found.capabilities) == (hand.target.uri, frozenset(), "")
    with hand.target.session("a test", create=False) as session:
        assert found.version == session.version
        models = {model.name: model for model in session.models.list()}
        for name, held in found.names.items():
            observed = held
            assert observed.state == session.journal.state(name)
            assert observed.ledger == (session.journal.ledger(name)[-1],)
            assert observed.models == {key: models[key] for key in live_names(name)}
            assert observed.is_whole()
            assert held.drift() == ()
    live = found.names["CLIP"].live
    assert live is not None
    assert replace(live, promoted_at=None) == replace(work.entry, promoted_at=None)
    assert live.registry == "sqlite:1700000000000"


def test_a_survey_is_one_query(oracle: Oracle, tiny_pair: PipelinePair) -> None:
    target = oracle.target()
    promote(target, tiny_pair)
    with target.session("a test") as session:
        for number in range(5):
            session.notes.write(Note(f"N{number}", FAILURE, {"text": "ü" * 5000}))
    before = len(oracle.statements())
    found = target.survey()
    assert len(oracle.statements()) == before + 1
    assert found.names["N4"].notes[FAILURE].content == {"text": "ü" * 5000}


def test_drift_is_told(hand: Hand, tiny_pair: PipelinePair, second_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)

    hand.alter(IMG)
    held = hand.target.survey().names["CLIP"]
    assert [text.partition(":")[0] for text in held.drift()] == [f"{IMG} was altered"]
    assert not held.is_whole()

    hand.replace(TXT, second_pair.txt)
    held = hand.target.survey().names["CLIP"]
    size = second_pair.txt.stat().st_size
    assert held.drift()[1] == f"{TXT} was replaced by a foreign model ({size:,} bytes)"
    assert [model.name for model in held.unmanaged()] == [IMG, TXT]

    hand.drop(IMG)
    held = hand.target.survey().names["CLIP"]
    assert held.drift()[0] == f"{IMG} was dropped"
    assert list(held.models) == [TXT]
    assert hand.target.survey().unmanaged == frozenset()


def test_a_lost_comment_is_no_drift(oracle: Oracle, tiny_pair: PipelinePair) -> None:
    target = oracle.target()
    promote(target, tiny_pair)
    with OracleHand(oracle, target).cursor() as cursor:
        cursor.execute(f"COMMENT ON MINING MODEL {IMG} IS ''")
    held = target.survey().names["CLIP"]
    assert held.models[IMG].fingerprint == tiny_pair.fingerprints["img"]
    assert held.drift() == ()


def test_what_is_under_way_is_no_drift(hand: Hand, tiny_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)
    work = work_to(tiny_pair, 2)
    with hand.target.session("a test") as session:
        session.journal.begin(work)
        load(session, tiny_pair, work)
    hand.drop(TXT)
    held = hand.target.survey().names["CLIP"]
    assert held.state == LiveState("CLIP", 1, LOADING, work)
    assert set(held.models) <= {IMG, TXT}
    assert held.drift() == ()


def test_notes_are_kept_by_name_and_kind(hand: Hand) -> None:
    with hand.target.session("a test") as session:
        assert session.notes.list() == []
        session.notes.write(Note("clip", PIN, {"reason": "freeze ü"}))
        session.notes.write(Note("CLIP", FAILURE, {"n": 1}))
        session.notes.write(Note("OTHER", BINDING, {"alias": "prod"}, written_by="somebody"))
        session.notes.write(Note("CLIP", PIN, {"reason": "x" * 20_000}))
        notes = session.notes.list("clip")
        assert [(note.name, note.kind) for note in notes] == [("CLIP", FAILURE), ("CLIP", PIN)]
        assert notes[1].content == {"reason": "x" * 20_000}
        assert notes[1].written_by == this_process()
        assert notes[1].written_at is not None
        assert [note.name for note in session.notes.list()] == ["CLIP", "CLIP", "OTHER"]
        with pytest.raises(InvalidName):
            session.notes.write(Note("a-b", PIN))
    found = hand.target.survey()
    assert found.names["CLIP"].notes == {note.kind: note for note in notes}
    assert found.names["OTHER"].notes[BINDING].written_by == "somebody"
    assert found.names["OTHER"].live is None
    with hand.target.session("a test") as session:
        assert session.notes.forget("other", BINDING)
        assert not session.notes.forget("other", BINDING)
        assert [note.name for note in session.notes.list()] == ["CLIP", "CLIP"]
    assert list(hand.target.survey().names) == ["CLIP"]


def test_a_reader_sees_the_old_note_or_the_new_one(hand: Hand, tiny_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)
    seen: list[int] = []
    done = threading.Event()

    def write() -> None:
        with hand.target.session("a test") as session:
            for number in range(1, 60):
                session.notes.write(Note("CLIP", PIN, {"number": number}))
        done.set()

    with hand.target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN, {"number": 0}))
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set() and writer.is_alive():
        seen.append(hand.target.survey().names["CLIP"].notes[PIN].content["number"])
    writer.join(DEADLINE_S)
    assert done.is_set()
    assert seen == sorted(seen)


def test_two_writers_of_one_note_are_no_error(oracle: Oracle) -> None:
    target = oracle.target()
    with target.session("a test") as first, target.session("a test") as second:
        first.notes.write(Note("CLIP", PIN, {"by": 1}))
        first.notes.forget("CLIP", PIN)

        # an UPDATE of no row locks nothing in Oracle, but all in the stand-in
        def interfere(_index: int, text: str, session: Any) -> None:
            if text == sql.INSERT_NOTE:
                oracle.database.faults.before_statement = None
                session.undo_transaction()
                first.notes.write(Note("CLIP", PIN, {"by": 1}))

        oracle.database.faults.before_statement = interfere
        second.notes.write(Note("CLIP", PIN, {"by": 2}))
        assert [note.content for note in first.notes.list()] == [{"by": 2}]


def test_a_database_of_an_earlier_release(hand: Hand, tiny_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)
    with hand.target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN))
    wanted = hand.target.survey()
    hand.age()
    before = columns(hand)
    statements = len(queries(hand))
    found = hand.target.survey()
    assert not [text for text in queries(hand)[statements:] if not text.startswith("SELECT")]
    assert columns(hand) == before
    held = found.names["CLIP"]
    assert held.notes == {}
    assert held.drift() == ()
    known = wanted.names["CLIP"]
    older = replace(known.ledger[0], registry="")
    assert held == replace(known, ledger=(older,), notes={})
    if isinstance(hand, OracleHand):
        with hand.target.session("a test", create=False) as session:
            assert session.notes.list() == []
            assert session.journal.ledger()[0].registry == ""
        assert columns(hand) == before

    promote(hand.target, tiny_pair, 2)
    with hand.target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN))
        assert [entry.registry for entry in session.journal.ledger()] == [
            "",
            "sqlite:1700000000000",
        ]
    assert list(hand.target.survey().names["CLIP"].notes) == [PIN]
    assert versions(hand) == [1]


def test_tables_of_a_newer_release_are_refused(hand: Hand, tiny_pair: PipelinePair) -> None:
    promote(hand.target, tiny_pair)
    assert versions(hand) == [1]
    hand.upgrade()
    before, statements = columns_of_newer(hand), len(queries(hand))
    with pytest.raises(SchemaNewer, match=r"of version 10, .*Nothing was read or changed") as told:
        hand.target.survey()
    assert (told.value.code, told.value.exit_code) == ("schema-newer", 1)
    assert "upgrade oml_mlflow" in told.value.hint
    for options in ({"create": True}, {"create": False}, {"create": False, "missing_ok": True}):
        with pytest.raises(SchemaNewer), hand.target.session("a test", **options):
            pass
    if isinstance(hand, EmbeddedHand):
        for untrusted in (False, True):
            with pytest.raises(SchemaNewer):
                hand.target.sql("SELECT 1", untrusted=untrusted)
    assert not [text for text in queries(hand)[statements:] if not text.startswith("SELECT")]
    assert columns_of_newer(hand) == before


def test_a_newer_survey_that_can_be_read_is_refused_too(oracle: Oracle) -> None:
    hand = OracleHand(oracle, oracle.target())
    with hand.target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN))
    with hand.cursor() as cursor:
        cursor.execute(f"INSERT INTO {sql.SCHEMA} VALUES (2)")  # noqa: S608
    before = len(oracle.statements())
    with pytest.raises(SchemaNewer):
        hand.target.survey()
    assert len(oracle.statements()) == before + 1


def test_a_session_asks_for_tables_and_version_at_once(oracle: Oracle) -> None:
    target = oracle.target()
    with target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN))
    before = len(oracle.statements())
    with target.session("a test", create=False) as session:
        assert len(oracle.statements()) == before + 1
        session.journal.state("CLIP")
        assert len(oracle.statements()) == before + 2


def versions(hand: Hand) -> list[int]:
    if isinstance(hand, EmbeddedHand):
        return [row[0] for row in hand.target.sql("FROM oml.schema_versions ORDER BY ALL")]
    with hand.cursor() as cursor:  # type: ignore[attr-defined]
        return [row[0] for row in cursor.execute(f"SELECT VERSION FROM {sql.SCHEMA}")]  # noqa: S608


def columns_of_newer(hand: Hand) -> Any:
    if isinstance(hand, OracleHand):
        return columns(hand)
    return (hand.target.folder / CATALOG).read_bytes()


def columns(hand: Hand) -> set[Any]:
    """Return the columns of our tables, as somebody else sees them."""
    if isinstance(hand, OracleHand):
        with hand.cursor() as cursor:
            found = "SELECT TABLE_NAME, COLUMN_NAME FROM USER_TAB_COLUMNS"
            return set(cursor.execute(found).fetchall())
    with hand.target.open_file("a test") as raw:
        found = "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'oml'"
        return set(raw.execute(found).fetchall())


def test_two_sessions_may_add_the_same_column(oracle: Oracle, tiny_pair: PipelinePair) -> None:
    hand = OracleHand(oracle, oracle.target())
    promote(hand.target, tiny_pair)
    hand.age()
    with hand.target.session("a test") as first, hand.target.session("a test") as second:
        slow: Database = first._db  # type: ignore[attr-defined]
        assert not slow.has_registry
        second.notes.write(Note("CLIP", PIN))
        slow.ensure_tables()
        assert slow.has_registry
        assert [note.kind for note in first.notes.list()] == [PIN]


def test_an_empty_schema_holds_nothing(oracle: Oracle, tiny_pair: PipelinePair) -> None:
    target = oracle.target()
    assert target.survey() == Survey(target.uri, "23.26.1.0.0", {})
    assert len(oracle.statements()) == 2
    oracle.database.load_foreign_model("VEC", "CLIP_IMG", tiny_pair.img)
    oracle.database.load_foreign_model("VEC", "SOMETHING", tiny_pair.img)
    assert target.survey().unmanaged == {"CLIP_IMG"}
    with OracleHand(oracle, target).cursor() as cursor:
        assert cursor.execute("SELECT TABLE_NAME FROM USER_TABLES").fetchall() == []


def test_no_database_holds_nothing_and_is_not_made(tmp_path: Path) -> None:
    target = EmbeddedTarget(tmp_path / "database")
    assert target.survey().names == {}
    assert list(tmp_path.iterdir()) == []


def test_models_that_nothing_knows_are_unmanaged(
    hand: Hand, tiny_pair: PipelinePair, second_pair: PipelinePair
) -> None:
    promote(hand.target, tiny_pair)
    hand.replace("OTHER_IMG", second_pair.img)
    hand.replace("PLAIN", second_pair.txt)
    found = hand.target.survey()
    assert found.unmanaged == {"OTHER_IMG"}
    assert set(found.names["CLIP"].models) == {IMG, TXT}


def test_capabilities_have_a_digest(oracle: Oracle) -> None:
    target, digests = oracle.target(), []
    asked = Capability("operator", "string", 17, 8, "ai.onnx.contrib:CLIPTokenizer")
    for taken in (True, False, True):
        with target.session("a test") as session:
            table = CapabilityTable((Answer(asked, taken),), now(), session.version)
            session.save_capabilities(table)
        digests.append(target.survey().capabilities)
    assert digests[0] == digests[2] != digests[1]
    assert all(digests)


def test_another_process_is_waited_for(tmp_path: Path, tiny_pair: PipelinePair) -> None:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=0.3)
    promote(target, tiny_pair)
    script = (
        "import duckdb, sys\n"
        f"held = duckdb.connect({str(target.folder / CATALOG)!r})\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TargetLocked, match=rf"\(PID {holder.pid}\)"):
            target.survey()
        holder.stdin.write("\n")
        holder.stdin.close()
        assert EmbeddedTarget(target.folder, timeout_s=DEADLINE_S).survey().names["CLIP"]


def test_threads_survey_while_one_promotes(
    tmp_path: Path, tiny_pair: PipelinePair, second_pair: PipelinePair
) -> None:
    folder = tmp_path / "database"
    promote(EmbeddedTarget(folder), tiny_pair)
    done, errors = threading.Event(), []
    generations: list[list[int]] = [[] for _ in range(8)]

    def survey(seen: list[int]) -> None:
        target = EmbeddedTarget(folder)
        try:
            while not done.is_set():
                held = target.survey().names["CLIP"]
                assert held.is_whole()
                assert held.drift() == ()
                seen.append(held.state.generation)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=survey, args=(seen,)) for seen in generations]
    for thread in threads:
        thread.start()
    try:
        for generation in range(2, 10):
            pair = second_pair if generation % 2 == 0 else tiny_pair
            promote(EmbeddedTarget(folder), pair, generation)
    finally:
        done.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert errors == []
    assert all(seen == sorted(seen) and seen for seen in generations)


def test_two_threads_promote_one_after_the_other(tmp_path: Path, tiny_pair: PipelinePair) -> None:
    folder = tmp_path / "database"
    errors: list[BaseException] = []

    def run(name: str) -> None:
        try:
            for generation in (1, 2, 3):
                promote(EmbeddedTarget(folder), tiny_pair, generation, name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("ONE", "TWO", "THREE")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert errors == []
    held = EmbeddedTarget(folder).survey().names
    assert {name: one.state.generation for name, one in held.items()} == dict.fromkeys(
        ("ONE", "THREE", "TWO"), 3
    )


def test_a_thread_that_holds_the_database_is_waited_for(
    tmp_path: Path, tiny_pair: PipelinePair
) -> None:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=0.2)
    promote(target, tiny_pair)
    found: list[BaseException] = []

    def run() -> None:
        try:
            target.sql("SELECT 1")
        except TargetLocked as error:
            found.append(error)

    with target.session("a test"):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE_S)
        assert target.survey().names["CLIP"].is_whole()
    assert "another thread of this process" in str(found[0])
