"""JSON files of a model's folder, read so that whatever is wrong is named with its file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oml_mlflow.errors import SourceError


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        SourceError: If there is none, it can't be read, or it holds something else.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"{path.parent} holds no {path.name} ({what}). Nothing was written.",
            hint="give a folder in the Hugging Face layout, as model.save_pretrained writes it.",
        ) from None
    except (OSError, RecursionError, ValueError) as error:
        raise SourceError(
            f"{path} ({what}) can't be read: {type(error).__name__}. Nothing was written.",
            hint="fetch or save the model again.",
        ) from error
    if not isinstance(loaded, dict):
        raise SourceError(
            f"{path} ({what}) is no JSON object. Nothing was written.",
            hint="fetch or save the model again.",
        )
    return loaded


@contextlib.contextmanager
def values_of(path: Path) -> Iterator[None]:
    """Raise a SourceError that names the file for whatever a value of the wrong kind raises."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} holds a value of the wrong kind ({type(error).__name__}: {error}). "
            "Nothing was written.",
            hint=f"correct {path.name}, or fetch or save the model again.",
        ) from error


def json_object(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object under a key; an empty one if there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}
