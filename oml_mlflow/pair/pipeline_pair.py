"""A pipeline pair: two ONNX files, their fingerprints and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oml_mlflow.errors import PackageError
from oml_mlflow.events import Event, Listener, silent
from oml_mlflow.files import fingerprint_file
from oml_mlflow.graph.profiles import DEFAULT_PROFILE, PROFILES, Profile
from oml_mlflow.graph.runtime import Ends, not_run_reason
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.pair.embedder import HOST, PairEmbedder
from oml_mlflow.parity.probes import Probe, References
from oml_mlflow.parity.report import ParityReport


@dataclass(frozen=True)
class Proof:
    """What comparing a pair with its model's own Python code has shown.

    Attributes:
        fingerprints: sha256 of the pair's graphs, by side.
        probes: What was embedded: the golden probes and the model's own.
        vectors: The pair's vectors for them.
        model: The model's vectors for them.
        report: The comparison, with its stages.
    """

    fingerprints: Mapping[str, str]
    probes: tuple[Probe, ...]
    vectors: References
    model: References
    report: ParityReport


@dataclass(frozen=True)
class PipelinePair:
    """An image pipeline and a text pipeline whose vectors share one space.

    Attributes:
        files: Files of each pipeline, by side (``img``, ``txt``), the graph first.
        fingerprints: sha256 of each graph, by side.
        dims: Length of the embeddings.
        metadata: Template metadata: template, model, preparation, limits, metrics.
        profile: Name of its profile.
        companions: Tokenizer and image-processor files that travel with the pair.
        source: Hub id or folder of its model, where known.
        model_references: The golden probes' vectors by the model's own Python code, where they
            were computed at export.
        proof: What comparing it with its model has shown, where that was done at export.
        ends: Names of input and output by side.
        unknown_operators: Operators, as ``domain:Name``, that this process can't run, by side;
            a side without any is not listed. Such a pair can be logged, but not compared.
        loss: Difference of the golden probes' vectors from the model's own, by side, where it was
            measured (see `oml_mlflow.graph.precision.measure_loss`).
    """

    files: dict[str, tuple[Path, ...]]
    fingerprints: dict[str, str]
    dims: int
    metadata: dict[str, Any]
    profile: str = DEFAULT_PROFILE
    companions: tuple[Path, ...] = ()
    source: str | None = None
    model_references: References | None = field(default=None, repr=False)
    proof: Proof | None = field(default=None, repr=False)
    ends: dict[str, Ends] = field(default_factory=lambda: {side: Ends() for side in SIDES})
    unknown_operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
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
        """Return the pair in two files, whoever made them. Read-only; nothing in them is run.

        Args:
            img: File of the image pipeline.
            txt: File of the text pipeline.
            source: Hub id or folder of its model; then logging can compare the pair with the
                model's own Python code.
            companions: Tokenizer and image-processor files to keep with the pair.

        Raises:
            PackageError: If a file is missing or no ONNX model, it keeps tensors in other files,
                the files are swapped, one has another input or no embeddings, or their dims
                differ.
        """
        # serving, which imports this module too, needs no onnx
        from oml_mlflow.graph.interface import read_interface
        from oml_mlflow.graph.retarget import shared_metadata

        paths = {IMG: Path(img), TXT: Path(txt)}
        found = {side: read_interface(paths[side], side) for side in SIDES}
        dims = {side: found[side].dims for side in SIDES}
        if dims[IMG] != dims[TXT]:
            raise PackageError(
                f"{paths[IMG].name} gives {dims[IMG]} dims and {paths[TXT].name} {dims[TXT]}: they "
                "are no pair.",
                hint="name two files of one export.",
            )
        return cls(
            files={side: (path,) for side, path in paths.items()},
            fingerprints={side: fingerprint_file(paths[side]) for side in SIDES},
            dims=dims[IMG],
            metadata=shared_metadata(found[IMG].metadata),
            profile=_fitting_profile(found[TXT].metadata),
            companions=tuple(Path(path) for path in companions),
            source=source,
            ends={side: found[side].ends for side in SIDES},
            unknown_operators={
                side: found[side].unknown_operators
                for side in SIDES
                if found[side].unknown_operators
            },
        )

    def for_profile(
        self, profile: Profile, folder: str | Path, on_event: Listener = silent
    ) -> PipelinePair:
        """Write this pair for another profile, from its files alone, and return it.

        The two files keep their names; their new folder is created if missing.

        Raises:
            GraphError: If the pair was not written by this package.
        """
        from oml_mlflow.graph.interface import read_interface
        from oml_mlflow.graph.retarget import retarget_pipeline

        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        paths = {side: out / self.path(side).name for side in SIDES}
        fingerprints = {}
        for side, path in paths.items():

            def report(done: int, total: int, item: str = path.name) -> None:
                on_event(Event("export", item, done, total))

            fingerprints[side] = retarget_pipeline(self.path(side), path, profile, report)
        found = {side: read_interface(path, side).unknown_operators for side, path in paths.items()}
        return replace(
            self,
            files={side: (path,) for side, path in paths.items()},
            fingerprints=fingerprints,
            profile=profile.name,
            unknown_operators={side: unknown for side, unknown in found.items() if unknown},
        )

    @property
    def paths(self) -> dict[str, Path]:
        """The graph of each pipeline, by side."""
        return {side: files[0] for side, files in self.files.items()}

    @property
    def img(self) -> Path:
        """Graph of the image pipeline."""
        return self.files[IMG][0]

    @property
    def txt(self) -> Path:
        """Graph of the text pipeline."""
        return self.files[TXT][0]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for files in self.files.values() for path in files)

    @property
    def unverifiable(self) -> str:
        """Why the pair can't be run here, so that it has no vectors of its own; else empty."""
        return not_run_reason(self.unknown_operators)

    def path(self, side: str) -> Path:
        """Return the graph of one side."""
        return self.files[side][0]

    def embedder(
        self,
        front_end: str = HOST,
        *,
        tokenizer: Path | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> PairEmbedder:
        """Return the pair ready to run in this process; arguments as in `PairEmbedder`."""
        return PairEmbedder(
            self.img,
            self.txt,
            self.dims,
            self.ends,
            front_end=front_end,
            tokenizer=tokenizer,
            providers=providers,
            threads=threads,
        )


def _fitting_profile(metadata: Mapping[str, Any]) -> str:
    """Return the name of the first profile with a text pipeline's tokenizer."""
    kind = metadata.get("tokenizer")
    return next((p.name for p in PROFILES.values() if p.tokenizer == kind), DEFAULT_PROFILE)
