"""Verbs that change a database: plan, promote, rollback, drop, columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from oml_mlflow import console
from oml_mlflow.console import html_option, json_option, name_option, target_option
from oml_mlflow.errors import ParityError
from oml_mlflow.policy import WARNED

if TYPE_CHECKING:
    from oml_mlflow.apply import Promotion
    from oml_mlflow.parity import ClassSummary
    from oml_mlflow.plan import Plan
    from oml_mlflow.targets import Target

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
@click.argument("model_uri")
@target_option
@name_option
@_adopt_option
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the PL/SQL instead, for a DBA to run in SQL*Plus."
)
@json_option
def plan(
    model_uri: str,
    target: str | None,
    timeout: float | None,
    name: str | None,
    adopt: bool,
    as_sql: bool,
    as_json: bool,
) -> None:
    """Show what promoting version MODEL_URI would do. Nothing is changed."""
    from oml_mlflow.examination import plan as run

    database = console.open_database(target, timeout)
    with console.progress() as listener:
        planned = run(model_uri, database, name, adopt=adopt, on_event=listener)
    if as_sql:
        console.out.print(database.script(planned), markup=False)
    elif as_json:
        console.show_json(planned.to_json())
    else:
        _show_plan(planned, database)


def _show_plan(planned: Plan, database: Target) -> None:
    observed, live = planned.observed, planned.observed.live
    lines = [
        f"Target {planned.target}   {observed.name}: "
        + (f"{live.origin}, generation {live.generation}" if live else "nothing live"),
        f"Wanted {planned.title}",
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
@html_option
@json_option
def promote(
    model_uri: str,
    target: str | None,
    timeout: float | None,
    name: str | None,
    unverified: bool,
    adopt: bool,
    take_over: bool,
    accept_new_geometry: bool,
    html: str | None,
    as_json: bool,
) -> None:
    """Load, verify and make live the version MODEL_URI, such as models:/clip@prod."""
    from oml_mlflow.promotion import promote as run

    database = console.open_database(target, timeout)
    try:
        with console.progress() as listener:
            done = run(
                model_uri,
                database,
                name,
                unverified=unverified,
                adopt=adopt,
                take_over=take_over,
                accept_new_geometry=accept_new_geometry,
                on_event=listener,
            )
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
@json_option
def rollback(
    name: str,
    target: str | None,
    timeout: float | None,
    to: int | None,
    unverified: bool,
    accept_new_geometry: bool,
    as_json: bool,
) -> None:
    """Make a kept generation of export NAME live again, verified anew, without an upload."""
    from oml_mlflow.rollback import rollback as run

    database = console.open_database(target, timeout)
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
    from oml_mlflow.apply import observe
    from oml_mlflow.rollback import drop_pair

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
    from oml_mlflow.ledger import Dependant
    from oml_mlflow.names import check_export_name, model_name

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
