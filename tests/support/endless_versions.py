"""A version whose graph never ends, as an honest `log_model` could not have made it."""

from __future__ import annotations

from pathlib import Path

import foreign_graphs
import pytest

import oml_mlflow
from oml_mlflow.flavor import evidence
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.parity.probes import embed_probes


def log_endless(pair: PipelinePair, folder: Path, name: str = "clip") -> str:
    """Log a pair with a loop without an end in its image pipeline, and the pair's own vectors."""
    folder.mkdir()
    img = foreign_graphs.endless(pair.img, folder / "endless_img.onnx")
    txt = folder / "endless_txt.onnx"
    txt.write_bytes(pair.txt.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evidence, "embed_probes", lambda _, *given: embed_probes(pair.embedder(), *given)
        )
        endless = PipelinePair.from_files(img, txt)
        logged = oml_mlflow.log_model(endless, name=name, registered_model_name=name)
    return str(logged.registered_model_version)
