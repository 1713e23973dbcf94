# ruff: noqa: E402 -- the tests' modules are found by path
"""Pictures and texts a second, beside plain transformers and what the parts of the work allow.

ViT-B/32 with random weights; JPEGs of photographs. All run in turns in one process. Of rates the
medians of the rounds count; a ratio is the median of the rounds' own, of two that run beside each
other, since a machine's pace may change from one minute to the next. The limit of pictures is
1 / (encoder's time for one of 16 at once + time to decode and prepare one on a single thread /
cores); "in threads" has what preparation takes on all cores instead, which may be more. The limit
of dynamic int8 has the encoder's time for one of 16 rows, a thread each.

    python projects/benchmark/main.py --cache FOLDER --only embedding
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import clip_folders
from lean_export import make_model

from oml_mlflow.graph.cut import PIXEL_VALUES, PLANES
from oml_mlflow.graph.runtime import Ends, cores, open_session, run
from oml_mlflow.names import IMG
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.embedder import GRAPH
from oml_mlflow.pair.pictures import as_planes, blocks, in_work
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import ONNXPipelineConfig

SIZES = {"0.3 MP": (640, 480), "2 MP": (1632, 1224), "12 MP": (4000, 3000)}
COUNTS = {"0.3 MP": 64, "2 MP": 48, "12 MP": 16}
BATCH = 16
CAPTIONS = ("a cat", "a photo of two dogs that run behind a red ball in the park", "rocket " * 90)
TEXTS = {
    "short": [f"a photo of {n} cats" for n in range(128)],
    "mixed": [CAPTIONS[n % 3] if n % 6 else f"{n} words, or so" for n in range(128)],
    "77 tokens": [f"{n} {CAPTIONS[2]}" for n in range(32)],
}


def export(folder: Path, name: str, **settings: Any) -> PipelinePair:
    """Return the pair of the model in `folder`, exported if it is not there."""
    if not (folder / "model" / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder / "model", "b32")
    out = folder / "pairs"
    files = [out / f"{name}_{side}.onnx" for side in ("img", "txt")]
    if all(path.exists() for path in files):
        return PipelinePair.from_files(*files)
    config = ONNXPipelineConfig.from_template("multimodal_clip", **settings)
    pipeline = ONNXPipeline(str(folder / "model"), config=config)
    return pipeline.export2file(name, out, validate=False)


def jpegs(size: tuple[int, int], count: int) -> list[bytes]:
    """Return JPEGs as cameras write them."""
    found = []
    for _, picture in clip_folders.photographs():
        out = io.BytesIO()
        large = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        large.save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return [found[n % len(found)] for n in range(count)]


class Plain:
    """What people would otherwise write."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import CLIPModel, CLIPProcessor

        self.torch, self.model = torch, CLIPModel.from_pretrained(folder).eval()
        self.processor = CLIPProcessor.from_pretrained(folder)

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return unit vectors, by sixteens."""
        rows = []
        for at in range(0, len(pictures), BATCH):
            some = [Image.open(io.BytesIO(p)).convert("RGB") for p in pictures[at : at + BATCH]]
            inputs = self.processor(images=some, return_tensors="pt")
            with self.torch.inference_mode():
                rows.append(self._unit(self.model.get_image_features(**inputs)))
        return np.concatenate(rows)

    def embed_text(self, texts: Sequence[str], padding: str | bool = True) -> np.ndarray:
        """Return unit vectors, by 32."""
        rows = []
        for at in range(0, len(texts), 32):
            inputs = self.processor(
                text=texts[at : at + 32], return_tensors="pt", padding=padding, truncation=True
            )
            with self.torch.inference_mode():
                rows.append(self._unit(self.model.get_text_features(**inputs)))
        return np.concatenate(rows)

    def _unit(self, output: Any) -> np.ndarray:
        features = getattr(output, "pooler_output", output)
        return (features / features.norm(dim=-1, keepdim=True)).numpy()


def timed(
    calls: dict[str, Callable[[], Any]], rounds: int, *, warm: int = 1
) -> dict[str, np.ndarray]:
    """Return each call's seconds by round; they are run in turns, and `warm` times before."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + warm):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: np.asarray(times[warm:]) for name, times in taken.items()}


