"""Geometry: whether a new version's vectors are comparable with stored ones.

A geometry is identified by the golden probes' vectors that it was first seen with. Every later
version is compared with those, so that small differences can't add up from version to version.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oml_mlflow.names import SIDES
from oml_mlflow.parity.probes import Probe
from oml_mlflow.planning.records import damaged_record

Vectors = Mapping[str, np.ndarray]

# fewer probes in common than this say nothing about a side
_COMMON_PROBES = 3


@dataclass(frozen=True)
class Geometry:
    """How a version's vectors compare with the live ones.

    Attributes:
        id: Id of the version's geometry; empty if it has no reference vectors.
        is_same: Whether stored vectors stay comparable.
        dims: Length of the version's embeddings.
        has_live: Whether anything is live.
        live_dims: Length of the live embeddings; 0 if unknown.
        mean_cosine: Mean cosine between the two versions' vectors of the same probes, if they
            have the same dims and probes in common.
        reason: Why they can't be compared, if so.
    """

    id: str
    is_same: bool
    dims: int
    has_live: bool = False
    live_dims: int = 0
    mean_cosine: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        """Return it as a plan shows it."""
        if not self.has_live:
            return "first under this name"
        if self.is_same:
            return "same"
        known = f"dims {self.live_dims or '?'}→{self.dims}"
        if self.mean_cosine is not None:
            known += f", mean cosine {self.mean_cosine:.4f}"
        if self.reason:
            known += f"; {self.reason}"
        return f"CHANGED ({known})"


def key_vectors(probes: Sequence[Probe], vectors: Vectors) -> dict[str, np.ndarray]:
    """Return golden probes' vectors by `probe_key`: one whose content changes is another probe."""
    golden = [probe for probe in probes if probe.is_golden and probe.id in vectors]
    return {probe_key(probe): vectors[probe.id] for probe in golden}


def probe_key(probe: Probe) -> str:
    """Return the key that a probe's vectors are stored under: side, id and content."""
    value = probe.value if isinstance(probe.value, bytes) else probe.value.encode()
    return f"{probe.side}.{probe.id}.{hashlib.sha256(value).hexdigest()[:12]}"


def pack_vectors(vectors: Vectors) -> bytes:
    """Return vectors as bytes, for a table."""
    out = io.BytesIO()
    np.savez(out, **vectors)  # type: ignore[arg-type]
    return out.getvalue()


def unpack_vectors(packed: bytes) -> dict[str, np.ndarray]:
    """Return the vectors that `pack_vectors` packed."""
    with (
        damaged_record("of a geometry"),
        np.load(io.BytesIO(packed), allow_pickle=False) as stored,
    ):
        return {key: stored[key] for key in stored.files}


def pair_id(fingerprints: Mapping[str, str]) -> str:
    """Return the id under which a pair's own reference vectors are stored."""
    joined = "".join(fingerprints[side] for side in SIDES)
    return f"p-{hashlib.sha256(joined.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class LiveVectors:
    """Geometry of what is live.

    Attributes:
        id: Id of its geometry; empty if unknown.
        dims: Length of its embeddings; 0 if unknown.
    """

    id: str
    dims: int


def compare_geometry(
    vectors: Vectors | None,
    dims: int,
    known: Mapping[str, Vectors],
    live: LiveVectors | None,
    limits: Mapping[str, float],
) -> Geometry:
    """Return the geometry of a version's reference vectors.

    Args:
        vectors: Reference vectors by `probe_key`; None if the version has none.
        dims: Length of its embeddings.
        known: Vectors of every geometry seen under the export name, by id.
        live: What is live; None if nothing is.
        limits: Largest difference of an element by side for which vectors are the same.
    """
    if vectors is None:
        if live is None:
            return Geometry("", True, dims)
        reason = "the version has no reference vectors"
        return Geometry("", False, dims, True, live.dims, reason=reason)
    live_id = live.id if live else ""
    ordered = sorted(known, key=lambda key: key != live_id)
    found = next((key for key in ordered if _equal(vectors, known[key], limits)), "")
    found = found or geometry_id(vectors)
    if live is None:
        return Geometry(found, True, dims)
    if not live_id:
        reason = "the vectors of what is live are unknown"
        return Geometry(found, False, dims, True, live.dims, reason=reason)
    if found == live_id:
        return Geometry(found, True, dims, True, live.dims)
    cosine = _mean_cosine(vectors, known.get(live_id, {}))
    return Geometry(found, False, dims, True, live.dims, cosine)


def _equal(ours: Vectors, theirs: Vectors, limits: Mapping[str, float]) -> bool:
    for side in SIDES:
        common = [key for key in ours if key in theirs and key.startswith(f"{side}.")]
        if len(common) < _COMMON_PROBES:
            return False
        for key in common:
            if ours[key].shape != theirs[key].shape:
                return False
            # not `>`: NaN has to count as different
            if not float(np.abs(ours[key] - theirs[key]).max()) <= limits[side]:
                return False
    return True


def _mean_cosine(ours: Vectors, theirs: Vectors) -> float | None:
    common = [key for key in ours if key in theirs and ours[key].shape == theirs[key].shape]
    if not common:
        return None
    a, b = (np.stack([where[key] for key in common]).astype(np.float64) for where in (ours, theirs))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / norms))


def geometry_id(vectors: Vectors) -> str:
    """Return the id of the geometry that these vectors define."""
    digest = hashlib.sha256()
    for key in sorted(vectors):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(vectors[key], np.float32).tobytes())
    return f"g-{digest.hexdigest()[:12]}"
