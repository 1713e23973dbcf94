"""The process's connection: the target that `export2db` loads into."""

from __future__ import annotations

from oml_mlflow.errors import ConfigError
from oml_mlflow.targets import Target, open_target

_connected: Target | None = None


def connect(
    user: str | None = None,
    password: str | None = None,
    dsn: str | None = None,
    *,
    target: Target | str | None = None,
) -> None:
    """Set the target that `export2db` loads into, for the whole process.

    Args:
        user: User of an Oracle database; as `password` and `dsn`, not supported yet.
        password: Never repeated, stored or logged.
        dsn: Where that database is.
        target: A target or its URI, such as ``embedded:///folder``. Nothing is opened yet.

    Raises:
        ConfigError: If no target is named, or one that is not there. The connection stays as it
            was.
    """
    global _connected
    if target is None:
        given = any(value is not None for value in (user, password, dsn))
        raise ConfigError(
            "an Oracle database can't be connected to yet: this release has no Oracle target. The "
            "connection was not changed."
            if given
            else "connect() names no target. The connection was not changed.",
            hint='use connect(target="embedded:///folder").',
        )
    if user is not None or password is not None or dsn is not None:
        raise ConfigError(
            "connect() was given both a target and a user, password or dsn. The connection was "
            "not changed.",
            hint="give one of the two.",
        )
    _connected = open_target(target) if isinstance(target, str) else target


def disconnect() -> None:
    """Forget the connection; nothing is written to its target."""
    global _connected
    _connected = None


def isconnected() -> bool:
    """Return whether `export2db` has a target."""
    return _connected is not None


def connected_target() -> Target:
    """Return the target that `connect` set.

    Raises:
        ConfigError: If there is none.
    """
    if _connected is None:
        raise ConfigError(
            "export2db needs a connection, and there is none. Nothing was written.",
            hint='call oml_mlflow.connect(target="embedded:///folder") first.',
        )
    return _connected
