"""Values of the configuration: their kinds, origins and errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oml_mlflow.errors import ConfigError
from oml_mlflow.targets import address_of
from oml_mlflow.targets.embedded.settings import PREFIX as EMBEDDED
from oml_mlflow.targets.oracle.settings import PASSWORD_ENV

ENV_PREFIX = "OML_MLFLOW_"
DEFAULT = "default"

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_SECRET_NAME = re.compile(r"pass|pwd|secret|token|credential|api_?key|private_?key", re.IGNORECASE)
_USERINFO = re.compile(r"://[^/?#@]*:[^/?#]*@")
# NAME=value of the addresses of a service. Source: "Service", Kubernetes documentation.
_SERVICE = re.compile(
    r"\w+_(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT=(tcp|udp|sctp)://\S+:\d+"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*)"
)
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        text: For people, to follow "must be".
        take: Converts a value of the file; ValueError if it is not of this kind.
        read: Parses the text of an environment variable; ValueError likewise.
    """

    text: str
    take: Callable[[Any], Any]
    read: Callable[[str], Any] = str


def _is(kind: type) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if type(value) is not kind or value == "":
            raise ValueError
        return value

    return take


def _between(kind: type, least: float, most: float) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if type(value) not in (int, kind) or not least <= value <= most:
            raise ValueError
        return kind(value)

    return take


