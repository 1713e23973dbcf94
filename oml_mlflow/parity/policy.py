"""The parity policy: which classes of probes must be within limits, and within which."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from oml_mlflow.errors import ConfigError
from oml_mlflow.graph.precision import (
    FLOAT16,
    FLOAT32,
    INT8,
    INT8_DYNAMIC,
    PRECISIONS,
    runtime_limit,
)
from oml_mlflow.names import IMG, TXT

CLASSES: dict[str, tuple[str, ...]] = {
    TXT: ("ascii", "digits", "accents", "cjk", "emoji", "long"),
    IMG: ("jpeg-444", "jpeg-420", "grey", "png"),
}
MUST, WARN = "must", "warn"
# how far from 1 a unit vector's length may be: elements of float16 lose up to 4.9e-4
UNIT_TOLERANCE = 1e-3
OK, FAILED, WARNED, SKIPPED = "ok", "failed", "warned", "skipped"

# 512 elements that are all 1e-4 off leave a cosine of 0.9999974; int8-dynamic: 7 times as far as
# measured between two runtimes
_COSINES = {FLOAT32: 0.99999, FLOAT16: 0.99999, INT8: 0.99999, INT8_DYNAMIC: 0.999}


@dataclass(frozen=True)
class Limits:
    """Accepted difference of a vector from its reference; None: only reported.

    Attributes:
        max_abs: Largest difference of an element.
        cosine: Smallest cosine.
    """

    max_abs: float | None = None
    cosine: float | None = None

    def keeps(self, max_abs: float, cosine: float) -> bool:
        """Return whether figures are within both limits; NaN is within none."""
        return (self.max_abs is None or max_abs <= self.max_abs) and (
            self.cosine is None or cosine >= self.cosine
        )


@dataclass(frozen=True)
class ParityPolicy:
    """Which classes must be within limits, and the limits.

    All classes must be but those in `warn`, even one that this release does not know.

    Subsampled JPEG (``jpeg-420``) only warns by default: how chroma is interpolated is up to the
    decoder, and onnxruntime-extensions and Pillow differ. Measured on a float32
    pair of the size of ViT-B/32, bare graph against the pair's references: 2.1e-3 and a cosine of
    0.99988 there, with extensions 0.12.0 (onnxruntime 1.15.1) as with 0.15.2 (1.32.0); all else
    1.3e-7, but for accents, CJK and emoji, which 0.12.0 gets wrong or refuses.

    ``int8-dynamic`` has wider limits, since its vectors depend on the runtime: 2.7e-3 and 0.99985
    between the same two. Faults that move a vector by less than 8.8e-3 of an element, with 512
    dims, can hide behind them: another resampling filter, a rounded size, another standard
    deviation. Swapped colours, a crop off by one, another mean and all faults of texts are seen.

    Attributes:
        warn: Classes that only warn when they are over a limit.
        max_abs: Limits by precision, instead of `runtime_limit`.
        cosine: Smallest cosines by precision, instead of 0.99999 (``int8-dynamic``: 0.999).
    """

    warn: frozenset[str] = frozenset({"jpeg-420"})
    max_abs: Mapping[str, float] = field(default_factory=dict, hash=False)
    cosine: Mapping[str, float] = field(default_factory=dict, hash=False)

    @classmethod
    def from_settings(
        cls, must: str = "", warn: str = "", max_abs: str = "", cosine: str = ""
    ) -> ParityPolicy:
        """Return the policy of a target's settings; empty ones leave the default.

        Args:
            must: Classes, separated by commas, that must be within limits. Without `warn`, all
                others only warn.
            warn: Classes that only warn, besides those that do by default.
            max_abs: Largest difference of an element: one number, or ``precision=number``
                separated by commas.
            cosine: Smallest cosine, likewise.

        Raises:
            ConfigError: If a class or precision is unknown, a class is in both lists, a limit
                is not above 0 and up to 1, or no class of a side is left that must be right.
        """
        demanded, tolerated = _read_classes("must", must), _read_classes("warn", warn)
        both = sorted(demanded & tolerated)
        if both:
            raise ConfigError(
                f"{', '.join(both)}: in must and in warn.", hint="name a class in one of them."
            )
        every = frozenset(name for names in CLASSES.values() for name in names)
        if demanded and tolerated:
            chosen = (cls().warn - demanded) | tolerated
        elif demanded:
            chosen = every - demanded
        else:
            chosen = cls().warn | tolerated
        for side, names in CLASSES.items():
            if chosen.issuperset(names):
                what = "picture" if side == IMG else "text"
                raise ConfigError(
                    f"no class of {what}s is left that must be right.",
                    hint=f"put at least one of {', '.join(names)} into must.",
                )
        return cls(chosen, _read_limits("max_abs", max_abs), _read_limits("cosine", cosine))

    def level(self, category: str) -> str:
        """Return ``must`` or ``warn``."""
        return WARN if category in self.warn else MUST

    def limits(self, precision: str, dims: int) -> Limits:
        """Return the limits of a pipeline, by its precision and the length of its embeddings."""
        return Limits(
            self.max_abs.get(precision, runtime_limit(precision, dims)),
            self.cosine.get(precision, _COSINES[precision]),
        )

    def to_json(self) -> str:
        """Return it as one JSON document."""
        document = {
            "warn": sorted(self.warn),
            "max_abs": dict(self.max_abs),
            "cosine": dict(self.cosine),
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ParityPolicy:
        """Return what `to_json` wrote."""
        stored = json.loads(text)
        return cls(frozenset(stored["warn"]), stored["max_abs"], stored["cosine"])

    @property
    def digest(self) -> str:
        """A stable id: the same for the same classes and limits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _read_classes(name: str, text: str) -> frozenset[str]:
    found = frozenset(part.strip().lower() for part in text.split(",") if part.strip())
    known = [name for side in (TXT, IMG) for name in CLASSES[side]]
    unknown = sorted(found.difference(known))
    if unknown:
        raise ConfigError(
            f"{name}={text!r}: there is no class {unknown[0]!r} of golden probes.",
            hint=f"there are {', '.join(known)}.",
        )
    return found


def _read_limits(name: str, text: str) -> dict[str, float]:
    limits: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        precision, separator, number = part.rpartition("=")
        chosen = PRECISIONS if not separator else (precision.strip(),)
        if not set(chosen) <= set(PRECISIONS):
            raise ConfigError(
                f"{name}={text!r}: there is no precision {precision.strip()!r}.",
                hint=f"there are {', '.join(PRECISIONS)}.",
            )
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value <= 1:
            raise ConfigError(
                f"{name}={text!r}: {number.strip()!r} is no number above 0 and up to 1.",
                hint=f"write {name} as 0.0001 or float32=0.0001,int8-dynamic=0.01.",
            )
        limits |= dict.fromkeys(chosen, value)
    return limits
