"""Run a pipeline pair in this process: bytes or strings in, unit vectors out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oml_mlflow.deadline import within
from oml_mlflow.documents import read_json
from oml_mlflow.errors import InputError
from oml_mlflow.graph.reach import reach_bytes, read_merges
from oml_mlflow.graph.runtime import Ends, open_session, run
from oml_mlflow.names import IMG, PROPERTY, TXT
from oml_mlflow.pair.limits import MAX_PIXELS
from oml_mlflow.pair.pictures import as_pixels, as_png, in_work
from oml_mlflow.pair.texts import prepare_text

# texts of one run are padded to the longest of them
_TEXTS_PER_RUN = 32
# how much of a text counts takes 0.3 s to find out, more than whatever such a text costs
_SHORT_CHARACTERS = 2_000
# byte-pair operators take time with the square of a word's length: 0.4 s for one of this length
_UNBOUNDED_CHARACTERS = 20_000
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

    Attributes:
        timeout_s: How long loading a graph may take, and one run of it, for a picture or a few
            texts, before TimeoutError is raised; None, as at first, for no limit.

    Raises:
        ConfigError: See `limits.MAX_PIXELS`.
    """

    def __init__(
        self, img: Path, txt: Path, dims: int, ends: Mapping[str, Ends] | None = None
    ) -> None:
        MAX_PIXELS.read()  # a wrong setting is reported before the first picture
        self.dims = dims
        self.timeout_s: float | None = None
        self._ends = dict(ends or {})
        self._paths = {IMG: Path(img), TXT: Path(txt)}
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def embed_image(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the pictures' order.

        Pictures are decoded and run one by one; each waits while other calls in this process have
        all pixels that may be in memory at once.

        Args:
            pictures: Encoded pictures, in one of `pictures.FORMATS`.

        Raises:
            InputError: If a picture can't be decoded or is too large; its number is named, and no
                vector is returned.
        """
        rows = [self._embed_picture(p, f"picture {i}") for i, p in enumerate(pictures)]
        return self._stack(rows)

    def embed_text(self, texts: Iterable[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the texts' order.

        Args:
            texts: Texts; those longer than the model's maximum length are cut. A pair by another
                maker does not say that length, and gets them whole.

        Raises:
            InputError: If one is no text, or has more than 20,000 characters for a byte-pair
                tokenizer of unknown length; its number is named, nothing is embedded.
        """
        texts = list(texts)
        is_long = any(isinstance(text, str) and len(text) > _SHORT_CHARACTERS for text in texts)
        reach, is_bounded = self._reading if is_long else (None, True)
        for i, text in enumerate(texts):
            if not is_bounded and isinstance(text, str) and len(text) > _UNBOUNDED_CHARACTERS:
                raise InputError(
                    f"text {i}: has {len(text):,} characters, more than the "
                    f"{_UNBOUNDED_CHARACTERS:,} that are allowed where a pair doesn't say how "
                    "much its model reads; nothing was embedded.",
                    hint="shorten it, or export the pair from its model.",
                )
        any_case = self._metadata.get("any_case_tokens", ()) if texts else ()
        prepared = [prepare_text(t, f"text {i}", reach, any_case) for i, t in enumerate(texts)]
        shape = self._input(TXT).shape if prepared else []
        count = 1 if shape[:1] in ([], [1]) else _TEXTS_PER_RUN
        rows = []
        for at in range(0, len(prepared), count):
            values = np.array(prepared[at : at + count], dtype=object)
            # some take a column of texts, or one text without an axis
            rows.append(self._run(TXT, values.reshape([-1, *shape[1:]] if shape else [])))
        return self._stack(rows)

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """What the text pipeline says of itself, if it is one of ours."""
        properties = self._session(TXT).get_modelmeta().custom_metadata_map
        try:
            found = read_json(properties.get(PROPERTY, "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def _reading(self) -> tuple[int | None, bool]:
        """Bytes of a text that the model can read, if known, and whether long words are no risk."""
        try:
            merges = read_merges(self._paths[TXT])
            known = self._metadata.get("max_seq_length")
            reach = reach_bytes(merges, int(known)) if merges and known else None
        except (ValueError, TypeError, AttributeError, LookupError):
            return None, False
        return reach, reach is not None or not merges

    def _embed_picture(self, data: bytes, label: str) -> np.ndarray:
        rank = len(self._input(IMG).shape)
        with in_work(data, label, as_pixels if rank == _RAW_RANK else as_png) as values:
            # some take the bytes of one picture as a row
            vector = self._run(IMG, values[None] if rank == 2 else values)
            del values  # so that the context frees it, too
        return vector

    def embed_bare(self, side: str, value: bytes | str) -> np.ndarray:
        """Return ``(1, dims)`` float32 of an input that nobody prepared, as a database embeds it.

        For inputs that are known to be safe: others may end the process.
        """
        is_picture = isinstance(value, bytes)
        given = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.array([value])
        return self._run(side, given if is_picture else given.astype(object))

    def open(self, side: str) -> None:
        """Load a side's graph now instead of at its first use."""
        self._session(side)

    def _session(self, side: str) -> Any:
        with self._lock:
            if side not in self._sessions:
                # ONNX Runtime already computes here what depends on no input
                opened = within(self.timeout_s, lambda: open_session(self._paths[side]))
                self._sessions[side] = opened
            return self._sessions[side]

    def _input(self, side: str) -> Any:
        name = self._ends.get(side, Ends()).input
        inputs = self._session(side).get_inputs()
        return next((given for given in inputs if given.name == name), inputs[0])

    def _run(self, side: str, values: np.ndarray) -> np.ndarray:
        return run(self._session(side), values, self._ends.get(side, Ends()), self.timeout_s)

    def _stack(self, rows: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(rows or [np.empty((0, self.dims), np.float32)])
