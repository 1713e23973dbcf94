"""Golden probes: fixed pictures and texts, and their reference vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from oml_mlflow.documents import damaged, read_json
from oml_mlflow.errors import PackageError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.names import IMG, TXT

# start of a JPEG's frame: SOF0 to SOF15 without DHT, JPG and DAC (ITU-T T.81, table B.1)
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_LOG_AGAIN = "log the pair again."


@dataclass(frozen=True)
class Probe:
    """One fixed input.

    Attributes:
        id: Stable name.
        side: ``img`` or ``txt``.
        category: What it stands for, such as ``png``, ``jpeg-420`` or ``digits``.
        value: Bytes of an encoded picture, or a text.
        is_golden: Whether it is the same for all models; only these say what a geometry is.
    """

    id: str
    side: str
    category: str
    value: bytes | str
    is_golden: bool = True


@dataclass(frozen=True)
class References:
    """Reference vectors: what later vectors are compared with.

    Attributes:
        vectors: ``(dims,)`` float32 by probe id.
        runtime: Versions of the packages that made them.
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
        what = f"{path.parent.name}/{path.name} (reference vectors) can't be read"
        with damaged(what, PackageError, hint=_LOG_AGAIN):
            with np.load(path, allow_pickle=False) as stored:
                vectors = {key: stored[key] for key in stored.files}
            return cls(vectors, dict(read_json(folder / f"{name}.json")))


class Embedder(Protocol):
    """Embeds pictures and texts."""

    def embed_image(self, pictures: Sequence[bytes]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``(n, dims)`` float32."""


@cache
def golden_probes() -> tuple[Probe, ...]:
    """Return the golden probes that ship with this package."""
    root = files("oml_mlflow") / "golden"
    return tuple(_parse(json.loads((root / "probes.json").read_text("utf-8")), root.joinpath))


def save_probes(folder: Path, probes: Iterable[Probe]) -> None:
    """Write probes into a folder, to keep them beside the vectors made from them."""
    entries: list[dict[str, Any]] = []
    for probe in probes:
        entry: dict[str, Any] = {"id": probe.id, "side": probe.side, "category": probe.category}
        if not probe.is_golden:
            entry["golden"] = False
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
    with damaged(f"{folder} holds no readable golden probes", PackageError, hint=_LOG_AGAIN):
        return tuple(_parse(read_json(folder / "probes.json"), folder.joinpath))


def unsafe_reason(probe: Probe) -> str:
    """Return why a probe must not be sent to any database; empty if it may.

    A JPEG of one component makes the decoder of onnxruntime-extensions 0.14.0 to 0.15.2 write past
    its buffer, which may end a whole server process (measured); what other numbers than three do to
    other decoders is unknown. No golden probe of this release is one, but packages that were logged
    elsewhere may hold any picture.
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


def _parse(entries: list[dict[str, Any]], locate: Callable[[str], Any]) -> Iterable[Probe]:
    for entry in entries:
        name = entry.get("file", "")
        if name and Path(name).name != name:
            raise PackageError(f"probe file {name!r} leaves its folder.", hint="don't trust it.")
        value = locate(name).read_bytes() if name else entry["text"]
        is_golden = entry.get("golden", True)
        yield Probe(entry["id"], entry["side"], entry["category"], value, is_golden)


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


def by_side(probes: Sequence[Probe], side: str) -> list[Probe]:
    """Return the probes of one side, ``img`` or ``txt``."""
    if side not in (IMG, TXT):
        raise ValueError(side)
    return [probe for probe in probes if probe.side == side]
