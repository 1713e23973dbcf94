"""stdout and stderr that never keep a verb from doing its work, nor hide that it was done."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Stream:
    """A stream of text that is lost, not raised, where it can't be written.

    Args:
        raw: The stream; an encoding that lacks a character gets it as an escape.

    Attributes:
        failure: Why what was written is lost; empty if it is not, or if its reader has gone, as of
            ``| head``, and wants no more.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self.failure = raw, ""
        if isinstance(raw, io.TextIOWrapper):
            raw.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        self._try(self._raw.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        self._try(self._raw.flush)

    def _try(self, call: Any, *arguments: str) -> None:
        try:
            call(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if not isinstance(error, BrokenPipeError):
                self.failure = self.failure or getattr(error, "strerror", None) or str(error)
            # what is buffered is written again at the end of the process, which would fail
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._raw.fileno())


@contextlib.contextmanager
def guarded() -> Iterator[Stream]:
    """Put a `Stream` in the place of stdout, which it gives, and of stderr."""
    before = sys.stdout, sys.stderr
    # without one, the next file that is opened would be taken for it
    kept = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: SIM115
    out, err = map(Stream, kept)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
