"""Golden probes: fixed pictures and texts, their reference vectors, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from oml_mlflow.errors import PackageError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.precision import loss_sentence, measure_loss

# A right graph reaches 1.3e-5; wrong resampling, crop or statistics break 1e-4 on these probes.
DEFAULT_LIMIT = 1e-4


@dataclass(frozen=True)
class Probe:
    """One fixed input.

    Attributes:
        id: Stable name.
        side: ``img`` or ``txt``.
        category: What it stands for, such as ``png``, ``jpeg-420`` or ``digits``.
        value: Bytes of an encoded picture, or a text.
    """

    id: str
    side: str
    category: str
    value: bytes | str


@dataclass(frozen=True)
class References:
    """Vectors that were right when they were made.

    Attributes:
        vectors: ``(dims,)`` float32 by probe id.
        runtime: Versions of what made them.
    """

    vectors: dict[str, np.ndarray]
    runtime: dict[str, str]

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.npz`` and ``<name>.json`` into a folder."""
        np.savez(folder / f"{name}.npz", **self.vectors)  # type: ignore[arg-type]
        text = json.dumps(self.runtime, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, name: str) -> References | None:
        """Return references written by `save`, or None if there are none."""
        path = folder / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                vectors = {key: stored[key] for key in stored.files}
            runtime = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, AttributeError, BadZipFile) as error:
            raise PackageError(
                f"{path} can't be read ({error}).", hint="log the pair again."
            ) from error
        return cls(vectors, runtime)


