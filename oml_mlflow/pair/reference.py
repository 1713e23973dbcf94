"""The reference for a pair: its model run by transformers, Pillow and torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oml_mlflow.errors import OmlMlflowError, SourceError
from oml_mlflow.events import Listener, silent
from oml_mlflow.graph.precision import FLOAT32, encoder_limit
from oml_mlflow.graph.retarget import read_head
from oml_mlflow.graph.runtime import open_session
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.pictures import as_rgb, prepare_picture
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.texts import prepare_text
from oml_mlflow.parity.compare import compare, limits_by_side
from oml_mlflow.parity.probes import Probe, References, embed_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.source.model import Source
from oml_mlflow.source.tokenizer import load_tokenizer


class ReferenceModel:
    """Embed with transformers, Pillow and torch in float32, one by one; holds both towers.

    Transparency is put on white, as a pair does: transformers 5.24 does so itself, and 4.57 drops
    it, so that colours show which nobody sees.

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
        is_5 = int(version("transformers").split(".")[0]) >= 5
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
) -> ParityReport:
    """Return the report of a pair's vectors against those of the model's own Python code.

    The limit of a side depends on its precision; float32 by default.
    """
    dims = next((vector.shape[-1] for vector in model.vectors.values()), 1)
    limits = {side: encoder_limit((precisions or {}).get(side, FLOAT32), dims) for side in SIDES}
    return compare(
        "Pair against transformers + Pillow + torch",
        probes,
        pair.vectors,
        model.vectors,
        limits_by_side(probes, limits),
    )


class PreparedByPair:
    """Embed inputs by a pair's preparation and the model's own float32 encoder.

    So the preparation of a shrunk pair is held to float32's limit, whatever its encoder loses. Two
    small graphs are written to `folder`.
    """

    def __init__(self, pair: PipelinePair, model: ReferenceModel, folder: Path) -> None:
        self._model = model
        self._any_case = pair.metadata.get("any_case_tokens", ())
        self._sessions: dict[str, Any] = {}
        for side in SIDES:
            path = folder / f"head_{side}.onnx"
            path.write_bytes(read_head(pair.path(side)).SerializeToString())
            self._sessions[side] = open_session(path)

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""
        rows = []
        for picture in pictures:
            data = np.frombuffer(prepare_picture(picture, "a picture"), np.uint8)
            pixels = self._sessions[IMG].run(None, {"input": data})[0]
            rows.append(self._model.embed_pixels(pixels))
        return np.concatenate(rows)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""
        prepared = np.array([prepare_text(t, any_case=self._any_case) for t in texts], dtype=object)
        return self._model.embed_ids(self._sessions[TXT].run(None, {"input": prepared})[0])
