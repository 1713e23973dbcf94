# ruff: noqa: E402 -- the tests' and the demo model's modules are found by path
"""Measure what INT8 and float16 cost and give: size, loss, speed, memory, batch, runtime.

A model of ViT-B/32's size with random weights, from tests/support/clip_folders.py, and the demo
model, whose weights are trained. Speed is processor time of one thread, the precisions taken
in turn, so that other work on the machine changes little; ratios are what to read.

    python projects/benchmark/shrink.py --other-python ENV/bin/python > table.md
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "tests" / "support"),
    str(ROOT / "tests" / "pair"),
    str(ROOT / "projects" / "demo_model"),
]

import clip_folders
import drawings
from test_exactness import captions

from oml_mlflow.graph.precision import FLOAT32, PRECISIONS, measure_loss
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import ONNXPipelineConfig

PROPERTIES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"use_float16": True},
    "int8": {"quantize_model": True},
    "int8-dynamic": {"quantize_model": "dynamic"},
}
SIDES = ("img", "txt")
HELD_OUT, ROUNDS, TEXTS_TIMED, TEXTS_PER_BATCH = 200, 5, 24, 32
BARE = """
import sys, numpy as np, onnxruntime as ort, onnxruntime_extensions as ext
path, side, inputs, out = sys.argv[1:]
options = ort.SessionOptions()
options.register_custom_ops_library(ext.get_library_path())
options.log_severity_level = 3
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = resident()
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
with np.load(inputs) as stored:
    given = [stored[k] for k in stored.files]
if side == "txt":
    given = [v.astype(object) for v in given]
rows = [session.run(["embedding"], {"input": v})[0] for v in given]
np.savez(out, vectors=np.concatenate(rows), resident=resident() - before)
print(ort.__version__, ext.__version__)
"""


def make_pairs(folder: Path, model: Path, name: str) -> dict[str, PipelinePair]:
    """Export a pair in each precision, not compared with anything."""
    return {
        precision: ONNXPipeline(
            str(model), ONNXPipelineConfig(**PROPERTIES[precision])
        ).export2file(f"{name}_{precision.replace('-', '_')}", folder, validate=False)
        for precision in PRECISIONS
    }


def embed_each(session: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Embed inputs one at a time."""
    return np.concatenate([run(session, values) for values in inputs])


