"""Configuration: `oml_mlflow.toml`, environment variables and flags.

For every value: flag, else environment, else file, else default.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from oml_mlflow.config.bindings import REEMBED, REFUSE, Acceptance, Binding
from oml_mlflow.config.values import (
    COUNT,
    ENV_PREFIX,
    SECONDS,
    SWITCH,
    TEXT,
    Values,
    anchored,
    check_uri,
    did_you_mean,
    is_of_service,
    one_of,
    variable_of,
)
from oml_mlflow.config.webhook import WebhookConfig, read_webhook
from oml_mlflow.documents import damaged, read_toml
from oml_mlflow.errors import ConfigError, InvalidName
from oml_mlflow.names import check_export_name, showable
from oml_mlflow.targets import is_same

REPORT, HEAL = "report", "heal"
DEFAULT_TARGET = "embedded:///database"
DEFAULT_FILE = "oml_mlflow.toml"
CONFIG_ENV = "OML_MLFLOW_CONFIG"

_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODEL, _ALIAS = re.compile(r"[^/:@]+"), re.compile(r"[\w-]+")
_TARGET_SCALARS = {
    "uri": TEXT,
    "allow_tag_bindings": SWITCH,
    "drift": one_of(REPORT, HEAL),
    "paused": SWITCH,
    "timeout_s": SECONDS,
}


@dataclass(frozen=True)
class TargetConfig:
    """A named target, as its owner declares it.

    Attributes:
        name: What bindings call it.
        uri: See `open_target`; never with a password.
        accept: What may be live there; nothing by default.
        allow_tag_bindings: Whether tags of registered models may bind it, inside `accept`.
        after: Targets that must be in sync with a version, and verified, before it takes that one.
        drift: What is done about models changed outside this package: ``report`` or ``heal``.
        paused: Whether reconciling leaves it alone for now.
        timeout_s: How long to wait for the database.
    """

    name: str
    uri: str
    accept: tuple[Acceptance, ...] = ()
    allow_tag_bindings: bool = False
    after: tuple[str, ...] = ()
    drift: str = REPORT
    paused: bool = False
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Config:
    """Everything that can be configured.

    Attributes:
        targets: Named targets.
        bindings: Bindings of the file.
        target: Target of verbs that are about one database: a name in `targets`, or a URI.
        path: The file that was read; None if there is none.
        timeout_s: How long to wait for a target that is not among `targets`.
        concurrency: How many targets are changed at once.
        poll_s: How often a reconciler looks by itself.
        webhook: How deliveries are received.
        origins: Where each value came from, by key, such as ``targets.prod.uri``.
    """

    targets: Mapping[str, TargetConfig] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    target: str = DEFAULT_TARGET
    path: Path | None = None
    timeout_s: float = TargetConfig.timeout_s
    concurrency: int = 4
    poll_s: float = 60.0
    webhook: WebhookConfig = field(default_factory=WebhookConfig)
    origins: Mapping[str, str] = field(default_factory=dict)

    def choose(self, name_or_uri: str | None = None) -> TargetConfig:
        """Return the target of a name or URI; by default the one of verbs about one database.

        Any other URI is a target of its own, which accepts no bindings.

        Raises:
            ConfigError: If there is no such target.
        """
        wanted = name_or_uri or self.target
        if wanted in self.targets:
            return self.targets[wanted]
        if ":" in wanted:
            same = (target for target in self.targets.values() if is_same(target.uri, wanted))
            return next(same, TargetConfig(wanted, wanted, timeout_s=self.timeout_s))
        raise self.unknown(wanted, "Or give a URI such as embedded:///folder.")

    def unknown(self, name: str, hint: str = "") -> ConfigError:
        """Return the error for a target that is not declared."""
        return ConfigError(
            f"there is no target {showable(name)!r} in {self.path or DEFAULT_FILE}. "
            "Nothing was changed.",
            hint=f"{_nearest(name, self.targets)} {hint}".rstrip(),
        )

    def waiting(self, timeout_s: float) -> Config:
        """Return it with another time-out for every target."""
        targets = {n: replace(target, timeout_s=timeout_s) for n, target in self.targets.items()}
        return replace(self, targets=targets, timeout_s=timeout_s)


def load_config(
    path: str | Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Return the configuration. Read-only.

    Args:
        path: Its file; by default the one that OML_MLFLOW_CONFIG names, else `oml_mlflow.toml` in
            the working directory, which need not exist.
        flags: Values with precedence, by key, such as ``targets.dev.paused``; None means not given.
        environ: The environment: OML_MLFLOW_TARGET, OML_MLFLOW_CONCURRENCY, OML_MLFLOW_POLL_S,
            OML_MLFLOW_TARGETS_<NAME>_URI and so on. A name's other characters than letters and
            digits are underscores there.

    Raises:
        ConfigError: If something in it is unknown, of the wrong kind, contradicts itself, or holds
            a secret. Names the key, where its value came from, and what is allowed.
    """
    named = path or environ.get(CONFIG_ENV)
    file = Path(named) if named else Path(DEFAULT_FILE)
    there = bool(named) or file.is_file()
    values = Values(file.absolute() if there else None, flags or {}, environ)
    document = values.expand(_read(file) if there else {})
    known = {"target", "concurrency", "poll_s", "targets", "bindings", "webhook"}
    values.demand_keys(document, "", known)
    targets = _targets(document.get("targets", {}), values)
    target = values.pick("target", document, TEXT, DEFAULT_TARGET)
    if ":" in target:
        check_uri(target, "target", values)
    elif target not in targets:
        text = f"names {showable(target)!r}, which is no configured target"
        hint = f"{_nearest(target, targets)} Or give a URI such as embedded:///folder."
        raise values.wrong("target", text, hint=hint)
    bindings = []
    for i, entry in enumerate(values.demand_list(document.get("bindings", []), "bindings")):
        bindings += _bindings(entry, f"bindings[{i}]", values, targets)
    return Config(
        targets=targets,
        bindings=tuple(bindings),
        target=target,
        path=values.path,
        concurrency=values.pick("concurrency", document, COUNT, Config.concurrency),
        poll_s=values.pick("poll_s", document, SECONDS, Config.poll_s),
        webhook=read_webhook(document.get("webhook", {}), values),
        origins=values.origins,
    )


