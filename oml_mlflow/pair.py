"""A pipeline pair: two ONNX files, what they are, and their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from oml_mlflow.embedder import PairEmbedder
from oml_mlflow.errors import PackageError
from oml_mlflow.fingerprint import fingerprint_file
from oml_mlflow.graph.retarget import PROPERTY
from oml_mlflow.graph.wire import read_header
from oml_mlflow.names import IMG, SIDES, TXT

if TYPE_CHECKING:
    from oml_mlflow.probes import References

INPUT, OUTPUT = "input", "embedding"


@dataclass(frozen=True)
class PipelinePair:
    """An image pipeline and a text pipeline whose vectors share one space.

    Attributes:
        img: File of the image pipeline.
        txt: File of the text pipeline.
        fingerprints: sha256 of each file, by side (``img``, ``txt``).
        dims: Length of the embeddings.
        metadata: Template metadata: template, model, preparation, limits, metrics.
        companions: Tokenizer and image-processor files that travel with the pair.
        source: Hub id or folder of the model it was made from, where known.
        model_references: Vectors of the model's own Python code for the golden probes, where
            they were computed at export.
        loss: How far the golden probes' vectors are from the model's own, by side, where that was
            measured (see `oml_mlflow.precision.measure_loss`).
    """

    img: Path
    txt: Path
    fingerprints: dict[str, str]
    dims: int
    metadata: dict[str, Any]
    companions: tuple[Path, ...] = ()
    source: str | None = None
    model_references: References | None = field(default=None, repr=False)
    loss: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_files(
        cls,
        img: str | Path,
        txt: str | Path,
        *,
        source: str | None = None,
        companions: Sequence[str | Path] = (),
    ) -> PipelinePair:
        """Return the pair in two files. Read-only.

        Args:
            img: File of the image pipeline.
            txt: File of the text pipeline.
            source: Hub id or folder of the model it was made from; with it, logging can compare
                the pair with the model's own Python code.
            companions: Tokenizer and image-processor files to keep with the pair.

        Raises:
            PackageError: If a file is missing or no ONNX model, the files are swapped, an input
                or output has another name, or their dims differ.
        """
        paths = {IMG: Path(img), TXT: Path(txt)}
        headers = {side: _open_header(paths[side]) for side in SIDES}
        dims = {side: _check_ends(paths[side], headers[side], side) for side in SIDES}
        if dims[IMG] != dims[TXT]:
            raise PackageError(
                f"{paths[IMG].name} gives {dims[IMG]} dims and {paths[TXT].name} {dims[TXT]}: they "
                "are no pair.",
                hint="name two files of one export.",
            )
        return cls(
            img=paths[IMG],
            txt=paths[TXT],
            fingerprints={side: fingerprint_file(paths[side]) for side in SIDES},
            dims=dims[IMG],
            metadata=_read_metadata(headers[IMG]),
            companions=tuple(Path(path) for path in companions),
            source=source,
        )

    def path(self, side: str) -> Path:
        """Return the file of one side."""
        return self.img if side == IMG else self.txt

    def embedder(self) -> PairEmbedder:
        """Return the pair ready to run in this process."""
        return PairEmbedder(self.img, self.txt, self.dims)


def _open_header(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise PackageError(f"there is no file {path}.", hint="export the pair first.")
    return read_header(path)


def _check_ends(path: Path, header: onnx.ModelProto, side: str) -> int:
    """Return the dims of a pipeline whose input and output are as `side` wants them."""
    inputs, outputs = list(header.graph.input), list(header.graph.output)
    wanted = onnx.TensorProto.UINT8 if side == IMG else onnx.TensorProto.STRING
    other = onnx.TensorProto.STRING if side == IMG else onnx.TensorProto.UINT8
    if [i.name for i in inputs] != [INPUT] or [o.name for o in outputs] != [OUTPUT]:
        raise PackageError(
            f"{path.name} has inputs {[i.name for i in inputs]} and outputs "
            f"{[o.name for o in outputs]}, wanted ['{INPUT}'] and ['{OUTPUT}'].",
            hint="export the pair with ONNXPipeline(...).export2file.",
        )
    kind = inputs[0].type.tensor_type.elem_type
    if kind != wanted:
        swapped = " The two files may be swapped." if kind == other else ""
        raise PackageError(
            f"{path.name} takes {onnx.TensorProto.DataType.Name(kind)}, wanted "
            f"{onnx.TensorProto.DataType.Name(wanted)} for the {side} side.{swapped}",
            hint="give the image pipeline first, then the text pipeline.",
        )
    shape = outputs[0].type.tensor_type.shape.dim
    if len(shape) != 2 or shape[1].dim_value <= 0:
        raise PackageError(
            f"{path.name}: output {OUTPUT} is not of shape (batch, dims) with fixed dims.",
            hint="export the pair with ONNXPipeline(...).export2file.",
        )
    return int(shape[1].dim_value)


def _read_metadata(header: onnx.ModelProto) -> dict[str, Any]:
    for entry in header.metadata_props:
        if entry.key == PROPERTY:
            try:
                loaded = json.loads(entry.value)
            except ValueError:
                break
            return loaded if isinstance(loaded, dict) else {}
    return {}
