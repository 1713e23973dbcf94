"""A packaged pair: the folder that the flavor writes, read back and checked. Free of MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oml_mlflow.embedder import PairEmbedder
from oml_mlflow.errors import IncompatiblePackage, PackageError
from oml_mlflow.fingerprint import fingerprint_file
from oml_mlflow.names import IMG, SIDES, TXT
from oml_mlflow.probes import Probe, References, read_probes

FLAVOR_NAME = "oml_mlflow"
FORMAT_VERSION = 1
# what is run in this process, by serving or the embedded target, where a package holds several
PREFERRED_PROFILE = "onnxruntime"
PROFILES_FOLDER, GOLDEN_FOLDER, SOURCE_FOLDER = "profiles", "golden", "source"
MODEL_REFERENCES = "model"


@dataclass(frozen=True)
class PackagedPair:
    """One profile's pair in a packaged model.

    Attributes:
        folder: Root of the package.
        profile: Name of the profile.
        paths: ONNX files by side.
        fingerprints: Their sha256 by side, as the MLmodel file has them.
        dims: Length of the embeddings.
        metadata: Template metadata.
    """

    folder: Path
    profile: str
    paths: dict[str, Path]
    fingerprints: dict[str, str]
    dims: int
    metadata: dict[str, Any]

    def check_fingerprints(self) -> None:
        """Raise PackageError if a file's bytes are not those that were logged."""
        for side in SIDES:
            found = fingerprint_file(self.paths[side])
            if found != self.fingerprints[side]:
                raise PackageError(
                    f"{self.paths[side].name}: sha256 is {found[:12]}…, MLmodel says "
                    f"{self.fingerprints[side][:12]}…: these are not the bytes that were logged. "
                    "Nothing was loaded.",
                    hint="log the pair again.",
                )

    def embedder(self) -> PairEmbedder:
        """Return the pair ready to run in this process."""
        return PairEmbedder(self.paths[IMG], self.paths[TXT], self.dims)

    def probes(self) -> tuple[Probe, ...]:
        """Return the golden probes that were stored with the pair."""
        return read_probes(self.folder / GOLDEN_FOLDER)

    def references(self, *, of_model: bool = False) -> References:
        """Return stored reference vectors: those of this profile's pair, or of the model."""
        kind = MODEL_REFERENCES if of_model else pair_references(self.profile)
        found = References.read(self.folder / GOLDEN_FOLDER, kind)
        if found is None:
            raise PackageError(
                f"the package holds no {kind} reference vectors.", hint="log the pair again."
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
        section = mlmodel["flavors"][FLAVOR_NAME]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise PackageError(
            f"{root.name}: no model of flavor {FLAVOR_NAME} ({type(error).__name__}).",
            hint="log one with oml_mlflow.log_model.",
        ) from error
    if int(section.get("format_version", 0)) != FORMAT_VERSION:
        raise IncompatiblePackage(
            f"the model has format_version {section.get('format_version')}, this release reads "
            f"{FORMAT_VERSION}.",
            hint="install the release of oml_mlflow that wrote it, or a newer one.",
        )
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
        paths=paths,
        fingerprints={side: entry[side]["sha256"] for side in SIDES},
        dims=int(section["dims"]),
        metadata=dict(section.get("metadata") or {}),
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
