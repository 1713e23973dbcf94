"""Scoring with `mlflow models serve` and ``mlflow.pyfunc``: rows in, embeddings out."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from oml_mlflow.errors import InputError
from oml_mlflow.flavor.serving import is_serving
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import NULL, RAISE
from oml_mlflow.pair.limits import REQUEST_BYTES, REQUEST_ROWS, Limit

_NUMBER = re.compile(r"(?<=^picture )\d+|(?<=^text )\d+")
# "data" decoded as base64, with which no picture begins
_BROKEN_URL = base64.b64decode("data")
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class ScoringEmbedder(Protocol):
    """A pair in this process, or one in a database."""

    @property
    def dims(self) -> int:
        """Length of the embeddings."""

    def embed_rows(self, side: str, values: Sequence[Any]) -> Iterable[np.ndarray | InputError]:
        """Yield each input's vector, ``(dims,)`` float32, or why it has none."""


@dataclass(frozen=True)
class _Row:
    """What one row asks for."""

    side: str
    value: bytes | str


class PyfuncPair:
    """A pair behind ``mlflow.pyfunc``: rows with a picture or a text in, embeddings out.

    An HTTP request has at most ``OML_MLFLOW_REQUEST_ROWS`` rows (1,024) whose values have at most
    ``OML_MLFLOW_REQUEST_BYTES`` bytes (64 MiB), base64 not decoded. What MLflow has read by then is
    bounded only by a proxy before it.

    Raises:
        ConfigError: If one of these variables is not a number in its range.
    """

    def __init__(self, embedder: ScoringEmbedder) -> None:
        self._embedder = embedder
        # wrong settings are reported at start, not at the first request
        self._limits = {limit: limit.read() for limit in (REQUEST_ROWS, REQUEST_BYTES)}

    def predict(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Embed one picture or text per row.

        In ``instances`` beside strings, MLflow makes strings of numbers, true, false and NaN;
        they are embedded as these words. In all other forms they are refused.

        Args:
            model_input: Column ``image`` (bytes of a picture, base64 of them, or a data: URL),
                column ``text``, or both; each row has one of the two.
            params: ``on_error``: ``raise``, as by default, or ``null``: then a row that can't be
                embedded has no embedding, and says why in a second column, ``error``.

        Returns:
            Column ``embedding``, a list of floats per row, in the rows' order.

        Raises:
            MlflowException: If neither column is there, the request is larger than its limits, or,
                unless told otherwise, a row has both or neither, or a value can't be embedded.
                Nothing is returned for the other rows.
        """
        try:
            return self._predict(_frame(model_input), (params or {}).get("on_error", RAISE))
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error

    def _predict(self, frame: pd.DataFrame, on_error: str) -> pd.DataFrame:
        if on_error not in (RAISE, NULL):
            raise InputError(
                f"on_error is {str(on_error)[:40]!r}; nothing was embedded.",
                hint=f"send {RAISE!r} or {NULL!r}.",
            )
        columns = [name for name in ("image", "text") if name in list(frame.columns)]
        if not columns:
            raise InputError(
                "the request has neither a column 'image' nor a column 'text'; nothing was "
                "embedded.",
                hint='send rows such as {"text": "a photo of a cat"} or {"image": '
                '"<base64 of a JPEG or PNG>"} as dataframe_records.',
            )
        if is_serving():
            self._check_limit(REQUEST_ROWS, len(frame))
            sizes = (_size_bytes(value) for name in columns for value in frame[name])
            self._check_limit(REQUEST_BYTES, sum(sizes))
        rows = list(self._rows(frame, columns))
        errors = {i: row for i, row in enumerate(rows) if isinstance(row, InputError)}
        if errors and on_error == RAISE:
            raise next(iter(errors.values()))
        embeddings: list[list[float] | None] = [None] * len(rows)
        for side in SIDES:
            asked = {i: r for i, r in enumerate(rows) if isinstance(r, _Row) and r.side == side}
            values = [row.value for row in asked.values()]
            made = self._embedder.embed_rows(side, values) if values else ()
            for i, vector in zip(asked, made, strict=True):
                if not isinstance(vector, InputError):
                    embeddings[i] = vector.tolist()
                elif on_error == NULL:
                    errors[i] = _with_row(vector, i)
                else:
                    raise _with_row(vector, i)
        result: pd.DataFrame = pd.DataFrame({"embedding": embeddings}, index=frame.index)
        if on_error == NULL:
            reasons = {i: error.message for i, error in errors.items()}
            told = [reasons.get(i) for i in range(len(rows))]
            # of pandas' own string type None would be NaN
            result["error"] = pd.Series(told, frame.index, dtype=object)
        return result

    def _rows(self, frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[_Row | InputError]:
        for i, values in enumerate(zip(*(frame[name] for name in columns), strict=True)):
            try:
                cells = [
                    _Row(IMG if name == "image" else TXT, cell)
                    for name, value in zip(columns, values, strict=True)
                    if (cell := _cell(value, name, i)) is not None
                ]
                if len(cells) != 1:
                    what = "both image and text" if cells else "neither image nor text"
                    raise InputError(
                        f"row {i} has {what}; nothing was embedded.",
                        hint="give each row one of the two.",
                    )
                yield cells[0]
            except InputError as error:
                yield error

    def _check_limit(self, limit: Limit, sent: int) -> None:
        most = self._limits[limit]
        if sent > most:
            raise InputError(
                f"the request has {sent:,} {limit.unit}, more than the {most:,} that are "
                "allowed at once; nothing was embedded.",
                hint=f"send several requests, or set {limit.variable} where the model is served.",
            )


def _frame(model_input: Any) -> pd.DataFrame:
    """Return the rows of a request."""
    try:
        frame: pd.DataFrame = pd.DataFrame(model_input)
        cells = dict(zip(frame.columns, frame.iloc[0], strict=True)) if len(frame) == 1 else {}
        # MLflow makes one row of {"inputs": {"text": ["a", "b"]}}
        if is_serving() and any(map(_is_list_of_texts, cells.values())):
            frame = pd.DataFrame(cells)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the request is no table of rows ({error}); nothing was embedded.",
            hint='send rows such as {"text": "a photo of a cat"} as dataframe_records.',
        ) from error
    names = list(frame.columns)
    # if a column is there twice, MLflow passes its name on as every value
    told = (
        is_serving()
        and names.count("text") == 1
        and len(frame) > 1
        and all(isinstance(value, str) and value == "text" for value in frame["text"])
    )
    if told or any(names.count(name) > 1 for name in ("image", "text")):
        raise InputError(
            "a column is there twice, or each row is the word 'text', which MLflow sends "
            "alike; nothing was embedded.",
            hint="send each column once, and the word 'text' in a request of its own.",
        )
    return frame


def _with_row(error: InputError, row: int) -> InputError:
    """Return an error in which the number of a picture or a text is that of its row."""
    return InputError(_NUMBER.sub(str(row), error.message), hint=error.hint)


def _is_list_of_texts(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(isinstance(item, str) for item in cell)


def _size_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return memoryview(value).nbytes if isinstance(value, bytes | bytearray | memoryview) else 0


def _cell(value: Any, column: str, row: int) -> bytes | str | None:
    """Return a cell as bytes (image) or str (text), or None if it is null."""
    if isinstance(value, list | tuple | dict | np.ndarray):
        raise InputError(
            f"row {row}: column '{column}' holds a {type(value).__name__}, wanted one value.",
            hint="send one row per picture or text (dataframe_records, or a DataFrame).",
        )
    is_nan = isinstance(value, float | np.floating) and np.isnan(value)
    if value is None or value is pd.NA or value is pd.NaT or is_nan:
        return None
    if isinstance(value, str):
        return value if column == "text" else _from_string(value, row)
    if column == "image" and isinstance(value, bytes | bytearray | memoryview):
        return _from_bytes(bytes(value), row)
    wanted = "a string" if column == "text" else "bytes, base64 or a data: URL"
    raise InputError(
        f"row {row}: {column} is a {type(value).__name__}; nothing was embedded.",
        hint=f"send {wanted}.",
    )


def _from_string(value: str, row: int) -> bytes:
    """Return the picture of base64 or of a data: URL."""
    kind, comma, payload = value.strip().partition(",")
    is_url = kind[:5].lower() == "data:"
    try:
        data = unquote_to_bytes(payload) if is_url and comma else value.encode()
        if is_url and comma and not kind.rstrip().lower().endswith(";base64"):
            return data
        # URL-safe characters and left out padding too
        plain = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        what = "a data: URL whose data is" if is_url else "a string that is"
        raise InputError(
            f"row {row}: image is {what} no base64.",
            hint="send the base64 of a JPEG or PNG file.",
        ) from error


def _from_bytes(data: bytes, row: int) -> bytes:
    """Return a picture; MLflow may have passed its base64 or data: URL as bytes, or decoded it."""
    if data.startswith(_PICTURE_STARTS):
        return data
    if data.startswith(_BROKEN_URL):
        raise InputError(
            f"row {row}: image is a data: URL that MLflow decoded as if it were base64.",
            hint="send the part after the comma, or log the model again: then it accepts URLs.",
        )
    try:
        decoded = _from_string(data.decode("ascii"), row)
    except (UnicodeDecodeError, InputError):
        return data
    return decoded if decoded.startswith(_PICTURE_STARTS) else data
