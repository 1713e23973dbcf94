"""Run a pipeline pair in this process: bytes or strings in, unit vectors out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.names import IMG, TXT
from oml_mlflow.pictures import picture_pixels, prepare_picture
from oml_mlflow.runtime import Ends, open_session, run
from oml_mlflow.texts import prepare_text

# texts of one run are padded to the longest of them
_TEXTS_PER_RUN = 32
# undecoded pixels: (height, width, 3)
_RAW_RANK = 3


class PairEmbedder:
    """Embed pictures and texts with a pair's two ONNX files.

    A session is opened when its side is first used, and kept. Safe to share between threads.

    Args:
        img: File of the image pipeline.
        txt: File of the text pipeline.
        dims: Length of the embeddings.
        ends: Names of inputs and outputs by side; ``input`` and ``embedding`` by default.
    """

    def __init__(
        self, img: Path, txt: Path, dims: int, ends: Mapping[str, Ends] | None = None
    ) -> None:
        self.dims = dims
        self._ends = dict(ends or {})
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
        rank = len(self._input(IMG).shape) if pictures else 0
        if rank == _RAW_RANK:
            prepared = [picture_pixels(p, f"picture {i}") for i, p in enumerate(pictures)]
        else:
            prepared = [
                np.frombuffer(prepare_picture(p, f"picture {i}"), np.uint8)
                for i, p in enumerate(pictures)
            ]
        # some take the bytes of one picture as a row
        return self._stack([self._run(IMG, v[None] if rank == 2 else v) for v in prepared])

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the texts' order.

        Args:
            texts: Texts; those longer than the model's maximum length are cut.

        Raises:
            InputError: If one is no text; its number is named, nothing is embedded.
        """
        prepared = [prepare_text(t, f"text {i}") for i, t in enumerate(texts)]
        shape = self._input(TXT).shape if prepared else []
        count = 1 if shape[:1] in ([], [1]) else _TEXTS_PER_RUN
        rows = []
        for at in range(0, len(prepared), count):
            values = np.array(prepared[at : at + count], dtype=object)
            # some take a column of texts, or one text without an axis
            rows.append(self._run(TXT, values.reshape([-1, *shape[1:]] if shape else [])))
        return self._stack(rows)

    def open(self, side: str) -> None:
        """Load a side's graph now, not when it is first used."""
        self._session(side)

    def _session(self, side: str) -> Any:
        with self._lock:
            if side not in self._sessions:
                self._sessions[side] = open_session(self._paths[side])
            return self._sessions[side]

    def _input(self, side: str) -> Any:
        name = self._ends.get(side, Ends()).input
        inputs = self._session(side).get_inputs()
        return next((given for given in inputs if given.name == name), inputs[0])

    def _run(self, side: str, values: np.ndarray) -> np.ndarray:
        return run(self._session(side), values, self._ends.get(side, Ends()))

    def _stack(self, rows: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty((0, self.dims), np.float32), *rows])
