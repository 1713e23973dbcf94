"""Databases that pairs are promoted into: adapters of `promotion.target`."""

from __future__ import annotations

import re

from oml_mlflow.errors import ConfigError
from oml_mlflow.promotion.target import Target

_LEGAL_NAME = re.compile(r"[A-Z][A-Z0-9_$#]*")


def open_target(uri: str, *, timeout_s: float = 30.0) -> Target:
    """Return the target that a URI names. Nothing is opened or written yet.

    Args:
        uri: ``embedded:///folder`` (relative) or ``embedded:////absolute/folder``, read as
            SQLAlchemy reads ``sqlite:///``; or ``oracle://user@host:1521/service`` or
            ``oracle://user@alias`` (see `OracleSettings.from_uri`).
        timeout_s: How long to wait for another process that holds an embedded database, or for a
            connection to Oracle.

    Raises:
        ConfigError: If there is no such kind of target.
    """
    scheme = uri.partition(":")[0]
    if scheme == "embedded":
        from oml_mlflow.targets.embedded.target import EmbeddedTarget

        return EmbeddedTarget.from_uri(uri, timeout_s=timeout_s)
    if scheme == "oracle":
        from oml_mlflow.targets.oracle.target import OracleTarget

        return OracleTarget.from_uri(uri, timeout_s=timeout_s)
    # the URI is not quoted: it may hold a password
    raise ConfigError(
        "that is not a target's URI.",
        hint="use embedded:///folder, or oracle://user@host:1521/service.",
    )


def sql_call(uri: str, name: str) -> str:
    """Return the SQL that embeds a text by a live pair; empty where there is none to show."""
    if not _LEGAL_NAME.fullmatch(name):
        return ""
    model = f"{name}_TXT"
    if uri.startswith("oracle:"):
        return f"SELECT VECTOR_EMBEDDING({model} USING :text AS DATA) FROM DUAL"  # noqa: S608
    # DuckDB takes $ and # in quotes only
    return f"SELECT {model if model.isidentifier() else chr(34) + model + chr(34)}('a cat')"
