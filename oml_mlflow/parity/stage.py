"""Stages: where on its way to a vector a pair leaves its model's own Python code, and by how much.

A difference of vectors says neither. One pixel of the next level moves a vector of a small model by
1e-3, and a wrong token may move one by less than 1e-4. So what reaches the encoders is compared as
it is, and the encoders on identical inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from oml_mlflow.names import IMG, TXT
from oml_mlflow.parity.policy import UNIT_TOLERANCE
from oml_mlflow.source.description import BICUBIC, BILINEAR, NEAREST, ImagePreparation

TOKENS, PIXELS, ENCODER, LENGTH = "token ids", "prepared pixels", "encoder", "unit length"
# Levels that a value may differ by, and how many of a picture's values may. Measured against Pillow
# with some 40 sizes: bicubic 1 level, once 2, on up to 0.18 % of the values; bilinear, where ties
# are frequent, up to 2 levels on up to 9.7 %.
_PIXEL_LIMITS = {NEAREST: (0, 0.0), BILINEAR: (2, 0.1), BICUBIC: (2, 0.003)}
# whatever the size of a picture: three pixels with all their channels
_FEW_VALUES = 9
# float32 keeps a level to less than 1e-4
_ROUNDING = 0.01

# what the pair gives and what its model gives, by probe id
Both = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stage:
    """One stage of one side, compared on all its probes.

    Attributes:
        name: `TOKENS`, `PIXELS`, `ENCODER` or `LENGTH`.
        side: ``img`` or ``txt``.
        figure: How close it is, such as ``at most 1 level on 0.02 % of a picture's values``.
        error: The first probe beyond the limit, and by how much; empty if there is none.
    """

    name: str
    side: str
    figure: str
    error: str = ""

    def __str__(self) -> str:
        """Return it as one line of a report."""
        found = f"{self.side}, {self.name}: {self.figure}"
        return f"{found}; NOT within limits: {self.error}" if self.error else found


def compare_tokens(ids: Both) -> Stage:
    """Return the stage of token ids, which have to be equal."""
    errors = []
    for probe, (ours, theirs) in ids.items():
        pairs = list(zip_longest(ours.ravel().tolist(), theirs.ravel().tolist()))
        at = next((at for at, (got, wanted) in enumerate(pairs) if got != wanted), None)
        if at is not None:
            got, wanted = ("none" if found is None else found for found in pairs[at])
            errors.append(f"probe {probe}: id {at + 1} of {len(pairs)} is {got}, wanted {wanted}")
    return _stage(TOKENS, TXT, f"equal on {len(ids) - len(errors)} of {len(ids)} texts", errors)


def compare_pixels(pixels: Both, preparation: ImagePreparation) -> Stage:
    """Return the stage of prepared pixels, in levels: 1/255 before they are normalised."""
    scale = np.reshape(preparation.std or 1.0, (-1, 1, 1)) / (preparation.rescale_factor or 1.0)
    most, share = _PIXEL_LIMITS[preparation.resample]
    errors, worst = [], (0.0, 0.0)
    for probe, (ours, theirs) in pixels.items():
        if ours.shape != theirs.shape:
            errors.append(f"probe {probe}: shape {ours.shape}, wanted {theirs.shape}")
            continue
        levels = np.abs((ours.astype(np.float64) - theirs) * scale)
        off = int((levels > _ROUNDING).sum())
        found = (float(levels.max()), off / levels.size)
        worst = max(worst[0], found[0]), max(worst[1], found[1])
        # not `>`: NaN has to count as different
        if not (found[0] <= most + _ROUNDING and off <= max(_FEW_VALUES, share * levels.size)):
            errors.append(f"probe {probe}: {_levels(*found)}, limit {_levels(most, share)}")
    return _stage(PIXELS, IMG, f"at most {_levels(*worst)}, {len(pixels)} pictures", errors)


def compare_encoder(side: str, vectors: Both, limit: float) -> Stage:
    """Return the stage of an encoder: vectors of identical inputs, both made of unit length."""
    errors, worst = [], 0.0
    for probe, (ours, theirs) in vectors.items():
        if ours.shape != theirs.shape:
            errors.append(f"probe {probe}: shape {ours.shape}, wanted {theirs.shape}")
            continue
        off = float(np.abs(ours / (np.linalg.norm(ours) or 1.0) - theirs).max())
        worst = max(worst, off)
        if not off <= limit:
            errors.append(f"probe {probe}: by {off:.1e}, limit {limit:.0e}")
    figure = f"at most {worst:.1e} on {len(vectors)} identical inputs"
    return _stage(ENCODER, side, figure, errors)


def compare_length(side: str, vectors: Mapping[str, np.ndarray]) -> Stage:
    """Return the stage of normalisation: the length of every vector, which has to be 1."""
    lengths = {probe: float(np.linalg.norm(vector)) for probe, vector in vectors.items()}
    off = {probe: abs(length - 1) for probe, length in lengths.items()}
    errors = [
        f"probe {probe}: length {lengths[probe]:.4g}, wanted 1"
        for probe in off
        if not off[probe] <= UNIT_TOLERANCE
    ]
    figure = f"1 within {max(off.values(), default=0.0):.0e} of {len(off)} vectors"
    return _stage(LENGTH, side, figure, errors)


def _stage(name: str, side: str, figure: str, errors: list[str]) -> Stage:
    more = f", and {len(errors) - 1} more probes" if len(errors) > 1 else ""
    return Stage(name, side, figure, f"{errors[0]}{more}" if errors else "")


def _levels(levels: float, share: float) -> str:
    unit = "level" if levels == 1 else "levels"
    return f"{levels:.3g} {unit} on {100 * share:.2g} % of a picture's values"
