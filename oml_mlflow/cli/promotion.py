"""Verbs that change what is live: plan, apply, promote, rollback, drop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import (
    CHANGES_PENDING,
    allowing_options,
    config_option,
    fleet_configuration,
    html_option,
    json_option,
    model_option,
    name_of_target_option,
    name_option,
    only_target,
    target_option,
)
from oml_mlflow.cli.reconcile import roll_back_bound, run_pass, show_pass
from oml_mlflow.cli.text import show_done, show_promotion_plan
from oml_mlflow.errors import ParityError

if TYPE_CHECKING:
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.reconciler.status import FleetPlan

_adopt_option = click.option(
    "--adopt",
    is_flag=True,
    help="Take over foreign models under the live names; they are kept, and never dropped.",
)
_take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Also replace a pair of another registered model or registry.",
)
_geometry_option = click.option(
    "--accept-new-geometry",
    is_flag=True,
    help="Go on where stored vectors can't be compared with new ones.",
)


@click.command()
@click.argument("model_uri", required=False)
@target_option
@name_option
@_adopt_option
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the PL/SQL instead, for a DBA to run in SQL*Plus."
)
@model_option
@allowing_options
@click.option("--out", type=click.Path(dir_okay=False), help="Save it for `apply`.")
@click.option(
    "--detailed-exitcode",
    is_flag=True,
    help="Exit 0 if there is nothing to do, 2 if there is, 1 if a name needs attention.",
)
@json_option
def plan(
    model_uri: str | None,
    target: str | None,
    timeout: float | None,
    name: str | None,
    adopt: bool,
    as_sql: bool,
    models: tuple[str, ...],
    out: str | None,
    detailed_exitcode: bool,
    as_json: bool,
    **allowed: bool,
) -> None:
    """Show what would be done to follow all aliases, or to promote MODEL_URI. Nothing is changed.

    Without MODEL_URI it is about all bindings of all configured targets, or of --target.
    """
    from oml_mlflow.promotion.options import Options

    if model_uri is None:
        if name or adopt or as_sql:
            raise click.UsageError("--name, --adopt and --sql are about one MODEL_URI.")
        plan_all(
            target,
            timeout,
            models,
            Options(**allowed),
            out=out,
            detailed=detailed_exitcode,
            as_json=as_json,
        )
        return
    if out or models or any(allowed.values()):
        raise click.UsageError(
            "--out, --model, --retry, --take-over, --heal and --accept-new-geometry are about all "
            "bindings: leave out MODEL_URI."
        )
    from oml_mlflow.promotion.promote import plan as run

    database = console.open_database(target, timeout)
    with console.progress() as listener:
        planned = run(model_uri, database, name, adopt=adopt, on_event=listener)
    if as_sql:
        console.out.print(database.script(planned), markup=False)
    elif as_json:
        console.show_json(planned.to_json())
    else:
        show_promotion_plan(planned, database)
    if detailed_exitcode and (planned.work is not None or planned.pending):
        sys.exit(CHANGES_PENDING)


@click.command()
@click.argument("model_uri")
@target_option
@name_option
@click.option(
    "--unverified",
    is_flag=True,
    help="Also promote a pair that nothing here can run, without a comparison.",
)
@_adopt_option
@_take_over_option
@_geometry_option
@click.option(
    "--pin", is_flag=True, help="Pin the name, so that it stays, whatever alias it follows."
)
@html_option
@json_option
def promote(
    model_uri: str,
    target: str | None,
    timeout: float | None,
    name: str | None,
    html: str | None,
    pin: bool,
    as_json: bool,
    **allowed: bool,
) -> None:
    """Load, verify and make live the version MODEL_URI, such as models:/clip@prod.

    A name of a configured target that follows an alias has to follow it, or to be pinned.
    """
    from oml_mlflow.commands.promote import promote_configured
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.promotion.promote import promote as run

    chosen = console.choose_target(target, timeout)
    config = console.configuration()
    is_configured = chosen.name in config.targets
    if pin and not is_configured:
        raise click.UsageError("--pin is about a configured target: add it to oml_mlflow.toml.")
    database, options = console.open_database(target, timeout), Options(**allowed)
    try:
        with console.progress() as listener:
            if is_configured:
                done = promote_configured(
                    config,
                    model_uri,
                    chosen.name,
                    name,
                    pinned=pin,
                    options=options,
                    on_event=listener,
                )
            else:
                done = run(model_uri, database, name, options=options, on_event=listener)
    except ParityError as error:
        if html:
            console.write_page(error.details["report"], html, model_uri, database.uri)
        raise
    if html:
        console.write_page(done.report, html, model_uri, database.uri)
    show_done(done, database, as_json)


@click.command()
@click.argument("name")
@target_option
@click.option("--to", type=click.IntRange(min=1), help="Generation; the one before by default.")
@click.option(
    "--unverified", is_flag=True, help="Also go back to a generation that has no references."
)
@_geometry_option
@click.option("--pin", is_flag=True, help="Pin the name instead of moving the alias it follows.")
@click.option("--reason", default="", help="Why, for whoever reads `status`.")
@json_option
def rollback(
    name: str,
    target: str | None,
    timeout: float | None,
    to: int | None,
    unverified: bool,
    accept_new_geometry: bool,
    pin: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Make a kept generation of export NAME live again, verified anew, without an upload.

    Where the name follows an alias, the alias is moved first, and all that follows it goes back.
    With --pin, or while the registry does not answer, this name alone goes back, and is pinned.
    """
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.promotion.rollback import rollback as run

    chosen = console.choose_target(target, timeout)
    database = console.open_database(target, timeout)
    if chosen.name in console.configuration().targets:
        options = Options(unverified=unverified, accept_new_geometry=accept_new_geometry)
        back = roll_back_bound(chosen.name, name, to, pin, reason, options, as_json)
        if back is not None:
            show_done(back, database, as_json)
        return
    if pin:
        raise click.UsageError("--pin is about a configured target: add it to oml_mlflow.toml.")
    with console.progress() as listener:
        done = run(
            database,
            name,
            to=to,
            unverified=unverified,
            accept_new_geometry=accept_new_geometry,
            on_event=listener,
        )
    show_done(done, database, as_json)


