"""The process's connection: the target that `export2db` loads into."""

from __future__ import annotations

from oml_mlflow.errors import ConfigError
from oml_mlflow.promotion.target import Target
from oml_mlflow.targets import open_target

_connected: Target | None = None


def connect(
    user: str | None = None,
    password: str | None = None,
    dsn: str | None = None,
    *,
    target: Target | str | None = None,
) -> None:
    """Set the target that `export2db` loads into, for the whole process.

    With `user`, `password` and `dsn` it is an Oracle database, as OML4Py's ``oml.connect`` has it.

    Args:
        user: Its user, whose schema holds the models.
        password: Its password; by default from OML_MLFLOW_PASSWORD, else asked for. Kept only in
            this process, and never shown.
        dsn: ``host:port/service``, an alias of ``tnsnames.ora``, or a connect descriptor.
        target: Another target, or a URI such as ``embedded:///folder`` or
            ``oracle://user@host:1521/service``. Nothing is opened yet.

    Raises:
        ConfigError: If no target is named, or one that is not there. The connection stays as it
            was.
    """
    global _connected
    given = any(value is not None for value in (user, password, dsn))
    if target is not None and given:
        raise ConfigError(
            "connect() was given both a target and a user, password or dsn. The connection was "
            "not changed.",
            hint="give one of the two.",
        )
    if target is None:
        if not user or not dsn:
            raise ConfigError(
                f"connect() names no {'user or dsn' if given else 'target'}. The connection was "
                "not changed.",
                hint='use connect(user, password, "host:1521/service") or '
                'connect(target="embedded:///folder").',
            )
        _connected = _oracle(user, password, dsn)
        return
    _connected = open_target(target) if isinstance(target, str) else target


def _oracle(user: str, password: str | None, dsn: str) -> Target:
    if "@" in dsn or "/" in user:
        raise ConfigError(
            "connect() was given a user or dsn with credentials in it. The connection was not "
            "changed.",
            hint="give user, password and dsn each on its own.",
        )
    # imported here: the driver takes a while to import
    from oml_mlflow.secrets import Secret
    from oml_mlflow.targets.oracle.settings import OracleSettings
    from oml_mlflow.targets.oracle.target import OracleTarget

    return OracleTarget(OracleSettings(user, dsn, Secret(password) if password else None))


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
