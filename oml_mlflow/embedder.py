"""Run a pipeline pair in this process: bytes or strings in, unit vectors out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.names import IMG, TXT
from oml_mlflow.pictures import prepare_picture
from oml_mlflow.runtime import open_session, run
from oml_mlflow.texts import prepare_text

# texts of one run are padded to the longest of them
_TEXTS_PER_RUN = 32


class PairEmbedder:
    """Embed pictures and texts with a pair's two ONNX files.

    A session is opened when its side is first used, and kept. Safe to share between threads.

    Args:
        img: File of the image pipeline.
        txt: File of the text pipeline.
        dims: Length of the embeddings.
    """

    def __init__(self, img: Path, txt: Path, dims: int) -> None:
        self.dims = dims
        self._paths = {IMG: Path(img), TXT: Path(txt)}
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the pictures' order.

        Args:
            pictures: Encoded pictures, in any format Pillow knows.

        Raises:
            InputError: If a picture can't be decoded; its number is named, nothing is embedded.
        """
        prepared = [prepare_picture(p, f"picture {i}") for i, p in enumerate(pictures)]
        rows = [self._run(IMG, np.frombuffer(data, np.uint8)) for data in prepared]
        return self._stack(rows)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the texts' order.

        Args:
            texts: Texts; those longer than the model's maximum length are cut.

        Raises:
            InputError: If one is no text; its number is named, nothing is embedded.
        """
        prepared = [prepare_text(t, f"text {i}") for i, t in enumerate(texts)]
        chunks = range(0, len(prepared), _TEXTS_PER_RUN)
        rows = [
            self._run(TXT, np.array(prepared[at : at + _TEXTS_PER_RUN], dtype=object))
            for at in chunks
        ]
        return self._stack(rows)

    def _run(self, side: str, values: np.ndarray) -> np.ndarray:
        with self._lock:
            if side not in self._sessions:
                self._sessions[side] = open_session(self._paths[side])
        return run(self._sessions[side], values)

    def _stack(self, rows: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty((0, self.dims), np.float32), *rows])
