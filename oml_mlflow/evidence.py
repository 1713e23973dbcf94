"""What is known of a pair when it is logged: reference vectors and the exactness report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from oml_mlflow.errors import SourceError
from oml_mlflow.events import Listener, silent
from oml_mlflow.package import MODEL_REFERENCES, PAIR_REFERENCES
from oml_mlflow.pair import PipelinePair
from oml_mlflow.precision import read_precisions
from oml_mlflow.probes import (
    ParityReport,
    Probe,
    References,
    embed_probes,
    golden_probes,
    save_probes,
)
from oml_mlflow.runtime import runtime_versions


@dataclass(frozen=True)
class Evidence:
    """Golden probes with two sets of reference vectors.

    Attributes:
        probes: The probes.
        pair: Vectors of these exact bytes, one input at a time.
        model: Vectors of the model's own Python code, or None where they could not be made.
        exactness: `pair` against `model`, or None.
        not_run: Why there is no `model`.
    """

    probes: tuple[Probe, ...]
    pair: References
    model: References | None
    exactness: ParityReport | None
    not_run: str = ""

    def save(self, folder: Path) -> None:
        """Write probes, vectors and the exactness report into a folder."""
        folder.mkdir(parents=True)
        save_probes(folder, self.probes)
        self.pair.save(folder, PAIR_REFERENCES)
        if self.model is not None and self.exactness is not None:
            self.model.save(folder, MODEL_REFERENCES)
            (folder / "exactness.md").write_text(self.exactness.to_markdown(), encoding="utf-8")
            rows = json.dumps(self.exactness.to_rows(), indent=1)
            (folder / "exactness.json").write_text(rows + "\n", encoding="utf-8")


def gather_evidence(pair: PipelinePair, on_event: Listener = silent) -> Evidence:
    """Return the evidence for a pair; runs both graphs, and torch where the model is at hand.

    Args:
        pair: The pair. Vectors of its model are taken from the export if it made them, else
            computed from ``pair.source``.
        on_event: Told of progress.
    """
    probes = golden_probes()
    ours = References(embed_probes(pair.embedder(), probes, on_event, "pair"), runtime_versions())
    evidence = Evidence(probes, ours, None, None)
    model = pair.model_references
    if model is None and pair.source is None:
        return replace(evidence, not_run="the pair's model is not known")
    # imported here: a pair can be logged without torch, and then says so
    from oml_mlflow.reference import ReferenceModel, exactness
    from oml_mlflow.source import open_source

    if model is None:
        try:
            model = ReferenceModel(open_source(str(pair.source))).references(probes, on_event)
        except (ImportError, SourceError) as error:
            return replace(evidence, not_run=str(error))
    report = exactness(probes, ours, model, read_precisions(pair.metadata))
    return replace(evidence, model=model, exactness=report)
