"""JSON files of a model's folder, read so that whatever is wrong is named with its file."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from oml_mlflow import documents
from oml_mlflow.errors import SourceError

_STATE, _HINT = "Nothing was written.", "fetch or save the model again."


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        SourceError: If there is none, it can't be read, or it holds something else.
    """
    if not path.exists():
        raise SourceError(
            f"{path.parent} holds no {path.name} ({what}). {_STATE}",
            hint="give a folder in the Hugging Face layout, as model.save_pretrained writes it.",
        )
    found = read_any_json(path, what)
    if not isinstance(found, dict):
        raise SourceError(f"{path} ({what}) is no JSON object. {_STATE}", hint=_HINT)
    return found


def read_any_json(path: Path, what: str) -> Any:
    """Return what a JSON file holds; see `read_json`."""
    with documents.damaged(f"{path} ({what}) can't be read", SourceError, hint=_HINT, state=_STATE):
        return documents.read_json(path)


def values_of(path: Path) -> AbstractContextManager[None]:
    """Raise a SourceError that names the file for whatever a value of the wrong kind raises."""
    return documents.damaged(
        f"{path} holds a value of the wrong kind",
        SourceError,
        hint=f"correct {path.name}, or fetch or save the model again.",
        state=_STATE,
    )


def json_object(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key; an empty one if there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}
