"""Secrets: values that no text shows, and the private files they are read from."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from oml_mlflow.errors import ConfigError

_HIDDEN = "***"


class Secret(str):
    """A value that reads ``***`` wherever it is written: in texts, in JSON, pickled."""

    __slots__ = ("_value",)
    _value: str

    def __new__(cls, value: str) -> Secret:  # noqa: D102
        made = super().__new__(cls, _HIDDEN)
        made._value = value
        return made

    def reveal(self) -> str:
        """Return the value itself. Hand it to the driver, and to nothing else."""
        return self._value

    def redact(self, text: str) -> str:
        """Return a text with ``***`` in place of the value."""
        return text.replace(self._value, _HIDDEN) if self._value else text

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (_HIDDEN,)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(_HIDDEN)


def read_secret(path: Path, what: str, ways: str) -> Secret:
    """Return the secret in a file that only its owner can read.

    Args:
        path: The file.
        what: What it holds, for messages, such as ``password``.
        ways: How else the secret can be given, for hints.

    Raises:
        ConfigError: If it can't be read, others can read it, or it is empty.
    """
    hint = f"{ways}."
    try:
        mode = path.stat().st_mode
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise ConfigError(
                f"{what} file {path} can be read by others (mode {stat.S_IMODE(mode):04o}); it "
                "was not read. Nothing was connected to.",
                hint=f"chmod 600 {path}",
            )
        value = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ConfigError(
            f"{what} file {path} can't be read ({reason}). Nothing was connected to.", hint=hint
        ) from None
    if not value:
        raise ConfigError(f"{what} file {path} is empty.", hint=hint)
    return Secret(value)
