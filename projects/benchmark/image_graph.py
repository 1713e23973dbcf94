# ruff: noqa: E402 -- the tests' modules are found by path
"""Where a picture's time goes in the image graph, beside the parts that nobody can leave out.

A 12 MP JPEG through a model of ViT-B/32's size with random weights: the bare graph, then decoder,
resize and encoder alone, in turns. `--other` adds a graph exported elsewhere, such as by an earlier
release, and says whether its vector is the same. First with ONNX Runtime's arena, its default,
which a database that runs the file has; then as this package opens it, without the arena, since
that would keep the memory of the largest picture: each run of either graph then takes 70 MB of
fresh pages.

    python projects/benchmark/image_graph.py --other OLD/clip_img.onnx
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import onnxruntime_extensions
from onnx import TensorProto, helper
from onnx.utils import Extractor
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import clip_folders
from embedding import timed
from lean_export import make_model

from oml_mlflow.graph.image import OPSET
from oml_mlflow.graph.runtime import open_session
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.source.description import BICUBIC, RESIZE_ATTRIBUTES

SIZE, SHORT = (4000, 3000), 224


def write_parts(graph: Path, folder: Path) -> None:
    """Write a graph's decoder, the resize and its encoder as graphs of their own."""
    extractor = Extractor(onnx.load(graph))
    decoder = next(n for n in extractor.model.graph.node if n.op_type == "DecodeImage")
    u8, i64 = TensorProto.UINT8, TensorProto.INT64
    resize = helper.make_node("Resize", ["x", "", "", "size"], ["y"], **RESIZE_ATTRIBUTES[BICUBIC])
    inputs = {
        "decoder": [helper.make_tensor_value_info("input", u8, ["n"])],
        "resize": [
            helper.make_tensor_value_info("x", u8, [1, 3, "h", "w"]),
            helper.make_tensor_value_info("size", i64, [4]),
        ],
    }
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(decoder.domain, 1)]
    for name, node in (("decoder", decoder), ("resize", resize)):
        output = helper.make_tensor_value_info(node.output[0], u8, None)
        part = helper.make_graph([node], name, inputs[name], [output])
        model = helper.make_model(part, opset_imports=opsets, ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")
    onnx.save(extractor.extract_model(["pixel_values"], ["embedding"]), folder / "encoder.onnx")


def open_with_arena(graph: Path) -> onnxruntime.InferenceSession:
    """Return a session with ONNX Runtime's defaults, but for threads that spin.

    They would take a core from the session whose turn is next: the encoder took half as long again.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def photograph() -> Image.Image:
    """Return a photograph of 12 MP."""
    return clip_folders.photographs()[0][1].convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)


@click.command()
@click.option("--other", type=click.Path(path_type=Path), help="Image graph of another release.")
@click.option("--rounds", default=15, help="How often each is run; medians count.")
def main(other: Path | None, rounds: int) -> None:
    """Print milliseconds, and ratios: the medians of the rounds' own."""
    picture, encoded = photograph(), io.BytesIO()
    picture.save(encoded, "JPEG", quality=90, subsampling=0)
    given = {"input": np.frombuffer(encoded.getvalue(), np.uint8)}
    planes = np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)[None])
    size = np.array([1, 3, SHORT, SHORT * SIZE[0] // SIZE[1]])
    pixels = np.random.default_rng(0).normal(size=(1, 3, SHORT, SHORT)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", "b32")
        pair = ONNXPipeline(str(folder / "model")).export2file("clip", folder / "out")
        write_parts(pair.img, folder)
        runs: dict[str, tuple[Path, dict[str, np.ndarray]]] = {
            "graph": (pair.img, given),
            "decoder": (folder / "decoder.onnx", given),
            "resize": (folder / "resize.onnx", {"x": planes, "size": size}),
            "encoder": (folder / "encoder.onnx", {"pixel_values": pixels}),
        }
        if other:
            runs["other graph"] = other, given
        compare("with ONNX Runtime's arena", open_with_arena, runs, rounds)
        compare("as this package opens it", open_session, runs, rounds)


def compare(
    title: str,
    opened: Callable[[Path], Any],
    runs: dict[str, tuple[Path, dict[str, np.ndarray]]],
    rounds: int,
) -> None:
    """Print the graph's time beside its parts' and the other graph's, all opened in one way."""
    calls = {
        name: partial(opened(graph).run, None, inputs) for name, (graph, inputs) in runs.items()
    }
    first = {name: call()[0] for name, call in calls.items()}
    ms = {name: 1000 * seconds for name, seconds in timed(calls, rounds, warm=0).items()}
    click.echo(title)
    for name, values in ms.items():
        click.echo(f"  {name:12} {np.median(values):7.1f} ms")
    parts = ms["decoder"] + ms["resize"] + ms["encoder"]
    click.echo(f"  graph / its parts: {np.median(ms['graph'] / parts):.2f}")
    if "other graph" in ms:
        off = float(np.abs(first["graph"] - first["other graph"]).max())
        ratio = float(np.median(ms["graph"] / ms["other graph"]))
        click.echo(f"  graph / other graph: {ratio:.2f}; {off:.0e} apart")


if __name__ == "__main__":
    main()
