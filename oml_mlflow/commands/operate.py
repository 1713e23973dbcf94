"""Bring every configured target in line with the aliases that its names follow."""

from __future__ import annotations

from oml_mlflow.config.file import Config, load_config
from oml_mlflow.events import Listener, silent
from oml_mlflow.promotion.options import Options
from oml_mlflow.reconciler.loop import Pass, Reconciler


def reconcile(
    *,
    retry: bool = False,
    take_over: bool = False,
    accept_new_geometry: bool = False,
    heal: bool = False,
    config: Config | None = None,
    on_event: Listener = silent,
) -> Pass:
    """Bring every bound name of every configured target in line with its alias, once.

    Args:
        retry: Try again what failed before.
        take_over: Also replace pairs of another registered model or registry.
        accept_new_geometry: See `promote`.
        heal: Repair drift, whatever a target's policy is.
        config: See `promote`.
        on_event: Told of progress.

    Returns:
        The status of every name afterwards, and what was changed or failed.

    Raises:
        RegistryUnreachable, OtherRegistry: Nothing was changed.

    Side effects: Writes models, ledger rows and notes to targets, and tags and descriptions of
    versions to the registry. Calls hooks.
    """
    options = Options(
        retry=retry, take_over=take_over, accept_new_geometry=accept_new_geometry, heal=heal
    )
    return Reconciler(config or load_config(), on_event=on_event).run(options=options)
