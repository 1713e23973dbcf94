"""Verbs that look at all configured targets: status, verify, drift."""

from __future__ import annotations

import sys
from typing import Any

import click

from oml_mlflow import console
from oml_mlflow.cli_fleet import fleet_configuration, name_of_target_option, show_pass
from oml_mlflow.console import config_option, json_option
from oml_mlflow.errors import OmlMlflowError


def status_of_all(as_json: bool) -> None:
    """Show how every bound name of every configured target stands."""
    from oml_mlflow.fleet_text import show_standings
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.remarks import with_remarks
    from oml_mlflow.registry import shown_registry

    config = fleet_configuration()
    found = with_remarks(Reconciler(config).look())
    if as_json:
        show_pass(found.standings, [], as_json)
    else:
        title = f"Targets of {config.path}, registry {shown_registry()}"
        show_standings(title, found.standings)


def verify_all(target: str | None, timeout: float | None, as_json: bool) -> None:
    """Compare every live pair that came from the registry with its own references; exit 3."""
    from oml_mlflow.fleet_text import error_json, progress_line, worst
    from oml_mlflow.promotion.verify import verify
    from oml_mlflow.reconciler.fleet import Fleet

    fleet = Fleet(fleet_configuration(target, timeout))
    pairs: list[tuple[str, str, Any]] = []
    for where, survey in fleet.survey().items():
        if target not in (None, where):
            continue
        if isinstance(survey, OmlMlflowError):
            pairs.append((where, "*", survey))
            continue
        live = [(name, held.observed.live) for name, held in survey.names.items()]
        pairs += [(where, name, entry) for name, entry in live if entry and entry.version]
    codes, results = set(), []
    for number, (where, name, found) in enumerate(pairs, 1):
        error, text, ok = found, "", False
        if not isinstance(found, OmlMlflowError):
            uri = f"models:/{found.registered_model}/{found.version}"
            try:
                with console.progress() as listener:
                    report = verify(uri, fleet.open(where), name, on_event=listener)
                error, ok = None, report.ok
                text = f"{found.origin} (generation {found.generation}), {report.summary}"
            except OmlMlflowError as caught:
                error = caught
        codes.add(0 if ok else error.exit_code if error else 3)
        results.append(
            {
                "target": where,
                "name": name,
                "ok": ok,
                "text": text,
                "error": error_json(error) if error else None,
            }
        )
        if not as_json:
            line = progress_line(number, len(pairs), f"{name} on {where}", text, error, ok=ok)
            console.out.print(line, markup=False)
    if as_json:
        console.show_json({"ok": codes <= {0}, "pairs": results})
    elif not pairs:
        console.out.print("nothing from the registry is live.", markup=False)
    sys.exit(worst(codes))


@click.command()
@name_of_target_option
@config_option
@json_option
def drift(target: str | None, as_json: bool) -> None:
    """List models that were dropped, replaced or altered behind our back; exit 3 if there are any.

    The registry is not asked.
    """
    from oml_mlflow.config.file import HEAL
    from oml_mlflow.fleet_text import error_json, worst
    from oml_mlflow.reconciler.fleet import Fleet

    config = fleet_configuration(target)
    rows, unread = [], []
    for name, survey in Fleet(config).survey().items():
        if target not in (None, name):
            continue
        if isinstance(survey, OmlMlflowError):
            unread.append((name, survey))
            continue
        heals = config.targets[name].drift == HEAL
        step = "the next pass loads it again" if heals else "oml-mlflow apply --heal"
        rows += [
            (name, export_name, text, step)
            for export_name, held in survey.names.items()
            for text in held.drift()
        ]
    columns = ("target", "name", "what", "next_step")
    if as_json:
        console.show_json(
            {
                "drift": [dict(zip(columns, row, strict=True)) for row in rows],
                "unreachable": {name: error_json(error) for name, error in unread},
            }
        )
    else:
        if rows:
            console.show_table("Drift", ("target", "name", "what", "next step"), rows)
        for name, error in unread:
            console.out.print(f"{name} was not looked at: {error}", markup=False)
        checked = len(config.targets) if target is None else 1
        console.out.print(
            f"{len(rows)} changes behind our back in {checked - len(unread)} of {checked} targets.",
            markup=False,
        )
    sys.exit(worst({3} if rows else {error.exit_code for _, error in unread}))
