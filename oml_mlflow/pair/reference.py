"""The reference for a pair: its model run by transformers, Pillow and torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from oml_mlflow.errors import SourceError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.precision import FLOAT32, encoder_limit
from oml_mlflow.names import SIDES
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.probes import Probe, References, embed_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.source.model import Source


class ReferenceModel:
    """Embed with transformers, Pillow and torch in float32, one by one; holds both towers.

    Raises:
        SourceError: If torch or transformers is not installed, or they can't load the model.
    """

    def __init__(self, source: Source) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise SourceError(
                f"{source.name} can't be compared with its own Python code: {error.name} is not "
                "installed.",
                hint="pip install 'oml-mlflow[build]'.",
            ) from error
        processor = getattr(transformers, "CLIPImageProcessorPil", None)
        processor = processor or transformers.CLIPImageProcessor
        dtype = "dtype" if int(version("transformers").split(".")[0]) >= 5 else "torch_dtype"
        bars = transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            self._model = transformers.CLIPModel.from_pretrained(
                source.folder, local_files_only=True, **{dtype: torch.float32}
            ).eval()
            self._processor: Any = processor.from_pretrained(source.folder, local_files_only=True)
            self._tokenizer: Any = transformers.CLIPTokenizerFast.from_pretrained(
                source.folder, local_files_only=True
            )
        except Exception as error:  # transformers raises nearly anything on a damaged folder
            raise SourceError(
                f"transformers {version('transformers')} can't load {source.folder}: "
                f"{type(error).__name__}: {str(error)[:300]}",
                hint="fetch or save the model again.",
            ) from error
        finally:
            if shown:
                bars.enable_progress_bar()
        self._max_length = source.vocabulary.max_length
        self._torch = torch

    def prepare(self, picture: bytes) -> np.ndarray:
        """Return a picture as the image processor prepares it, ``(1, 3, h, w)`` float32."""
        with Image.open(io.BytesIO(picture)) as opened:
            values = self._processor(images=opened, return_tensors="np")["pixel_values"]
        return np.asarray(values, np.float32)

    def token_ids(self, text: str) -> list[int]:
        """Return the tokenizer's ids, cut to the model's maximum length."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_length)[
            "input_ids"
        ]
        return ids

    def added_tokens(self) -> list[str]:
        """Return what the tokenizer knows beside its vocabulary, by id."""
        added: dict[str, int] = self._tokenizer.get_added_vocab()
        return sorted(added, key=lambda token: added[token])

    def embed_pixels(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return ``(n, dims)`` float32 of prepared pictures."""
        with self._torch.inference_mode():
            return self._unit(
                self._model.get_image_features(pixel_values=self._torch.from_numpy(pixel_values))
            )

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised."""
        return np.concatenate([self.embed_pixels(self.prepare(p)) for p in pictures])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised."""
        rows = []
        for text in texts:
            rows.append(self.embed_ids(np.array([self.token_ids(text)], np.int64)))
        return np.concatenate(rows)

    def embed_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return ``(n, dims)`` float32 of token ids, ``(n, sequence)``."""
        with self._torch.inference_mode():
            features = self._model.get_text_features(input_ids=self._torch.from_numpy(ids))
            return self._unit(features)

    def references(self, probes: Sequence[Probe], on_event: Listener = silent) -> References:
        """Return this model's vectors for the probes."""
        packages = ("transformers", "torch", "pillow", "numpy")
        return References(
            embed_probes(self, probes, on_event, "model references"),
            {name: version(name) for name in packages},
        )

    def _unit(self, output: Any) -> np.ndarray:
        # transformers 5 returns an object, transformers 4 the tensor itself
        features = getattr(output, "pooler_output", output)
        unit: np.ndarray = (features / features.norm(dim=-1, keepdim=True)).numpy()
        return unit


def exactness(
    probes: Sequence[Probe],
    pair: References,
    model: References,
    precisions: Mapping[str, str] | None = None,
    limits: Mapping[str, float | None] | None = None,
) -> ParityReport:
    """Return the report of a pair's vectors against those of the model's own Python code.

    The limit of a side depends on its precision; float32 by default. `limits`, by probe id, go
    before.
    """
    dims = next((vector.shape[-1] for vector in model.vectors.values()), 1)
    by_side = {side: encoder_limit((precisions or {}).get(side, FLOAT32), dims) for side in SIDES}
    return compare(
        "Pair against transformers + Pillow + torch",
        probes,
        pair.vectors,
        model.vectors,
        {probe.id: by_side[probe.side] for probe in probes} | dict(limits or {}),
    )
