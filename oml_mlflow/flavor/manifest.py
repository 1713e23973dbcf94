"""The manifest: sha256 of every file of a packaged model, kept apart from the files.

Whoever can write to the artifact store can rewrite a model, its references and its MLmodel file.
The manifest is in a tag of the registry, which is kept in the tracking server's database.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from oml_mlflow.documents import read_yaml
from oml_mlflow.errors import PackageError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.flavor.package import GOLDEN_FOLDER, PROFILES_FOLDER, SOURCE_FOLDER, read_package
from oml_mlflow.registry.versions import EVIDENCE_FOLDER, MANIFEST_TAG

UNANCHORED = "unanchored: the registry does not say what its files are"
# written after logging: evidence of promotions, and MLflow's own file in a download
LATER = {EVIDENCE_FOLDER, "registered_model_meta"}
_MLMODEL = "MLmodel"
# listed file by file; other folders may hold any number of files and have one digest each
_LISTED = {PROFILES_FOLDER, GOLDEN_FOLDER, SOURCE_FOLDER}
_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<path>\S.*)")


def to_manifest(folder: Path) -> str:
    """Return a model folder's manifest, as `sha256sum` writes it: one line a file, by path.

    Of `MLmodel` only the flavors count, since MLflow and users rewrite the rest. A folder that is
    not the flavor's own is one line: the digest of the lines of its files.
    """
    found = _digests(folder, LATER)
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(found.items()))


def check_files(folder: Path, tags: Mapping[str, str], without: Collection[str] = ()) -> None:
    """Raise PackageError if a folder's files are not those that were logged.

    Args:
        folder: Folder that holds the MLmodel file.
        tags: The tags that logging wrote, from the registry. Without a manifest in them, only the
            ONNX files are compared, with the MLmodel file.
        without: Files and folders at the top that were not fetched.
    """
    known = check_manifest(folder, tags[MANIFEST_TAG], without) if MANIFEST_TAG in tags else {}
    for profile in read_package(folder).stored_profiles:
        read_package(folder, profile).check_fingerprints(known)


def check_manifest(folder: Path, manifest: str, without: Collection[str] = ()) -> Mapping[str, str]:
    """Raise PackageError if a folder's files are not those of a manifest; return sha256 by path.

    Every file is read once. Files that are not in the manifest are refused in the flavor's own
    folders, and ignored elsewhere: MLflow adds files of its own, and nothing here reads them.

    Args:
        folder: Folder that holds the MLmodel file.
        manifest: What `to_manifest` returned when it was logged.
        without: Files and folders at the top that were not fetched.
    """
    logged = {p: s for p, s in _read(manifest).items() if p.partition("/")[0] not in without}
    found = _digests(folder, {*without, *LATER})
    differing = [path for path in logged if found.get(path, logged[path]) != logged[path]]
    gone = sorted(logged.keys() - found.keys())
    added = [p for p in found.keys() - logged.keys() if p.partition("/")[0] in _LISTED]
    told = [
        f"{word}: {', '.join(sorted(paths))}"
        for word, paths in (("changed", differing), ("missing", gone), ("added", added))
        if paths
    ]
    if told:
        raise PackageError(
            f"these are not the files that were logged; {'; '.join(told)}. The registry says so "
            f"(tag {MANIFEST_TAG}). Nothing was loaded.",
            hint="find out who wrote to the artifact store, and log the pair again.",
            details={"changed": sorted(differing), "missing": gone, "added": sorted(added)},
        )
    return found


def _read(manifest: str) -> dict[str, str]:
    lines = [_LINE.fullmatch(line) for line in manifest.splitlines()]
    found = {line["path"]: line["sha256"] for line in lines if line}
    if _MLMODEL not in found or len(found) != len(lines):
        raise PackageError(
            f"the tag {MANIFEST_TAG} of the version is damaged, so that nobody can tell whether "
            "its files are those that were logged. Nothing was loaded.",
            hint="find out who changed it; where its logged model has the tag still, copy it.",
        )
    return found


def _digests(folder: Path, without: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in folder.iterdir():
        if path.name in without:
            continue
        if path.name in _LISTED:
            found |= {f"{path.name}/{inner}": sha for inner, sha in _files(path).items()}
        elif path.is_dir():
            lines = sorted(f"{sha256}  {inner}\n" for inner, sha256 in _files(path).items())
            found[path.name] = hashlib.sha256("".join(lines).encode()).hexdigest()
        else:
            found[path.name] = _flavors(path) if path.name == _MLMODEL else fingerprint_file(path)
    return found


def _files(folder: Path) -> Mapping[str, str]:
    # Python writes caches beside code that is run in place
    return {
        path.relative_to(folder).as_posix(): fingerprint_file(path)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _flavors(mlmodel: Path) -> str:
    try:
        flavors = read_yaml(mlmodel)["flavors"]
        written = json.dumps(flavors, sort_keys=True)
    except (OSError, LookupError, TypeError, ValueError):
        return fingerprint_file(mlmodel)
    return hashlib.sha256(written.encode()).hexdigest()
