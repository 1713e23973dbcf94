"""What `mlflow models serve` and ``mlflow.pyfunc`` call: rows in, embeddings out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from oml_mlflow.errors import InputError

_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class Embedder(Protocol):
    """What embeds pictures and texts: a pair in this process, or one in a database."""

    @property
    def dims(self) -> int:
        """Length of the embeddings."""
        ...

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the pictures' order."""
        ...

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32, L2-normalised, in the texts' order."""
        ...


class PyfuncPair:
    """A pair behind ``mlflow.pyfunc``: rows with a picture or a text in, embeddings out."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Embed one picture or text per row.

        Args:
            model_input: Column ``image`` (bytes of a picture, base64 of them, or a data: URL),
                column ``text``, or both; each row has one of the two.
            params: Not used.

        Returns:
            Column ``embedding``, a list of floats per row, in the rows' order.

        Raises:
            MlflowException: If neither column is there, a row has both or neither, or a value
                can't be embedded. Nothing is returned for the other rows.
        """
        try:
            return self._predict(pd.DataFrame(model_input))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error

    def _predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        columns = [name for name in ("image", "text") if name in frame.columns]
        if not columns:
            raise InputError(
                "the request has neither a column 'image' nor a column 'text'; nothing was "
                "embedded.",
                hint='send rows such as {"text": "a photo of a cat"} or {"image": '
                '"<base64 of a JPEG or PNG>"} as dataframe_records.',
            )
        cells = {
            name: [_cell(value, name, i) for i, value in enumerate(frame[name])] for name in columns
        }
        nothing: list[Any] = [None] * len(frame)
        images, texts = cells.get("image", nothing), cells.get("text", nothing)
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            if (image is None) == (text is None):
                what = "neither image nor text" if image is None else "both image and text"
                raise InputError(
                    f"row {i} has {what}; nothing was embedded.",
                    hint="give each row one of the two.",
                )
        vectors = np.empty((len(frame), self._embedder.dims), np.float32)
        for values, embed in (
            (images, self._embedder.embed_image),
            (texts, self._embedder.embed_text),
        ):
            rows = [i for i, value in enumerate(values) if value is not None]
            if rows:
                vectors[rows] = embed([values[i] for i in rows])
        result: pd.DataFrame = pd.DataFrame({"embedding": vectors.tolist()}, index=frame.index)
        return result


def _cell(value: Any, column: str, row: int) -> bytes | str | None:
    """Return a cell as bytes (image) or str (text), or None if it is null."""
    if isinstance(value, list | tuple | dict | np.ndarray):
        raise InputError(
            f"row {row}: column '{column}' holds a {type(value).__name__}, wanted one value.",
            hint="send one row per picture or text (dataframe_records, or a DataFrame).",
        )
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if column == "text":
        if isinstance(value, str):
            return value
        raise InputError(f"row {row}: text is a {type(value).__name__}.", hint="send a string.")
    if isinstance(value, str):
        return _from_base64(value, row)
    data = bytes(value)
    # `inputs` and `instances` requests arrive with the base64 not decoded
    return data if data.startswith(_PICTURE_STARTS) else _maybe_base64(data)


def _from_base64(value: str, row: int) -> bytes:
    text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"row {row}: image is a string that is no base64.",
            hint="send the base64 of a JPEG or PNG file.",
        ) from error


def _maybe_base64(data: bytes) -> bytes:
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return data
    return decoded if decoded.startswith(_PICTURE_STARTS) else data
