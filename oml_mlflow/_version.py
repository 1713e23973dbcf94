"""The version of this package; imports nothing, so that every module may import it."""

from __future__ import annotations

__version__ = "0.2.0"
