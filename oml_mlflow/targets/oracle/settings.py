"""Settings of an Oracle target: address, user, secrets, limits."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from oml_mlflow.errors import ConfigError
from oml_mlflow.parity.policy import ParityPolicy
from oml_mlflow.secrets import Secret, read_secret

PASSWORD_ENV = "OML_MLFLOW_PASSWORD"  # noqa: S105
WALLET_PASSWORD_ENV = "OML_MLFLOW_WALLET_PASSWORD"  # noqa: S105
PREFIX = "oracle://"

_KEYS = (
    "config_dir",
    "wallet_location",
    "protocol",
    "password_env",
    "password_file",
    "keep",
    "connect_timeout",
    "call_timeout",
    "must",
    "warn",
    "max_abs",
    "cosine",
)
_SECRET_KEYS = re.compile(r"pass(word|wd)?|pwd|secret|token", re.IGNORECASE)
# of a connect descriptor; the port follows its host
_PLACE = re.compile(r"\(HOST=[^)]*\)\(PORT=\d+\)|\((?:SERVICE_NAME|SID)=[^)]*\)")
_WAYS = (
    f"set {PASSWORD_ENV}, or name another variable with password_env=, or a file that only you "
    "can read with password_file="
)


@dataclass(frozen=True)
class OracleSettings:
    """How to connect to an Oracle database. Nothing in it shows a password.

    Attributes:
        user: Database user, whose schema holds the models.
        dsn: ``host:port/service``, an alias of ``tnsnames.ora``, or a connect descriptor.
        password: Password; found by `find_password` when it is None.
        password_env: Name of the environment variable that holds it.
        password_file: File that holds it, readable by nobody else.
        config_dir: Folder of ``tnsnames.ora``.
        wallet_location: Folder of ``ewallet.pem``.
        wallet_password: Password of that file; by default from `WALLET_PASSWORD_ENV`.
        keep: How many generations before the live one stay loaded.
        connect_timeout_s: How long to wait for a connection, name look-up and log-in included.
        call_timeout_s: How long one call may take; loading a model is one call.
        policy: How close vectors must be to their references.
    """

    user: str
    dsn: str
    password: Secret | None = None
    password_env: str = PASSWORD_ENV
    password_file: Path | None = None
    config_dir: str = ""
    wallet_location: str = ""
    wallet_password: Secret | None = None
    keep: int = 2
    connect_timeout_s: float = 30.0
    call_timeout_s: float = 900.0
    policy: ParityPolicy = field(default_factory=ParityPolicy)

    @classmethod
    def from_uri(cls, uri: str, *, timeout_s: float | None = None) -> OracleSettings:
        """Return the settings of a URI.

        Args:
            uri: ``oracle://user@host:1521/service`` or ``oracle://user@alias``, with settings
                behind ``?``, such as ``config_dir=/etc/oracle&wallet_location=/etc/wallet``.
            timeout_s: How long to wait for a connection, unless the URI says it.

        Raises:
            ConfigError: If it is no such URI, holds a password, or has an unknown setting.
        """
        place, _, query = uri.removeprefix(PREFIX).partition("?")
        credentials, _, dsn = place.rpartition("@")
        user, dsn = unquote(credentials), unquote(dsn)
        # a '?' in a password cuts the address short
        if set(user) & set(":/@") or (not user and "@" in query):
            raise _password_in_uri()
        options = dict(parse_qsl(query, keep_blank_values=True))
        _check_keys(options)
        if not uri.startswith(PREFIX) or not user or not dsn:
            raise ConfigError(
                "that is not the URI of an Oracle target: it names no "
                f"{'user' if not user else 'database'}.",
                hint="write it as oracle://user@host:1521/service, or oracle://user@alias.",
            )
        protocol = options.pop("protocol", "tcp")
        if protocol not in ("tcp", "tcps"):
            raise ConfigError(f"protocol={protocol!r} is unknown.", hint="use tcp or tcps.")
        wait = 30.0 if timeout_s is None else timeout_s
        file = options.get("password_file")
        return cls(
            user=user,
            dsn=f"tcps://{dsn}" if protocol == "tcps" else dsn,
            password_env=options.get("password_env", PASSWORD_ENV),
            password_file=Path(file).expanduser() if file else None,
            config_dir=options.get("config_dir", ""),
            wallet_location=options.get("wallet_location", ""),
            keep=int(_number(options, "keep", 2, whole=True)),
            connect_timeout_s=_number(options, "connect_timeout", wait),
            call_timeout_s=_number(options, "call_timeout", 900.0),
            policy=ParityPolicy.from_settings(
                *(options.get(key, "") for key in ("must", "warn", "max_abs", "cosine"))
            ),
        )

    @property
    def uri(self) -> str:
        """Address and user, without secrets and without settings that don't identify it."""
        where = self.dsn.removeprefix("tcps://")
        shown = f"{PREFIX}{quote(self.user)}@{quote(where, safe='/:[]().=,_-$#')}"
        options = {
            "protocol": "tcps" if where != self.dsn else "",
            "config_dir": self.config_dir,
            "wallet_location": self.wallet_location,
        }
        query = urlencode({key: value for key, value in options.items() if value}, safe="/:")
        return f"{shown}?{query}" if query else shown

    @property
    def schema(self) -> str:
        """The user's schema, as the catalogue has it; that of APP for the proxy ``me[app]``."""
        name = self.user.partition("[")[2].rstrip("]") or self.user
        return name.strip('"') if name.startswith('"') else name.upper()

    @property
    def database(self) -> str:
        """Where the database listens, however that is spelled. Reads ``tnsnames.ora``."""
        import oracledb

        found = oracledb.ConnectParams(**({"config_dir": d} if (d := self.config_dir) else {}))
        try:
            found.parse_connect_string(self.dsn)
        except (oracledb.Error, OSError, ValueError):
            # an alias that is not known here
            return f"{self.dsn.upper()} {os.path.realpath(self.config_dir)}"
        return " ".join(sorted(set(_PLACE.findall(found.get_connect_string().upper()))))

    def find_password(self) -> Secret:
        """Return the password: given, from the environment, a file, or asked for.

        Raises:
            ConfigError: If there is none, or others can read its file.
        """
        if self.password is not None:
            return self.password
        if self.password_file is not None:
            return read_secret(self.password_file, "password", _WAYS)
        if value := os.environ.get(self.password_env):
            return Secret(value)
        if sys.stdin is not None and sys.stdin.isatty():
            return Secret(getpass.getpass(f"Password of {self.user} for {self.dsn}: "))
        raise ConfigError(
            f"there is no password for {self.uri}: {self.password_env} is not set, and there is "
            "no terminal to ask on. Nothing was connected to.",
            hint=f"{_WAYS}.",
        )

    def find_wallet_password(self) -> Secret | None:
        """Return the wallet's password, if it has one."""
        if self.wallet_password is not None:
            return self.wallet_password
        value = os.environ.get(WALLET_PASSWORD_ENV)
        return Secret(value) if value else None


