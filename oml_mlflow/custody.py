"""Chain of custody: the same bytes on disk, in the artifact, and in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oml_mlflow.files import fingerprint_file
from oml_mlflow.flavor.manifest import check_manifest
from oml_mlflow.flavor.package import read_package
from oml_mlflow.names import SIDES, check_export_name, live_names
from oml_mlflow.registry import MANIFEST_TAG, UNUSED, get_version, local_files, logged_tags
from oml_mlflow.targets import Target


@dataclass(frozen=True)
class Trace:
    """The fingerprint of one pipeline's bytes in one place.

    Attributes:
        side: ``img`` or ``txt``.
        place: Where the bytes are.
        sha256: Computed from them.
        ok: Whether it is what the version's MLmodel says.
    """

    side: str
    place: str
    sha256: str
    ok: bool


def trace_bytes(
    model_uri: str, target: Target, name: str | None = None, files: Sequence[Path] = ()
) -> list[Trace]:
    """Return fingerprints of a version's bytes everywhere, each computed anew. Read-only.

    Args:
        model_uri: Version whose MLmodel says what the fingerprints should be.
        target: Database that holds it.
        name: Export name there; the registered model's name by default.
        files: Exported files to look at too; by the end of their names, ``_img.onnx`` and
            ``_txt.onnx``, they are told apart.

    Raises:
        PackageError: If the registry says that the version's files are not those that were logged.
    """
    version = get_version(model_uri)
    names = live_names(check_export_name(name or version.name))
    found: list[tuple[str, str, str]] = []
    for path in files:
        side = next((s for s in SIDES if path.stem.endswith(s)), SIDES[0])
        found.append((side, f"file {path.name}", fingerprint_file(path)))
    with local_files(version) as folder, target.session("fingerprints", create=False) as session:
        manifest = logged_tags(version).get(MANIFEST_TAG)
        if manifest is not None:
            check_manifest(folder, manifest, UNUSED)
        package = read_package(folder)
        for side in SIDES:
            path = package.paths[side]
            place = f"artifact {version.uri} {path.relative_to(package.folder)}"
            # just read for the manifest, and found equal
            sha256 = fingerprint_file(path) if manifest is None else package.fingerprints[side]
            found.append((side, place, sha256))
            place = f"database {target.uri} {names[side]}"
            found.append((side, place, session.loaded_fingerprint(names[side])))
    return [
        Trace(side, place, sha256, sha256 == package.fingerprints[side])
        for side, place, sha256 in sorted(found)
    ]
