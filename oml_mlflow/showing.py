"""Showing: what came of changes, told to the registry, where people look."""

from __future__ import annotations

from collections.abc import Sequence

from oml_mlflow.fleet import Fleet, Outcome, View


def show_back(fleet: Fleet, view: View, outcomes: Sequence[Outcome]) -> list[str]:
    """Show in the registry what is live where, and what failed; return what could not be shown."""
    return []
