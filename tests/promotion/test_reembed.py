"""Stored vectors that go live with their models, and come back with them: the embedded target."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import killed
import mlflow
import numpy as np
import pytest
from drilled import environment
from stored import COLUMN, rows_of, strangers, write_docs

from oml_mlflow import PipelinePair, dry_run, promote, rollback
from oml_mlflow.commands import operate
from oml_mlflow.commands.columns import check_columns, columns, fill
from oml_mlflow.config.file import load_config
from oml_mlflow.errors import ConfigError, GeometryChanged, OmlMlflowError, TargetError
from oml_mlflow.events import Event
from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.records import WHOLE
from oml_mlflow.promotion import filling
from oml_mlflow.reconciler.loop import Reconciler
from oml_mlflow.reconciler.status import FILLING, IN_SYNC
from oml_mlflow.registry.versions import get_version, register_alias
from oml_mlflow.targets.embedded.target import EmbeddedTarget

ROWS = 20


@pytest.fixture
def target(versions: tuple[PipelinePair, ...], tmp_path: Path) -> EmbeddedTarget:
    """A database with version 1 live, and its vectors of ``docs``."""
    found = EmbeddedTarget(tmp_path / "database", timeout_s=60)
    promote("models:/clip/1", found)
    write_docs(found, ROWS, versions[0].dims)
    return found


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a slice: the database is let go of after each."""
    monkeypatch.setattr(filling, "SLICE_S", 0.0)
    monkeypatch.setattr(filling, "_FIRST_ROWS", 1)
    monkeypatch.setattr(filling.Filling, "_rows", 1)


def stop_after(rows: int) -> object:
    """Return a listener that stops a filling once so many rows are there."""

    def listen(event: Event) -> None:
        if event.stage == "fill" and event.done >= rows:
            raise KeyboardInterrupt

    return listen


