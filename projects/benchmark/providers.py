"""An accelerator's vectors and rows a second, beside the CPU's, by the host front end.

A model of ViT-B/32's size with random weights; needs an onnxruntime that has the provider.

    python projects/benchmark/providers.py --cache FOLDER --provider CUDAExecutionProvider
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embedding import SIZES, TEXTS, export, jpegs, medians

from oml_mlflow.graph import runtime
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.names import SIDES
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.parity.probes import embed_probes, golden_probes

COUNT = 256
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"use_float16": True},
    "int8": {"quantize_model": True},
    "dynamic": {"quantize_model": "dynamic"},
}


def apart(provider: PairEmbedder, cpu: PairEmbedder) -> str:
    """Return the largest difference of an element on the golden probes, by side."""
    probes = golden_probes()
    ours, theirs = (embed_probes(embedder, probes) for embedder in (provider, cpu))
    off = dict.fromkeys(SIDES, 0.0)
    for probe in probes:
        difference = float(np.abs(ours[probe.id] - theirs[probe.id]).max())
        off[probe.side] = max(off[probe.side], difference)
    return ", ".join(f"{side} {value:.1e}" for side, value in off.items())


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Kept between runs.")
@click.option("--provider", required=True, help="ONNX Runtime's name of it.")
@click.option("--rounds", default=3, help="How often each is run; medians count.")
def main(cache: Path, provider: str, rounds: int) -> None:
    """Print differences, and rows a second."""
    click.echo(f"onnxruntime {onnxruntime.__version__}, {runtime.cores()} cores")
    pictures = {name: jpegs(size, COUNT) for name, size in SIZES.items()}
    texts = [text for some in TEXTS.values() for text in some]
    for name, settings in PRECISIONS.items():
        pair = export(cache, name, **settings)
        cpu, other = (pair.embedder(providers=[p]) for p in (runtime.CPU, provider))
        limits = read_precisions(pair.metadata)
        allowed = {side: runtime_limit(limits[side], pair.dims) for side in SIDES}
        click.echo(f"{name}: {apart(other, cpu)} apart; allowed {allowed}")
        if name == "float32":
            kept, runtime._ACCELERATORS[provider] = runtime._ACCELERATORS.get(provider, {}), {}
            plain = apart(pair.embedder(providers=[provider]), cpu)
            runtime._ACCELERATORS[provider] = kept
            click.echo(f"  with the provider's own settings {plain}")
        calls = {
            f"{who} {kind}": partial(embedder.embed_image, given)
            for kind, given in pictures.items()
            for who, embedder in (("cpu", cpu), ("provider", other))
        }
        calls |= {"cpu texts": partial(cpu.embed_text, texts)}
        calls |= {"provider texts": partial(other.embed_text, texts)}
        for called, seconds in medians(calls, rounds).items():
            rows = len(texts) if called.endswith("texts") else COUNT
            click.echo(f"  {called:16} {rows / seconds:8.1f} rows a second")


if __name__ == "__main__":
    main()