def _read(path: Path) -> dict[str, Any]:
    hint = f"check the file, or name another one with --config or {CONFIG_ENV}."
    # a TOML error names a place, never a value
    with damaged(f"{path} can't be read, or is no TOML", ConfigError, hint=hint):
        return read_toml(path)


def _targets(tables: Any, values: Values) -> dict[str, TargetConfig]:
    if not isinstance(tables, dict):
        raise values.wrong("targets", "must hold tables, such as [targets.dev]")
    for name in tables:
        if not _TARGET_NAME.fullmatch(name):
            raise values.wrong(
                f"targets.{showable(name)}",
                "is no name of a target: letters, digits, '-', '.' and '_', a letter or digit "
                "first",
            )
    _check_variables(tables, values)
    found = {name: _target(name, table, values) for name, table in tables.items()}
    for one, other in itertools.combinations(found.values(), 2):
        if is_same(one.uri, other.uri):
            raise values.wrong(
                f"targets.{other.name}.uri",
                f"means the database of targets.{one.name} too: each would undo the other's work",
                hint="keep one of the two.",
            )
    for name, target in found.items():
        for before in target.after:
            if before not in found:
                raise values.wrong(
                    f"targets.{name}.after",
                    f"names {showable(before)!r}, which is no configured target",
                    hint=_nearest(before, found),
                )
    _refuse_cycles(found, values)
    return found


def _target(name: str, table: Any, values: Values) -> TargetConfig:
    key = f"targets.{name}"
    values.demand_keys(table, key, {f.name for f in fields(TargetConfig)} - {"name"})
    found = {
        leaf: values.pick(f"{key}.{leaf}", table, kind, getattr(TargetConfig, leaf, None))
        for leaf, kind in _TARGET_SCALARS.items()
    }
    if found["uri"] is None:
        raise ConfigError(
            f"{key} ({values.origin_in_file(key)}) has no uri. Nothing was changed.",
            hint=f'add uri = "embedded:///folder", or set {variable_of(f"{key}.uri")}.',
        )
    check_uri(found["uri"], f"{key}.uri", values)
    if values.path is not None and values.origins[f"{key}.uri"].startswith("file"):
        found["uri"] = anchored(found["uri"], values.path.parent)
    accept = []
    for i, rule in enumerate(values.demand_list(table.get("accept", []), f"{key}.accept")):
        accept.append(_acceptance(rule, f"{key}.accept[{i}]", values))
    _note_file(f"{key}.accept", table, values)
    return TargetConfig(
        name=name, accept=tuple(accept), after=_names(table, key, "after", values), **found
    )


