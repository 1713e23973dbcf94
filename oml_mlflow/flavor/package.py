"""A packaged pair: the folder that the flavor writes, read back and checked. Free of MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from oml_mlflow._version import __version__
from oml_mlflow.errors import IncompatiblePackage, PackageError
from oml_mlflow.files import fingerprint_file
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
PROFILES_FOLDER, GOLDEN_FOLDER, SOURCE_FOLDER = "profiles", "golden", "source"
MODEL_REFERENCES = "model"


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
    try:
        mlmodel = yaml.safe_load((root / "MLmodel").read_text(encoding="utf-8"))
        section = dict(mlmodel["flavors"][FLAVOR_NAME])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise PackageError(
            f"{root.name}: no model of flavor {FLAVOR_NAME} ({type(error).__name__}).",
            hint="log one with oml_mlflow.log_model.",
        ) from error
    # before any other file is opened: the folder may be anybody's
    _refuse_links(root)
    found = section.get("format_version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise IncompatiblePackage(
            f"the model has format_version {found}, written by a newer release of oml_mlflow: this "
            f"one, {__version__}, reads format_version {FORMAT_VERSION}. Nothing was loaded.",
            hint="upgrade oml_mlflow here: pip install --upgrade oml-mlflow.",
        )
    try:
        if found != FORMAT_VERSION:
            raise ValueError(f"format_version {found!r}")
        return _packaged(root, section, profile)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise PackageError(
            f"{root.name}: the MLmodel file's section {FLAVOR_NAME} is damaged "
            f"({type(error).__name__}: {error}).",
            hint="log the pair again.",
        ) from error


def _packaged(root: Path, section: Mapping[str, Any], profile: str | None) -> PackagedPair:
    profiles: Mapping[str, Any] = section["profiles"]
    first = PREFERRED_PROFILE if PREFERRED_PROFILE in profiles else next(iter(profiles))
    chosen = profile or first
    if chosen not in profiles:
        raise PackageError(
            f"the model has no profile {chosen!r}.", hint=f"it has {', '.join(profiles)}."
        )
    entry = profiles[chosen]
    paths = {side: _inside(root, entry[side]["path"]) for side in SIDES}
    return PackagedPair(
        folder=root,
        profile=chosen,
        files={side: (path,) for side, path in paths.items()},
        fingerprints={side: entry[side]["sha256"] for side in SIDES},
        dims=int(section["dims"]),
        metadata=dict(section.get("metadata") or {}),
        ends={
            side: Ends(entry[side].get("input", "input"), entry[side].get("output", "embedding"))
            for side in SIDES
        },
        unknown_operators={
            side: tuple(entry[side]["unknown_operators"])
            for side in SIDES
            if entry[side].get("unknown_operators")
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