def medians(calls: dict[str, Callable[[], Any]], rounds: int, *, warm: int = 1) -> dict[str, float]:
    """Return the median seconds of each call; see `timed`."""
    return {name: _median(times) for name, times in timed(calls, rounds, warm=warm).items()}


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def measure(cache: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure pictures and texts a second; return the figures of each kind of input."""
    pair = export(cache, "clip")
    shrunk = {
        "int8": export(cache, "int8", quantize_model=True),
        "int8 dynamic": export(cache, "dynamic", quantize_model="dynamic"),
        "float16": export(cache, "float16", use_float16=True),
    }
    host, graph = pair.embedder(), pair.embedder(GRAPH)
    others = {name: found.embedder() for name, found in shrunk.items()}
    plain = Plain(cache / "model")
    front = open_session(pair.img, part=(PLANES, PIXEL_VALUES), threads=1)
    encoder = open_session(pair.img, part=(PIXEL_VALUES, "embedding"))
    by_row = open_session(shrunk["int8 dynamic"].img, part=(PIXEL_VALUES, "embedding"), threads=1)
    values = np.random.default_rng(0).normal(size=(BATCH, 3, 224, 224)).astype(np.float32)

    def encode_rows() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda row: by_row.run(None, {PIXEL_VALUES: row[None]}), values))

    def prepare(picture: bytes) -> None:
        with in_work(picture, IMG, as_planes) as pixels:
            run(front, pixels, Ends(PLANES, PIXEL_VALUES))

    def prepare_in_threads(pictures: Sequence[bytes]) -> None:
        with ThreadPoolExecutor(cores()) as pool, blocks.kept(cores()):
            list(pool.map(prepare, pictures))

    result: dict[str, dict[str, float]] = {}
    for name, size in SIZES.items():
        pictures = jpegs(size, COUNTS[name])
        seconds = timed(
            {
                "host, int8 dynamic": lambda p=pictures: others["int8 dynamic"].embed_image(p),
                "rows": encode_rows,
                "transformers": lambda p=pictures: plain.embed_image(p),
                "host": lambda p=pictures: host.embed_image(p),
                "encoder": lambda: encoder.run(None, {PIXEL_VALUES: values}),
                "preparation": lambda p=pictures[:BATCH]: [prepare(picture) for picture in p],
                "in threads": lambda p=pictures[:BATCH]: prepare_in_threads(p),
                "graph": lambda p=pictures: graph.embed_image(p),
                "host, int8": lambda p=pictures: others["int8"].embed_image(p),
                "host, float16": lambda p=pictures: others["float16"].embed_image(p),
            },
            rounds,
        )
        prepared = seconds.pop("preparation") / cores()
        encoded = seconds.pop("encoder")
        limit = BATCH / (encoded + prepared)
        in_threads = BATCH / (encoded + seconds.pop("in threads"))
        dynamic_limit = BATCH / (seconds.pop("rows") + prepared)
        rates = {key: len(pictures) / taken for key, taken in seconds.items()}
        dynamic = rates["host, int8 dynamic"]
        vectors = host.embed_image(pictures)
        result[name] = {
            "limit": _median(limit),
            "limit, in threads": _median(in_threads),
            "limit, int8 dynamic": _median(dynamic_limit),
            **{key: _median(rate) for key, rate in rates.items()},
            "host / limit": _median(rates["host"] / limit),
            "host / limit in threads": _median(rates["host"] / in_threads),
            "host / transformers": _median(rates["host"] / rates["transformers"]),
            "int8 dynamic / limit": _median(dynamic / dynamic_limit),
            "int8 dynamic / transformers": _median(dynamic / rates["transformers"]),
            "int8 dynamic limit / transformers": _median(dynamic_limit / rates["transformers"]),
            "host - graph": float(np.abs(vectors - graph.embed_image(pictures)).max()),
            "host - transformers": float(np.abs(vectors - plain.embed_image(pictures)).max()),
        }
    for name, texts in TEXTS.items():
        seconds = timed(
            {
                "host": lambda t=texts: host.embed_text(t),
                "transformers": lambda t=texts: plain.embed_text(t),
                "transformers, to 77": lambda t=texts: plain.embed_text(t, "max_length"),
            },
            rounds,
        )
        rates = {key: len(texts) / taken for key, taken in seconds.items()}
        vectors = host.embed_text(texts)
        result[name] = {
            **{key: _median(rate) for key, rate in rates.items()},
            "host / transformers": _median(rates["host"] / rates["transformers"]),
            "host / to 77": _median(rates["host"] / rates["transformers, to 77"]),
            "host - transformers": float(np.abs(vectors - plain.embed_text(texts)).max()),
        }
    return result
