"""Refuse links in a model's folder: whoever made it could have them name any file of ours."""

from __future__ import annotations

import os
import re
from pathlib import Path

from oml_mlflow.errors import SourceError

_BLOBS, _SNAPSHOTS = "blobs", "snapshots"
# huggingface_hub 2 shares equal files of all models: utils/_shared_blobs.py
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def refuse_links(folder: Path) -> None:
    """Raise SourceError if an entry of a model folder lies outside it.

    A link may lead to other entries of the folder and, from a snapshot in the hub's cache, to the
    blobs of its model there. Hard links can't be told from files. Sub-folders are not checked,
    since nothing in them is read.

    Raises:
        SourceError: If a link leads elsewhere or nowhere, an entry is a pipe, socket or device, or
            the folder can't be read.
    """
    root = Path(os.path.realpath(folder))
    try:
        for entry in sorted(root.iterdir()):
            target = Path(os.path.realpath(entry))
            if not (target.is_relative_to(root) or _is_blob(root, target)):
                raise SourceError(
                    f"link {entry} leads to {target}, outside the model's folder. Nothing was "
                    "written.",
                    hint="don't trust it; if it is yours, put the file itself there.",
                )
            if not (target.is_file() or target.is_dir()):
                raise SourceError(
                    f"{entry} is no file: a link that leads nowhere, a pipe, socket or device. "
                    "Nothing was written.",
                    hint="remove it, or put a file there.",
                )
    except OSError as error:
        raise SourceError(
            f"{folder} can't be read ({error.strerror}). Nothing was written.",
            hint="change its permissions.",
        ) from error


def _is_blob(folder: Path, target: Path) -> bool:
    """Return whether a file is a blob of the cached model that a folder is a snapshot of."""
    for snapshots in folder.parents:
        model = snapshots.parent
        if snapshots.name == _SNAPSHOTS and model.name.startswith("models--"):
            shared = model.parent / _BLOBS
            return target.is_relative_to(model / _BLOBS) or (
                target.is_relative_to(shared)
                and _SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix()) is not None
            )
    return False
