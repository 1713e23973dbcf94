"""Model folders in the Hugging Face layout, and pictures, made from what is at hand offline."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

MERGES_FILE = Path(__file__).parents[1] / "data" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
TINY_PX, TINY_DIMS = 32, 16
# random weights hide faults: at 1 the vectors of any two photographs are nearly the same
WEIGHT_FACTOR = 4.0

PROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
TOKENIZER = {
    "bos_token": START,
    "eos_token": END,
    "model_max_length": 77,
    "pad_token": END,
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "hubble_deep_field",
    "china",
    "flower",
)
LANDSCAPE_CROPS = (
    (0, 0, 449, 337),
    (7, 3, 331, 227),
    (11, 5, 509, 317),
    (13, 9, 601, 411),
    (101, 203, 1009, 773),
    (31, 17, 853, 641),
    (3, 21, 617, 391),
    (45, 2, 523, 359),
)


@cache
def _vocabulary() -> tuple[str, str]:
    """Return the contents of vocab.json and merges.txt."""
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(byte) for byte in plain] + [chr(0x100 + k) for k in range(256 - len(plain))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += ["".join(merge.split()) for merge in merges] + [START, END]
    ids = {token: number for number, token in enumerate(tokens)}
    return json.dumps(ids, ensure_ascii=False), "\n".join(["#version: 0.2", *merges, ""])


@cache
def _tokenizer_json() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vocabulary(folder)
        write_json(folder / "tokenizer_config.json", TOKENIZER)
        CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder / "saved")
        return (folder / "saved" / "tokenizer.json").read_bytes()


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def write_vocabulary(folder: Path) -> None:
    """Write CLIP's vocab.json (49,408 entries) and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("vocab.json", "merges.txt"), _vocabulary(), strict=True):
        (folder / name).write_text(text, encoding="utf-8")


def write_companions(
    folder: Path, processor: dict[str, Any] | None = None, *, style: int = 4, max_length: int = 77
) -> None:
    """Write tokenizer and image processor as transformers 4 or 5 (`style`) saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = PROCESSOR | (processor or {})
    write_json(folder / "tokenizer_config.json", TOKENIZER | {"model_max_length": max_length})
    if style == 4:
        write_vocabulary(folder)
        write_json(folder / "preprocessor_config.json", settings)
    else:
        (folder / "tokenizer.json").write_bytes(_tokenizer_json())
        write_json(
            folder / "processor_config.json",
            {"image_processor": settings, "processor_class": "CLIPProcessor"},
        )


def tiny_config(
    *,
    image_px: int = TINY_PX,
    activation: str = "quick_gelu",
    eos_token_id: int = END_ID,
    vocab_size: int = END_ID + 1,
    dims: int = TINY_DIMS,
) -> CLIPConfig:
    """Return the configuration of a CLIP model that fits in 7 MB, most of it the vocabulary."""
    tower = {
        "hidden_act": activation,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    tokens = {
        "bos_token_id": START_ID,
        "eos_token_id": eos_token_id,
        "pad_token_id": 1,
        "vocab_size": vocab_size,
    }
    return CLIPConfig(
        text_config=tower | tokens,
        vision_config=tower | {"image_size": image_px, "patch_size": 16},
        projection_dim=dims,
    )


def tune(folder: Path, tuned: Path, amount: float = 0.02, seed: int = 1) -> Path:
    """Write a model anew with slightly other weights, as after a short fine-tuning."""
    model = CLIPModel.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += amount * weight.std(correction=0) * torch.randn_like(weight)
    shutil.copytree(folder, tuned)
    model.save_pretrained(tuned)
    return tuned


def write_tiny(
    folder: Path,
    *,
    processor: dict[str, Any] | None = None,
    style: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    max_length: int = 77,
    **config: Any,
) -> Path:
    """Write a tiny CLIP model.

    Args:
        folder: Folder; created if missing.
        processor: Settings of the image processor that differ from the usual ones.
        style: Major release of transformers whose file layout to use.
        seed: Seed of the weights.
        dtype: Type in which weights are stored.
        shard_size: Largest size of one weights file.
        max_length: ``model_max_length`` of the tokenizer.
        **config: See `tiny_config`.

    Returns:
        `folder`.
    """
    made = tiny_config(**config)
    image_px = made.vision_config.image_size
    settings = {"size": image_px, "crop_size": image_px} | (processor or {})
    _save_model(folder, made, seed, dtype, shard_size)
    write_companions(folder, settings, style=style, max_length=max_length)
    return folder


def write_full(folder: Path, *, style: int = 4, seed: int = 0) -> Path:
    """Write a CLIP model of the size and shape of ViT-B/32, with random weights."""
    config = CLIPConfig(
        text_config={"bos_token_id": START_ID, "eos_token_id": END_ID},
        vision_config={},
        projection_dim=512,
    )
    _save_model(folder, config, seed, torch.float32, "5GB")
    write_companions(folder, style=style)
    return folder


def copy_folder(folder: Path, to: Path) -> Path:
    """Copy a model folder, to damage the copy."""
    return Path(shutil.copytree(folder, to))


def _save_model(
    folder: Path, config: CLIPConfig, seed: int, dtype: torch.dtype, shard_size: str
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(WEIGHT_FACTOR)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)


@cache
def _photograph(name: str) -> Image.Image:
    if name in ("china", "flower"):
        return Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
    return Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB")


@cache
def photographs() -> list[tuple[str, Image.Image]]:
    """Return photographs, each whole and as a landscape and a portrait crop of odd sizes."""
    pictures = []
    for name, (left, upper, right, lower) in zip(PHOTOGRAPHS, LANDSCAPE_CROPS, strict=True):
        whole = _photograph(name)
        pictures.append((name, whole))
        pictures.append((f"{name}-landscape", whole.crop((left, upper, right, lower))))
        width = (lower - upper) * 2 // 3 | 1
        tall = whole.crop((right - width, upper, right, lower))
        pictures.append((f"{name}-portrait", tall))
    return pictures


def as_png(picture: Image.Image) -> bytes:
    """Return an 8-bit PNG that is not interlaced."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def as_jpeg_444(picture: Image.Image, quality: int = 95) -> bytes:
    """Return a JPEG whose chroma is not subsampled."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()
