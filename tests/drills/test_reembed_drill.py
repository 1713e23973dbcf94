# ruff: noqa: T201 -- the counts belong in the log
"""Killed at every step of a promotion that takes stored vectors along: old or new, never mixed."""

from __future__ import annotations

from pathlib import Path

import killed
import pytest
from drilled import Drill, drawn, environment, live_pair, look
from stored import rows_of, strangers, write_docs

from oml_mlflow import PipelinePair, promote, rollback
from oml_mlflow.planning.records import WHOLE
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.targets.embedded.vectors import EmbeddedVectors

SAMPLES, ROWS, BATCH = 5, 20, 16


def reembed_drill(
    action: str,
    pairs: tuple[PipelinePair, ...],
    folder: Path,
    samples: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Drill:
    old, new = pairs[0], pairs[2]
    prepared = EmbeddedTarget(folder / "prepared")
    promote("models:/clip/1", prepared)
    write_docs(prepared, ROWS, old.dims)
    if action == "rollback":
        promote("models:/clip/3", prepared, reembed=True)
        prepared.sql("INSERT INTO docs (id, body) VALUES (100, 'new'), (101, 'newer')")
        prepared.sql("UPDATE docs SET body = 'changed', embedding = NULL WHERE id = 3")
        prepared.sql("UPDATE docs SET embedding = CLIP_TXT(body) WHERE embedding IS NULL")
        old, new = new, old
    sources = {key: body for key, (body, _) in rows_of(prepared).items()}
    drill, redone = Drill(f"{action} with stored vectors"), [0]
    target = EmbeddedTarget(folder / "database")
    job = killed.Job(action, target.uri, "models:/clip/3", "clip", environment(), slice_s=0.0)
    embedded, plain = [0], EmbeddedVectors.fill

    def counted(self: EmbeddedVectors, *given: object) -> int:
        count = plain(self, *given)  # type: ignore[arg-type]
        embedded[0] += count
        return count

    monkeypatch.setattr(EmbeddedVectors, "fill", counted)

    drill.steps = killed.attempt(job, prepared.folder, 0, True)
    every = killed.every_step(drill.steps)
    for step, before in every if samples is None else drawn(every, samples):
        where = f"killed {'before' if before else 'after'} step {step}"
        killed.attempt(job, prepared.folder, step, before)
        drill.killed += 1
        found, rows = look(target), rows_of(target)
        drill.pending += found.state.phase != WHOLE
        is_new = live_pair(found) == new.fingerprints
        if not is_new and live_pair(found) != old.fingerprints:
            drill.blame(where, "neither pair is live")
        if {key: body for key, (body, _) in rows.items()} != sources:
            drill.blame(where, "rows were lost, doubled or changed")
        if wrong := [*strangers(new if is_new else old, rows)]:
            drill.blame(where, f"rows {wrong} are not the live model's")
        # what the next run has to embed, and what it does embed
        due = 0 if is_new else ROWS + 2 * (action == "rollback")
        for kept in found.dependants:
            if kept.beside and kept.geometry != found.live.geometry and not is_new:  # type: ignore[union-attr]
                due = sum(
                    vector is None for _body, vector in rows_of(target, kept.beside).values()
                ) + (action == "rollback")
        embedded[0] = 0
        if action == "promote":
            promote("models:/clip/3", target, reembed=True)
        elif not is_new or found.state.phase != WHOLE:
            rollback("clip", target, reembed=True)
        redone[0] = max(redone[0], embedded[0] - due)
        if embedded[0] - due > BATCH:
            drill.blame(where, f"{embedded[0]} rows were embedded, {due} were due")
        found = look(target)
        if live_pair(found) != new.fingerprints or found.state.phase != WHOLE:
            drill.blame(where, "the next run did not finish it")
        if wrong := [*strangers(new, rows_of(target))]:
            drill.blame(where, f"rows {wrong} are not the new model's")
        names = sorted(name for name, *_ in target.sql("DESCRIBE docs"))
        if len(names) != 4:
            drill.blame(where, f"columns {names}")
    drill.show()
    print(f"at most {redone[0]} rows were embedded again, of batches of {BATCH}")
    return drill


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_some_steps_with_stored_vectors(
    versions: tuple[PipelinePair, ...],
    tmp_path: Path,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drill = reembed_drill(action, versions, tmp_path, SAMPLES, monkeypatch)
    assert (drill.killed, drill.violations) == (SAMPLES, 0)


@pytest.mark.drill
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_killed_at_every_step_with_stored_vectors(
    versions: tuple[PipelinePair, ...],
    tmp_path: Path,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drill = reembed_drill(action, versions, tmp_path, None, monkeypatch)
    assert drill.violations == 0
