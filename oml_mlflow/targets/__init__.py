"""Databases that pairs are promoted into: adapters of `promotion.target`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from oml_mlflow.errors import ConfigError
from oml_mlflow.promotion.target import Target
from oml_mlflow.targets.embedded.settings import folder_of, identity
from oml_mlflow.targets.oracle.settings import (
    PASSWORD_ENV,
    PREFIX,
    WALLET_PASSWORD_ENV,
    OracleSettings,
)

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
        ConfigError: If it is not usable.
    """
    if isinstance(address_of(uri), Path):
        from oml_mlflow.targets.embedded.target import EmbeddedTarget

        return EmbeddedTarget.from_uri(uri, timeout_s=timeout_s)
    from oml_mlflow.targets.oracle.target import OracleTarget

    return OracleTarget.from_uri(uri, timeout_s=timeout_s)


def address_of(uri: str) -> Path | OracleSettings:
    """Return the folder or the settings that a target's URI names.

    Raises:
        ConfigError: If it is not usable. The URI is not quoted, since it may hold a password.
    """
    scheme = uri.partition(":")[0]
    if scheme == "embedded":
        return folder_of(uri)
    if scheme == "oracle":
        return OracleSettings.from_uri(uri)
    raise ConfigError(
        "that is not a target's URI.",
        hint="use embedded:///folder, or oracle://user@host:1521/service.",
    )


def secret_variables(uris: Iterable[str]) -> tuple[str, ...]:
    """Return the environment variables that may hold secrets of any target, and of these."""
    own = [OracleSettings.from_uri(uri).password_env for uri in uris if uri.startswith(PREFIX)]
    return PASSWORD_ENV, WALLET_PASSWORD_ENV, *own


def is_same(uri: str, other: str) -> bool:
    """Return whether two URIs, however spelled, mean one schema of one database. Read-only.

    Folders and `tnsnames.ora` are looked at. Nothing is connected to, no host's name looked up.

    Raises:
        ConfigError: If one of them is not usable.
    """
    one, two = address_of(uri), address_of(other)
    if isinstance(one, OracleSettings) and isinstance(two, OracleSettings):
        return one.schema == two.schema and one.database == two.database
    if isinstance(one, Path) and isinstance(two, Path):
        return identity(one) == identity(two)
    return False


def sql_call(uri: str, name: str) -> str:
    """Return the SQL that embeds a text by a live pair; empty where there is none to show."""
    if not _LEGAL_NAME.fullmatch(name):
        return ""
    model = f"{name}_TXT"
    if uri.startswith("oracle:"):
        return f"SELECT VECTOR_EMBEDDING({model} USING :text AS DATA) FROM DUAL"  # noqa: S608
    # DuckDB takes $ and # in quotes only
    return f"SELECT {model if model.isidentifier() else chr(34) + model + chr(34)}('a cat')"
