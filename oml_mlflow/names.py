"""Names of pipelines, in-database models and slots: the only place that makes SQL identifiers."""

from __future__ import annotations

import re

from oml_mlflow.errors import InvalidName

IMG = "img"
TXT = "txt"
SIDES = (IMG, TXT)
# key of our metadata in an ONNX file
PROPERTY = "oml_mlflow"

_SLOT_DIGITS = 6
# Oracle: mining-model names hold at most 123 characters. Source: "Mining Model Naming
# Restrictions", OML4SQL User's Guide. A slot appends the side and "_S" with its generation.
_MODEL_NAME_LIMIT = 123
EXPORT_NAME_LIMIT = _MODEL_NAME_LIMIT - len("_img") - len("_S") - _SLOT_DIGITS
_LEGAL = re.compile(r"[A-Za-z][A-Za-z0-9_$#]*")
_COLUMN = re.compile(r"[A-Za-z_][\w$#]*(\.[A-Za-z_][\w$#]*){1,2}", re.ASCII)


def check_export_name(name: str) -> str:
    """Return `name` if both pipelines can be files and in-database models under it.

    Args:
        name: Export name: a letter, then letters, digits, ``_``, ``$`` or ``#``; at most
            111 characters, so that side and slot suffixes fit Oracle's 123.

    Raises:
        InvalidName: With the nearest legal name as its hint.
    """
    if isinstance(name, str) and _LEGAL.fullmatch(name) and len(name) <= EXPORT_NAME_LIMIT:
        return name
    raise InvalidName(
        f"{name!r} is no legal export name: it must start with an ASCII letter, hold only ASCII "
        f"letters, digits, '_', '$' and '#', and be at most {EXPORT_NAME_LIMIT} characters long. "
        "Nothing was written.",
        hint=f"use a name such as {nearest_export_name(str(name))!r}.",
    )


def nearest_export_name(name: str) -> str:
    """Return a legal export name that resembles `name`."""
    stem = re.sub(r"[^A-Za-z0-9_$#]+", "_", name.removesuffix(".onnx")).strip("_")
    stem = re.sub(r"^[^A-Za-z]+", "", stem)
    return (stem or "clip")[:EXPORT_NAME_LIMIT]


def pipeline_file(export_name: str, side: str) -> str:
    """Return the file name of one pipeline, such as ``clip_img.onnx``."""
    return f"{check_export_name(export_name)}_{side}.onnx"


def model_name(export_name: str, side: str) -> str:
    """Return the in-database model name of one pipeline, such as ``CLIP_IMG``."""
    return f"{check_export_name(export_name)}_{side}".upper()


def slot_name(export_name: str, side: str, generation: int) -> str:
    """Return the in-database name of a generation that is loaded but not live."""
    return f"{model_name(export_name, side)}_S{generation}"


def showable(target: str) -> str:
    """Return a target's name for an error; ``***`` if it may be a URI with a password."""
    return "***" if set(target) & set("/:@") else target


def check_column(name: str) -> tuple[str, str]:
    """Return table and column of ``table.column`` or ``schema.table.column``.

    Raises:
        InvalidName: If it is neither; quoted names are not supported.
    """
    if _COLUMN.fullmatch(name) is None:
        raise InvalidName(
            f"{name!r} names no column. Nothing was changed.",
            hint="write it as table.column or schema.table.column, without quotes.",
        )
    table, _, column = name.rpartition(".")
    return table, column


def live_names(export_name: str) -> dict[str, str]:
    """Return the in-database names of a live pair, by side."""
    return {side: model_name(export_name, side) for side in SIDES}