def _acceptance(rule: Any, key: str, values: Values) -> Acceptance:
    values.demand_keys(rule, key, ("model", "alias", "name"))
    for leaf, pattern in rule.items():
        if not isinstance(pattern, str) or not pattern:
            raise values.wrong(f"{key}.{leaf}", "must be a pattern such as 'clip*', or '*' for all")
    if not rule:
        raise values.wrong(
            key, "says nothing", hint='write {model = "*"} if really every model may come.'
        )
    return Acceptance(**rule)


def _names(table: Mapping[str, Any], key: str, leaf: str, values: Values) -> tuple[str, ...]:
    """Return the names of a list, or of a single text."""
    given = table.get(leaf, [])
    names = [given] if isinstance(given, str) else values.demand_list(given, f"{key}.{leaf}")
    if not all(isinstance(name, str) and name for name in names):
        raise values.wrong(f"{key}.{leaf}", "must be a list of names of targets")
    _note_file(f"{key}.{leaf}", table, values)
    return tuple(dict.fromkeys(names))


def _note_file(key: str, table: Mapping[str, Any], values: Values) -> None:
    is_there = key.rpartition(".")[2] in table
    values.origins[key] = values.origin_in_file(key) if is_there else "default"


def _refuse_cycles(targets: Mapping[str, TargetConfig], values: Values) -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circle = " after ".join((*way[way.index(name) :], name))
            raise values.wrong(
                f"targets.{name}.after",
                f"goes in a circle: {circle}; none of them could ever take a version",
                hint="take one of them out.",
            )
        if name not in done:
            for before in targets[name].after:
                visit(before, (*way, name))
            done.add(name)

    for name in targets:
        visit(name, ())


def _check_variables(targets: Mapping[str, Any], values: Values) -> None:
    """Raise ConfigError for a target's variable that fits no target, or two."""
    owners: dict[str, list[str]] = {}
    for name in targets:
        for leaf in _TARGET_SCALARS:
            owners.setdefault(variable_of(f"targets.{name}.{leaf}"), []).append(name)
    for variable, value in sorted(values.environ.items()):
        is_ours = variable.startswith(f"{ENV_PREFIX}TARGETS_") and value
        if not is_ours or is_of_service(variable, value):
            continue
        if len(owners.get(variable, ())) != 1:
            known = ", ".join(sorted(owners)) or "none, since the file has no targets"
            reason = "fits two targets" if variable in owners else "fits no configured target"
            raise ConfigError(
                f"{variable} {reason}. Nothing was changed.",
                hint=f"{did_you_mean(variable, owners)}There can be {known}.",
            )


def _bindings(
    entry: Any, key: str, values: Values, targets: Mapping[str, TargetConfig]
) -> list[Binding]:
    values.demand_keys(
        entry, key, ("model", "alias", "target", "targets", "name", "on_new_geometry")
    )
    model, alias = (
        values.pick_file(f"{key}.{leaf}", entry, TEXT, "") for leaf in ("model", "alias")
    )
    if not _MODEL.fullmatch(model):
        raise values.wrong(f"{key}.model", "must be the name of a registered model")
    if not _ALIAS.fullmatch(alias):
        raise values.wrong(f"{key}.alias", "must be an alias of it, such as 'prod'")
    if ("target" in entry) == ("targets" in entry):
        raise values.wrong(key, "must name either its target or its targets")
    leaf = "target" if "target" in entry else "targets"
    where = _names(entry, key, leaf, values)
    if not where:
        raise values.wrong(f"{key}.{leaf}", "names no target")
    for name in where:
        if name not in targets:
            raise values.wrong(
                f"{key}.{leaf}",
                f"names {showable(name)!r}, which is no configured target",
                hint=_nearest(name, targets),
            )
    export_name = values.pick_file(f"{key}.name", entry, TEXT, model)
    try:
        export_name = check_export_name(export_name).upper()
    except InvalidName as error:
        given = "" if "name" in entry else ", by default the model's name,"
        raise values.wrong(
            f"{key}.name", f"{given} {error.message}".strip(), hint=error.hint
        ) from None
    policy = values.pick_file(f"{key}.on_new_geometry", entry, TEXT, REFUSE)
    if policy not in (REFUSE, REEMBED):
        raise values.wrong(f"{key}.on_new_geometry", f"must be {REFUSE!r} or {REEMBED!r}")
    return [Binding(target, export_name, model, alias, on_new_geometry=policy) for target in where]


def _nearest(name: str, targets: Mapping[str, Any]) -> str:
    return f"{did_you_mean(name, targets)}Configured are: {', '.join(sorted(targets)) or 'none'}."