@dataclass(frozen=True)
class Difference:
    """How far one probe's vector is from its reference."""

    probe: Probe
    max_abs: float
    cosine: float
    limit: float | None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is within its limit; a category without one is only reported."""
        return not self.error and (self.limit is None or self.max_abs <= self.limit)


@dataclass(frozen=True)
class ParityReport:
    """Vectors of a set of probes against their references.

    Attributes:
        title: Heading.
        rows: A row for every probe.
        loss: Figures over all probes of a side, by side (see `measure_loss`).
    """

    title: str
    rows: tuple[Difference, ...] = field(default=())
    loss: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there are rows and every one is within its limit."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def worst(self) -> Difference:
        """The row that is furthest over its limit, or else has the largest difference."""
        return max(self.rows, key=lambda row: (not row.ok, row.max_abs))

    def max_abs(self, side: str | None = None) -> float:
        """Return the largest difference of one side, or of both."""
        return max((r.max_abs for r in self.rows if side in (None, r.probe.side)), default=0.0)

    def min_cosine(self, side: str | None = None) -> float:
        """Return the smallest cosine of one side, or of both."""
        return min((r.cosine for r in self.rows if side in (None, r.probe.side)), default=1.0)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the report as a list of flat dicts."""
        return [
            {
                "probe": row.probe.id,
                "side": row.probe.side,
                "category": row.probe.category,
                "max_abs": row.max_abs,
                "cosine": row.cosine,
                "limit": row.limit,
                "ok": row.ok,
                "error": row.error,
            }
            for row in self.rows
        ]

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = [
            f"### {self.title}",
            "",
            "| probe | category | max abs difference | cosine | limit | within |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            limit = "reported only" if row.limit is None else f"{row.limit:.0e}"
            verdict = "yes" if row.ok else f"**NO** {row.error}".rstrip()
            lines.append(
                f"| {row.probe.id} | {row.probe.category} | {row.max_abs:.1e} | "
                f"{row.cosine:.7f} | {limit} | {verdict} |"
            )
        for side, loss in self.loss.items():
            lines += ["", f"{side}: {loss_sentence(loss)}."]
        return "\n".join(lines) + "\n"


class Embedder(Protocol):
    """Anything that embeds pictures and texts, one call per list."""

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""
        ...

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""
        ...


@cache
def golden_probes() -> tuple[Probe, ...]:
    """Return the golden probes that ship with this package."""
    root = files("oml_mlflow") / "golden"
    return tuple(_parse(json.loads((root / "probes.json").read_text("utf-8")), root.joinpath))


def save_probes(folder: Path, probes: Iterable[Probe]) -> None:
    """Write probes into a folder, so that they stay with the vectors made from them."""
    entries: list[dict[str, str]] = []
    for probe in probes:
        entry = {"id": probe.id, "side": probe.side, "category": probe.category}
        if isinstance(probe.value, bytes):
            suffix = "png" if probe.value.startswith(b"\x89PNG") else "jpg"
            entry["file"] = f"{probe.id}.{suffix}"
            (folder / entry["file"]).write_bytes(probe.value)
        else:
            entry["text"] = probe.value
        entries.append(entry)
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (folder / "probes.json").write_text(text + "\n", encoding="utf-8")


def read_probes(folder: Path) -> tuple[Probe, ...]:
    """Return probes written by `save_probes`."""
    try:
        entries = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
        return tuple(_parse(entries, folder.joinpath))
    except (OSError, ValueError, KeyError) as error:
        raise PackageError(
            f"{folder} holds no readable golden probes.", hint="log the pair again."
        ) from error


def _parse(entries: list[dict[str, str]], locate: Callable[[str], Any]) -> Iterable[Probe]:
    for entry in entries:
        name = entry.get("file", "")
        if name and Path(name).name != name:
            raise PackageError(f"probe file {name!r} leaves its folder.", hint="don't trust it.")
        value = locate(name).read_bytes() if name else entry["text"]
        yield Probe(entry["id"], entry["side"], entry["category"], value)


def embed_probes(
    embedder: Embedder, probes: Sequence[Probe], on_event: Listener = silent, item: str = "probes"
) -> dict[str, np.ndarray]:
    """Return the vector of every probe, embedded one at a time.

    One at a time, because a quantised graph's vectors depend on what else is in the batch.
    """
    vectors: dict[str, np.ndarray] = {}
    for done, probe in enumerate(probes, 1):
        if isinstance(probe.value, bytes):
            vectors[probe.id] = embedder.embed_image([probe.value])[0]
        else:
            vectors[probe.id] = embedder.embed_text([probe.value])[0]
        on_event(Event("verify", item, done, len(probes), "probes"))
    return vectors


def compare(
    title: str,
    probes: Sequence[Probe],
    vectors: dict[str, np.ndarray],
    references: dict[str, np.ndarray],
    limits: dict[str, float | None] | None = None,
) -> ParityReport:
    """Return the report of `vectors` against `references`.

    Args:
        title: Heading of the report.
        probes: What was embedded.
        vectors: Vectors to judge, by probe id.
        references: Vectors to judge by.
        limits: Largest difference of an element by category; None: reported only. Categories
            not named have `DEFAULT_LIMIT`.

    Returns:
        A row for every probe. A vector that is missing, of other dims or not finite is an error,
        never within a limit.
    """
    rows = []
    for probe in probes:
        limit = (limits or {}).get(probe.category, DEFAULT_LIMIT)
        got, wanted = vectors.get(probe.id), references.get(probe.id)
        error = ""
        if got is None or wanted is None:
            error = "no vector" if got is None else "no reference"
        elif got.shape != wanted.shape:
            error = f"dims {got.shape[-1]}, wanted {wanted.shape[-1]}"
        elif not np.isfinite(got).all():
            error = "not finite"
        if error or got is None or wanted is None:
            rows.append(Difference(probe, float("inf"), -1.0, limit, error))
            continue
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        rows.append(Difference(probe, float(np.abs(a - b).max()), cosine, limit))
    return ParityReport(title, tuple(rows), _loss(rows, vectors, references))


def limits_by_side(probes: Sequence[Probe], limits: dict[str, float]) -> dict[str, float | None]:
    """Return limits by category, as `compare` wants them, from limits by side."""
    return {probe.category: limits[probe.side] for probe in probes}


def _loss(
    rows: Sequence[Difference], vectors: dict[str, np.ndarray], references: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    loss = {}
    for side in SIDES:
        ids = [row.probe.id for row in rows if row.probe.side == side and not row.error]
        if ids:
            ours, theirs = (np.stack([where[i] for i in ids]) for where in (vectors, references))
            loss[side] = measure_loss(ours, theirs)
    return loss


def by_side(probes: Sequence[Probe], side: str) -> list[Probe]:
    """Return the probes of one side, ``img`` or ``txt``."""
    if side not in (IMG, TXT):
        raise ValueError(side)
    return [probe for probe in probes if probe.side == side]
