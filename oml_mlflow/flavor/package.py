"""A packaged pair: the folder that the flavor writes, read back and checked. Free of MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oml_mlflow._version import __version__
from oml_mlflow.documents import build, damaged, read_json, read_yaml
from oml_mlflow.errors import IncompatiblePackage, PackageError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.graph.precision import PRECISIONS, read_precisions
from oml_mlflow.graph.runtime import Ends, refuse_external
from oml_mlflow.names import SIDES
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.parity.probes import Probe, References, read_probes

FLAVOR_NAME = "oml_mlflow"
# Version of the section `oml_mlflow` in the MLmodel file, and of the files that it names. It rises
# when a release that knows the one before could not read them, or would read them wrongly: not for
# a key or file that others can do without.
FORMAT_VERSION = 1
# run by serving and the embedded target where a package holds several profiles
PREFERRED_PROFILE = "onnxruntime"
HOST_EVIDENCE, TOKENIZER = "host.json", "tokenizer.json"
PROFILES_FOLDER, GOLDEN_FOLDER, SOURCE_FOLDER = "profiles", "golden", "source"
MODEL_REFERENCES = "model"
# of VECTOR in Oracle Database
_MOST_DIMS = 65_535
_NOTHING, _LOG_AGAIN = "Nothing was loaded.", "log the pair again."


@dataclass(frozen=True)
class PackagedPair(PipelinePair):
    """One profile's pair in a packaged model; its fingerprints are those of the MLmodel file.

    Attributes:
        folder: Root of the package.
        stored_profiles: Names of all profiles in the package.
    """

    folder: Path = Path()
    stored_profiles: tuple[str, ...] = ()

    def check_fingerprints(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise PackageError if ONNX files are not those that were logged, or name other files.

        Args:
            known: sha256 already computed, by path in the package.
        """
        for side in SIDES:
            relative = self.paths[side].relative_to(self.folder.resolve()).as_posix()
            found = known.get(relative) or fingerprint_file(self.paths[side])
            if found != self.fingerprints[side]:
                raise PackageError(
                    f"{self.paths[side].name}: sha256 is {found[:12]}…, MLmodel says "
                    f"{self.fingerprints[side][:12]}…: these are not the bytes that were logged. "
                    "Nothing was loaded.",
                    hint="log the pair again.",
                )
            refuse_external(self.paths[side])

    @property
    def tokenizer(self) -> Path | None:
        """The model's tokenizer.json, where its ids proved right when the pair was logged."""
        path = self.folder / GOLDEN_FOLDER / HOST_EVIDENCE
        tokenizer = self.folder / SOURCE_FOLDER / TOKENIZER
        if not path.is_file() or not tokenizer.is_file():
            return None
        with damaged(f"{path.name} can't be read", PackageError, hint=_LOG_AGAIN, state=_NOTHING):
            return tokenizer if read_json(path)["ids"] == TOKENIZER else None

    def probes(self) -> tuple[Probe, ...]:
        """Return the golden probes stored with the pair."""
        return read_probes(self.folder / GOLDEN_FOLDER)

    def references(self, *, of_model: bool = False) -> References:
        """Return stored reference vectors: those of this profile's pair, or of the model."""
        kind = MODEL_REFERENCES if of_model else pair_references(self.profile)
        found = References.read(self.folder / GOLDEN_FOLDER, kind)
        if found is None:
            raise PackageError(
                f"the package holds no {kind} reference vectors: "
                f"{self.unverifiable or 'they were not made when it was logged'}.",
                hint="log the pair again where it can be run.",
            )
        return found


def pair_references(profile: str) -> str:
    """Return the name under which the reference vectors of a profile's pair are stored."""
    return f"pair-{profile}"


def read_package(folder: str | Path, profile: str | None = None) -> PackagedPair:
    """Return a profile's pair in a model folder. Read-only; fingerprints are not yet compared.

    Args:
        folder: Folder that holds the MLmodel file.
        profile: Name of the profile; by default ``onnxruntime`` if there, else the first one.

    Raises:
        PackageError: If it is no model of this flavor, or a file is missing.
        IncompatiblePackage: If a newer release wrote it.
    """
    root = Path(folder)
    what = f"{root.name}: no model of flavor {FLAVOR_NAME}"
    with damaged(what, PackageError, hint="log one with oml_mlflow.log_model.", state=_NOTHING):
        section = dict(read_yaml(root / "MLmodel")["flavors"][FLAVOR_NAME])
    # before any other file is opened: the folder may be anybody's
    _refuse_links(root)
    found = section.get("format_version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise IncompatiblePackage(
            f"the model has format_version {found}, written by a newer release of oml_mlflow: this "
            f"one, {__version__}, reads format_version {FORMAT_VERSION}. Nothing was loaded.",
            hint="upgrade oml_mlflow here: pip install --upgrade oml-mlflow.",
        )
    what = f"{root.name}: the MLmodel file's section {FLAVOR_NAME} is damaged"
    with damaged(what, PackageError, hint=_LOG_AGAIN, state=_NOTHING):
        if found != FORMAT_VERSION:
            raise ValueError(f"format_version {str(found)[:20]!r}")
        return _packaged(root, build(_Section, section), profile)


@dataclass(frozen=True)
class _File:
    """One pipeline, as the MLmodel file names it."""

    path: str
    sha256: str
    input: str = "input"
    output: str = "embedding"
    unknown_operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Section:
    """What is read of this flavor's section of an MLmodel file."""

    dims: int
    profiles: dict[str, dict[str, _File]]
    metadata: dict[str, Any] | None = None


def _packaged(root: Path, section: _Section, profile: str | None) -> PackagedPair:
    if not 0 < section.dims <= _MOST_DIMS:
        raise ValueError(f"dims: wanted 1 to {_MOST_DIMS:,}")
    profiles, metadata = section.profiles, section.metadata or {}
    int(metadata.get("max_seq_length") or 0)
    if not {*read_precisions(metadata).values()} <= {*PRECISIONS}:
        raise ValueError("metadata.precision: unknown")
    first = PREFERRED_PROFILE if PREFERRED_PROFILE in profiles else next(iter(profiles))
    chosen = profile or first
    if chosen not in profiles:
        raise PackageError(
            f"the model has no profile {chosen!r}.", hint=f"it has {', '.join(profiles)}."
        )
    entry = profiles[chosen]
    paths = {side: _inside(root, entry[side].path) for side in SIDES}
    return PackagedPair(
        folder=root,
        profile=chosen,
        files={side: (path,) for side, path in paths.items()},
        fingerprints={side: entry[side].sha256 for side in SIDES},
        dims=section.dims,
        metadata=metadata,
        ends={side: Ends(entry[side].input, entry[side].output) for side in SIDES},
        unknown_operators={
            side: found for side in SIDES if (found := entry[side].unknown_operators)
        },
        stored_profiles=tuple(profiles),
    )


def _refuse_links(root: Path) -> None:
    """Raise PackageError if a link in the package leads out of it."""
    inside = root.resolve()
    # not rglob, which takes ten times as long: each look at a package does this
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not Path(path).resolve().is_relative_to(inside):
                raise PackageError(
                    f"link {os.path.relpath(path, root)} leaves the package. Nothing was loaded.",
                    hint="don't trust it.",
                )


def _inside(root: Path, relative: str) -> Path:
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise PackageError(f"path {relative!r} leaves the package.", hint="don't trust it.")
    if not path.is_file():
        raise PackageError(
            f"the package lacks {relative}. Nothing was loaded.", hint="log the pair again."
        )
    return path
