"""Pictures a second, beside optimum's ONNX Runtime model and FastEmbed, in their environment.

Long form: it fetches both from the package index, and takes minutes. Each runs in a process of its
own, in turns; both get JPEG files, as ours does. FastEmbed gets the encoder of our own graph, since
it knows its models by name only.

    python projects/benchmark/main.py --cache FOLDER --only others
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from embedding import COUNTS, SIZES, export, jpegs
from lean_export import make_environment
from onnx.utils import Extractor

FASTEMBED = "fastembed==0.9.1"
CODES = {
    "host": """
from oml_mlflow.pair.pipeline_pair import PipelinePair
run = PipelinePair.from_files({img!r}, {txt!r}).embedder().embed_image
""",
    "optimum": """
from PIL import Image
from optimum.onnxruntime import ORTModelForZeroShotImageClassification
from transformers import AutoProcessor
model = ORTModelForZeroShotImageClassification.from_pretrained({optimum!r})
processor = AutoProcessor.from_pretrained({optimum!r})
def run(paths):
    for at in range(0, len(paths), 16):
        some = [Image.open(path).convert("RGB") for path in paths[at : at + 16]]
        model(**processor(text=["a"], images=some, return_tensors="pt", padding=True))
""",
    "FastEmbed": """
from fastembed import ImageEmbedding
model = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path={fastembed!r})
def run(paths):
    list(model.embed(paths, batch_size=16))
""",
}
MEASURED = """
import json, time
{code}
paths = {paths!r}
run(paths[:4])
start = time.perf_counter()
run(paths)
print(json.dumps(len(paths) / (time.perf_counter() - start)))
"""


def measure(cache: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure all three in turns; return the medians by size."""
    pair, program = export(cache, "clip"), make_environment(cache)
    theirs = program.with_name("python")
    subprocess.run([theirs, "-m", "pip", "install", "-q", FASTEMBED], check=True)
    places = {"img": str(pair.img), "txt": str(pair.txt)}
    places |= {name: str(cache / f"for {name}") for name in ("optimum", "fastembed")}
    if not Path(places["optimum"]).exists():
        task = ["--task", "zero-shot-image-classification", places["optimum"]]
        subprocess.run([program, "export", "onnx", "--model", cache / "model", *task], check=True)
    folder = Path(places["fastembed"])
    folder.mkdir(exist_ok=True)
    encoder = Extractor(onnx.load(pair.img)).extract_model(["pixel_values"], ["image_embeds"])
    onnx.save(encoder, folder / "model.onnx")
    written = next((cache / "model").glob("p*processor_config.json"))
    settings = json.loads(written.read_text())
    # FastEmbed 0.9.1 takes no plain number for a size
    settings["size"] = {"shortest_edge": 224}
    settings["crop_size"] = {"height": 224, "width": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    result: dict[str, dict[str, float]] = {}
    for name, size in SIZES.items():
        paths = []
        for number, picture in enumerate(jpegs(size, COUNTS[name])):
            path = cache / "jpegs" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
            paths.append(str(path))
        rates: dict[str, list[float]] = {key: [] for key in CODES}
        for _ in range(rounds):
            for key, code in CODES.items():
                text = MEASURED.format(code=code.format(**places), paths=paths)
                python = sys.executable if key == "host" else theirs
                done = subprocess.run([python, "-c", text], check=True, stdout=subprocess.PIPE)
                rates[key].append(float(json.loads(done.stdout.splitlines()[-1])))
        row = {key: float(np.median(found)) for key, found in rates.items()}
        ratios = {f"host / {key}": row["host"] / row[key] for key in CODES if key != "host"}
        result[f"{name}, a second"] = row | ratios
    return result
