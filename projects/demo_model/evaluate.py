"""Measure how well a CLIP folder finds the held-out drawings, with transformers and Pillow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import drawings
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, CLIPModel, CLIPTokenizerFast

BATCH = 100


def load_processor(folder: Path) -> BaseImageProcessor:
    """Load a folder's image processor, always the one that resizes with Pillow."""
    major = int(transformers.__version__.split(".")[0])
    name = "CLIPImageProcessorPil" if major >= 5 else "CLIPImageProcessor"
    return getattr(transformers, name).from_pretrained(folder)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Embed texts as unit vectors, one row each."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        features = _features(model.get_text_features(**encoded))
    return torch.nn.functional.normalize(features, dim=-1)


def embed_pictures(
    model: CLIPModel, processor: BaseImageProcessor, pictures: Sequence[Image.Image]
) -> Tensor:
    """Embed pictures as unit vectors, one row each."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        batch = processor(list(pictures[start : start + BATCH]), return_tensors="pt")
        with torch.inference_mode():
            parts.append(_features(model.get_image_features(**batch)))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def recall_at_1(queries: Tensor, answers: Tensor) -> float:
    """Compute the share of queries whose nearest answer is the one in the same row."""
    nearest = (queries @ answers.T).argmax(dim=1)
    return int((nearest == torch.arange(len(queries))).sum()) / len(queries)


def measure(folder: Path, n: int = 200, seed: int = 0) -> dict[str, int | float]:
    """Measure recall@1 on held-out drawings, by caption and by another drawing of the same scene.

    Args:
        folder: A CLIP model, tokenizer and image processor in the Hugging Face layout.
        n: How many pictures are searched, and how many queries there are of either kind.
        seed: Chooses the drawings.

    Returns:
        The recall of each kind of query, and the number of pictures.
    """
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    processor = load_processor(folder)
    answers = drawings.held_out(n, seed)
    again = [drawings.draw(answer.scene, seed + 1).picture for answer in answers]
    pictures = embed_pictures(model, processor, [answer.picture for answer in answers])
    texts = embed_texts(model, tokenizer, [answer.caption for answer in answers])
    return {
        "pictures": n,
        "text_to_image_recall_at_1": recall_at_1(texts, pictures),
        "image_to_image_recall_at_1": recall_at_1(
            embed_pictures(model, processor, again), pictures
        ),
    }


def _features(output: Any) -> Tensor:
    """Take the features out of what transformers 5 wraps and transformers 4 does not."""
    return output if isinstance(output, Tensor) else output.pooler_output


@click.command()
@click.option("--folder", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--pictures", default=200, show_default=True, help="Held-out pictures to search.")
@click.option("--seed", default=0, show_default=True, help="Chooses the held-out pictures.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def main(folder: Path, pictures: int, seed: int, as_json: bool) -> None:
    """Measure recall@1 on held-out drawings."""
    result = measure(folder, pictures, seed)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:28}{value:>8.4g}")


if __name__ == "__main__":
    main()
