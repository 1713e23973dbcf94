"""Promotion, rollback, healing and refusals in a real database."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import oml_mlflow
from live.conftest import PROFILE, Say, Schema, execute, rows
from oml_mlflow import PipelinePair, drop, promote, rollback
from oml_mlflow.errors import ForeignModel, GeometryChanged, OmlMlflowError, TargetLocked
from oml_mlflow.events import Event
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.parity.policy import CLASSES
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.records import PIN, WHOLE, Note
from oml_mlflow.promotion.candidate import Candidate
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.promote import promote_candidate
from oml_mlflow.promotion.verify import verify
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.target import OracleTarget


def shown(report: ParityReport) -> str:
    lines = [report.title]
    for found in report.by_class():
        figures = f"max abs {found.max_abs:.1e}, cosine {found.min_cosine:.7f}"
        lines.append(
            f"{found.category:9} {found.level:4} {found.state:8} {found.compared} of {found.count}"
            f"{', ' + figures if found.compared else ''}"
        )
    return "\n".join([*lines, report.summary])


def models(schema: Schema) -> dict[str, str]:
    """Return fingerprints of the live models."""
    with schema.target().session("live suite", create=False) as session:
        names = {f"{schema.name}_IMG", f"{schema.name}_TXT"}
        return {m.side: m.fingerprint for m in session.models.list() if m.name in names}


def test_a_survey(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    target = schema.target()
    promote_candidate(candidates[0], target, schema.name)
    with target.session("live suite") as session:
        session.notes.write(Note(schema.name, PIN, {"reason": "ü" * 5000}))
    begun = time.perf_counter()
    held = target.survey().names[schema.name]
    say("seconds that a survey takes, with connecting", f"{time.perf_counter() - begun:.3f}")
    assert held.is_whole()
    assert held.drift() == ()
    assert held.notes[PIN].content == {"reason": "ü" * 5000}


def test_promote_and_back(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    target, sent = schema.target(), []

    def listen(event: Event) -> None:
        if event.stage == "upload" and event.done == event.total:
            sent.append(event.item)

    done = promote_candidate(candidates[0], target, schema.name, on_event=listen)
    say("vectors of a promotion, by class", shown(done.report))
    assert done.report.ok
    assert {c.category for c in done.report.by_class()} == set().union(*CLASSES.values())
    assert done.entry.generation == 1
    assert models(schema) == candidates[0].pair.fingerprints
    assert len(sent) == 2

    assert not promote_candidate(candidates[0], target, schema.name, on_event=listen).changed
    second = promote_candidate(candidates[1], target, schema.name, on_event=listen)
    say("seconds that a swap takes", f"{second.swap_s:.3f}")
    assert models(schema) == candidates[1].pair.fingerprints
    assert len(sent) == 4

    back = rollback(schema.name, target, on_event=listen)
    assert back.report.ok
    assert models(schema) == candidates[0].pair.fingerprints
    again = promote_candidate(candidates[1], target, schema.name, on_event=listen)
    assert again.entry.fingerprints == candidates[1].pair.fingerprints
    assert len(sent) == 4

    drop(schema.name, target)
    assert schema.model_names() == []


def test_a_stored_version(
    schema: Schema, mlflow_store: Path, tiny_pair: PipelinePair, say: Say
) -> None:
    own = [get_profile(PROFILE, decode_op=schema.where.decode_op)] if schema.where.decode_op else []
    oml_mlflow.log_model(
        tiny_pair, name="clip", registered_model_name="clip", profiles=[PROFILE, *own]
    )
    done = promote("models:/clip/1", schema.target(), schema.name)
    say("profile that was chosen", done.entry.profile)
    say("what is said of it in the ledger", done.entry)
    report = verify("models:/clip/1", schema.target(), schema.name)
    say("vectors of a stored version, by class", shown(report))
    assert report.ok


def test_grants_are_kept(schema: Schema, candidates: tuple[Candidate, ...]) -> None:
    if not schema.where.grantee:
        pytest.skip("no --oracle-grantee")
    target, live = schema.target(), f"{schema.name}_TXT"
    promote_candidate(candidates[0], target, schema.name)
    with schema.connect() as connection:
        execute(connection, f'GRANT SELECT ON MINING MODEL {live} TO "{schema.where.grantee}"')
        before = rows(connection, sql.LIST_GRANTS, model_name=live)
        promote_candidate(candidates[1], target, schema.name)
        assert rows(connection, sql.LIST_GRANTS, model_name=live) == before
        rollback(schema.name, target)
        assert rows(connection, sql.LIST_GRANTS, model_name=live) == before


def test_a_lost_connection_is_healed(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    promote_candidate(candidates[0], schema.target(), schema.name)
    connection = schema.connect()

    def lose(event: Event) -> None:
        if event.stage == "verify" and event.done == 1 and event.item.endswith("_S2"):
            connection.close()

    with pytest.raises(OmlMlflowError, match="next run") as err:
        promote_candidate(
            candidates[1], OracleTarget(connection=connection), schema.name, on_event=lose
        )
    say("what is said of a lost connection", err.value)
    assert f"{schema.name}_IMG_S2" in schema.model_names()
    assert models(schema) == candidates[0].pair.fingerprints
    done = promote_candidate(candidates[1], schema.target(), schema.name)
    say("what was healed", done.finished)
    assert "undone" in done.finished
    assert models(schema) == candidates[1].pair.fingerprints
    with schema.target().session("live suite", create=False) as session:
        assert session.journal.state(schema.name).phase == WHOLE


def test_of_two_promoters_one_wins(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    connection = schema.connect()
    with (
        OracleTarget(connection=connection).session("live suite") as session,
        session.lock(schema.name, "the first of two"),
        pytest.raises(TargetLocked, match="the first of two") as err,
    ):
        promote_candidate(candidates[0], schema.target(), schema.name)
    say("what is said of a lock", err.value)
    with (
        pytest.raises(OmlMlflowError),
        OracleTarget(connection=connection).session("live suite") as session,
        session.lock(schema.name, "one that is lost"),
    ):
        connection.close()
    assert promote_candidate(candidates[0], schema.target(), schema.name).entry.generation == 1


def test_another_geometry_is_refused(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    target = schema.target()
    promote_candidate(candidates[0], target, schema.name)
    with pytest.raises(GeometryChanged) as err:
        promote_candidate(candidates[2], target, schema.name)
    say("what is said of another geometry", err.value)
    assert models(schema) == candidates[0].pair.fingerprints
    accepted = Options(accept_new_geometry=True)
    promote_candidate(candidates[2], target, schema.name, options=accepted)
    references = candidates[2].references
    assert references is not None
    probe = next(p for p in candidates[2].probes if p.category == "ascii")
    with target.session("live suite", create=False) as session:
        vector = session.models.embed(f"{schema.name}_TXT", "txt", [probe.value])[0]
    np.testing.assert_allclose(vector, references.vectors[probe.id], atol=1e-4)


def test_a_model_of_others_is_untouched(schema: Schema, candidates: tuple[Candidate, ...]) -> None:
    target, live = schema.target(), f"{schema.name}_TXT"
    with target.session("live suite") as session:
        session.models.load(candidates[0].to_model("txt", live), candidates[0].pair.path("txt"))
    with schema.connect() as connection:
        execute(connection, f"COMMENT ON MINING MODEL {live} IS 'made by others'")
    with pytest.raises(ForeignModel, match=live):
        promote_candidate(candidates[0], target, schema.name)
    assert schema.model_names() == [live]
