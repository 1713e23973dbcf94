"""A CLIP model's folder, from the hub or on disk, read and checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.source.description import (
    ACTIVATIONS,
    ImagePreparation,
    Tower,
    Vocabulary,
)
from oml_mlflow.source.layout import CLIP_MODULE, MODULES, clip_folder
from oml_mlflow.source.preparation import IMAGE_PROCESSOR_FILES, read_preparation
from oml_mlflow.source.reading import json_object, read_json, values_of
from oml_mlflow.source.tokenizer import TOKENIZER_FILES, read_tokenizer
from oml_mlflow.source.weights import (
    INDEX,
    PICKLE,
    SAFETENSORS,
    Checkpoint,
    open_weights,
    weight_files,
)

_HUB_PATTERNS = ["config.json", *TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES]
# not all *.safetensors: LAION's repositories also hold OpenCLIP's own copy of the weights
_HUB_SAFETENSORS = ["model*.safetensors", SAFETENSORS + INDEX]
_HUB_PICKLES = ["pytorch_model*.bin", PICKLE + INDEX]


@dataclass(frozen=True)
class Source:
    """A CLIP model to build a pair from.

    Attributes:
        name: Hub id, or the folder's own name.
        folder: Folder in the Hugging Face layout.
        revision: Commit of the hub repository, or None for a folder.
        preparation: What its image processor does.
        vocabulary: Its tokenizer.
        vision: Its vision tower.
        text: Its text tower.
        patch_px: Edge of a vision patch.
        eos_token_id: Id at which a text is pooled, as its configuration says.
        weights: Its tensors.
    """

    name: str
    folder: Path
    revision: str | None
    preparation: ImagePreparation
    vocabulary: Vocabulary
    vision: Tower
    text: Tower
    patch_px: int
    eos_token_id: int
    weights: Checkpoint = field(repr=False)

    @property
    def dims(self) -> int:
        """Length of the embeddings."""
        return self.vision.dims

    @property
    def companion_files(self) -> list[Path]:
        """Tokenizer and image-processor files."""
        names = (*TOKENIZER_FILES, *IMAGE_PROCESSOR_FILES, "config.json")
        return [self.folder / name for name in names if (self.folder / name).is_file()]


def open_source(
    model_name: str,
    *,
    cache_dir: str | Path | None = None,
    force: bool = False,
    pickles: bool = False,
) -> Source:
    """Return the CLIP model in a local folder or hub repository, checked.

    Args:
        model_name: Hub id such as ``openai/clip-vit-base-patch32``, or a folder in the Hugging
            Face layout, as transformers 4 or 5 writes it, or in that of sentence-transformers.
        cache_dir: Where hub downloads are kept; the Hugging Face cache by default.
        force: Download again even what is in the cache.
        pickles: Take ``pytorch_model.bin``, tensors only, where there are no safetensors.

    Raises:
        SourceError: If files are missing, cut short or can't be fetched, a link leads out of the
            folder, or a pickle holds more than tensors.
        UnsupportedSource: If it is no CLIP model, or does what no graph here can.
    """
    root, revision = _resolve(model_name, cache_dir, force, pickles)
    folder = clip_folder(root)
    config = read_json(folder / "config.json", "the model's configuration")
    if config.get("model_type") != "clip":
        raise UnsupportedSource(
            f"{model_name} is not a CLIP model: config.json says model_type "
            f"{config.get('model_type')!r}, wanted 'clip'. Nothing was written.",
            hint="give a model saved by transformers' CLIPModel, such as "
            "openai/clip-vit-base-patch32.",
        )
    text_config, vision_config = _section(config, "text"), _section(config, "vision")
    with values_of(folder / "config.json"):
        dims = int(config.get("projection_dim", 512))
        image_px = int(vision_config.get("image_size", 224))
        patch_px = int(vision_config.get("patch_size", 32))
        positions = int(text_config.get("max_position_embeddings", 77))
        eos_token_id = int(text_config.get("eos_token_id", 49407))
        vision = _tower("vision_model", "visual_projection", vision_config, dims, 768, 12)
        text = _tower("text_model", "text_projection", text_config, dims, 512, 8)
    weights = open_weights(folder, model_name, pickles=pickles)
    source = Source(
        name=model_name if revision else root.name,
        folder=folder,
        revision=revision,
        preparation=read_preparation(folder, config, image_px),
        vocabulary=read_tokenizer(folder, positions),
        vision=vision,
        text=text,
        patch_px=patch_px,
        eos_token_id=eos_token_id,
        weights=weights,
    )
    _check_weights(source, image_px)
    return source


def _resolve(
    model_name: str, cache_dir: str | Path | None, force: bool, pickles: bool
) -> tuple[Path, str | None]:
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if folder.exists():
        raise SourceError(
            f"{model_name} is a file, not a model folder.",
            hint="give the folder that holds config.json.",
        )
    if model_name.startswith((".", "/", "~")) or model_name.count("/") != 1:
        raise SourceError(
            f"there is no folder {model_name}, and it is no hub id (owner/name).",
            hint="check the path, or give a hub id such as openai/clip-vit-base-patch32.",
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise SourceError(
            f"{model_name} has to be fetched from the hub, and huggingface_hub is not installed.",
            hint="pip install 'oml-mlflow[build]', or give a local folder.",
        ) from error
    patterns = [MODULES, *_wherever(*_HUB_PATTERNS, *_HUB_SAFETENSORS)]
    try:
        path = snapshot_download(
            model_name, allow_patterns=patterns, cache_dir=cache_dir, force_download=force
        )
        if pickles and not weight_files(clip_folder(Path(path)), SAFETENSORS):
            snapshot_download(
                model_name,
                revision=Path(path).name,
                allow_patterns=_wherever(*_HUB_PICKLES),
                cache_dir=cache_dir,
                force_download=force,
            )
    except Exception as error:  # huggingface_hub's errors share no base class
        raise SourceError(
            f"{model_name} could not be fetched from the hub ({type(error).__name__}), and there "
            "is no folder of that name. Nothing was written.",
            hint="check the id and the network, set HF_TOKEN for a gated model, or give a folder "
            "that holds the model.",
        ) from error
    return Path(path), Path(path).name


def _wherever(*names: str) -> list[str]:
    return [*names, *(f"{CLIP_MODULE}/{name}" for name in names)]


def _section(config: dict[str, Any], tower: str) -> dict[str, Any]:
    # old files hold both; transformers then takes the _dict one, with its own defaults
    old = f"{tower}_config_dict"
    return json_object(config, old if config.get(old) is not None else f"{tower}_config")


def _tower(
    prefix: str, projection: str, config: dict[str, Any], dims: int, hidden: int, heads: int
) -> Tower:
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise UnsupportedSource(
            f"{prefix}: activation {activation!r} is not supported. Nothing was written.",
            hint=f"supported are {', '.join(ACTIVATIONS)}.",
        )
    return Tower(
        prefix=prefix,
        hidden=int(config.get("hidden_size", hidden)),
        layers=int(config.get("num_hidden_layers", 12)),
        heads=int(config.get("num_attention_heads", heads)),
        activation=activation,
        epsilon=float(config.get("layer_norm_eps", 1e-5)),
        projection=projection,
        dims=dims,
    )


def _check_weights(source: Source, image_px: int) -> None:
    """Raise SourceError if weights don't fit the configuration; nothing is written yet."""
    vision, text, weights = source.vision, source.text, source.weights
    positions = (image_px // source.patch_px) ** 2 + 1
    wanted = {
        "vision_model.embeddings.patch_embedding.weight": (
            vision.hidden,
            3,
            source.patch_px,
            source.patch_px,
        ),
        "vision_model.embeddings.position_embedding.weight": (positions, vision.hidden),
        f"{vision.projection}.weight": (source.dims, vision.hidden),
        f"{text.projection}.weight": (source.dims, text.hidden),
    }
    for name, shape in wanted.items():
        if weights.shape(name) != shape:
            raise SourceError(
                f"{source.folder}: tensor {name} has shape {weights.shape(name)}, and config.json "
                f"asks for {shape}. Nothing was written.",
                hint="give the config.json that belongs to these weights.",
            )
    for tower in (vision, text):
        if tower.hidden % tower.heads:
            raise SourceError(
                f"{source.folder}: {tower.heads} attention heads don't divide a width of "
                f"{tower.hidden}. Nothing was written.",
                hint="correct config.json.",
            )
    rows = weights.shape("text_model.embeddings.token_embedding.weight")[0]
    highest = max([*source.vocabulary.ids.values(), *source.vocabulary.added.values()])
    if highest >= rows:
        raise SourceError(
            f"{source.folder}: the tokenizer has ids up to {highest}, "
            f"and the model knows {rows} tokens. Nothing was written.",
            hint="give the tokenizer that belongs to these weights.",
        )
