"""Verbs that change all configured targets, or one name of one: apply, reconcile, pin, unpin."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oml_mlflow import console
from oml_mlflow.console import config_option, json_option
from oml_mlflow.errors import ConfigError, OmlMlflowError
from oml_mlflow.names import showable

if TYPE_CHECKING:
    from oml_mlflow.config.file import Config
    from oml_mlflow.promotion.apply import Promotion
    from oml_mlflow.promotion.options import Terms
    from oml_mlflow.reconciler.fleet import Outcome, View
    from oml_mlflow.reconciler.loop import Pass
    from oml_mlflow.reconciler.status import FleetPlan, Standing

_F = TypeVar("_F", bound=Callable[..., Any])
CHANGES_PENDING = 2

model_option = click.option(
    "--model", "models", multiple=True, help="Only bindings of this registered model; repeatable."
)
name_of_target_option = click.option("--target", help="Only this configured target.")
_required_target_option = click.option(
    "--target", help="Configured target; by default the configuration's."
)


def terms_options(function: _F) -> _F:
    """Give a verb the options that allow what is not usual."""
    for flag, text in (
        ("--heal", "Load again what was changed behind our back, whatever the policy is."),
        ("--accept-new-geometry", "Go on where stored vectors can't be compared with new ones."),
        ("--take-over", "Let names change hands: from another model, registry, or others."),
        ("--retry", "Try again what failed before."),
    ):
        function = click.option(flag, is_flag=True, help=text)(function)
    return function


def fleet_configuration(target: str | None = None, timeout: float | None = None) -> Config:
    """Return the configuration, which must have targets, and the one named.

    Raises:
        ConfigError: If it has none, or not that one.
    """
    config = console.configuration()
    if not config.targets:
        place = config.path or "oml_mlflow.toml, which is not there"
        raise ConfigError(
            f"there are no targets in {place}. Nothing was changed.",
            hint="add [targets.NAME] with a uri and what it accepts, or name a MODEL_URI and a "
            "--target.",
        )
    if target is not None and target not in config.targets:
        from oml_mlflow.config.values import did_you_mean

        raise ConfigError(
            f"there is no target {showable(target)!r} in {config.path}. Nothing was changed.",
            hint=f"{did_you_mean(target, config.targets)}Configured are: "
            f"{', '.join(sorted(config.targets))}.",
        )
    if timeout is None:
        return config
    waiting = {name: replace(t, timeout_s=timeout) for name, t in config.targets.items()}
    return replace(config, targets=waiting)


def plan_all(
    target: str | None,
    timeout: float | None,
    models: Sequence[str],
    terms: Terms,
    *,
    out: str | None,
    detailed: bool,
    as_json: bool,
) -> None:
    """Show what would be changed in all targets. Nothing is."""
    from oml_mlflow.fleet_text import exit_code, show_plan
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.plan_file import write_plan
    from oml_mlflow.reconciler.remarks import with_remarks

    reconciler = Reconciler(fleet_configuration(target, timeout))
    found = with_remarks(reconciler.look(models or None, targets=_only(target), terms=terms))
    if out:
        write_plan(Path(out), found, terms, target or "", models)
    if as_json:
        console.show_json(found.to_json())
    else:
        show_plan(found)
        if out:
            console.out.print(f"Saved. Next: oml-mlflow apply {out}", markup=False)
    if detailed:
        pending = CHANGES_PENDING if found.changes else 0
        sys.exit(1 if exit_code((), found.standings) else pending)


@click.command()
@click.argument("plan_file", required=False, type=click.Path(exists=True, dir_okay=False))
@name_of_target_option
@model_option
@terms_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
@json_option
def apply(
    plan_file: str | None,
    target: str | None,
    models: tuple[str, ...],
    yes: bool,
    as_json: bool,
    **allowed: bool,
) -> None:
    """Make every bound name what its alias says; or run exactly what `plan --out` saved.

    A PLAN_FILE is refused once anything that it is about has moved.
    """
    from oml_mlflow.fleet_text import exit_code, show_plan
    from oml_mlflow.promotion.options import Terms
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.plan_file import read_plan, waiting_in

    terms, saved = Terms(**allowed), None
    if plan_file:
        if target or models or any(allowed.values()):
            raise click.UsageError("a plan file says itself what is meant: give no other options.")
        saved = read_plan(Path(plan_file))
        terms, target, models = saved.terms, saved.target or None, saved.models
    config = fleet_configuration(target)
    with console.progress() as listener:
        reconciler = Reconciler(config, on_event=listener)
        view = reconciler.look(models or None, targets=_only(target), terms=terms)
        found = view.plan
        if saved is not None:
            saved.demand_fresh(found)
    waiting = waiting_in(found)
    if not found.changes:
        show_pass(found.standings, [], as_json)
        if not as_json:
            show_plan(found)
        sys.exit(exit_code((), found.standings))
    if saved is None and not yes:
        _ask(found, as_json)
    only = {change.key for change in found.changes} | set(waiting)
    _run(config, terms, target, models, as_json, only=only, view=view)


def _ask(plan: FleetPlan, as_json: bool) -> None:
    """Ask whether to go on; exit if not, UsageError if nobody can be asked."""
    from oml_mlflow.fleet_text import show_plan

    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            f"{plan.summary()} Nobody can be asked. Say --yes, or apply a plan file, which "
            "`oml-mlflow plan --out FILE` makes."
        )
    show_plan(plan)
    if not click.confirm("Apply?"):
        console.out.print("Nothing was changed.")
        sys.exit(1)


def _run(
    config: Config,
    terms: Terms,
    target: str | None,
    models: Sequence[str],
    as_json: bool,
    *,
    only: set[tuple[str, str, str]] | None = None,
    view: View | None = None,
) -> None:
    """Run one pass, show its outcomes as they come, and exit with the code of the worst."""
    from oml_mlflow.fleet_text import Outcomes
    from oml_mlflow.reconciler.loop import Reconciler

    show = Outcomes(len(only or ()), quiet=as_json)
    with console.progress() as listener:
        reconciler = Reconciler(config, on_event=listener)
        done = reconciler.run(
            models or None,
            targets=_only(target),
            terms=terms,
            only=only,
            view=view,
            on_outcome=show,
        )
    if not as_json:
        show.end(done)
    _exit(done, as_json)


def _exit(done: Pass, as_json: bool) -> None:
    """Exit with the code of the worst."""
    from oml_mlflow.fleet_text import exit_code

    show_pass(done.standings, done.outcomes, as_json)
    sys.exit(exit_code(done.outcomes, done.standings))


def show_pass(standings: Sequence[Standing], outcomes: Sequence[Outcome], as_json: bool) -> None:
    """Write standings and outcomes to stdout as one JSON document, if that is asked for."""
    from oml_mlflow.fleet_text import outcome_json

    if as_json:
        console.show_json(
            {
                "outcomes": [outcome_json(outcome) for outcome in outcomes],
                "standings": [standing.to_json() for standing in standings],
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
    """Make every bound name what its alias says, without asking; once, or again and again."""
    from oml_mlflow.promotion.options import Terms

    if once == watch:
        raise click.UsageError("say --once or --watch, one of the two.")
    if watch and (models or as_json):
        raise click.UsageError("--watch is about all bindings, and writes lines.")
    config, terms = fleet_configuration(), Terms(retry=retry)
    if once:
        _run(config, terms, None, models, as_json)
    _watch(config, terms, interval)


def _watch(config: Config, terms: Terms, interval: float | None) -> None:
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
    Reconciler(config).watch(stop, interval_s=interval, terms=terms, on_pass=_show_watched)


def _show_watched(found: Pass | OmlMlflowError) -> None:
    if isinstance(found, OmlMlflowError):
        console.show_error(found)
        return
    from oml_mlflow.fleet_text import Outcomes

    show = Outcomes(len(found.outcomes))
    for outcome in found.outcomes:
        show(outcome)
    if found.outcomes:
        show.end(found)


@click.command()
@click.argument("name")
@_required_target_option
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
@_required_target_option
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
    terms: Terms,
    as_json: bool,
) -> Promotion | None:
    """Roll a name of a configured target back; show what became of its alias.

    Returns:
        What was done to a name that is pinned now, or follows nothing; None if an alias was moved.
    """
    from oml_mlflow.commands.rollback import rollback_configured as run

    config = fleet_configuration(target)
    with console.progress() as listener:
        done = run(
            config, target, name, to=to, pinned=pin, reason=reason, terms=terms, on_event=listener
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


def configured_name(config: Config, target: str | None) -> str:
    """Return the name of the configured target that --target or the configuration means.

    Raises:
        ConfigError: If that is a URI that no configured target has.
    """
    chosen = config.choose(target).name
    if chosen in config.targets:
        return chosen
    raise ConfigError(
        f"which target is meant? There are {', '.join(sorted(config.targets))}. Nothing was "
        "changed.",
        hint="say --target NAME, or set target in the configuration.",
    )


def _only(target: str | None) -> list[str] | None:
    return [target] if target else None
