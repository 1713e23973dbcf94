"""The Oracle target: a schema of Oracle Database 23ai (from 23.7) or 26ai."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import quote

import oracledb

from oml_mlflow.errors import ConfigError
from oml_mlflow.graph.profiles import RAW, Profile
from oml_mlflow.parity.policy import ParityPolicy
from oml_mlflow.parity.probes import Probe
from oml_mlflow.planning.observed import Survey
from oml_mlflow.planning.plan import Plan
from oml_mlflow.planning.records import (
    COLUMN,
    KEPT_COLUMN,
    UNVERIFIED,
    Dependant,
    now,
    this_process,
)
from oml_mlflow.promotion.target import KEPT_GENERATIONS
from oml_mlflow.secrets import Secret
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.column_statements import embedded
from oml_mlflow.targets.oracle.connection import Database, connect, limit_calls
from oml_mlflow.targets.oracle.errors import from_driver, translated
from oml_mlflow.targets.oracle.preflight import NEWER, demand_release, release
from oml_mlflow.targets.oracle.script import promotion_script
from oml_mlflow.targets.oracle.session import OracleSession
from oml_mlflow.targets.oracle.settings import PREFIX, OracleSettings
from oml_mlflow.targets.oracle.survey import read_survey

MODULE = "oml_mlflow"
# V$SESSION: MODULE, ACTION and CLIENT_INFO hold 64 bytes
_SHOWN_BYTES = 64
_PUT_BACK = ("call_timeout", "autocommit", "inputtypehandler", "outputtypehandler")
_COLUMN = re.compile(r"(?:[\w$#]+\.)?[\w$#]+\.[\w$#]+")
_GENERAL = "onnxruntime"

_log = logging.getLogger(__name__)


class OracleTarget:
    """A schema of an Oracle database.

    A `session` makes a connection of its own, uses the one passed in, or takes one from the pool.

    Args:
        settings: How to connect; not together with the others.
        connection: An open connection of python-oracledb. It is never closed, and its settings are
            restored. It must have no transaction in progress, since loading commits.
        pool: A pool of python-oracledb; its connections are released.
        keep: How many generations before the live one stay loaded, unless `settings` says it.
        policy: How close vectors must be to their references, unless `settings` says it.
        call_timeout_s: How long one call may take, unless `settings` says it.
    """

    is_probed = True

    def __init__(
        self,
        settings: OracleSettings | None = None,
        *,
        connection: Any = None,
        pool: Any = None,
        keep: int = KEPT_GENERATIONS,
        policy: ParityPolicy | None = None,
        call_timeout_s: float = 900.0,
    ) -> None:
        given = [value for value in (settings, connection, pool) if value is not None]
        if len(given) != 1:
            raise ConfigError(
                f"an Oracle target needs settings, a connection or a pool; {len(given)} of them "
                "were given.",
                hint='use OracleTarget.from_uri("oracle://user@host:1521/service"), '
                "OracleTarget(connection=...) or OracleTarget(pool=...).",
            )
        self._settings, self._connection, self._pool = settings, connection, pool
        self.keep = settings.keep if settings else keep
        self.policy = settings.policy if settings else policy or ParityPolicy()
        self._call_timeout_s = settings.call_timeout_s if settings else call_timeout_s

    @classmethod
    def from_uri(cls, uri: str, *, timeout_s: float | None = None) -> OracleTarget:
        """Return the target of an ``oracle://user@host:1521/service`` URI.

        Args:
            uri: See `OracleSettings.from_uri`; never with a password.
            timeout_s: How long to wait for a connection.
        """
        return cls(OracleSettings.from_uri(uri, timeout_s=timeout_s))

    @cached_property
    def uri(self) -> str:
        """Address without secrets; cached, since a closed connection has none."""
        if self._settings is not None:
            return self._settings.uri
        source = self._connection if self._connection is not None else self._pool
        with translated("using what was handed in", hint="hand in one that is open."):
            user, where = str(source.username or ""), str(source.dsn or "").rpartition("@")[2]
        if where.startswith("("):
            where = " ".join(re.findall(r"\((?:HOST|PORT|SERVICE_NAME)=([^)]*)\)", where, re.I))
        return f"{PREFIX}{quote(user)}@{quote(where, safe='/:')}"

    def __repr__(self) -> str:
        """Return its URI."""
        return f"OracleTarget({self.uri!r})"

    @contextlib.contextmanager
    def session(
        self, purpose: str, *, create: bool = True, missing_ok: bool = False
    ) -> Iterator[OracleSession]:
        """Hold a connection; see `Target.session`. `missing_ok` has no effect here.

        V$SESSION shows MODULE ``oml_mlflow``, the purpose as ACTION, this process as CLIENT_INFO.

        Raises:
            LoginRefused: If user or password are wrong.
            TargetUnreachable: If there is no such database.
            TargetUnsupported: If something may be written, and it is too old for pipelines.
            SchemaNewer: If a newer release made our tables.
            ConfigError: If there is no password, or the connection passed in has a transaction in
                progress.
        """
        with self._open() as connection, self._prepared(connection, purpose):
            db = Database(connection, self.uri, can_write=create)
            if create:
                demand_release(db)
            db.refuse_newer()
            try:
                yield OracleSession(db)
            except BaseException:
                db.rollback()
                raise

    def survey(self) -> Survey:
        """Return what is held under all export names, with one query; see `Target.survey`."""
        purpose = "a survey"
        with self._open() as connection, self._prepared(connection, purpose):
            return read_survey(Database(connection, self.uri, can_write=False))

    @property
    def swaps_columns(self) -> bool:
        """Return False: DDL commits, and what holds a column's name is the application's."""
        return False

    @property
    def window(self) -> str:
        """What a reader may see while a pair is swapped."""
        return (
            "     The swap is one statement, but not one transaction: between its two renames\n"
            "     the live models are of two generations, and until its grants ran, others may\n"
            "     be unable to use the new ones. SELECT GENERATION, PHASE FROM OML_MLFLOW_LIVE\n"
            "     tells a reader which generation is whole, unless PHASE is 'swapping'.\n"
            "     A script's views of stored vectors follow right after; until then they are old."
        )

    def script(self, plan: Plan) -> str:
        """Return what a plan would run, for SQL*Plus."""
        if plan.work is None:
            return f"-- {plan.summary()}\n"
        # a script can't compare vectors
        entry = replace(plan.work.entry, verification=UNVERIFIED, promoted_by="SQL*Plus")
        work = replace(plan.work, entry=entry, holder="SQL*Plus", started_at=now())
        models = plan.observed.models
        kept = [models[name] for name in work.incoming.values() if name in models]
        files = {model.name: plan.paths[model.side] for model in plan.uploads}
        return promotion_script(work, [*plan.uploads, *kept], files, plan.observed.dependants)

    def rank_profiles(self, stored: Sequence[str], version: str) -> list[str]:
        """Return the stored profiles that may fit a database version, best first.

        One with its own decode operator follows the profile that it was made from. A pair for any
        runtime comes last, since it has operators that no database documents. One that takes pixels
        is left out, since SQL can only pass bytes.
        """
        ranks = ["oracle-23.7", "oracle-26ai"]
        if release(version) >= NEWER:
            ranks.reverse()
        rank = {name: number for number, name in enumerate(ranks)}
        rank[_GENERAL] = len(stored) + len(ranks)

        def order(name: str) -> tuple[int, bool]:
            base, _, own = name.partition("+")
            return rank.get(base, len(ranks)), bool(own)

        return sorted((n for n in stored if n.partition("+")[2] != RAW), key=order)

    def skip_reason(self, probe: Probe, profile: Profile) -> str:
        """Return why a golden probe can't be sent to it, or nothing."""
        if not isinstance(probe.value, bytes):
            return ""
        is_png = probe.value.startswith(b"\x89PNG")
        encoding = "PNG" if is_png else "JPEG"
        if encoding not in profile.encodings:
            return f"profile {profile.name} takes {', '.join(profile.encodings)}, not {encoding}"
        return ""

    def reembedding(self, dependant: Dependant) -> str:
        """Return the SQL that re-embeds what depends on a live model; nothing is run."""
        if dependant.kind == "view":
            return f"-- {dependant.name} needs nothing: a view calls the model when it is read"
        if dependant.kind == KEPT_COLUMN:
            return f"-- {dependant.beside} beside {dependant.name} is not in use"
        if dependant.kind != COLUMN:
            return (
                f"-- makes {dependant.name} anew; replace the preference by one that names "
                f"{dependant.model}\n"
                f"ALTER INDEX {dependant.name} REBUILD PARAMETERS('REPLACE vectorizer <pref>');"
            )
        if not _COLUMN.fullmatch(dependant.name):
            raise ConfigError(f"{dependant.name!r} is no column.", hint="write it as TABLE.COLUMN.")
        set_it = f"SET {dependant.stored} = {embedded(dependant)}"
        update = f"UPDATE {dependant.table} {set_it}"
        return f"{update}\n WHERE {dependant.source or '<source>'} IS NOT NULL;\nCOMMIT;"

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        if self._connection is not None:
            with translated("using the connection that was handed in"):
                _log.debug("using a connection to %s", self.uri)
            yield self._connection
            return
        if self._pool is not None:
            with translated(f"taking a connection from the pool of {self.uri}"):
                connection = self._pool.acquire()
        else:
            connection = self._connect()
        try:
            yield connection
        finally:
            with contextlib.suppress(oracledb.Error, OSError):
                connection.close()  # or given back to its pool

    def _connect(self) -> Any:
        settings = self._settings
        assert settings is not None  # noqa: S101
        password, wallet_password = settings.find_password(), settings.find_wallet_password()
        options: dict[str, Any] = {
            "config_dir": settings.config_dir or None,
            "wallet_location": settings.wallet_location or None,
            "wallet_password": wallet_password.reveal() if wallet_password else None,
        }
        try:
            return connect(
                settings.connect_timeout_s,
                user=settings.user,
                password=password.reveal(),
                dsn=settings.dsn,
                **{key: value for key, value in options.items() if value is not None},
            )
        except (oracledb.Error, OSError, ValueError) as error:
            step = f"connecting to {settings.uri}"
            shown = _without(error, password, wallet_password)
            failure = from_driver(shown, step, state="Nothing was changed.")
        # raised out here, without cause or context, whose text or frames might hold a secret
        raise failure

    @contextlib.contextmanager
    def _prepared(self, connection: Any, purpose: str) -> Iterator[None]:
        """Set up a connection for a session; restore it afterwards if it is not ours."""
        is_ours = self._settings is not None
        with translated(f"using a connection to {self.uri}", hint="hand in one that is open."):
            is_busy = not is_ours and connection.transaction_in_progress
            before = {name: getattr(connection, name) for name in _PUT_BACK}
        if is_busy:
            raise ConfigError(
                f"the connection to {self.uri} has a transaction in progress, which would be "
                "committed: loading a model commits. Nothing was run.",
                hint="commit or roll back first, or hand in another connection.",
            )
        connection.inputtypehandler = connection.outputtypehandler = None
        connection.autocommit = False
        limit_calls(connection, self._call_timeout_s)
        shown: tuple[Any, ...] = (None, None, None)
        if not is_ours:
            [shown] = Database(connection, self.uri, can_write=False).rows(
                sql.READ_CONTEXT, "reading what V$SESSION shows"
            )
        _show(connection, MODULE, purpose, this_process())
        try:
            yield
        finally:
            if not is_ours and connection.is_healthy():  # see `limit_calls`
                with contextlib.suppress(oracledb.Error, OSError):
                    _show(connection, *shown)
                    for name, value in before.items():
                        setattr(connection, name, value)


def _show(connection: Any, module: str | None, action: str | None, client_info: str | None) -> None:
    connection.module = _cut(module)
    connection.action = _cut(action)
    connection.clientinfo = _cut(client_info)


def _cut(text: str | None) -> str | None:
    # None clears; for an empty text the driver sends a byte that its length does not count
    return text.encode()[:_SHOWN_BYTES].decode(errors="ignore") if text else None


def _without(error: BaseException, *secrets: Secret | None) -> BaseException:
    """Return an error whose text holds none of the secrets."""
    text = str(error)
    for secret in filter(None, secrets):
        text = secret.redact(text)
    return type(error)(text)
