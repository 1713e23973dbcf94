# ruff: noqa: T201, S311 -- the counts belong in the log; steps are drawn by a fixed seed
"""embed, killed again and again at random steps: at the end every row is there once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import killed
import numpy as np
import pyarrow.parquet as pq
import pytest

import oml_mlflow
from oml_mlflow import PipelinePair

ROWS, PER_PART = 300, 16


def run_counting(source: str, output: str, model: str, kill_at: int, count: Any) -> None:
    """Embed, and die before a step: a row that is done, or a change to the files of the output."""
    from oml_mlflow.commands import embed as verb

    verb._ROWS_PER_PART = PER_PART
    steps = [0]

    def step(_event: Any = None) -> None:
        steps[0] += 1
        count.value = steps[0]
        if steps[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_ours = any(str(a).startswith(output) for a in arguments if isinstance(a, str | Path))
        if is_ours and event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"}:
            step()

    sys.addaudithook(watch)
    verb.embed(source, output, model, on_event=step)


def embed_drill(pair: PipelinePair, folder: Path, suffix: str, kills: int) -> None:
    model, source = folder / "model", folder / "texts.csv"
    oml_mlflow.save_model(pair, model)
    texts = [f"picture number {n}" for n in range(ROWS)]
    source.write_text("text\n" + "\n".join(texts) + "\n")
    wanted = pair.embedder().embed_text(texts)
    chosen, count = random.Random(7), killed.counter()
    attempts = left = outputs = 0
    while left < kills:
        output = folder / f"out{outputs}{suffix}"
        outputs += 1
        done = False
        while not done:
            # the first run shows how many steps there are; later ones have fewer left
            most = (ROWS if not attempts else count.value) + PER_PART
            kill_at = chosen.randrange(1, most) if left < kills else 0
            child = killed.start(run_counting, str(source), str(output), str(model), kill_at, count)
            child.join(60)
            attempts += 1
            assert child.exitcode in (0, -9, 1), child.exitcode
            left += child.exitcode == -9
            # killed right behind the last step, the next run finds the output whole
            done = output.exists() and not (folder / f"{output.name}.parts" / "job.json").exists()
            assert child.exitcode != 1 or done
        if suffix == ".parquet":
            rows = pq.read_table(output).to_pylist()
            assert [row["id"] for row in rows] == [str(n) for n in range(ROWS)]
            vectors = np.array([row["embedding"] for row in rows], np.float32)
            assert np.abs(vectors - wanted).max() < 1e-6
        else:
            assert len(output.read_text().splitlines()) == ROWS
        shutil.rmtree(folder / f"{output.name}.parts", ignore_errors=True)
    print(f"killed {left} times in {attempts} runs, {outputs} outputs of {ROWS} rows, each once")


def test_killed_a_few_times(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    embed_drill(tiny_pair, tmp_path, ".parquet", 6)


@pytest.mark.drill
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_killed_many_times(tiny_pair: PipelinePair, tmp_path: Path, suffix: str) -> None:
    embed_drill(tiny_pair, tmp_path, suffix, 60)