def test_vectors_go_live_with_their_models_and_come_back_bit_equal(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    before = rows_of(target)
    assert not [*strangers(versions[0], before)]
    planned = dry_run("models:/clip/3", target, reembed=True)
    steps = [text for _sign, text in planned.to_steps()]
    assert any(
        text.startswith(f"fill    embedding_g2 beside {COLUMN}: {ROWS} rows at ") for text in steps
    )
    assert "swap    embedding_g2 → embedding (the one in use kept as embedding_g1)" in steps
    assert rows_of(target) == before
    done = promote("models:/clip/3", target, reembed=True)
    assert (done.entry.version, done.failed) == ("3", ())
    assert not [*strangers(versions[2], rows_of(target))]
    assert rows_of(target, "embedding_g1") == before
    assert dry_run("models:/clip/3", target, reembed=True).work is None
    [check] = check_columns("clip", target)
    assert (check.ok, check.sampled, check.changed) == (True, ROWS, 0)
    # two rows since, which are embedded first
    target.sql("INSERT INTO docs (id, body) VALUES (100, 'new')")
    target.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    back = rollback("clip", target, reembed=True)
    assert (back.entry.version, back.entry.restores) == ("1", 1)
    found = rows_of(target)
    assert not [*strangers(versions[0], found)]
    assert {k: v for k, v in found.items() if k not in (3, 100)} == {
        k: v for k, v in before.items() if k != 3
    }
    fill("clip", target)
    again = promote("models:/clip/3", target, reembed=True)
    assert again.entry.version == "3"
    assert not [*strangers(versions[2], rows_of(target))]


def test_refused_unless_asked_for_and_what_cannot_follow_is_named(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    before = rows_of(target)
    with pytest.raises(GeometryChanged, match=r"docs\.embedding.*--reembed"):
        promote("models:/clip/3", target)
    target.sql("CREATE INDEX by_body ON docs (body)")
    with pytest.raises(TargetError, match=r"can't get another column of vectors beside it.*index"):
        promote("models:/clip/3", target, reembed=True)
    target.sql("DROP INDEX by_body; ALTER TABLE docs ADD COLUMN embedding_g2 VARCHAR")
    target.sql("UPDATE docs SET embedding_g2 = 'of others'")
    with pytest.raises(TargetError, match=r"embedding_g2.*already exists"):
        promote("models:/clip/3", target, reembed=True)
    assert target.sql("SELECT DISTINCT embedding_g2 FROM docs") == [("of others",)]
    target.sql(
        "ALTER TABLE docs DROP COLUMN embedding_g2; ALTER TABLE docs RENAME COLUMN body TO words"
    )
    with pytest.raises(TargetError, match="body"):
        promote("models:/clip/3", target, reembed=True)
    target.sql("ALTER TABLE docs RENAME COLUMN words TO body")
    columns("clip", target, add=COLUMN, source="body", side=TXT)
    with pytest.raises(TargetError, match="registered without a key"):
        promote("models:/clip/3", target, reembed=True)
    columns("clip", target, remove=COLUMN)
    with pytest.raises(ConfigError, match="no column is registered"):
        promote("models:/clip/3", target, reembed=True)
    assert rows_of(target) == before
    assert [name for name, *_ in target.sql("DESCRIBE docs")] == ["id", "body", "embedding"]


def test_views_stay_readable_or_are_named(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    target.sql("CREATE VIEW every AS SELECT * FROM docs")
    if duckdb.__version__.startswith("1."):  # it remembers what a view of * had
        with pytest.raises(TargetError, match=r"main\.every could not be read any more"):
            promote("models:/clip/3", target, reembed=True)
    else:
        promote("models:/clip/3", target, reembed=True)
    assert len(target.sql("SELECT * FROM every")) == ROWS


@pytest.mark.usefixtures("short_slices")
def test_what_was_stopped_goes_on_and_embeds_no_row_again(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    before = rows_of(target)
    with pytest.raises(KeyboardInterrupt):
        promote("models:/clip/3", target, reembed=True, on_event=stop_after(10))
    assert rows_of(target) == before
    made = {k: v for k, (_, v) in rows_of(target, "embedding_g2").items() if v is not None}
    assert len(made) >= 10
    told: list[Event] = []
    promote("models:/clip/3", target, reembed=True, on_event=told.append)
    first = next(event for event in told if event.stage == "fill")
    assert first.done >= len(made)
    assert not [*strangers(versions[2], rows_of(target))]


@pytest.mark.usefixtures("short_slices")
def test_another_version_gives_it_up_and_what_was_embedded_waits(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    before = rows_of(target)
    with pytest.raises(KeyboardInterrupt):
        promote("models:/clip/3", target, reembed=True, on_event=stop_after(10))
    done = promote("models:/clip/1", target)
    assert "given up" in done.finished
    assert (done.changed, rows_of(target)) == (False, before)
    with target.session("a test", create=False) as session:
        assert session.journal.state("CLIP").phase == WHOLE
    told: list[Event] = []
    promote("models:/clip/3", target, reembed=True, on_event=told.append)
    assert next(event for event in told if event.stage == "fill").done >= 10
    assert not [*strangers(versions[2], rows_of(target))]


def test_rows_that_cannot_be_embedded_are_told_and_stop_nothing(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    dims = versions[0].dims
    target.sql(f"CREATE TABLE pics (id INTEGER, body BLOB, v FLOAT[{dims}])")
    from oml_mlflow.parity.probes import golden_probes

    pictures = [p.value for p in golden_probes() if p.side == IMG]
    for key, picture in enumerate([*pictures, b"no picture"]):
        target.sql("INSERT INTO pics (id, body) VALUES (?, ?)", [key, picture])
    columns("clip", target, add="pics.v", source="body", side=IMG, key="id")
    done = promote("models:/clip/3", target, reembed=True)
    [(column, key, reason)] = done.failed
    assert (column, key) == ("pics.v", len(pictures))
    assert "can't be decoded" in reason
    missing = target.sql("SELECT id FROM pics WHERE v IS NULL")
    assert missing == [(len(pictures),)]
    assert not [*strangers(versions[2], rows_of(target))]
    # it is named again by whoever fills the column, and embedded once it can be
    [_, filled] = fill("clip", target)
    assert [key for key, _ in filled.failed] == [len(pictures)]
    target.sql("UPDATE pics SET body = ? WHERE id = ?", [pictures[0], len(pictures)])
    [_, filled] = fill("clip", target)
    assert (filled.rows, filled.left, filled.failed) == (1, 0, ())


@pytest.mark.usefixtures("short_slices")
def test_two_promotions_at_once_fill_together(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    found: list[object] = []

    def run() -> None:
        try:
            found.append(promote("models:/clip/3", target, reembed=True).entry.version)
        except OmlMlflowError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["3", "3"]
    assert not [*strangers(versions[2], rows_of(target))]
    with target.session("a test", create=False) as session:
        assert [entry.version for entry in session.journal.ledger("clip")] == ["1", "3"]


def test_columns_are_kept_as_long_as_generations(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    target.keep = 1
    promote("models:/clip/3", target, reembed=True)
    names = [name for name, *_ in target.sql("DESCRIBE docs")]
    assert names == ["id", "body", "embedding_g1", "embedding"]
    # generation 1 is too old then
    promote("models:/clip/2", target, reembed=True)
    names = [name for name, *_ in target.sql("DESCRIBE docs")]
    # version 2 has the vectors of version 1: its column is used, that of 3 kept
    assert sorted(names) == ["body", "embedding", "embedding_g2", "id"]
    assert not [*strangers(versions[1], rows_of(target))]


def test_a_binding_takes_vectors_along_a_slice_a_pass(
    versions: tuple[PipelinePair, ...],
    target: EmbeddedTarget,
    mlflow_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oml_mlflow.reconciler.fleet.FILL_S", 0.0)
    monkeypatch.setattr(filling, "SLICE_S", 0.0)
    monkeypatch.setattr(filling.Filling, "_rows", 1)
    before = rows_of(target)
    file = mlflow_store / "oml_mlflow.toml"
    file.write_text(
        f"[targets.dev]\nuri = {target.uri!r}\naccept = [{{ model = 'clip' }}]\n"
        "[[bindings]]\nmodel = 'clip'\nalias = 'prod'\ntarget = 'dev'\n"
        "on_new_geometry = 'reembed'\n"
    )
    config = load_config(file)
    register_alias(get_version("models:/clip/3"), "prod")
    [planned] = operate.plan(config=config).statuses
    filled, swapped = planned.remarks[-2:]
    assert filled.startswith(f"fill embedding_g2 beside docs.embedding: {ROWS} rows at ")
    assert filled.endswith(" MB")
    assert "a second, about " in filled
    assert swapped == "swap embedding_g2 → embedding (the one in use kept as embedding_g1)"
    assert rows_of(target) == before
    reconciler = Reconciler(config)
    found = reconciler.run()
    assert (found.ok, found.is_filling) == (True, True)
    [status] = operate.status(config=config).statuses
    assert status.state == FILLING
    assert f"of {ROWS} rows for clip 3" in status.text
    assert rows_of(target) == before
    # moved back in the middle: given up, and taken up again
    register_alias(get_version("models:/clip/1"), "prod")
    found = reconciler.run()
    assert [status.state for status in found.statuses] == [IN_SYNC]
    assert rows_of(target) == before
    register_alias(get_version("models:/clip/3"), "prod")
    done = operate.apply(config=config)
    assert [status.state for status in done.statuses] == [IN_SYNC]
    assert not [*strangers(versions[2], rows_of(target))]
    check_columns("clip", target)
    [status] = operate.status(config=config).statuses
    said = f"{ROWS} of {ROWS} sampled rows are the live model's"
    assert any(said in text for text in status.remarks)
    # the version's page says it, too, once
    reconciler.run()
    version = mlflow.MlflowClient().get_model_version("clip", "3")
    year = datetime.now(timezone.utc).year
    assert f"**live** on dev, CLIP: stored vectors as of {year}-" in version.description
    assert said in version.description
    assert "Every probe: " in version.description  # its verdict on the models is as it was
    reconciler.run()
    again = mlflow.MlflowClient().get_model_version("clip", "3")
    assert again.last_updated_timestamp == version.last_updated_timestamp


def test_stale_rows_are_named_by_a_check_and_embedded_by_a_fill(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    target.sql("UPDATE docs SET body = 'another text' WHERE id < 3")
    [check] = check_columns("clip", target)
    assert (check.ok, check.changed) == (False, 3)
    assert "3 changed since they were embedded" in check.summary
    assert sorted(check.differ) == [0, 1, 2]
    [done] = fill("clip", target)
    assert done.rows == 3
    [check] = check_columns("clip", target)
    assert check.ok
    assert not [*strangers(versions[0], rows_of(target))]
    vector = np.asarray(rows_of(target)[0][1], np.float32)
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("most_bytes", [2_000, 8_000])
def test_a_full_disk_is_told_and_the_next_run_goes_on(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, most_bytes: int
) -> None:
    before = rows_of(target)
    with pytest.raises(KeyboardInterrupt):
        promote("models:/clip/3", target, reembed=True, on_event=stop_after(0))
    job = killed.Job("promote", target.uri, "models:/clip/3", "clip", environment(), 0.0)
    told = killed.queue()
    child = killed.start(killed.run_without_room, job, most_bytes, told)
    kind, message = told.get(timeout=60)
    child.join(60)
    assert (kind, "File too large" in message, "kept" in message) == ("apply-failed", True, True)
    assert rows_of(target) == before
    assert not [*strangers(versions[0], before)]
    promote("models:/clip/3", target, reembed=True)
    assert not [*strangers(versions[2], rows_of(target))]
    assert rows_of(target, "embedding_g1") == before


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize(
    ("fault", "mended", "told"),
    [
        (
            "ALTER TABLE docs RENAME COLUMN body TO words",
            "ALTER TABLE docs RENAME COLUMN words TO body",
            "body",
        ),
        ("ALTER TABLE docs DROP COLUMN embedding_g2", "", "embedding_g2"),
        ("CREATE INDEX by_body ON docs (body)", "DROP INDEX by_body", "drop the index"),
        ("DROP VIEW IF EXISTS none; UPDATE oml.columns SET key_column = 'no'", "", "no"),
    ],
)
def test_what_goes_wrong_between_slices_is_told_and_mended(
    versions: tuple[PipelinePair, ...],
    target: EmbeddedTarget,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    mended: str,
    told: str,
) -> None:
    before, turns = rows_of(target), list[int]()

    def turn(self: filling.Filling) -> None:
        turns.append(1)
        if len(turns) == 3:
            target.sql(fault)

    monkeypatch.setattr(filling.Filling, "take_turns", turn)
    with pytest.raises(OmlMlflowError) as caught:
        promote("models:/clip/3", target, reembed=True)
    assert len(turns) >= 3
    assert told in str(caught.value)
    assert "what was embedded is kept" in caught.value.message
    assert caught.value.message.count("The live pair") == 1
    if mended:
        target.sql(mended)
    with target.session("a test", create=False) as session:
        live = session.journal.ledger("CLIP")[-1]
    assert live.version == "1"
    assert rows_of(target) == before
    columns("clip", target, add=COLUMN, source="body", side=TXT, key="id")
    promote("models:/clip/3", target, reembed=True)
    assert not [*strangers(versions[2], rows_of(target))]
    with target.session("a test", create=False) as session:
        assert session.journal.state("CLIP").phase == WHOLE
