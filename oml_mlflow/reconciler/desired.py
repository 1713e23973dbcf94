"""Desired state: what the registry says about bound models, in few calls."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from oml_mlflow.config.bindings import TAG, Binding
from oml_mlflow.errors import OmlMlflowError, OtherRegistry
from oml_mlflow.planning.observed import Survey
from oml_mlflow.registry import versions as registry
from oml_mlflow.registry.versions import BIND_TAG, Registered

_TAG_BINDING = re.compile(
    r"\s*(?P<alias>[\w-]+)\s*(?:->|→)\s*(?P<target>[\w.-]+)(?:\s+as\s+(?P<name>[\w$#]+))?\s*"
)


@dataclass(frozen=True)
class Desired:
    """What the registry says.

    Attributes:
        registry: Which registry it is; see `registry_id`.
        models: Registered models by name; None for one that is not there.
        bindings: Bindings by tags of registered models.
        unread: Tags that can't be parsed, by model.
        is_empty: Whether it holds no registered model at all.
    """

    registry: str
    models: Mapping[str, Registered | None]
    bindings: tuple[Binding, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    is_empty: bool = False


def read_desired(models: Collection[str], *, with_tags: bool = False) -> Desired:
    """Return what the registry says about models. Read-only.

    It costs one call for the registry itself, one for each model, and one for all that are bound by
    a tag. Only where none of the models is there, one more tells an empty registry from others.

    Args:
        models: Registered models that are bound elsewhere.
        with_tags: Also look for models that are bound by a tag.

    Raises:
        RegistryUnreachable: If it does not answer, or with an error.
    """
    identity = registry.registry_id()
    found: dict[str, Registered | None] = {}
    bindings: list[Binding] = []
    unread: dict[str, str] = {}
    for tagged in registry.list_tagged(identity) if with_tags else ():
        found[tagged.name] = tagged
        read = read_tag(tagged.name, tagged.tags[BIND_TAG])
        if read is None:
            unread[tagged.name] = tagged.tags[BIND_TAG]
        else:
            bindings += read
    for name in sorted(set(models) - set(found)):
        found[name] = registry.get_registered(name, identity)
    nothing = bool(found) and not any(found.values()) and registry.is_empty()
    return Desired(identity, found, tuple(bindings), unread, nothing)


def read_tag(model: str, text: str) -> list[Binding] | None:
    """Return what a tag binds, such as ``prod -> db1 as CLIP; dev -> db2``; None if unreadable."""
    found = []
    for part in filter(str.strip, text.split(";")):
        parts = _TAG_BINDING.fullmatch(part)
        if parts is None:
            return None
        name = (parts["name"] or model).upper()
        found.append(Binding(parts["target"], name, model, parts["alias"], TAG))
    return found


def demand_registry(
    desired: Desired,
    surveys: Mapping[str, Survey | OmlMlflowError],
    bindings: Sequence[Binding],
) -> None:
    """Raise OtherRegistry if the registry is empty, or not the one that ledgers name."""
    owned = {}
    for binding in bindings:
        survey = surveys[binding.target]
        held = survey.names.get(binding.name) if isinstance(survey, Survey) else None
        live = held.live if held else None
        if live is not None and live.registered_model and live.registry:
            owned[f"{binding.name} on {binding.target}"] = live.registry.partition(":")[0]
    if owned and desired.is_empty:
        raise OtherRegistry(
            f"the registry holds no model at all, but {', '.join(owned)} came from one. Nothing "
            "was changed.",
            hint="check MLFLOW_TRACKING_URI.",
        )
    others = [place for place, known in owned.items() if known != desired.registry]
    if others:
        raise OtherRegistry(
            f"this is not the registry that {', '.join(others)} came from. Nothing was changed.",
            hint="check MLFLOW_TRACKING_URI; if the registry was moved or re-created on purpose, "
            "run `oml-mlflow apply --take-over`.",
        )
