"""Proof: what comparing a pair with its model's own Python code has shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oml_mlflow.parity.probes import Probe, References
from oml_mlflow.parity.stage import Stage


@dataclass(frozen=True)
class Proof:
    """A pair compared with its model, stage by stage.

    Attributes:
        probes: What was embedded: the golden probes and the model's own.
        vectors: The pair's vectors for them.
        model: The model's own vectors.
        stages: The stages, in the order in which they follow each other.
        accepted: How far the differences of a picture's prepared pixels that its stage accepts
            move an element of the model's own vector, by probe id.
    """

    probes: tuple[Probe, ...]
    vectors: References
    model: References
    stages: tuple[Stage, ...]
    accepted: Mapping[str, float]
