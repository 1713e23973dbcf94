"""Precisions of an encoder: which there are, how properties choose one, and what each may lose.

Why ``quantize_model=True`` stores weights as INT8 and computes in float32 on both sides, measured
on ViT-B/32 with random weights (``python projects/benchmark/shrink.py``): a quarter of the size,
float32's speed, and vectors that depend neither on the batch nor, beyond 1e-5, on the runtime.
Integer arithmetic (``"dynamic"``) is over twice as fast with AVX-512 VNNI and keeps memory small,
but activations are rounded to scales taken from the whole batch, and one that falls on the other
side of a rounding step shifts everything after it: onnxruntime 1.15.1 and 1.32.0 differ by 3e-3 on
the same file, so that a database can't be held to 1e-4. On x86-64 without VNNI its sums may
saturate besides (documented: "Quantize ONNX models", onnxruntime; not measured here).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oml_mlflow.errors import ConfigError
from oml_mlflow.names import SIDES

FLOAT32, FLOAT16, INT8, INT8_DYNAMIC = "float32", "float16", "int8", "int8-dynamic"
PRECISIONS = (FLOAT32, FLOAT16, INT8, INT8_DYNAMIC)

_EXACT = 1e-4
# Largest loss of an element, times the root of the dims, because the elements of unit vectors
# shrink with it. Measured with 16, 64 and 512 dims: 0.007, 0.11 and 0.13, so these are 3 times as
# much. What comes before a shrunk encoder is held to float32's limit on its own.
_LOSSES = {FLOAT16: 0.02, INT8: 0.3, INT8_DYNAMIC: 0.4}
# the same, between two runtimes with the same file; measured 0.06
_RUNTIME_LOSSES = {INT8_DYNAMIC: 0.2}

_INT8_CHOICES: dict[Any, str | None] = {
    False: None,
    True: INT8,
    "weights": INT8,
    "dynamic": INT8_DYNAMIC,
}
_FLOAT16_CHOICES: dict[Any, str | None] = {False: None, True: FLOAT16}


def choose_precisions(quantize_model: Any, use_float16: Any) -> dict[str, str]:
    """Return the precision of each side.

    Args:
        quantize_model: False, True, ``"weights"`` (what True means), ``"dynamic"``, or a dict with
            one of them for ``img`` or ``txt``; a side not named is not quantised.
        use_float16: False, True, or a dict with one of them. A side that is quantised is not
            stored as float16 as well: INT8 goes first.

    Raises:
        ConfigError: If it is any other value.
    """
    int8 = _by_side("quantize_model", quantize_model, _INT8_CHOICES)
    half = _by_side("use_float16", use_float16, _FLOAT16_CHOICES)
    return {side: int8[side] or half[side] or FLOAT32 for side in SIDES}


def encoder_limit(precision: str, dims: int) -> float:
    """Return the largest accepted difference of an element from the model's own Python code."""
    return _LOSSES[precision] / dims**0.5 if precision in _LOSSES else _EXACT


def runtime_limit(precision: str, dims: int) -> float:
    """Return the largest accepted difference of an element between two runtimes."""
    return _RUNTIME_LOSSES[precision] / dims**0.5 if precision in _RUNTIME_LOSSES else _EXACT


def read_precisions(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the precision of each side from a pair's metadata; float32 where it says nothing."""
    stored = metadata.get("precision", {})
    return {side: stored.get(side, FLOAT32) for side in SIDES}


def measure_loss(vectors: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Return how far unit vectors are from their references, row by row.

    Returns:
        ``max_abs`` of an element, ``min_cosine`` of a row, and how far the order of a row's
        neighbours is kept: ``rank_agreement`` (mean of Spearman's correlation) and ``top1`` (share
        of rows with the same nearest neighbour). Both are 1 below three rows.
    """
    a, b = vectors.astype(np.float64), references.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    loss = {
        "max_abs": float(np.abs(a - b).max()),
        "min_cosine": float(np.min((a * b).sum(1) / norms)),
        "rank_agreement": 1.0,
        "top1": 1.0,
    }
    if len(a) > 2:  # with fewer, no row has two neighbours to order
        ours, theirs = _neighbours(a), _neighbours(b)
        rows = [np.corrcoef(_ranks(x), _ranks(y))[0, 1] for x, y in zip(ours, theirs, strict=True)]
        loss["rank_agreement"] = float(np.mean(rows))
        loss["top1"] = float(np.mean(ours.argmax(1) == theirs.argmax(1)))
    return loss


def loss_sentence(loss: Mapping[str, float]) -> str:
    """Return the result of `measure_loss` as text."""
    return (
        f"max abs {loss['max_abs']:.1e}, smallest cosine {loss['min_cosine']:.6f}, rank agreement "
        f"{loss['rank_agreement']:.4f}, nearest kept {loss['top1']:.0%}"
    )


def _by_side(name: str, value: Any, choices: dict[Any, str | None]) -> dict[str, str | None]:
    chosen = value if isinstance(value, dict) else dict.fromkeys(SIDES, value)
    for side, choice in chosen.items():
        # 1 equals True in Python, but is no documented value
        if side not in SIDES or not isinstance(choice, bool | str) or choice not in choices:
            shown = ", ".join(repr(c) for c in choices)
            raise ConfigError(
                f"{name}={value!r} is none of {shown}, nor a dict with one of them for "
                f"{' or '.join(SIDES)}.",
                hint=f"set {name}=True, or leave it out.",
            )
    return {side: choices[chosen.get(side, False)] for side in SIDES}


def _neighbours(rows: np.ndarray) -> np.ndarray:
    """Return each row's similarities to the others, itself left out."""
    similar = rows @ rows.T
    others = ~np.eye(len(rows), dtype=bool)
    apart: np.ndarray = similar[others].reshape(len(rows), -1)
    return apart


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks
