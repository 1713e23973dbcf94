"""Export beside `optimum-cli export onnx`: wall time and peak memory, in one run.

Ours writes both pipelines whole, preparation included, and compares them with the model's own
Python code on the golden probes; optimum's writes the towers only. Each runs as a process of its
own on the same folder, in turns, and the peak is the kernel's ``ru_maxrss`` of that process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
OPTIMUM = "optimum-onnx[onnxruntime]==0.1.0"
SIZES = {
    "b32": {},
    "l14": {
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "projection_dim": 768,
    },
}


def make_model(folder: Path, size: str) -> None:
    """Write a full-size CLIP with random weights and CLIP's own vocabulary."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    import clip_folders
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    ends = {"bos_token_id": clip_folders.START_ID, "eos_token_id": clip_folders.END_ID}
    wanted = dict(SIZES[size])
    text = {**ends, **wanted.pop("text_config", {})}
    config = CLIPConfig(text_config=text, **{"vision_config": {}, **wanted})
    CLIPModel(config).save_pretrained(folder)
    clip_folders.write_companions(folder)


def make_environment(cache: Path) -> Path:
    """Return the program of optimum in an environment of its own, made if missing."""
    root = cache / "optimum"
    program = root / "bin" / "optimum-cli"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", root], check=True)
        constraints = ROOT / "projects" / "constraints.txt"
        pip = [root / "bin" / "pip", "install", "-q", "-c", constraints, OPTIMUM]
        subprocess.run(pip, check=True)
    return program


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command in an empty folder; return its wall time in s and its peak memory in GB."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.monotonic()
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.monotonic() - start
    if status:
        raise click.ClickException((folder.parent / "log").read_text()[-2000:])
    return elapsed, usage.ru_maxrss / 1e6


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Kept between runs.")
@click.option("--size", type=click.Choice(list(SIZES)), default="b32", help="Which model.")
@click.option("--rounds", default=3, help="How often each is run; the best counts.")
@click.option("--ours-only", is_flag=True, help="Leave optimum out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(cache: Path, size: str, rounds: int, ours_only: bool, as_json: bool) -> None:
    """Measure both exports side by side."""
    cache = cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / size
    if not (folder / "model.safetensors").exists():
        make_model(folder, size)
    weights_gb = (folder / "model.safetensors").stat().st_size / 1e9
    # a float32 L/14 is over the size that the default profile takes
    profile = ["--profile", "onnxruntime"]
    ours = [sys.executable, "-m", "oml_mlflow.cli.main", "export", str(folder), "clip", *profile]
    commands = {"oml-mlflow export, validated": ours}
    if not ours_only:
        task = ["--task", "zero-shot-image-classification", "out"]
        program = [str(make_environment(cache)), "export", "onnx", "--model", str(folder)]
        commands["optimum-cli export onnx"] = [*program, *task]
    best: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        for _ in range(rounds):
            for name, command in commands.items():
                wall, peak = measure(command, Path(scratch) / "out")
                before = best.get(name, (wall, peak))
                best[name] = (min(wall, before[0]), min(peak, before[1]))
    first, *rest = best.values()
    result = {
        "size": size,
        "weights_gb": weights_gb,
        "rounds": rounds,
        "best": {n: {"wall_s": w, "peak_gb": p} for n, (w, p) in best.items()},
        "peak_over_weights": first[1] / weights_gb,
        "wall_ratio": first[0] / rest[0][0] if rest else None,
        "peak_ratio": first[1] / rest[0][1] if rest else None,
    }
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    click.echo(f"{size}, weights {weights_gb:.2f} GB, best of {rounds}")
    for name, (wall, peak) in best.items():
        click.echo(f"{name:32} {wall:6.1f} s  {peak:5.2f} GB")
    click.echo(f"peak memory over weights: {result['peak_over_weights']:.2f}")
    if rest:
        click.echo(
            f"ours / optimum: wall {result['wall_ratio']:.2f}, peak {result['peak_ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