def _check_keys(options: Mapping[str, str]) -> None:
    unknown = [key for key in options if key not in _KEYS]
    if any(_SECRET_KEYS.fullmatch(k) or k == "wallet_password" or "@" in k for k in unknown):
        raise _password_in_uri()
    if unknown:
        raise ConfigError(
            f"{', '.join(map(repr, sorted(unknown)))}: no such setting of an Oracle target.",
            hint=f"there are {', '.join(_KEYS)}.",
        )


def _password_in_uri() -> ConfigError:
    """Return the error without the URI: what is in it must not get into a log."""
    return ConfigError(
        "the target's URI holds a password, which would end up in logs and in the shell's history. "
        "It was not used.",
        hint=f"take it out, and {_WAYS}; a wallet's goes into {WALLET_PASSWORD_ENV}. Then change "
        "the password.",
    )


def _number(options: Mapping[str, str], key: str, default: float, *, whole: bool = False) -> float:
    given = options.get(key)
    if given is None:
        return default
    try:
        value = int(given) if whole else float(given)
    except ValueError:
        value = -1
    if not (0 <= value < 1e6) or (value == 0 and not whole):
        raise ConfigError(
            f"{key}={given!r} is no {'whole number of 0 or more' if whole else 'time in seconds'}.",
            hint=f"leave it out for {default:g}.",
        )
    return value