def _read_switch(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError
    return text.lower() in _YES


TEXT = Kind("text that is not empty", _is(str))
FILE = Kind("the path of a file", lambda value: Path(_is(str)(value)).expanduser())
SWITCH = Kind("true or false", _is(bool), _read_switch)
COUNT = Kind("a whole number from 1 to 1,000", _between(int, 1, 1000), int)
SIZE = Kind("a whole number of bytes from 1 to 2^31", _between(int, 1, 2**31), int)
PORT = Kind("a port from 0 to 65535", _between(int, 0, 65535), int)
SECONDS = Kind("seconds, from 0.1 to 86,400", _between(float, 0.1, 86400.0), float)


def one_of(*words: str) -> Kind:
    """Return the kind of a value from a fixed set of words."""

    def take(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind(" or ".join(map(repr, words)), take)


@dataclass
class Values:
    """Reads values in the order flag, environment, file, default, and keeps their origins.

    Attributes:
        path: The file; None if there is none.
        flags: Values of the command line by key, such as ``targets.dev.paused``; None if not given.
        environ: The environment.
        origins: Where each value came from, by key; filled by `pick`.
    """

    path: Path | None
    flags: Mapping[str, Any]
    environ: Mapping[str, str]
    origins: dict[str, str] = field(default_factory=dict)
    _expanded: dict[str, list[str]] = field(default_factory=dict)

    def pick(self, key: str, table: Mapping[str, Any], kind: Kind, default: Any) -> Any:
        """Return the value of a key.

        Args:
            key: Such as ``targets.dev.uri``; its last part is looked up in `table`.
            table: The file's table that the key is in.
            kind: What it may be.
            default: Its value where none is given.

        Raises:
            ConfigError: If it is of another kind. The value is not in the message.
        """
        variable = variable_of(key)
        if (value := self.flags.get(key)) is not None:
            self.origins[key] = "flag"
            return self._convert(key, value, kind.take, kind)
        text = self.environ.get(variable)
        if text and not is_of_service(variable, text):
            self.origins[key] = f"environment {variable}"
            return self._convert(key, text, lambda given: kind.take(kind.read(given)), kind)
        found = self.pick_file(key, table, kind, default)
        if text:
            self.origins[key] += f"; {variable} is ignored: it is a Kubernetes service's address"
        return found

    def pick_file(self, key: str, table: Mapping[str, Any], kind: Kind, default: Any) -> Any:
        """Return the value of a key that only the file has; see `pick`."""
        leaf = key.rpartition(".")[2]
        if leaf not in table:
            self.origins[key] = DEFAULT
            return default
        self.origins[key] = self.origin_in_file(key)
        return self._convert(key, table[leaf], kind.take, kind)

    def _convert(self, key: str, value: Any, convert: Callable[[Any], Any], kind: Kind) -> Any:
        try:
            return convert(value)
        except ValueError:
            raise self.wrong(key, f"must be {kind.text}; it is {_shown_type(value)}") from None

    def origin_in_file(self, key: str) -> str:
        """Return where a value of the file came from, for people."""
        names = self._expanded.get(key, ())
        return f"file {self.path}" + "".join(f", with ${{{name}}}" for name in names)

    def expand(self, value: Any, key: str = "") -> Any:
        """Return a document of the file with ``${NAME}`` in its texts replaced.

        Raises:
            ConfigError: If a variable is not set, or its name looks like that of a secret.
        """
        if isinstance(value, dict):
            return {k: self.expand(v, f"{key}.{k}" if key else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self.expand(v, f"{key}[{i}]") for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        for name in _VARIABLE.findall(value):
            self._expanded.setdefault(key, []).append(name)
            if _SECRET_NAME.search(name):
                raise self.wrong(
                    key,
                    f"would take in ${{{name}}}, which looks like a secret",
                    hint=f"a password is never part of a value: set {PASSWORD_ENV}, or name "
                    "another variable with password_env=, or a file with password_file=, in the "
                    "target's URI.",
                )
            if name not in self.environ:
                raise self.wrong(
                    key, f"needs ${{{name}}}, which is not set", hint=f"export {name}=…"
                )
        return _VARIABLE.sub(lambda found: self.environ[found[1]], value)

    def demand_keys(self, table: Any, key: str, known: Iterable[str]) -> Mapping[str, Any]:
        """Return a table of the file whose keys are all known.

        Raises:
            ConfigError: If it is no table, or has a key that is unknown; names the nearest one.
        """
        names = sorted(known)
        if not isinstance(table, dict):
            raise self.wrong(key, f"must be a table; it is {_shown_type(table)}")
        for name in table:
            if name in names:
                continue
            where = f"{key}.{name}" if key else name
            hint = f"{did_you_mean(name, names)}There are {', '.join(names)}."
            if _SECRET_NAME.search(name):
                hint = (
                    "secrets are not kept in this file: see password_env= and password_file= of a "
                    "target's URI, and secret_file of [webhook]. Then change the secret."
                )
            raise self.wrong(where, "is no key that this release knows", hint=hint)
        return table

    def demand_list(self, value: Any, key: str) -> list[Any]:
        """Return a list of the file.

        Raises:
            ConfigError: If it is something else.
        """
        if not isinstance(value, list):
            raise self.wrong(key, f"must be a list; it is {_shown_type(value)}")
        return value

    def wrong(self, key: str, message: str, *, hint: str = "") -> ConfigError:
        """Return the error for a key: where its value came from, and what is wrong with it."""
        origin = self.origins.get(key, DEFAULT)
        if origin == DEFAULT and self.path is not None:
            origin = self.origin_in_file(key)
        shown = hint or "see `oml-mlflow config show` for what is configured where."
        return ConfigError(f"{key} ({origin}) {message}. Nothing was changed.", hint=shown)


def variable_of(key: str) -> str:
    """Return a key's variable: OML_MLFLOW_TARGETS_DEV_URI for ``targets.dev.uri``."""
    return ENV_PREFIX + re.sub(r"[^A-Za-z0-9]", "_", key).upper()


def is_of_service(variable: str, value: str) -> bool:
    """Return whether Kubernetes sets a variable so, for a service called ``oml-mlflow-…``."""
    return _SERVICE.fullmatch(f"{variable}={value}") is not None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def anchored(uri: str, folder: Path) -> str:
    """Return an embedded URI with a relative folder resolved against the file's folder.

    So the file names the same database whatever the working directory is, as under cron.
    """
    place = uri.removeprefix(EMBEDDED)
    is_relative = place != uri and bool(place) and not place.startswith(("/", "~"))
    if not is_relative or folder == Path.cwd():
        return uri
    return f"{EMBEDDED}{folder / place}"


def check_uri(uri: str, key: str, values: Values) -> str:
    """Return a target's URI that is well-formed and holds no password.

    Raises:
        ConfigError: Without the URI, which may hold a password.
    """
    if _USERINFO.search(uri):
        raise values.wrong(
            key,
            "holds a password, which would end up in logs; it was not used",
            hint=f"take it out, and set {PASSWORD_ENV}. Then change the password.",
        )
    try:
        address_of(uri)
    except ConfigError as error:
        raise values.wrong(key, f"is not usable: {error.message}", hint=error.hint) from None
    return uri


def _shown_type(value: Any) -> str:
    """Return what a value is, without the value: it might be a secret in the wrong place."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number"}
    kinds |= {dict: "a table", list: "a list"}
    return "empty text" if value == "" else kinds.get(type(value), "a time or date")
