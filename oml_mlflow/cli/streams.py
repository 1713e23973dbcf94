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

    A reader that has gone, as of ``| head``, has what it wanted; any other failure is kept.

    Args:
        raw: The stream.

    Attributes:
        failure: Why what was written is lost; empty if it is not.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self.failure = raw, ""
        # what an encoding lacks is written as \\u2026, also names of files that are no UTF-8
        if isinstance(raw, io.TextIOWrapper):
            raw.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        with self._losing():
            self._raw.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        with self._losing():
            self._raw.flush()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if not isinstance(error, BrokenPipeError):
                self.failure = self.failure or getattr(error, "strerror", None) or str(error)
            # what is buffered is written again at the end of the process, which would fail
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._raw.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def guarded() -> Iterator[Stream]:
    """Put a `Stream` in the place of stdout, which it gives, and of stderr."""
    before = sys.stdout, sys.stderr
    # without one, the next file that is opened would be taken for it
    kept = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = (Stream(stream) for stream in kept)
    out: Any = sys.stdout
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
