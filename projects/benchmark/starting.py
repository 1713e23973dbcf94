"""A process from its start to the first vector, and the memory that it takes: ours and plain.

python projects/benchmark/main.py --cache FOLDER --only starting
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from embedding import SIZES, export, jpegs

OURS = """
from oml_mlflow.pair.pipeline_pair import PipelinePair
pair = PipelinePair.from_files({img!r}, {txt!r}).embedder()
pair.embed_image({picture!r}); pair.embed_text("a cat")
"""
PLAIN = """
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained({model!r}).eval()
processor = CLIPProcessor.from_pretrained({model!r})
with torch.inference_mode():
    given = processor(images=[Image.open({picture!r}).convert("RGB")], return_tensors="pt")
    model.get_image_features(**given)
    model.get_text_features(**processor(text=["a cat"], return_tensors="pt"))
"""
MEASURED = """
import json, resource, time
start = time.perf_counter()
exec({code!r})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps([time.perf_counter() - start, peak]))
"""


def measure(cache: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure both in turns, each time in a new process; return the medians."""
    pair = export(cache, "clip")
    picture = cache / "picture.jpg"
    picture.write_bytes(jpegs(SIZES["0.3 MP"], 1)[0])
    places = {"img": str(pair.img), "txt": str(pair.txt), "model": str(cache / "model")}
    codes = {
        name: MEASURED.format(code=code.format(**places, picture=str(picture)))
        for name, code in (("ours", OURS), ("transformers", PLAIN))
    }
    found: dict[str, list[list[float]]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    seconds, peaks = (
        {name: float(np.median([row[at] for row in rows])) for name, rows in found.items()}
        for at in (0, 1)
    )
    return {
        "s from start to the first vectors": seconds,
        "MB at most": {"files": pair.size_bytes / 1e6, **peaks},
    }
