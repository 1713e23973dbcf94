"""Limits of one request, set by environment variables: served models have no other settings."""

from __future__ import annotations

import os
from dataclasses import dataclass

from oml_mlflow.errors import ConfigError


@dataclass(frozen=True)
class Limit:
    """A limit that an environment variable can change.

    Attributes:
        variable: The variable.
        default: The limit without it.
        unit: What is counted.
    """

    variable: str
    default: int
    unit: str

    def read(self) -> int:
        """Return the limit as it is now.

        Raises:
            ConfigError: If the variable is no whole number from 1 to 2^31.
        """
        text = os.environ.get(self.variable, "")
        try:
            limit = int(text) if text else self.default
        except ValueError:
            limit = 0
        if not 1 <= limit <= 2**31:
            raise ConfigError(
                f"{self.variable} must be a whole number of {self.unit} from 1 to 2^31; it is "
                f"{text[:40]!r}.",
                hint=f"correct it, or unset it for {self.default:,}.",
            )
        return limit


# the largest pictures that phones take have 9,248 x 6,944
MAX_PIXELS = Limit("OML_MLFLOW_MAX_PIXELS", 65_000_000, "pixels")
REQUEST_ROWS = Limit("OML_MLFLOW_REQUEST_ROWS", 1_024, "rows")
REQUEST_BYTES = Limit("OML_MLFLOW_REQUEST_BYTES", 64 * 2**20, "bytes")
LIMITS = (MAX_PIXELS, REQUEST_ROWS, REQUEST_BYTES)
