"""The reference for a pair: its model run by transformers, Pillow and torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from oml_mlflow.errors import OmlMlflowError, SourceError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.precision import FLOAT32, encoder_limit
from oml_mlflow.names import SIDES
from oml_mlflow.pair.pictures import as_rgb
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.probes import Probe, References
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.source.importing import collection_paused
from oml_mlflow.source.model import Source
from oml_mlflow.source.tokenizer import load_tokenizer

# 24 pictures of a ViT-B/32: 4.5 s of processor time by twelves, 13 one by one, 4.3 all at once
_AT_ONCE = 12


def reference_versions() -> dict[str, str]:
    """Return which releases make references here."""
    return {name: version(name) for name in ("transformers", "torch", "pillow", "numpy")}


def transformers_release() -> int:
    """Return the major release of transformers that is installed, such as 5."""
    return int(version("transformers").split(".")[0])


def import_reference() -> tuple[Any, Any]:
    """Import torch and transformers, with what CLIP's model needs of them, and return both.

    Raises:
        ImportError: If one is not installed.
    """
    with collection_paused():
        import torch
        import transformers

        # transformers imports what a name needs when it is asked for it
        _ = transformers.CLIPModel, transformers.AutoImageProcessor
    return torch, transformers


class ReferenceModel:
    """Embed with transformers, Pillow and torch in float32; holds both towers.

    Transparency is put on white, as a pair does: transformers 5.24 does so itself, and 4.57 drops
    it, so that colours show which nobody sees.

    Raises:
        SourceError: If torch or transformers is not installed, or they can't load the model.
    """

    def __init__(self, source: Source) -> None:
        try:
            torch, transformers = import_reference()
        except ImportError as error:
            raise SourceError(
                f"{source.name} can't be compared with its own Python code: {error.name} is not "
                "installed.",
                hint="pip install 'oml-mlflow[build]'.",
            ) from error
        is_5 = transformers_release() >= 5
        dtype = "dtype" if is_5 else "torch_dtype"
        by_pillow: dict[str, Any] = {"backend": "pil"} if is_5 else {"use_fast": False}
        bars = transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            self._model = transformers.CLIPModel.from_pretrained(
                source.folder, local_files_only=True, **{dtype: torch.float32}
            ).eval()
            # the class that the folder names, which `source.preparation` has judged
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=False, **by_pillow
            )
            self._tokenizer = load_tokenizer(source.folder)
        except OmlMlflowError:
            raise
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
        clear, white = Image.new("RGBA", (8, 8)), Image.new("RGB", (8, 8), "white")
        self._keeps_white = np.array_equal(self._pixels(clear), self._pixels(white))

    def prepare(self, picture: bytes) -> np.ndarray:
        """Return a picture as the image processor prepares it, ``(1, 3, h, w)`` float32."""
        with Image.open(io.BytesIO(picture)) as opened:
            return self._pixels(opened if self._keeps_white else as_rgb(opened))

    def _pixels(self, picture: Image.Image) -> np.ndarray:
        values = self._processor(images=picture, return_tensors="np")["pixel_values"]
        return np.asarray(values, np.float32)

    def token_ids(self, text: str) -> list[int]:
        """Return the tokenizer's ids, cut to the model's maximum length."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._max_length)[
            "input_ids"
        ]
        return ids

    def embed_pixels(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return ``(n, dims)`` float32 of prepared pictures."""
        with self._torch.inference_mode():
            return self._unit(
                self._model.get_image_features(pixel_values=self._torch.from_numpy(pixel_values))
            )

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised."""
        return self._stacked([self.prepare(picture) for picture in pictures])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised."""
        return self._stacked([self._row(text) for text in texts])

    def embed_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return ``(n, dims)`` float32 of token ids, ``(n, sequence)``."""
        with self._torch.inference_mode():
            features = self._model.get_text_features(input_ids=self._torch.from_numpy(ids))
            return self._unit(features)

    def prepared(self, probe: Probe) -> np.ndarray:
        """Return what the model's encoder is given: `prepare`'s, or ``(1, sequence)`` int64."""
        if isinstance(probe.value, bytes):
            return self.prepare(probe.value)
        return self._row(probe.value)

    def _row(self, text: str) -> np.ndarray:
        return np.array([self.token_ids(text)], np.int64)

    def embed_prepared(
        self, inputs: Mapping[str, np.ndarray], on_event: Listener = silent
    ) -> dict[str, np.ndarray]:
        """Return a vector, ``(dims,)``, for each of what `prepared` returns, by the same names.

        A few run together: one by one takes three times as long.
        """
        by_shape = sorted(inputs, key=lambda name: inputs[name].shape)
        vectors: dict[str, np.ndarray] = {}
        for shape, group in groupby(by_shape, lambda name: inputs[name].shape[2:]):
            names = list(group)
            for at in range(0, len(names), _AT_ONCE):
                some = [inputs[name] for name in names[at : at + _AT_ONCE]]
                embedded = self.embed_pixels(np.concatenate(some)) if shape else self._embed(some)
                vectors.update(zip(names[at:], embedded, strict=False))
                on_event(Event("verify", "model references", len(vectors), len(inputs), "probes"))
        return {name: vectors[name] for name in inputs}

    def _embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        # the model reads forward and stops at the first end: what stands behind it changes nothing
        longest = max(row.size for row in rows)
        return self.embed_ids(
            np.concatenate([np.pad(r, ((0, 0), (0, longest - r.size)), "edge") for r in rows])
        )

    def _stacked(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        vectors = self.embed_prepared({str(i): given for i, given in enumerate(prepared)})
        return np.stack(list(vectors.values()))

    def references(self, probes: Sequence[Probe], on_event: Listener = silent) -> References:
        """Return this model's vectors for the probes."""
        inputs = {probe.id: self.prepared(probe) for probe in probes}
        return References(self.embed_prepared(inputs, on_event), reference_versions())

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
