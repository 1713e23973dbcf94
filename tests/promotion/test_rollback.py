"""Going back, geometry, dependants, adoption and dropping, on the embedded target."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from oml_mlflow import PipelinePair, drop, dry_run, promote, rollback
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import ApplyError, ForeignModel, GeometryChanged, ParityError, TargetError
from oml_mlflow.planning.geometry import pair_id
from oml_mlflow.planning.plan import plan_rollback
from oml_mlflow.planning.records import SWAPPING, WHOLE, Dependant
from oml_mlflow.promotion.run import observe
from oml_mlflow.targets.embedded.target import EmbeddedTarget

TEXT = "a photo of a cat"


@pytest.fixture
def target(tmp_path: Path) -> EmbeddedTarget:
    return EmbeddedTarget(tmp_path / "database", timeout_s=1)


def live(target: EmbeddedTarget) -> dict[str, str]:
    with target.session("a test", create=False) as session:
        return {model.name: model.fingerprint for model in session.models.list()}


def vector(target: EmbeddedTarget) -> np.ndarray:
    [(found,)] = target.sql("SELECT CLIP_TXT(?)", [TEXT])
    return np.asarray(found, np.float32)


def test_other_bytes_with_the_same_vectors_have_the_same_geometry(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    first = promote("models:/clip/1", target)
    assert versions[0].fingerprints != versions[1].fingerprints
    planned = dry_run("models:/clip/2", target)
    assert str(planned.geometry) == "same"
    second = promote("models:/clip/2", target)
    assert second.entry.geometry == first.entry.geometry != ""


def test_a_new_geometry_is_refused_with_its_dependants_and_what_to_run(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    target.sql(
        "CREATE TABLE notes (body VARCHAR, embedding FLOAT[16]); INSERT INTO notes VALUES "
        "('a cat', NULL), ('a dog', NULL); UPDATE notes SET embedding = CLIP_TXT(body); "
    )
    with target.session("a test") as session:
        session.vectors.register_column(
            "clip", Dependant("column", "notes.embedding", "CLIP_TXT", "body")
        )
    before = live(target)
    planned = dry_run("models:/clip/3", target)
    assert re.match(r"CHANGED \(dims 16→16, mean cosine -?0\.", str(planned.geometry))
    with pytest.raises(GeometryChanged, match=r"column notes\.embedding \(by CLIP_TXT\)") as err:
        promote("models:/clip/3", target)
    [statement] = err.value.details["reembedding"]
    assert statement in err.value.hint
    assert live(target) == before
    promote("models:/clip/3", target, accept_new_geometry=True)
    [(old,)] = target.sql("SELECT embedding FROM notes WHERE body = 'a cat'")
    target.sql(statement)
    [(new, now)] = target.sql("SELECT embedding, CLIP_TXT(body) FROM notes WHERE body = 'a cat'")
    assert new == now
    assert new != old
    with pytest.raises(GeometryChanged, match="the live pair is as it was"):
        rollback("clip", target)
    assert rollback("clip", target, accept_new_geometry=True).entry.version == "1"


def test_rollback_loads_nothing_and_verifies_again(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    promote("models:/clip/2", target)
    events = []
    done = rollback("clip", target, on_event=events.append)
    assert not [event for event in events if event.stage == "upload"]
    assert (done.entry.action, done.entry.generation, done.entry.restores) == ("rollback", 3, 1)
    assert done.report.ok
    assert done.entry.version == "1"
    assert live(target)["CLIP_TXT"] == versions[0].fingerprints["txt"]
    np.testing.assert_allclose(
        vector(target), versions[0].embedder().embed_text([TEXT])[0], atol=1e-6
    )
    again = promote("models:/clip/2", target, on_event=events.append)
    assert not [event for event in events if event.stage == "upload"]
    assert again.entry.fingerprints == versions[1].fingerprints
    assert [live(target)[name] for name in ("CLIP_IMG", "CLIP_TXT")] == list(
        versions[1].fingerprints.values()
    )


def test_rollback_undoes_the_last_promotion_not_the_last_rollback(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    for version in (1, 2, 3):
        promote(f"models:/clip/{version}", target, accept_new_geometry=True)
    assert rollback("clip", target, accept_new_geometry=True).entry.version == "2"
    with pytest.raises(ApplyError, match=r"went back already: generation 4 is 2 .*Kept are: 1"):
        rollback("clip", target)
    assert rollback("clip", target, to=1).entry.version == "1"
    with pytest.raises(ApplyError, match="generation 99, which is kept"):
        rollback("clip", target, to=99)


def test_generations_beyond_keep_are_dropped(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    target.keep = 1
    for version in (1, 2, 3):
        promote(f"models:/clip/{version}", target, accept_new_geometry=True)
    assert set(live(target)) == {"CLIP_IMG", "CLIP_TXT", "CLIP_IMG_S2", "CLIP_TXT_S2"}
    files = {path.stem for path in (target.folder / "models").iterdir()}
    assert files == set(live(target).values())
    target.keep = 0
    promote("models:/clip/1", target, accept_new_geometry=True)
    assert set(live(target)) == {"CLIP_IMG", "CLIP_TXT"}


def test_a_rollback_whose_vectors_are_wrong_leaves_the_live_pair(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    promote("models:/clip/2", target)
    before = live(target)
    key = pair_id(versions[0].fingerprints)
    with target.session("a test") as session:
        vectors = session.vectors.geometries("clip")[key]
    name = next(name for name in vectors if ".ascii-cat." in name)
    vectors[name] = -vectors[name]
    with target.connect() as connection:
        connection.execute("DELETE FROM oml.geometry WHERE id = ?", [key])
    with target.session("a test") as session:
        session.vectors.save("clip", key, vectors)
    with pytest.raises(ParityError, match="worst ascii-cat"):
        rollback("clip", target)
    assert live(target) == before


@pytest.mark.parametrize("allowed", ["adopt", "take_over"])
def test_models_of_others_are_touched_only_when_adopted_and_never_dropped(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, allowed: str
) -> None:
    promote("models:/clip/1", target, "other")
    with target.connect() as connection:  # somebody else's pair of that name
        connection.execute(
            "INSERT INTO oml.models SELECT replace(name, 'OTHER', 'CLIP'), side, fingerprint, "
            "dims, size_bytes, '{}', loaded_at FROM oml.models"
        )
    before = live(target)
    with pytest.raises(ForeignModel, match=r"CLIP_IMG .*CLIP_TXT .*Nothing was changed"):
        promote("models:/clip/2", target)
    assert live(target) == before
    done = promote("models:/clip/2", target, **{allowed: True})
    assert done.entry.generation == 2
    with target.session("a test") as session:
        assert [entry.action for entry in session.journal.ledger("clip")] == ["adopt", "promote"]
    target.keep = 0
    promote("models:/clip/1", target)
    promote("models:/clip/3", target, accept_new_geometry=True)
    assert {"CLIP_IMG_S1", "CLIP_TXT_S1"} <= set(live(target))
    assert "CLIP_IMG_S2" not in live(target)
    drop("clip", target)
    assert {name for name in live(target) if name.startswith("CLIP")} == {
        "CLIP_IMG_S1",
        "CLIP_TXT_S1",
    }
    back = rollback("clip", target, to=1, unverified=True)
    assert (back.entry.action, back.entry.verification) == ("rollback", "unverified")


def test_drop_keeps_the_ledger_and_numbers_go_on(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    drop("clip", target)
    assert live(target) == {}
    with pytest.raises(TargetError, match="no pair CLIP"):
        drop("clip", target)
    assert promote("models:/clip/1", target).entry.generation == 3
    with target.session("a test") as session:
        assert [e.action for e in session.journal.ledger()] == ["promote", "drop", "promote"]


def test_drift_behind_our_back_is_named(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    with target.connect() as connection:
        connection.execute("DELETE FROM oml.models WHERE name = 'CLIP_TXT'")
    done = CliRunner().invoke(cli, ["models", "--target", target.uri])
    assert "NOT what the ledger says" in done.output
    assert promote("models:/clip/1", target).changed
    assert set(live(target)) >= {"CLIP_IMG", "CLIP_TXT"}


def test_the_command_line_plans_goes_back_and_drops(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    run = CliRunner().invoke
    where = ["--target", target.uri]
    first = run(cli, ["promote", "models:/clip/1", "--dry-run", *where])
    assert "error" not in first.output
    assert "Plan: 2 to load, 1 to swap, 0 to drop. Nothing was changed." in first.output
    assert not target.folder.exists()
    run(cli, ["promote", "models:/clip/1", *where], catch_exceptions=False)
    run(cli, ["promote", "models:/clip/2", *where], catch_exceptions=False)
    again = run(cli, ["promote", "models:/clip/2", "--dry-run", *where])
    assert "live already. Nothing to do." in again.output
    back = json.loads(run(cli, ["promote", "models:/clip/1", "--dry-run", *where, "--json"]).output)
    assert back["geometry"] == "same"
    assert [step["sign"] for step in back["steps"]] == ["?", "-/+", "-/+"]
    assert "clip version 1" in run(cli, ["rollback", "clip", *where]).output
    shown = run(cli, ["history", "clip", *where]).output
    assert "rollback to 1" in shown
    refused = run(cli, ["drop", "clip", *where])
    assert refused.exit_code != 0
    assert "Nothing was changed. Give --yes." in refused.output
    assert "CLIP_IMG" in live(target)
    assert run(cli, ["drop", "clip", "--yes", *where]).exit_code == 0
    assert live(target) == {}


@pytest.mark.parametrize("phase", ["swapping", "cleaning"])
def test_an_interrupted_rollback_is_only_finished(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, phase: str
) -> None:
    for version in (1, 2, 3):
        promote(f"models:/clip/{version}", target, accept_new_geometry=True)
    with target.session("a test") as session:
        work = plan_rollback(observe(session, "clip"), to=None, keep=target.keep).work
        assert work is not None
        session.journal.begin(work)
        if phase == "cleaning":
            session.journal.swap(work)
    if phase == SWAPPING:
        target.sql("UPDATE oml.live SET phase = 'swapping'")
    done = rollback("clip", target)
    assert (done.entry.version, done.changed) == ("2", False)
    assert "the rollback of CLIP begun by" in done.finished
    assert live(target)["CLIP_IMG"] == versions[1].fingerprints["img"]


def test_columns_are_remembered_and_forgotten(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    run = CliRunner().invoke
    where = ["--target", target.uri]
    promote("models:/clip/1", target)
    target.sql(
        "CREATE TABLE notes (body VARCHAR, embedding FLOAT[16]); "
        "CREATE VIEW asked AS SELECT clip_txt(body) AS v FROM notes"
    )
    add = ["columns", "clip", *where, "--add", "notes.embedding", "--side", "txt"]
    shown = run(cli, [*add, "--source", "body"]).output
    assert "notes.embedding" in shown
    assert "asked" in shown
    assert run(cli, [*add, "--source", "body; DROP TABLE notes"]).exit_code == 1
    assert run(cli, [*add, "--source", "nothing"]).exit_code == 1
    assert run(cli, ["columns", "clip", *where, "--remove", "notes.embedding"]).exit_code == 0
    assert run(cli, ["columns", "clip", *where, "--remove", "notes.embedding"]).exit_code != 0


@pytest.mark.parametrize("phase", ["loading", "swapping", "cleaning"])
def test_what_an_earlier_run_left_is_shown_and_mended(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, phase: str
) -> None:
    promote("models:/clip/1", target)
    planned = dry_run("models:/clip/2", target)
    assert planned.work is not None
    work = replace(planned.work, holder="somebody else")
    with target.session("a test") as session:
        session.journal.begin(work)
        for model in planned.uploads:
            session.models.load(model, planned.paths[model.side])
        if phase == "cleaning":
            session.journal.swap(work)
    if phase == SWAPPING:
        target.sql("UPDATE oml.live SET phase = 'swapping'")
    arguments = ["promote", "models:/clip/3", "--dry-run", "--target", target.uri]
    shown = CliRunner().invoke(cli, arguments).output
    assert "begun by somebody else" in shown
    done = promote("models:/clip/2", target)
    assert "begun by somebody else" in done.finished
    assert done.changed == (phase == "loading")
    with target.session("a test") as session:
        assert session.journal.state("clip").phase == WHOLE
    assert live(target)["CLIP_IMG"] == versions[1].fingerprints["img"]
