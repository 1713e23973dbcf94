# ruff: noqa: T201, S311 -- the figures belong in the log; rows are drawn by fixed seeds
"""What a check of stored vectors finds, and what becomes of rows that change during a filling."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from stored import change_rows, rows_of, strangers, write_docs

from oml_mlflow import PipelinePair, promote
from oml_mlflow.commands.columns import check_columns, fill
from oml_mlflow.promotion import filling
from oml_mlflow.targets.embedded.target import EmbeddedTarget

ROWS = 2000
# 1 % of so many rows, of which 200 are drawn: 1 - (1 - 0.01) ** 200
PROBABILITY = 0.87


def check_drill(pairs: tuple[PipelinePair, ...], folder: Path, runs: int) -> None:
    target = EmbeddedTarget(folder / "database")
    promote("models:/clip/1", target)
    write_docs(target, ROWS, pairs[0].dims)
    alarms = 0
    for seed in range(runs):
        [check] = check_columns("clip", target, seed=seed)
        alarms += not check.ok
    wrong = random.Random(0).sample(range(ROWS), ROWS // 100)
    texts = dict(target.sql("SELECT id, body FROM docs"))
    for key in wrong:
        [vector] = pairs[2].embedder().embed_text(texts[key])
        target.sql("UPDATE docs SET embedding = ? WHERE id = ?", [vector.tolist(), key])
    found = 0
    for seed in range(runs):
        [check] = check_columns("clip", target, seed=seed)
        assert set(check.differ) <= set(wrong)
        found += not check.ok
    print(
        f"\n{alarms} false alarms in {runs} checks of a right column; 1 % of another model's rows "
        f"found in {found} of {runs} (expected {check.finds(0.01):.0%})"
    )
    assert alarms == 0
    assert check.finds(0.01) >= PROBABILITY - 0.005
    # four standard deviations of so many draws
    assert found >= runs * PROBABILITY - 4 * (runs * PROBABILITY * (1 - PROBABILITY)) ** 0.5


def sequences_drill(
    pairs: tuple[PipelinePair, ...],
    folder: Path,
    seeds: range,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filling, "SLICE_S", 0.0)
    monkeypatch.setattr(filling, "TURN_S", 0.11)
    monkeypatch.setattr(filling.Filling, "_rows", 1)
    target = EmbeddedTarget(folder / "database", timeout_s=60)
    promote("models:/clip/1", target)
    write_docs(target, 12, pairs[0].dims)
    changed, version = 0, 1
    for seed in seeds:
        drawn, stop = random.Random(seed), threading.Event()
        counts: list[int] = []

        def work(
            drawn: random.Random = drawn,
            stop: threading.Event = stop,
            counts: list[int] = counts,
        ) -> None:
            while not stop.is_set():
                change_rows(target, drawn, 1)
                counts.append(1)
                stop.wait(drawn.random() * 0.1)

        writer = threading.Thread(target=work)
        writer.start()
        version = 4 - version
        try:
            promote(f"models:/clip/{version}", target, reembed=True)
        finally:
            stop.set()
            writer.join()
        changed += len(counts)
        # after the swap rows changed, too: those are without a vector, or named as changed
        pair, rows = pairs[version - 1], rows_of(target)
        wrong = {key for key in strangers(pair, rows) if rows[key][1] is not None}
        [check] = check_columns("clip", target, rows=len(rows))
        assert len(wrong) <= check.changed, (seed, wrong, check)
        fill("clip", target)
        assert not [*strangers(pair, rows_of(target))], seed
    print(f"\n{len(seeds)} sequences, {changed} changes meanwhile: 0 rows wrong and not named")


def test_checks_find_what_is_wrong_and_nothing_else(
    versions: tuple[PipelinePair, ...], tmp_path: Path
) -> None:
    check_drill(versions, tmp_path, 6)


@pytest.mark.drill
def test_a_hundred_checks_find_what_is_wrong_and_nothing_else(
    versions: tuple[PipelinePair, ...], tmp_path: Path
) -> None:
    check_drill(versions, tmp_path, 100)


def test_some_random_sequences(
    versions: tuple[PipelinePair, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences_drill(versions, tmp_path, range(3), monkeypatch)


@pytest.mark.drill
def test_many_random_sequences(
    versions: tuple[PipelinePair, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences_drill(versions, tmp_path, range(100), monkeypatch)
