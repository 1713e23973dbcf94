"""What `promotion.target` asks of every target, step by step, in both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drifted import live_names, load, promote, work_to
from oracle_fixtures import running

from oml_mlflow import PipelinePair, open_target
from oml_mlflow.errors import OmlMlflowError, PlanStale, TargetLocked
from oml_mlflow.names import IMG, TXT
from oml_mlflow.planning.records import LOADING, PIN, WHOLE, Dependant, Note, now
from oml_mlflow.promotion.target import Session, Target

TEXT = "a photo of a cat"


@pytest.fixture(params=["embedded", "oracle"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Target]:
    if request.param == "embedded":
        yield open_target(f"embedded:///{tmp_path / 'database'}")
        return
    with running(monkeypatch) as oracle:
        yield oracle.target()


def state(session: Session, name: str = "CLIP") -> tuple[int, str]:
    found = session.journal.state(name)
    return found.generation, found.phase


def test_nothing_is_made_by_looking(target: Target) -> None:
    assert not target.survey().names
    with target.session("a look", create=False, missing_ok=True) as session:
        assert session.models.list() == []
        assert session.journal.ledger() == []
        assert state(session) == (0, WHOLE)
        assert session.notes.list() == []
        assert session.capabilities() is None
    assert not target.survey().names


def test_each_step_is_recorded_and_can_be_repeated(target: Target, tiny_pair: PipelinePair) -> None:
    work = work_to(tiny_pair, 1)
    with target.session("a test") as session, session.lock("CLIP", "a test"):
        session.journal.begin(work)
        assert state(session) == (0, LOADING)
        assert session.journal.state("CLIP").work.entry == work.entry
        load(session, tiny_pair, work)
        assert {model.name for model in session.models.list()} == set(work.uploads)
        session.journal.swap(work)
        session.journal.swap(work)
        session.journal.end(work)
        session.journal.end(work)
        assert state(session) == (1, WHOLE)
        assert [entry.version for entry in session.journal.ledger("clip")] == ["1"]
        models = {model.name: model for model in session.models.list()}
    assert set(models) == set(live_names())
    for side, name in zip((IMG, TXT), live_names(), strict=True):
        found = models[name]
        assert (found.fingerprint, found.dims) == (tiny_pair.fingerprints[side], tiny_pair.dims)
        assert not found.foreign
    with target.session("again", create=False) as session:
        assert session.models.fingerprint("CLIP_TXT") == tiny_pair.fingerprints[TXT]
        vector = session.models.embed("CLIP_TXT", TXT, [TEXT])[0]
    np.testing.assert_allclose(vector, tiny_pair.embedder().embed_text([TEXT])[0], atol=1e-5)


def test_a_stale_plan_changes_nothing(target: Target, tiny_pair: PipelinePair) -> None:
    promote(target, tiny_pair)
    with target.session("a test") as session, session.lock("CLIP", "a test"):
        before = sorted(model.name for model in session.models.list())
        with pytest.raises(PlanStale):
            session.journal.begin(replace(work_to(tiny_pair, 3), before=2))
        assert state(session) == (1, WHOLE)
        assert sorted(model.name for model in session.models.list()) == before


def test_the_pair_before_is_kept_and_can_be_dropped(
    target: Target, tiny_pair: PipelinePair, resaved_pair: PipelinePair
) -> None:
    promote(target, tiny_pair)
    work = promote(target, resaved_pair, 2)
    kept = set(work.outgoing.values())
    with target.session("a test") as session:
        assert {model.name for model in session.models.list()} == {*live_names(), *kept}
        session.models.drop(sorted(kept))
        session.models.drop(sorted(kept))  # one that is not there is passed over
        assert {model.name for model in session.models.list()} == set(live_names())
        assert session.models.fingerprint("CLIP_IMG") == resaved_pair.fingerprints[IMG]


def test_one_promoter_at_a_time(target: Target, tiny_pair: PipelinePair) -> None:
    promote(target, tiny_pair)
    other = open_target(target.uri) if target.is_probed else target
    with target.session("first") as session, session.lock("CLIP", "first"):
        if not target.is_probed:  # the file's own lock; see test_embedded.py for other processes
            return
        with other.session("second") as second, pytest.raises(TargetLocked) as caught:  # noqa: SIM117
            with second.lock("CLIP", "second"):
                pass
        assert caught.value.retryable


def test_notes_and_geometries_are_kept_apart_by_name(
    target: Target, tiny_pair: PipelinePair
) -> None:
    promote(target, tiny_pair)
    vectors = {"ascii-dog": np.arange(4, dtype=np.float32)}
    with target.session("a test") as session:
        session.notes.write(Note("CLIP", PIN, {"why": "old"}, now(), "me"))
        session.notes.write(Note("CLIP", PIN, {"why": "new"}, now(), "me"))
        session.vectors.save("CLIP", "g-1", vectors)
        session.vectors.save("CLIP", "g-1", {"ascii-dog": np.zeros(4, np.float32)})
    with target.session("again", create=False) as session:
        assert [note.content for note in session.notes.list("CLIP")] == [{"why": "new"}]
        assert session.notes.list("OTHER") == []
        np.testing.assert_array_equal(
            session.vectors.geometries("CLIP")["g-1"]["ascii-dog"], [0, 1, 2, 3]
        )
        assert session.vectors.geometries("OTHER") == {}
    with target.session("forget") as session:
        assert session.notes.forget("CLIP", PIN)
        assert not session.notes.forget("CLIP", PIN)


def test_what_is_not_there_is_our_error_and_nothing_is_kept(
    target: Target, tiny_pair: PipelinePair
) -> None:
    promote(target, tiny_pair)
    with pytest.raises(OmlMlflowError), target.session("a test", create=False) as session:
        session.models.embed("NONE_TXT", TXT, [TEXT])
    column = Dependant("column", "NOWHERE.EMBEDDING", "CLIP_IMG", "PICTURE")
    with pytest.raises(OmlMlflowError), target.session("a test") as session:
        session.vectors.register_column("CLIP", column)
    with target.session("again") as session:
        assert session.vectors.dependants("CLIP") == []
        assert not session.vectors.forget_column("CLIP", column.name)
        assert session.models.embed("CLIP_TXT", TXT, [TEXT]).shape == (1, tiny_pair.dims)