@click.command()
@click.argument("name")
@target_option
@click.option("--yes", is_flag=True, help="Really drop it.")
def drop(name: str, target: str | None, timeout: float | None, yes: bool) -> None:
    """Drop the live pair of export NAME and its kept generations; adopted models stay."""
    from oml_mlflow.promotion.apply import observe
    from oml_mlflow.promotion.rollback import drop_pair

    database = console.open_database(target, timeout)
    if not yes:
        with database.session("drop, not yet confirmed", create=False) as session:
            observed = observe(session, name)
        there = [m for m in observed.live_names.values() if m in observed.models]
        used = "; ".join(f"{d.kind} {d.name}" for d in observed.dependants)
        raise click.UsageError(
            f"this would drop {', '.join(there) or 'nothing'} in {database.uri} and generations "
            f"{sorted(observed.kept()) or 'none'}; known to depend on it: {used or 'nothing'}. "
            "Nothing was changed. Give --yes."
        )
    done = drop_pair(database, name)
    dropped = ", ".join(done.work.drops) if done.work else ""
    console.out.print(f"dropped {dropped} in {database.uri}.", markup=False)


def plan_all(
    target: str | None,
    timeout: float | None,
    models: Sequence[str],
    options: Options,
    *,
    out: str | None,
    detailed: bool,
    as_json: bool,
) -> None:
    """Show what would be changed in all targets. Nothing is changed."""
    from oml_mlflow.cli.text import exit_code, show_plan
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.plan_file import write_plan
    from oml_mlflow.reconciler.remarks import with_remarks

    reconciler = Reconciler(fleet_configuration(target, timeout))
    found = with_remarks(
        reconciler.look(models or None, targets=only_target(target), options=options)
    )
    if out:
        write_plan(Path(out), found, options, target or "", models)
    if as_json:
        console.show_json(found.to_json())
    else:
        show_plan(found)
        if out:
            console.out.print(f"Saved. Next: oml-mlflow apply {out}", markup=False)
    if detailed:
        pending = CHANGES_PENDING if found.changes else 0
        sys.exit(1 if exit_code((), found.statuses) else pending)


@click.command()
@click.argument("plan_file", required=False, type=click.Path(exists=True, dir_okay=False))
@name_of_target_option
@model_option
@allowing_options
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
    from oml_mlflow.cli.text import exit_code, show_plan
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.reconciler.loop import Reconciler
    from oml_mlflow.reconciler.plan_file import read_plan, waiting_in

    options, saved = Options(**allowed), None
    if plan_file:
        if target or models or any(allowed.values()):
            raise click.UsageError("a plan file holds its own options: give no other options.")
        saved = read_plan(Path(plan_file))
        options, target, models = saved.options, saved.target or None, saved.models
    config = fleet_configuration(target)
    with console.progress() as listener:
        reconciler = Reconciler(config, on_event=listener)
        view = reconciler.look(models or None, targets=only_target(target), options=options)
        found = view.plan
        if saved is not None:
            saved.demand_fresh(found)
    waiting = waiting_in(found)
    if not found.changes:
        show_pass(found.statuses, [], as_json)
        if not as_json:
            show_plan(found)
        sys.exit(exit_code((), found.statuses))
    if saved is None and not yes:
        _ask(found, as_json)
    only = {change.key for change in found.changes} | set(waiting)
    run_pass(config, options, target, models, as_json, only=only, view=view)


def _ask(plan: FleetPlan, as_json: bool) -> None:
    """Ask whether to go on; exit if not, UsageError without a terminal."""
    from oml_mlflow.cli.text import show_plan

    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            f"{plan.summary()} There is no terminal to ask on. Give --yes, or apply a plan file "
            "made by `oml-mlflow plan --out FILE`."
        )
    show_plan(plan)
    if not click.confirm("Apply?"):
        console.out.print("Nothing was changed.")
        sys.exit(1)
