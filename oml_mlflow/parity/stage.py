"""Stages: where on its way to a vector a pair leaves its model's own Python code, and by how much.

A difference of vectors says neither. One pixel of the next level moves a vector of a small model by
1e-3, and a wrong token may move one by less than 1e-4. So what reaches the encoders is compared as
it is, and the encoders on identical inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.policy import UNIT_TOLERANCE
from oml_mlflow.source.description import BICUBIC, BILINEAR, NEAREST, ImagePreparation

TOKENS, PIXELS, ENCODER, LENGTH = "token ids", "prepared pixels", "encoder", "normalisation"
# Levels that a value may differ by, and how many of a picture's values may. Measured against Pillow
# with some 60 sizes: bicubic 1 level, once 2, on up to 0.56 % of the values, most on tall pictures
# and large edges (another filter: above 4 %); the others are exact.
_PIXEL_LIMITS = {NEAREST: (0, 0.0), BILINEAR: (0, 0.0), BICUBIC: (2, 0.01)}
# whatever the size of a picture: three pixels with all their channels
_FEW_VALUES = 9
# float32 keeps a level to less than 1e-4
_ROUNDING = 0.01

# what the pair gives and what its model gives, by probe id
Both = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """One stage of one side, compared on all its probes.

    Attributes:
        name: `TOKENS`, `PIXELS`, `ENCODER` or `LENGTH`.
        side: ``img`` or ``txt``.
        figure: How close it is, such as ``at most 1 level on 0.02 % of a picture's values``.
        errors: Each probe beyond the limit, and by how much.
    """

    name: str
    side: str
    figure: str
    errors: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as one line of a report."""
        wrong = f"; NOT right: {self.errors[0]}" if self.errors else ""
        return f"{self.side}, {self.name}: {self.figure}{wrong}"


def compare_tokens(ids: Both) -> Stage:
    """Return the stage of token ids, ``(1, sequence)``, which have to be equal."""
    errors = []
    for probe, (ours, theirs) in ids.items():
        if not np.array_equal(ours, theirs):
            same = takewhile(lambda pair: pair[0] == pair[1], zip(ours[0], theirs[0], strict=False))
            at = len(list(same))
            got, wanted = (row[0, at : at + 4].tolist() for row in (ours, theirs))
            errors.append(f"probe {probe}: {got} from place {at} on, wanted {wanted}")
    figure = f"equal on {len(ids) - len(errors)} of {len(ids)} texts"
    return Stage(TOKENS, TXT, figure, tuple(errors))


def compare_pixels(pixels: Both, preparation: ImagePreparation) -> Stage:
    """Return the stage of prepared pixels, in levels: 1/255 before they are normalised."""
    scale = np.reshape(preparation.std or 1.0, (-1, 1, 1)) / (preparation.rescale_factor or 1.0)
    most, share = _PIXEL_LIMITS[preparation.resample]
    errors, worst = [], (0.0, 0.0)
    for probe, (ours, theirs) in pixels.items():
        levels = np.array([np.inf])
        if ours.shape == theirs.shape:
            levels = np.abs((ours.astype(np.float64) - theirs) * scale)
        off = int((levels > _ROUNDING).sum())
        found = float(levels.max()), off / levels.size
        worst = max(worst[0], found[0]), max(worst[1], found[1])
        # not `>`: NaN has to count as different
        if not (found[0] <= most + _ROUNDING and off <= max(_FEW_VALUES, share * levels.size)):
            errors.append(f"probe {probe}: {_levels(*found)}, limit {_levels(most, share)}")
    figure = f"at most {_levels(*worst)}, {len(pixels)} pictures"
    return Stage(PIXELS, IMG, figure, tuple(errors))


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of an element; infinite if the shapes differ."""
    return float(np.abs(one - other).max()) if one.shape == other.shape else np.inf


def compare_encoder(side: str, vectors: Both, limit: float) -> Stage:
    """Return the stage of an encoder: vectors of inputs that are alike, made of unit length."""
    off = {
        probe: apart(ours / (np.linalg.norm(ours) or 1.0), theirs)
        for probe, (ours, theirs) in vectors.items()
    }
    errors = [f"probe {p}: by {o:.1e}, limit {limit:.0e}" for p, o in off.items() if not o <= limit]
    figure = f"at most {max(off.values(), default=0):.1e} on {len(off)} inputs"
    return Stage(ENCODER, side, figure, tuple(errors))


def compare_lengths(side: str, vectors: Mapping[str, np.ndarray]) -> Stage:
    """Return the stage of normalisation: the length of every vector, which has to be 1."""
    lengths = {probe: float(np.linalg.norm(vector)) for probe, vector in vectors.items()}
    errors = [
        f"probe {probe}: length {length:.4g}, wanted 1"
        for probe, length in lengths.items()
        if not abs(length - 1) <= UNIT_TOLERANCE
    ]
    figure = f"lengths from {min(lengths.values()):.6f} to {max(lengths.values()):.6f}"
    return Stage(LENGTH, side, figure, tuple(errors))


def _levels(levels: float, share: float) -> str:
    unit = "level" if round(levels, 2) == 1 else "levels"
    return f"{levels:.3g} {unit} on {100 * share:.2g} % of a picture's values"
