"""Golden probes: fixed pictures and texts, their reference vectors, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from oml_mlflow.errors import PackageError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.graph.precision import measure_loss
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.parity import ClassSummary, Difference, ParityReport
from oml_mlflow.policy import MUST, Limits, ParityPolicy

__all__ = [
    "DEFAULT_LIMIT",
    "ClassSummary",
    "Difference",
    "Embedder",
    "ParityReport",
    "Probe",
    "References",
    "by_side",
    "compare",
    "embed_probes",
    "golden_probes",
    "limits_by_side",
    "read_probes",
    "save_probes",
    "unsafe_reason",
]

# A right graph reaches 1.3e-5; wrong resampling, crop or statistics break 1e-4 on these probes.
DEFAULT_LIMIT = 1e-4
# start of a JPEG's frame: SOF0 to SOF15 without DHT, JPG and DAC (ITU-T T.81, table B.1)
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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


def unsafe_reason(probe: Probe) -> str:
    """Return why a probe must not be sent to any database, or nothing.

    A JPEG of one component makes the decoder of onnxruntime-extensions 0.14.0 to 0.15.2 write past
    its buffer, so that a whole server process may die of it (measured); what others than three do
    to other decoders, nobody knows. No golden probe of this release is one, but packages that were
    logged elsewhere may hold any picture.
    """
    if not isinstance(probe.value, bytes) or not probe.value.startswith(b"\xff\xd8"):
        return ""
    components = _jpeg_components(probe.value)
    if components == 3:
        return ""
    return f"only JPEG of three components is safe for any decoder; this has {components or 'none'}"


def _jpeg_components(data: bytes) -> int:
    """Return how many components a JPEG's frame header names; 0 if there is none."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            return data[at + 9]
        at += 2 + length
    return 0


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
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    limits: Mapping[str, float | Limits | None] | None = None,
    *,
    policy: ParityPolicy | None = None,
    skipped: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
) -> ParityReport:
    """Return the report of `vectors` against `references`.

    Args:
        title: Heading of the report.
        probes: What was embedded.
        vectors: Vectors to judge, by probe id.
        references: Vectors to judge by.
        limits: By category: largest difference of an element, or `Limits`; None: reported only.
            Categories not named have `DEFAULT_LIMIT`.
        policy: Which categories must be within limits; by default all, and then it is enough if
            the sides that have probes were compared.
        skipped: Why a probe was not sent, by probe id.
        errors: What a probe was refused with, by probe id.

    Returns:
        A row for every probe. A vector that is missing, of other dims or not finite is an error,
        never within a limit.
    """
    rows = []
    for probe in probes:
        limit = (limits or {}).get(probe.category, DEFAULT_LIMIT)
        row = _difference(
            probe,
            vectors,
            references,
            limit if isinstance(limit, Limits) else Limits(limit),
            policy.level(probe.category) if policy else MUST,
        )
        if skipped and skipped.get(probe.id):
            row = replace(row, max_abs=0.0, cosine=1.0, error="", skipped=skipped[probe.id])
        elif row.error and errors and errors.get(probe.id):
            row = replace(row, error=errors[probe.id])
        rows.append(row)
    sides = SIDES if policy else ()
    return ParityReport(title, tuple(rows), _loss(rows, vectors, references), sides)


def _difference(
    probe: Probe,
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
    limits: Limits,
    level: str,
) -> Difference:
    got, wanted = vectors.get(probe.id), references.get(probe.id)
    error = ""
    if got is None or wanted is None:
        error = "no vector" if got is None else "no reference"
    elif got.shape != wanted.shape:
        error = f"dims {got.shape[-1]}, wanted {wanted.shape[-1]}"
    elif not np.isfinite(got).all():
        error = "not finite"
    elif not got.any():
        error = "all zero"
    figures = (float("inf"), -1.0)
    if not error and got is not None and wanted is not None:
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        figures = (float(np.abs(a - b).max()), cosine)
    return Difference(probe, *figures, limits.max_abs, error, limits.cosine, level)


def limits_by_side(
    probes: Sequence[Probe], limits: Mapping[str, float | Limits]
) -> dict[str, float | Limits | None]:
    """Return limits by category, as `compare` wants them, from limits by side."""
    return {probe.category: limits[probe.side] for probe in probes}


def _loss(
    rows: Sequence[Difference],
    vectors: Mapping[str, np.ndarray],
    references: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    loss = {}
    for side in SIDES:
        ids = [row.probe.id for row in rows if row.probe.side == side and row.has_figures]
        if ids:
            ours, theirs = (np.stack([where[i] for i in ids]) for where in (vectors, references))
            loss[side] = measure_loss(ours, theirs)
    return loss


def by_side(probes: Sequence[Probe], side: str) -> list[Probe]:
    """Return the probes of one side, ``img`` or ``txt``."""
    if side not in (IMG, TXT):
        raise ValueError(side)
    return [probe for probe in probes if probe.side == side]
