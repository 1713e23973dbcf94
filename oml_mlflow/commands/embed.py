"""The verb embed: a folder of pictures, or a column of a table, into a file of vectors."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from oml_mlflow.commands.table import open_table
from oml_mlflow.documents import build, damaged, read_json
from oml_mlflow.errors import InputError, NameTaken, OutputError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.files import fingerprint_file, locked
from oml_mlflow.flavor.load import load_model

PARQUET, JSON_LINES = ".parquet", (".jsonl", ".ndjson")
# what a kill costs at most, of which a large picture takes 0.2 s
_ROWS_PER_PART, _SECONDS_PER_PART = 1_024, 30.0
_SHOWN = 20
_NUMBER = re.compile(r"^(picture|text) \d+: ")
# lists not of a fixed size: pyarrow writes nulls among these, and does not read them
_ROWS = pa.schema(
    [("id", pa.string()), ("embedding", pa.list_(pa.float32())), ("error", pa.string())]
)


@dataclass(frozen=True)
class Embedded:
    """What was embedded.

    Attributes:
        path: File of the vectors.
        rows: Rows in it: each of the source, once, in its order.
        done_before: Rows of them that an earlier, interrupted run had embedded.
        missing: Rows without a vector.
        reasons: Why, for the first 20 of them.
    """

    path: Path
    rows: int
    done_before: int
    missing: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """What must be the same for a run to go on where another one was stopped."""

    model: str
    source: str
    side: str
    column: str
    id_column: str
    dims: int


def embed(
    source: str | Path,
    output: str | Path,
    model_uri: str,
    *,
    column: str = "",
    side: str = "",
    id_column: str = "",
    batch_size: int | None = None,
    providers: Sequence[str] | None = None,
    on_event: Listener = silent,
) -> Embedded:
    """Embed a folder's pictures, or a column of a table, into a file.

    The file has a row for each of the source, in its order: ``id`` (string), ``embedding`` (float32
    of the model's dims, or null) and ``error`` (why it is null). Until it is whole its rows are in
    the folder ``OUTPUT.parts``, from which a run that was stopped goes on.

    Args:
        source: Folder, read with its subfolders, or a file that ends in .parquet, .csv, .jsonl or
            .ndjson.
        output: File to write, .parquet, .jsonl or .ndjson.
        model_uri: Such as ``models:/clip@prod``.
        column: Column to embed; ``image`` or ``text`` by default. Pictures are bytes, paths from
            the table's folder, or data: URLs.
        side: ``img`` or ``txt``; of a column that is called otherwise.
        id_column: Column that names the rows; their number by default, of a folder's their path.
        batch_size: See `PairEmbedder.embed_rows`.
        providers: See `load_model`.
        on_event: Called as rows are done.

    Raises:
        InputError: If the source can't be read, or has no such column; if the output's parts are of
            another source or model, or in use by another process.
        NameTaken: If the output is there already.
        OutputError: If it can't be written.
        RegistryError: See `load_model`, also for other errors.

    Side effects: Writes the file; reads each row once more than it was embedded by earlier runs.
    """
    out = Path(output).expanduser()
    table = open_table(Path(source).expanduser(), column, side, id_column)
    parts = _Parts(out)
    parts.refuse_output()
    embedder = load_model(model_uri, providers=providers)
    model = fingerprint_file(embedder.path(table.side))
    facts = (table.side, table.column, id_column, embedder.dims)
    with parts.held(_Job(model, table.fingerprint, *facts)):
        before = done = parts.rows()
        ids: deque[str] = deque()

        def values() -> Iterator[Any]:
            for name, value in table.rows(before):
                ids.append(name)
                yield value

        rows: list[tuple[str, np.ndarray | InputError]] = []
        since = time.monotonic()
        for vector in embedder.embed_rows(table.side, values(), batch_size):
            rows.append((ids.popleft(), vector))
            done += 1
            on_event(Event("embed", out.name, done, table.count, "rows"))
            if len(rows) == _ROWS_PER_PART or time.monotonic() - since > _SECONDS_PER_PART:
                parts.write(done - len(rows), rows)
                rows, since = [], time.monotonic()
        if rows:
            parts.write(done - len(rows), rows)
        missing, reasons = parts.merge()
    return Embedded(out, done, before, missing, reasons)


class _Parts:
    """The rows that are embedded, in files of a folder beside the output until all are there."""

    def __init__(self, output: Path) -> None:
        if output.suffix not in (PARQUET, *JSON_LINES):
            raise InputError(
                f"{output} names no format that can be written. Nothing was embedded.",
                hint=f"end it in {PARQUET}, {' or '.join(JSON_LINES)}.",
            )
        self._output, self._folder = output, output.with_name(f"{output.name}.parts")
        self._job = self._folder / "job.json"

    def refuse_output(self) -> None:
        """Raise NameTaken if the output is there, and not left by a run that was stopped."""
        if self._output.exists() and not self._job.exists():
            raise NameTaken(
                f"{self._output} is there already. Nothing was embedded.",
                hint="name another file, or remove it.",
            )

    @contextmanager
    def held(self, job: _Job) -> Iterator[None]:
        """Hold the folder against other processes; raise InputError if it is of another job."""
        with ExitStack() as stack:
            with self._writing():
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(self._folder))
                except BlockingIOError as error:
                    raise InputError(
                        f"another process writes {self._output}. Nothing was embedded.",
                        hint="wait for it, or name another output.",
                    ) from error
                if not self._job.exists():
                    # what a run that was killed while it removed them has left
                    for path in self._folder.glob("*.parquet"):
                        path.unlink()
                    text = json.dumps(asdict(job), indent=1)
                    self._job.with_suffix(".new").write_text(text, "utf-8")
                    _keep(self._job.with_suffix(".new"), self._job)
            self._demand(job)
            yield

    def _demand(self, job: _Job) -> None:
        what = f"{self._job} can't be read"
        with damaged(what, OutputError, hint=f"remove {self._folder} to begin anew."):
            begun = build(_Job, read_json(self._job))
        differs = [name for name, value in asdict(job).items() if getattr(begun, name) != value]
        if differs:
            raise InputError(
                f"{self._folder} was begun with another {', '.join(differs)}. Nothing was "
                "embedded.",
                hint="name another output, or remove that folder to begin anew.",
            )

    def rows(self) -> int:
        """Return how many rows are there, from the first on."""
        return sum(count for _, count in self._found())

    def _found(self) -> list[tuple[Path, int]]:
        found, wanted = [], 0
        for path in sorted(self._folder.glob("*.parquet")):
            first, count = map(int, path.stem.split("-"))
            if first != wanted:
                raise OutputError(
                    f"{self._folder} lacks rows from {wanted:,} on. Nothing was embedded.",
                    hint="remove it to begin anew.",
                )
            found.append((path, count))
            wanted += count
        return found

    def write(self, first: int, rows: Sequence[tuple[str, np.ndarray | InputError]]) -> None:
        """Write some rows, all or none."""
        vectors = [None if isinstance(row, InputError) else row for _, row in rows]
        # numbered within this run: the row's name is beside it
        errors = [
            _NUMBER.sub("", row.message) if isinstance(row, InputError) else None for _, row in rows
        ]
        columns = [[name for name, _ in rows], vectors, errors]
        made = pa.table(columns, schema=_ROWS)
        path = self._folder / f"{first:012d}-{len(rows)}.parquet"
        with self._writing():
            pq.write_table(made, path.with_suffix(".new"))
            _keep(path.with_suffix(".new"), path)

    def merge(self) -> tuple[int, tuple[str, ...]]:
        """Write the output from all parts, and remove them; return what has no vector, and why."""
        missing = 0
        reasons: list[str] = []
        new = self._folder / "output.new"
        with self._writing():
            with _Writer(new, self._output.suffix, _ROWS) as writer:
                for path, _ in self._found():
                    part = pq.read_table(path)
                    writer.write(part)
                    for row in part.select(["id", "error"]).to_pylist():
                        if row["error"] is not None:
                            missing += 1
                            if len(reasons) < _SHOWN:
                                reasons.append(f"{row['id']}: {row['error']}")
            _keep(new, self._output)
            # first, so that no run takes what is left for its own
            self._job.unlink()
            shutil.rmtree(self._folder)
        return missing, tuple(reasons)

    def _writing(self) -> Any:
        state = f"What was embedded is in {self._folder}."
        hint = "make room, or name another file; the same command goes on."
        return damaged(f"{self._output} can't be written", OutputError, hint=hint, state=state)


class _Writer:
    """Writes rows as Parquet or as JSON Lines."""

    def __init__(self, path: Path, suffix: str, schema: pa.Schema) -> None:
        is_parquet = suffix == PARQUET
        self._parquet = pq.ParquetWriter(path, schema) if is_parquet else None
        self._lines = None if is_parquet else path.open("w", encoding="utf-8")

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        for file in (self._parquet, self._lines):
            if file is not None:
                file.close()

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        if self._parquet is not None:
            self._parquet.write_table(rows)
        if self._lines is not None:
            for row in rows.to_pylist():
                self._lines.write(json.dumps(row) + "\n")


def _keep(new: Path, path: Path) -> None:
    """Give a written file its name, once its bytes are on the disk."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)
