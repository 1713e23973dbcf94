"""A table to be embedded: a folder's pictures, or a column of a Parquet, CSV or JSON Lines file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow.parquet as pq

from oml_mlflow.documents import damaged
from oml_mlflow.errors import InputError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.names import IMG, TXT

# endings of what Pillow decodes here; see `pictures.FORMATS`
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# columns that tell their side, as those of a request do
SIDES = {"image": IMG, "text": TXT}
# a CSV may hold pictures as data: URLs
_MOST_CHARACTERS = 2**28
_ROWS_READ = 64
_KEPT, _GO_ON = "The rows before are kept.", "mend it; its rows are then embedded anew."


@dataclass(frozen=True)
class Table:
    """Rows to be embedded.

    Attributes:
        side: ``img`` or ``txt``.
        column: Name of the column; empty for a folder.
        count: Number of rows.
        fingerprint: sha256 of the file; of a folder, of its files' names and sizes.
    """

    side: str
    column: str
    count: int
    fingerprint: str
    _read: Callable[[int], Iterator[tuple[str, Any]]]

    def rows(self, first: int) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each row from `first` on."""
        return self._read(first)


def open_table(path: Path, column: str, side: str, id_column: str) -> Table:
    """Return what a folder or file holds; arguments and errors as in `embed`."""
    what, hint = f"{path} can't be read", "name a folder of pictures, or a table."
    with damaged(what, InputError, hint=hint, state="Nothing was embedded."):
        return _folder(path) if path.is_dir() else _file(path, column, side, id_column)


def _folder(path: Path) -> Table:
    names = sorted(
        found.relative_to(path).as_posix()
        for found in path.rglob("*")
        if found.suffix.lower() in SUFFIXES and found.is_file()
    )
    if not names:
        raise InputError(
            f"{path} holds no pictures ({', '.join(SUFFIXES)}). Nothing was embedded.",
            hint="name the folder that holds them, or one above it.",
        )
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{(path / name).stat().st_size}\n".encode())
    read = lambda first: ((name, path / name) for name in names[first:])  # noqa: E731
    return Table(IMG, "", len(names), digest.hexdigest(), read)


def _file(path: Path, column: str, side: str, id_column: str) -> Table:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        columns, count = list(file.schema_arrow.names), file.metadata.num_rows

        def rows() -> Iterator[Mapping[str, Any]]:
            for some in file.iter_batches(_ROWS_READ, columns=[name for name in needed if name]):
                yield from some.to_pylist()

    elif path.suffix in (".csv", ".jsonl", ".ndjson"):
        read = _csv_rows if path.suffix == ".csv" else _json_rows

        def rows() -> Iterator[Mapping[str, Any]]:
            return read(path)

        first = next(read(path), {})
        columns, count = list(first), sum(1 for _ in read(path))
    else:
        raise ValueError("wanted a folder, or a file .parquet, .csv, .jsonl or .ndjson")
    column, side = usual_column(columns, column, side)
    needed = (column, id_column)
    for name in (column, *([id_column] if id_column else [])):
        if name not in columns:
            raise InputError(
                f"{path} has no column {name or 'image or text'!r}: it has "
                f"{', '.join(map(repr, columns))[:300] or 'no rows'}. Nothing was embedded.",
                hint="name one with --column, or --id.",
            )
    if side not in SIDES.values():
        raise InputError(
            f"does column {column!r} hold pictures or texts? Nothing was embedded.",
            hint="say --side img or --side txt.",
        )

    def named(first: int) -> Iterator[tuple[str, Any]]:
        with damaged(f"{path} can't be read", InputError, hint=_GO_ON, state=_KEPT):
            for number, row in enumerate(islice(rows(), first, None), first):
                value = row.get(column)
                name = str(row.get(id_column)) if id_column else str(number)
                yield name, _picture(path.parent, value) if side == IMG else value

    return Table(side, column, count, fingerprint_file(path), named)


def usual_column(columns: Sequence[str], column: str, side: str) -> tuple[str, str]:
    """Return the column to embed, and its side, by their usual names where none was given."""
    column = column or next((name for name in SIDES if name in columns), "")
    return column, side or SIDES.get(column, "")


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_MOST_CHARACTERS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, strict=True)


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object")
                yield row


def _picture(folder: Path, value: Any) -> Any:
    """Return a cell as `PairEmbedder.embed_image` takes it; what it can't be, it says there."""
    if isinstance(value, dict):  # as Hugging Face's datasets store pictures
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        try:
            with urlopen(value) as opened:  # noqa: S310 -- of data: only
                return opened.read()
        except (OSError, ValueError):
            return b""
    return folder / value
