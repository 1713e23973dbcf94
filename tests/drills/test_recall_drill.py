# ruff: noqa: T201, E402 -- the figures belong in the log; the project's modules are found by path
"""Recall before, while and after stored vectors go live with a model of another geometry.

The demo model, and the same with both projections turned by an orthogonal matrix: whoever mixes
vectors of the two finds nothing, whoever does not finds the same as before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stored import LIMIT

import oml_mlflow
from oml_mlflow import dry_run, promote, rollback
from oml_mlflow.commands.columns import columns
from oml_mlflow.events import Event
from oml_mlflow.names import IMG
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.promotion import filling
from oml_mlflow.targets.embedded.target import EmbeddedTarget

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "projects" / "demo_model"))

import drawings
import searching

SCENES = 1000


def turned(folder: Path, seed: int) -> Path:
    """Write the demo model with both projections turned; seed 0 for as it is."""
    shutil.copytree(ROOT / "projects" / "demo_model" / "demo", folder)
    weights = load_file(folder / "model.safetensors")
    names = ("visual_projection.weight", "text_projection.weight")
    dims = weights[names[0]].shape[0]
    if seed:
        matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(dims, dims)))[0]
        for name in names:
            weights[name] = (matrix @ weights[name].astype(np.float64)).astype(np.float32)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def found_by_all(target: EmbeddedTarget, captions: list[str]) -> dict[str, str]:
    """Return what each caption finds."""
    with target.connect() as connection:
        return {
            text: connection.execute(searching.SEARCH, [text]).fetchall()[0][0] for text in captions
        }


def recall_drill(folder: Path, rows: int, asked: int, rounds: int) -> None:
    for seed in range(2 + rounds):
        model = ONNXPipeline(str(turned(folder / f"model{seed}", seed)))
        pair = model.export2file("clip", folder / f"pair{seed}")
        oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    target = EmbeddedTarget(folder / "database", timeout_s=120)
    promote("models:/clip/1", target)
    scenes = drawings.held_out(min(rows, SCENES))
    target.sql(
        f"CREATE TABLE pictures (id INTEGER PRIMARY KEY, caption VARCHAR, picture BLOB, "
        f"embedding FLOAT[{pair.dims}])"
    )
    kept = [(scene.caption, scene.jpeg()) for scene in scenes]
    with target.connect() as connection:
        connection.executemany(
            "INSERT INTO pictures (id, caption, picture) VALUES (?, ?, ?)",
            [(n, *kept[n % len(kept)]) for n in range(rows)],
        )
    columns("clip", target, add="pictures.embedding", source="picture", side=IMG, key="id")
    update = "UPDATE pictures SET embedding = CLIP_IMG(picture)"
    target.sql(update)
    captions = [scene.caption for scene in scenes[:asked]]
    before = found_by_all(target, captions)

    queries, stop, results = (folder / name for name in ("queries.json", "stop", "results.json"))
    queries.write_text(json.dumps(captions), encoding="utf-8")
    reader = subprocess.Popen(
        [sys.executable, searching.__file__, target.folder, queries, stop, results]
    )
    try:
        print(
            "\n"
            + "\n".join(
                text for _, text in dry_run("models:/clip/2", target, reembed=True).to_steps()
            )
        )
        promote("models:/clip/2", target, reembed=True)
    finally:
        stop.touch()
        assert reader.wait(120) == 0
    told = json.loads(results.read_text(encoding="utf-8"))
    during = [(text, caption) for text, caption, is_filling in told["found"] if is_filling]
    mixed = sum(before[text] != caption for text, caption, _ in told["found"])
    after = found_by_all(target, captions)
    recalls = [
        np.mean([text == found for text, found in pairs])
        for pairs in (before.items(), during, after.items())
    ]
    print(
        f"recall@1 of {rows:,} rows: {recalls[0]:.3f} before, {recalls[1]:.3f} in "
        f"{len(during):,} queries while filling, {recalls[2]:.3f} after; {mixed} of "
        f"{len(told['found']):,} found another row; a reader waited at most "
        f"{max(told['waits']):.2f} s, {np.median(told['waits']):.2f} s in the middle"
    )
    assert mixed == 0
    assert before == after
    assert len(during) >= asked
    assert dry_run("models:/clip/2", target, reembed=True).work is None

    vectors = dict(target.sql("SELECT id, embedding_g1 FROM pictures"))
    added = max(rows // 100, 1)
    target.sql(
        "INSERT INTO pictures (id, caption, picture) "
        "SELECT id + ?, caption, picture FROM pictures WHERE id < ?",
        [rows, added],
    )
    begun = time.monotonic()
    back = rollback("clip", target, reembed=True)
    back_s = time.monotonic() - begun
    now = dict(target.sql("SELECT id, embedding FROM pictures"))
    print(
        f"rollback with {added} rows since: {back_s:.1f} s, its swap {back.swap_s:.3f} s; "
        f"{sum(now[key] == vector for key, vector in vectors.items()):,} of {len(vectors):,} "
        "vectors bit-equal"
    )
    assert all(now[key] == vector for key, vector in vectors.items())
    for key in range(rows, rows + added):
        assert np.abs(np.subtract(now[key], now[key - rows])).max() <= LIMIT

    ratios = []
    for version in range(3, 3 + rounds):
        told_at: list[tuple[float, Event]] = []
        promote(
            f"models:/clip/{version}",
            target,
            reembed=True,
            on_event=lambda event, told_at=told_at: (  # type: ignore[misc]
                told_at.append((time.monotonic(), event)) if event.stage == "fill" else None
            ),
        )
        (first_s, first), (last_s, last) = told_at[0], told_at[-1]
        begun = time.monotonic()
        target.sql(update)
        bare = (time.monotonic() - begun) / (rows + added)
        ours = (last_s - first_s) / (last.done - first.done)
        ratios.append(ours / bare)
        print(f"a row: {1000 * ours:.2f} ms, by a bare UPDATE {1000 * bare:.2f} ms")
    print(f"of the bare UPDATE, by turns: {np.median(ratios):.2f} in the middle")


def test_recall_is_the_same_while_vectors_change(
    mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "SLICE_S", 0.2)
    recall_drill(tmp_path, 120, 20, 1)


@pytest.mark.drill
def test_recall_of_10000_rows_is_the_same_while_vectors_change(
    mlflow_store: Path, tmp_path: Path
) -> None:
    recall_drill(tmp_path, 10_000, 500, 5)
