"""Documents that others may have written: JSON, YAML, TOML; bounded, in UTF-8, with or without BOM.

The one place where they are parsed, and where what a damaged one raises becomes an error of ours.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

from oml_mlflow.errors import OmlMlflowError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# what is ours takes kilobytes, and has up to 10 levels; aliases of YAML can stand for 2^n values
_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 2**24, 1_000_000, 100
# all that a wrong value can raise on the way to a typed record, whatever it was taken for
_DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError),
    *(RuntimeError, StopIteration, SyntaxError, struct.error, zlib.error, BadZipFile),
)
_T = TypeVar("_T")


@contextlib.contextmanager
def damaged(
    what: str, kind: type[OmlMlflowError], *, hint: str, state: str = "Nothing was changed."
) -> Iterator[None]:
    """Raise what a file or document raises, while it is read or written, as an error of ours.

    Args:
        what: What is wrong then, with the file's name; the reason follows in parentheses.
        kind: Class of the error.
        hint: The next step.
        state: What is left then.
    """
    try:
        yield
    except _DAMAGE as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        reason = getattr(error, "strerror", None) or missing or type(error).__name__
        raise kind(f"{what} ({' '.join(reason.split())[:200]}). {state}", hint=hint) from error


def read_json(source: Path | str | bytes) -> Any:
    """Return the values of a JSON document, or of a file.

    Raises:
        ValueError: If it is damaged, holds NaN, or is larger or deeper than any of ours.
        OSError: If the file can't be read.
    """
    return _parsed(source, lambda text: json.loads(text, parse_constant=_refuse_constant))


def read_yaml(source: Path | str | bytes) -> Any:
    """Return the values of a YAML document without tags of Python; see `read_json`."""
    import yaml

    try:
        # libyaml, ten times as fast, where PyYAML was built with it; MLflow does the same
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return _parsed(source, lambda text: yaml.load(text, loader))  # noqa: S506 -- a safe one
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        # all but the first of values that are not of the type that they claim
        raise ValueError(f"no YAML: {error}") from error


def read_toml(source: Path | str | bytes) -> dict[str, Any]:
    """Return the tables of a TOML document; see `read_json`."""
    found: dict[str, Any] = _parsed(source, tomllib.loads)
    return found


def build(kind: type[_T], stored: Any) -> _T:
    """Return a dataclass made from stored values, each of its annotated type; others are ignored.

    Raises:
        ValueError: If a value is missing or of another type; names it.
    """
    from pydantic import ValidationError

    try:
        made: _T = _adapter(kind).validate_python(stored)  # type: ignore[arg-type]  # is hashable
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return made


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it.

    NaN and infinities become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, bytes base64, keys of
    mappings text; dates, times, decimals, UUIDs and whatever else is no number become their text.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(as_json(key)): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each) for each in value]
    return str(value)


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _parsed(source: Path | str | bytes, parse: Callable[[str], Any]) -> Any:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(_MOST_BYTES + 1)
    if len(source) > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES:,} bytes")
    try:
        text = source if isinstance(source, str) else source.decode("utf-8-sig")
        value = parse(text.removeprefix("\ufeff"))
    except UnicodeDecodeError:  # it quotes bytes, which may be secret
        raise ValueError("no text in UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    waiting, count = [(value, 0)], 0
    while waiting:
        each, level = waiting.pop()
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        count += len(inner)
        if level > _MOST_LEVELS or count > _MOST_VALUES:
            raise ValueError("nested too deeply" if level > _MOST_LEVELS else "too many values")
        waiting += [(found, level + 1) for found in inner]
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
