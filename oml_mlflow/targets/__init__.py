"""Databases that pairs are promoted into."""

from __future__ import annotations

from oml_mlflow.errors import ConfigError
from oml_mlflow.promotion.target import Target


def open_target(uri: str, *, timeout_s: float = 30.0) -> Target:
    """Return the target that a URI names. Nothing is opened or written yet.

    Args:
        uri: ``embedded:///folder`` (relative) or ``embedded:////absolute/folder``, read as
            SQLAlchemy reads ``sqlite:///``; or ``oracle://user@host:1521/service`` or
            ``oracle://user@alias`` (see `OracleSettings.from_uri`).
        timeout_s: How long to wait: for another process to let go of an embedded database, for a
            connection to Oracle.

    Raises:
        ConfigError: If there is no such kind of target.
    """
    scheme = uri.partition(":")[0]
    if scheme == "embedded":
        from oml_mlflow.targets.embedded import EmbeddedTarget

        return EmbeddedTarget.from_uri(uri, timeout_s=timeout_s)
    if scheme == "oracle":
        from oml_mlflow.targets.oracle import OracleTarget

        return OracleTarget.from_uri(uri, timeout_s=timeout_s)
    # whatever it is, it may hold a password
    raise ConfigError(
        "that is no URI of a target.",
        hint="use embedded:///folder, or oracle://user@host:1521/service.",
    )
