"""Train the demo CLIP model on drawn pictures, from nothing, on a processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import drawings
import numpy as np
import torch
from evaluate import load_processor
from torch import Tensor
from transformers import BaseImageProcessor, CLIPConfig, CLIPModel, CLIPTokenizerFast
from vocabulary import MAX_LENGTH, save_tokenizer

STEPS = 1100
BATCH = 128
COPIES = 2
LEARNING_RATE = 1.5e-3
WARMUP = 40
WEIGHT_DECAY = 0.3
MOST_LOGIT_SCALE = 4.6052
IMAGE_SIDE = 64
PROJECTION = 64
PREPROCESSING = {
    "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.82, 0.83, 0.78],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.2, 0.19, 0.21],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": IMAGE_SIDE},
}


def train(
    folder: Path, seed: int = 0, steps: int = STEPS, copies: int = COPIES, stride: int = 1
) -> list[float]:
    """Train a model and save it, its tokenizer and its image processor in the Hugging Face layout.

    Args:
        folder: Where the files go; made if absent.
        seed: Decides the drawings, the first weights and the order of the batches.
        steps: How many batches to train on.
        copies: How many different pictures of each scene to draw.
        stride: Train on every stride-th scene only, for a quick try.

    Returns:
        The loss at each step.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = drawings.training_scenes()
    tokenizer = save_tokenizer(folder, [scene.caption for scene in scenes])
    captions = [scene.caption for scene in scenes[::stride]]
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=2) + "\n")
    ids = tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
    pixels = training_pixels(load_processor(folder), copies, seed, stride)
    model = CLIPModel(configuration(tokenizer))
    losses = fit(model, ids, pixels, steps, np.random.default_rng(seed))
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    return losses


def configuration(tokenizer: CLIPTokenizerFast) -> CLIPConfig:
    """Size the model for a vocabulary; the text tower pools at that vocabulary's end token."""
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": PROJECTION,
    }
    vision = {
        "image_size": IMAGE_SIDE,
        "patch_size": 16,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": PROJECTION,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def training_pixels(
    processor: BaseImageProcessor, copies: int, seed: int, stride: int = 1
) -> Tensor:
    """Draw the training pictures and resize and crop them, to bytes of (copy, scene, c, h, w)."""
    scenes = len(drawings.training_scenes()[::stride])
    pixels = np.empty((copies * scenes, 3, IMAGE_SIDE, IMAGE_SIDE), np.uint8)
    for number, drawing in enumerate(drawings.training(copies, seed, stride)):
        cropped = processor(
            drawing.picture, do_rescale=False, do_normalize=False, return_tensors="np"
        )
        pixels[number] = cropped["pixel_values"][0]
    return torch.from_numpy(pixels.reshape(copies, scenes, *pixels.shape[1:]))


def batches(scenes: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Deal scenes in a new order again and again; no batch holds a scene, a caption, twice."""
    while True:
        order = torch.from_numpy(rng.permutation(scenes))
        yield from order[: scenes - scenes % BATCH].split(BATCH)


def fit(
    model: CLIPModel, ids: Tensor, pixels: Tensor, steps: int, rng: np.random.Generator
) -> list[float]:
    """Train a model in place with the contrastive loss.

    Args:
        model: The model.
        ids: The captions' token ids, a row for each scene.
        pixels: The pictures' bytes, of (copy, scene, channel, height, width).
        steps: How many batches to train on.
        rng: Deals the batches and picks among the copies.

    Returns:
        The loss at each step.
    """
    mean = torch.tensor(PREPROCESSING["image_mean"]).view(3, 1, 1)
    spread = torch.tensor(PREPROCESSING["image_std"]).view(3, 1, 1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    total = max(steps, 4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        LEARNING_RATE,
        total_steps=total,
        pct_start=min(0.5, WARMUP / total),
        cycle_momentum=False,
    )
    model.train()
    losses: list[float] = []
    for _, scenes in zip(range(steps), batches(len(ids), rng), strict=False):
        copies = torch.from_numpy(rng.integers(len(pixels), size=len(scenes)))
        pictures = (pixels[copies, scenes].float() / 255 - mean) / spread
        loss = model(input_ids=ids[scenes], pixel_values=pictures, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MOST_LOGIT_SCALE)
        losses.append(loss.item())
    model.eval()
    return losses


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=STEPS, show_default=True)
def main(output: Path, seed: int, steps: int) -> None:
    """Train the demo model and save it in a folder."""
    losses = train(output, seed, steps)
    click.echo(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.4f} at the last")


if __name__ == "__main__":
    main()