def time_in_turn(actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the least processor time of each action, in seconds."""
    least = dict.fromkeys(actions, float("inf"))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.process_time()
            action()
            least[name] = min(least[name], time.process_time() - start)
    return least


def run_bare(
    python: str, path: Path, side: str, inputs: Sequence[np.ndarray], folder: Path
) -> tuple[np.ndarray, float, str]:
    """Embed in a fresh process; return vectors, memory taken in MB, and versions."""
    given, out = folder / "inputs.npz", folder / "vectors.npz"
    plain = [v.astype(str) if side == "txt" else v for v in inputs]
    np.savez(given, *plain)
    done = subprocess.run(
        [python, "-c", BARE, str(path), side, str(given), str(out)],
        check=True,
        capture_output=True,
        text=True,
        env={},
    )
    with np.load(out) as stored:
        return stored["vectors"], float(stored["resident"]), done.stdout.strip()


def batch_difference(path: Path, side: str, inputs: Sequence[np.ndarray]) -> float:
    """Return how far vectors in a batch are from the same inputs alone, at the encoder."""
    start = "pixel_values" if side == "img" else "input_ids"
    parts = ("input", start), (start, "embedding")
    head, encoder = (open_session(path, part=part, threads=1) for part in parts)
    prepared = [head.run(None, {"input": values})[0] for values in inputs]
    longest = max(p.shape[1] for p in prepared)
    if side == "txt":
        prepared = [
            np.pad(p, ((0, 0), (0, longest - p.shape[1])), constant_values=clip_folders.END_ID)
            for p in prepared
        ]
    alone = np.concatenate([encoder.run(None, {start: p})[0] for p in prepared])
    together = encoder.run(None, {start: np.concatenate(prepared)})[0]
    return float(np.abs(alone - together).max())


def measure_side(
    pairs: dict[str, PipelinePair],
    side: str,
    inputs: Sequence[np.ndarray],
    timed: Sequence[np.ndarray],
    other_python: str | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """Return a row for each precision."""
    sessions = {p: open_session(pair.path(side), threads=1) for p, pair in pairs.items()}
    vectors = {p: embed_each(session, inputs) for p, session in sessions.items()}
    seconds = time_in_turn(
        {p: lambda s=session: embed_each(s, timed) for p, session in sessions.items()}
    )
    del sessions
    rows = []
    for precision, pair in pairs.items():
        path = pair.path(side)
        here, resident, _ = run_bare(sys.executable, path, side, timed, folder)
        row = {
            "side": side,
            "precision": precision,
            "MB": path.stat().st_size / 1e6,
            "resident MB": resident,
            **measure_loss(vectors[precision], vectors[FLOAT32]),
            "per s": len(timed) / seconds[precision],
            "speed": seconds[FLOAT32] / seconds[precision],
            "batch": batch_difference(path, side, timed[:TEXTS_PER_BATCH]),
        }
        if other_python:
            there, _, row["other runtime is"] = run_bare(other_python, path, side, timed, folder)
            row["other runtime"] = float(np.abs(here - there).max())
        rows.append(row)
    return rows


def measure_demo(pairs: dict[str, PipelinePair]) -> list[dict[str, Any]]:
    """Return a row for each precision: loss and recall@1 over held-out pictures."""
    held = drawings.held_out(HELD_OUT)
    again = [drawings.draw(drawing.scene, 1) for drawing in held]
    rows, float32 = [], {}
    for precision, pair in pairs.items():
        embedder = pair.embedder()
        pictures = embedder.embed_image([drawing.png() for drawing in held])
        others = embedder.embed_image([drawing.png() for drawing in again])
        texts = np.concatenate([embedder.embed_text([drawing.caption]) for drawing in held])
        found = {"img": pictures, "txt": texts}
        float32 = float32 or found
        right = np.arange(len(held))
        row = {
            "precision": precision,
            "caption finds picture": float(np.mean((texts @ pictures.T).argmax(1) == right)),
            "picture finds picture": float(np.mean((others @ pictures.T).argmax(1) == right)),
        }
        for side in SIDES:
            row[f"MB {side}"] = pair.path(side).stat().st_size / 1e6
            loss = measure_loss(found[side], float32[side])
            row |= {f"{name} {side}": value for name, value in loss.items()}
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) and abs(v) < 0.1 else v for v in row.values()]
        shown = [f"{v:.5g}" if isinstance(v, float) else str(v) for v in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--other-python", help="Interpreter of an environment with another onnxruntime.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def main(other_python: str | None, as_json: bool) -> None:
    """Measure every precision of a full-size and of a trained model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = measure_demo(make_pairs(folder, ROOT / "projects" / "demo_model" / "demo", "demo"))
        pairs = make_pairs(folder, clip_folders.write_full(folder / "full"), "full")
        photographs = [
            np.frombuffer(clip_folders.as_jpeg_444(picture), np.uint8)
            for _, picture in clip_folders.photographs()
        ]
        timed = [
            np.frombuffer(clip_folders.as_jpeg_444(picture.resize((480, 360))), np.uint8)
            for _, picture in clip_folders.photographs()[::4]
        ]
        texts = [np.array([text], dtype=object) for text in captions()]
        full = [
            *measure_side(pairs, "img", photographs, timed, other_python, folder),
            *measure_side(pairs, "txt", texts, texts[25 : 25 + TEXTS_TIMED], other_python, folder),
        ]
    if as_json:
        click.echo(json.dumps({"full": full, "demo": demo}))
        return
    counts = f"{len(photographs)} photographs, {len(texts)} captions"
    click.echo(f"ViT-B/32, random weights; {counts}; against float32.\n\n{to_markdown(full)}\n")
    click.echo(f"Demo model, trained; recall@1 over {HELD_OUT} pictures.\n\n{to_markdown(demo)}")


if __name__ == "__main__":
    main()
