"""Configuration: targets and bindings, from flags, the environment, and `oml_mlflow.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from oml_mlflow.bindings import Acceptance, Binding

REPORT, HEAL = "report", "heal"
DEFAULT_TARGET = "embedded:///database"


@dataclass(frozen=True)
class TargetConfig:
    """A named target, as its owner declares it.

    Attributes:
        name: What bindings call it.
        uri: See `open_target`; never with a password.
        accept: What may be live there; nothing by default.
        allow_tag_bindings: Whether tags of registered models may bind it, inside `accept`.
        after: Targets that must be in sync with a version, and verified, before it takes that one.
        drift: What is done about models that were changed behind our back: ``report`` or ``heal``.
        paused: Whether nothing is done here for now.
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
        concurrency: How many targets are changed at once.
        poll_s: How often a reconciler looks by itself.
    """

    targets: Mapping[str, TargetConfig] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    target: str = DEFAULT_TARGET
    path: Path | None = None
    concurrency: int = 4
    poll_s: float = 60.0
