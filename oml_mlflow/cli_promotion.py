"""Verbs that change a database: plan, promote, rollback, drop, columns."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from oml_mlflow import console
from oml_mlflow.cli_fleet import (
    CHANGES_PENDING,
    model_option,
    plan_all,
    roll_back_bound,
    terms_options,
)
from oml_mlflow.console import html_option, json_option, name_option, target_option
from oml_mlflow.errors import ParityError
from oml_mlflow.flavor.manifest import UNANCHORED
from oml_mlflow.parity.policy import WARNED

if TYPE_CHECKING:
    from oml_mlflow.parity.difference import ClassSummary
    from oml_mlflow.planning.plan import Plan
    from oml_mlflow.promotion.apply import Promotion
    from oml_mlflow.promotion.target import Target

_adopt_option = click.option(
    "--adopt",
    is_flag=True,
    help="Take over models of others under the live names; they are kept, and never dropped.",
)
_take_over_option = click.option(
    "--take-over",
    is_flag=True,
    help="Replace a pair too that belongs to another registered model or registry.",
)
_geometry_option = click.option(
    "--accept-new-geometry",
    is_flag=True,
    help="Go on where vectors that were stored can't be compared with new ones.",
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
@terms_options
@click.option("--out", type=click.Path(dir_okay=False), help="Save it for `apply`.")
@click.option(
    "--detailed-exitcode",
    is_flag=True,
    help="Exit 0 if there is nothing to do, 2 if there is, 1 if something keeps a name back.",
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
    from oml_mlflow.promotion.options import Terms

    if model_uri is None:
        if name or adopt or as_sql:
            raise click.UsageError("--name, --adopt and --sql are about one MODEL_URI.")
        plan_all(
            target,
            timeout,
            models,
            Terms(**allowed),
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
        _show_plan(planned, database)
    if detailed_exitcode and (planned.work is not None or planned.pending):
        sys.exit(CHANGES_PENDING)


def _show_plan(planned: Plan, database: Target) -> None:
    observed, live = planned.observed, planned.observed.live
    lines = [
        f"Target {planned.target}   {observed.name}: "
        + (f"{live.origin}, generation {live.generation}" if live else "nothing live"),
        f"Wanted {planned.title}" + ("" if planned.anchored else f", {UNANCHORED}"),
    ]
    if planned.pending:
        lines.append(f"First  {planned.pending}")
    if planned.geometry is not None:
        lines.append(f"geometry: {planned.geometry}")
    lines += [f"{sign:>4} {text}" for sign, text in planned.to_steps()]
    if planned.work is not None and planned.work.incoming:
        lines.append(database.window)
    for dependant in planned.observed.dependants:
        lines.append(f"     depends on {dependant.model}: {dependant.kind} {dependant.name}")
    lines.append(planned.summary())
    console.out.print("\n".join(lines), markup=False)


@click.command()
@click.argument("model_uri")
@target_option
@name_option
@click.option(
    "--unverified",
    is_flag=True,
    help="Promote a pair too that nothing here can run, so that nothing is compared.",
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
    from oml_mlflow.promotion.options import Terms
    from oml_mlflow.promotion.promote import promote as run

    chosen = console.choose_target(target, timeout)
    config = console.configuration()
    is_configured = chosen.name in config.targets
    if pin and not is_configured:
        raise click.UsageError("--pin is about a configured target: add it to oml_mlflow.toml.")
    database = console.open_database(target, timeout)
    try:
        with console.progress() as listener:
            if is_configured:
                done = promote_configured(
                    config,
                    model_uri,
                    chosen.name,
                    name,
                    pinned=pin,
                    terms=Terms(**allowed),
                    on_event=listener,
                )
            else:
                done = run(model_uri, database, name, on_event=listener, **allowed)
    except ParityError as error:
        if html:
            console.write_page(error.details["report"], html, model_uri, database.uri)
        raise
    if html:
        console.write_page(done.report, html, model_uri, database.uri)
    _show_done(done, database, as_json)


@click.command()
@click.argument("name")
@target_option
@click.option("--to", type=click.IntRange(min=1), help="Generation; the one before by default.")
@click.option(
    "--unverified", is_flag=True, help="Go back to a generation too that has no references."
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
    from oml_mlflow.promotion.options import Terms
    from oml_mlflow.promotion.rollback import rollback as run

    chosen = console.choose_target(target, timeout)
    database = console.open_database(target, timeout)
    if chosen.name in console.configuration().targets:
        terms = Terms(unverified=unverified, accept_new_geometry=accept_new_geometry)
        back = roll_back_bound(chosen.name, name, to, pin, reason, terms, as_json)
        if back is not None:
            _show_done(back, database, as_json)
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
    _show_done(done, database, as_json)


def _show_done(done: Promotion, database: Target, as_json: bool) -> None:
    entry = done.entry
    if as_json:
        facts = {"changed": done.changed, "healed": done.healed, "swap_s": done.swap_s}
        console.show_json({**facts, **vars(entry), "target": database.uri})
        return
    if done.healed:
        console.out.print(f"first: {done.healed}.", markup=False)
    compared = f"{entry.verification}. {done.report.title}"
    if done.report.rows:
        compared = f"{done.report.summary}, largest difference {done.report.max_abs():.1e}"
        warned = [c for c in done.report.by_class() if c.state == WARNED]
        compared += "".join(f"; {c.category} {_off(c)} (only warns)" for c in warned)
    verb = "is now" if done.changed else "was already"
    swap = f" Swapped in {done.swap_s:.2f} s." if done.changed else ""
    profile = f", profile {entry.profile}" if database.is_probed and entry.profile else ""
    console.out.print(
        f"{entry.name} in {database.uri} {verb} {entry.origin.replace(' ', ' version ')} "
        f"(generation {entry.generation}{profile}); {compared}.{swap}",
        markup=False,
    )


def _off(summary: ClassSummary) -> str:
    refused = summary.count - summary.compared
    if refused:
        return f"{refused} of {summary.count} refused"
    return f"{summary.max_abs:.1e}"


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
            "Nothing was changed. Say --yes."
        )
    done = drop_pair(database, name)
    dropped = ", ".join(done.work.drops) if done.work else ""
    console.out.print(f"dropped {dropped} in {database.uri}.", markup=False)


@click.command()
@click.argument("name")
@target_option
@click.option("--add", help="Column that holds vectors: table.column.")
@click.option("--source", help="With --add: the column that was embedded.")
@click.option("--side", type=click.Choice(["img", "txt"]), help="With --add: which pipeline.")
@click.option("--remove", help="Column to forget: table.column.")
@json_option
def columns(
    name: str,
    target: str | None,
    timeout: float | None,
    add: str | None,
    source: str | None,
    side: str | None,
    remove: str | None,
    as_json: bool,
) -> None:
    """Show what depends on export NAME; remember or forget columns that hold its vectors.

    A promotion that would make registered columns worthless is refused, and names them.
    """
    from oml_mlflow.names import check_export_name, model_name
    from oml_mlflow.planning.records import Dependant

    if add and not (source and side):
        raise click.UsageError("--add needs --source and --side.")
    export_name = check_export_name(name)
    database = console.open_database(target, timeout)
    with database.session(f"columns of {name}", create=bool(add or remove)) as session:
        if add and source and side:
            model = model_name(export_name, side)
            session.register_column(export_name, Dependant("column", add, model, source))
        if remove and not session.forget_column(export_name, remove):
            raise click.UsageError(f"{remove} is not registered.")
        found = session.dependants(export_name)
    if as_json:
        console.show_json({"format_version": "1.0", "dependants": [vars(d) for d in found]})
        return
    rows = [(d.kind, d.name, d.model, d.source) for d in found]
    console.show_table(f"Depends on {name}", ("kind", "name", "model", "made from"), rows)
