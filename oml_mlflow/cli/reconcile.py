"""Verbs on configured targets: reconcile, pin, unpin, drift; passes, status."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import (
    config_option,
    configured_name,
    fleet_configuration,
    json_option,
    model_option,
    name_of_target_option,
    only_target,
    required_target_option,
)
from oml_mlflow.errors import OmlMlflowError

if TYPE_CHECKING:
    from oml_mlflow.config.file import Config
    from oml_mlflow.promotion.apply import Promotion
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.reconciler.fleet import Outcome, View
    from oml_mlflow.reconciler.loop import Pass
    from oml_mlflow.reconciler.status import Status


def run_pass(
    config: Config,
    options: Options,
    target: str | None,
    models: Sequence[str],
    as_json: bool,
    *,
    only: set[tuple[str, str, str]] | None = None,
    view: View | None = None,
) -> None:
    """Run one pass, show each outcome, and exit with the code of the worst."""
    from oml_mlflow.cli.text import Outcomes
    from oml_mlflow.reconciler.loop import Reconciler

    show = Outcomes(len(only or ()), quiet=as_json)
    with console.progress() as listener:
        reconciler = Reconciler(config, on_event=listener)
        done = reconciler.run(
            models or None,
            targets=only_target(target),
            options=options,
            only=only,
            view=view,
            on_outcome=show,
        )
    if not as_json:
        show.end(done)
    _exit(done, as_json)


def _exit(done: Pass, as_json: bool) -> None:
    """Show the pass as JSON if asked for, and exit with the code of the worst."""
    from oml_mlflow.cli.text import exit_code

    show_pass(done.statuses, done.outcomes, as_json)
    sys.exit(exit_code(done.outcomes, done.statuses))


def show_pass(statuses: Sequence[Status], outcomes: Sequence[Outcome], as_json: bool) -> None:
    """Write statuses and outcomes to stdout as one JSON document, if asked for."""
    from oml_mlflow.cli.text import outcome_json

    if as_json:
        console.show_json(
            {
                "outcomes": [outcome_json(outcome) for outcome in outcomes],
                "standings": [status.to_json() for status in statuses],
            }
        )


@click.command()
@click.option("--once", is_flag=True, help="One pass.")
@click.option("--watch", is_flag=True, help="Pass after pass, until SIGTERM or Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    help="Seconds between passes of --watch; poll_s of the configuration by default.",
)
@model_option
@click.option("--retry", is_flag=True, help="Try again what failed before.")
@config_option
@json_option
def reconcile(
    once: bool,
    watch: bool,
    interval: float | None,
    models: tuple[str, ...],
    retry: bool,
    as_json: bool,
) -> None:
    """Make every bound name what its alias says, without asking; once or in a loop."""
    from oml_mlflow.promotion.options import Options

    if once == watch:
        raise click.UsageError("give either --once or --watch.")
    if watch and (models or as_json):
        raise click.UsageError("--watch is about all bindings, and writes lines.")
    config, options = fleet_configuration(), Options(retry=retry)
    if once:
        run_pass(config, options, None, models, as_json)
    _watch(config, options, interval)


def _watch(config: Config, options: Options, interval: float | None) -> None:
    from oml_mlflow.reconciler.loop import Reconciler

    stop = threading.Event()

    def ask_to_stop(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.err.print("stopping after this pass; once more to stop at once.")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    console.err.print(f"watching {len(config.targets)} targets.")
    Reconciler(config).watch(stop, interval_s=interval, options=options, on_pass=_show_watched)


def _show_watched(found: Pass | OmlMlflowError) -> None:
    if isinstance(found, OmlMlflowError):
        console.show_error(found)
        return
    from oml_mlflow.cli.text import Outcomes

    show = Outcomes(len(found.outcomes))
    for outcome in found.outcomes:
        show(outcome)
    if found.outcomes:
        show.end(found)


@click.command()
@click.argument("name")
@required_target_option
@click.option("--reason", default="", help="Why, for whoever reads `status`.")
@config_option
def pin(name: str, target: str | None, reason: str) -> None:
    """Keep export NAME of a target as it is, whatever its alias says, until `unpin`."""
    from oml_mlflow.reconciler.pins import pin as run

    config = fleet_configuration(target)
    chosen = configured_name(config, target)
    run(config, chosen, name, reason)
    console.out.print(f"{name.upper()} on {chosen} is pinned.", markup=False)


@click.command()
@click.argument("name")
@required_target_option
@config_option
def unpin(name: str, target: str | None) -> None:
    """Let export NAME of a target follow its alias again."""
    from oml_mlflow.reconciler.pins import unpin as run

    config = fleet_configuration(target)
    chosen = configured_name(config, target)
    was = run(config, chosen, name)
    text = "follows its alias again. Next: oml-mlflow apply." if was else "was not pinned."
    console.out.print(f"{name.upper()} on {chosen} {text}", markup=False)


def roll_back_bound(
    target: str,
    name: str,
    to: int | None,
    pin: bool,
    reason: str,
    options: Options,
    as_json: bool,
) -> Promotion | None:
    """Roll back a name of a configured target; None if its alias was moved, and that shown."""
    from oml_mlflow.commands.rollback import rollback_configured as run

    config = fleet_configuration(target)
    with console.progress() as listener:
        done = run(
            config,
            target,
            name,
            to=to,
            pinned=pin,
            reason=reason,
            options=options,
            on_event=listener,
        )
    if done.changed is None:
        if done.pinned and not as_json:
            why = f", since {done.reason}" if done.reason else ""
            console.out.print(f"{name.upper()} on {target} is pinned{why}.", markup=False)
        return done.promotion
    if not as_json:
        text = f"{done.alias} points to version {done.version} again."
        console.out.print(text, markup=False)
    if not as_json:
        _show_watched(done.changed)
    _exit(done.changed, as_json)
    return None


def status_of_all(as_json: bool) -> None:
    """Show the status of every bound name of every configured target."""
    from oml_mlflow.answering import shown_registry
    from oml_mlflow.cli.text import show_statuses
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.remarks import with_remarks

    config = fleet_configuration()
    found = with_remarks(Reconciler(config).look())
    if as_json:
        show_pass(found.statuses, [], as_json)
    else:
        title = f"Targets of {config.path}, registry {shown_registry()}"
        show_statuses(title, found.statuses)


def verify_all(target: str | None, timeout: float | None, as_json: bool) -> None:
    """Compare every live pair that came from the registry with its own references; exit 3."""
    from oml_mlflow.cli.text import error_json, progress_line, worst
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
    """List models dropped, replaced or altered outside this package; exit 3 if there are any.

    The registry is not asked.
    """
    from oml_mlflow.cli.text import error_json, worst
    from oml_mlflow.config.file import HEAL
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
            console.out.print(f"{name} was not checked: {error}", markup=False)
        checked = len(config.targets) if target is None else 1
        console.out.print(
            f"{len(rows)} changes outside this package in {checked - len(unread)} of {checked} "
            "targets.",
            markup=False,
        )
    sys.exit(worst({3} if rows else {error.exit_code for _, error in unread}))
