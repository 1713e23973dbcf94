"""Verbs that change what is live: plan, apply, promote, rollback, pin, drop."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import (
    CHANGES_PENDING,
    allowing,
    config_option,
    declared_option,
    html_option,
    json_option,
    model_option,
    name_option,
    target_option,
)
from oml_mlflow.errors import OmlMlflowError, ParityError

if TYPE_CHECKING:
    from oml_mlflow.commands.chosen import Chosen
    from oml_mlflow.reconciler.diff import Diff
    from oml_mlflow.reconciler.loop import Pass


@click.command(epilog="Example: oml-mlflow plan --out plan.json && oml-mlflow apply plan.json")
@declared_option
@model_option
@allowing("retry", "heal", "adopt", "take_over", "accept_new_geometry", "reembed", "unverified")
@click.option("--out", type=click.Path(dir_okay=False), help="Save it for `apply`.")
@click.option(
    "--detailed-exitcode",
    is_flag=True,
    help="Exit 0 if there is nothing to do, 2 if there is, 1 if a name needs attention.",
)
@config_option
@json_option
def plan(
    target: str | None,
    models: tuple[str, ...],
    out: str | None,
    detailed_exitcode: bool,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Show what following all aliases would change.

    It is about all bindings of all declared targets, or of --target. Nothing is changed. Exits 75
    if a target can't be reached.
    """
    from oml_mlflow.cli.text import exit_code, looking_code, show_plan
    from oml_mlflow.commands import operate

    found = operate.plan(
        target=target,
        models=models,
        out=out,
        options=operate.Options(**allowed),
        config=console.configuration(),
    )
    if as_json:
        console.show_json(found.to_json())
    else:
        show_plan(found)
        if out:
            console.say(f"Saved. Next: oml-mlflow apply {out}")
    if detailed_exitcode:
        pending = CHANGES_PENDING if found.changes else 0
        sys.exit(exit_code((), found.statuses) or pending)
    sys.exit(looking_code(found.statuses))


@click.command(epilog="Example: oml-mlflow apply --yes, from cron; or apply --watch, as a service")
@click.argument("plan_file", required=False, type=click.Path(exists=True, dir_okay=False))
@declared_option
@model_option
@allowing("retry", "heal", "adopt", "take_over", "accept_new_geometry", "reembed", "unverified")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--watch", is_flag=True, help="Pass after pass, unasked, until SIGTERM or Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    help="Seconds between passes of --watch; poll_s of the configuration by default.",
)
@config_option
@json_option
def apply(
    plan_file: str | None,
    target: str | None,
    models: tuple[str, ...],
    yes: bool,
    watch: bool,
    interval: float | None,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Make every bound name what its alias says.

    With a PLAN_FILE of `plan --out` exactly that is done; it is refused once anything that it is
    about has moved.
    """
    from oml_mlflow.cli.text import Outcomes, show_pass, show_plan
    from oml_mlflow.commands import operate

    if plan_file and (target or models or watch or any(allowed.values())):
        raise click.UsageError("a plan file holds its own options: give no other options.")
    if watch and (target or models or as_json):
        raise click.UsageError("--watch is about all bindings, and writes lines.")
    config, options = console.configuration(), operate.Options(**allowed)
    if watch:
        _watch(partial(operate.watch, interval_s=interval, options=options, config=config))
        return
    outcomes = Outcomes(quiet=as_json)

    def confirm(diff: Diff) -> None:
        outcomes.total = len(diff.changes) + sum(bool(s.waits_for) for s in diff.statuses)
        if not (plan_file or yes):
            _ask(diff, as_json)

    with console.progress() as listener:
        done = operate.apply(
            plan_file,
            target=target,
            models=models,
            options=options,
            config=config,
            confirm=confirm,
            on_outcome=outcomes,
            on_event=listener,
        )
    if not as_json and not done.outcomes:
        show_plan(done.diff)
    show_pass(done, outcomes, as_json)


def _ask(diff: Diff, as_json: bool) -> None:
    """Ask whether to go on; exit if not, UsageError without a terminal."""
    from oml_mlflow.cli.text import show_plan

    if as_json or not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            f"{diff.summary()} There is no terminal to ask on. Give --yes, or apply a plan file "
            "made by `oml-mlflow plan --out FILE`."
        )
    show_plan(diff)
    if not click.confirm("Apply?"):
        console.say("Nothing was changed.")
        sys.exit(1)


def _watch(run: partial[None]) -> None:
    from oml_mlflow.cli.text import Outcomes

    stop = threading.Event()

    def ask_to_stop(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.err.print("stopping after this pass; once more to stop at once.")

    def show(found: Pass | OmlMlflowError) -> None:
        if isinstance(found, OmlMlflowError):
            console.show_error(found)
        elif found.outcomes:
            Outcomes().all_of(found)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    console.err.print("watching.")
    run(stop, on_pass=show)


@click.command(epilog="Example: oml-mlflow promote models:/clip@prod --target db1")
@click.argument("model_uri")
@target_option
@name_option
@allowing("unverified", "adopt", "take_over", "accept_new_geometry", "reembed")
@click.option(
    "--pin", is_flag=True, help="Pin the name, so that it stays, whatever alias it follows."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; nothing is changed.")
@click.option(
    "--sql", "as_sql", is_flag=True, help="Print the PL/SQL instead, for a DBA to run in SQL*Plus."
)
@html_option
@json_option
def promote(
    model_uri: str,
    chosen: Chosen,
    name: str | None,
    html: str | None,
    pin: bool,
    dry_run: bool,
    as_sql: bool,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Load, verify and make live the version MODEL_URI.

    A name that follows an alias has to follow it, or to be pinned.
    """
    from oml_mlflow.cli.text import show_done, show_promotion_plan
    from oml_mlflow.commands import promote as commands

    with console.progress() as listener:
        if dry_run or as_sql:
            if html or pin or allowed["unverified"] or allowed["accept_new_geometry"]:
                raise click.UsageError(
                    "--dry-run and --sql take only --name, --adopt, --take-over and --reembed"
                )
            taken = {key: allowed[key] for key in ("adopt", "take_over", "reembed")}
            planned = commands.dry_run(
                model_uri,
                chosen.name,
                name,
                config=chosen.config,
                on_event=listener,
                **taken,
            )
        else:
            try:
                done = commands.promote(
                    model_uri,
                    chosen.name,
                    name,
                    pin=pin,
                    config=chosen.config,
                    on_event=listener,
                    **allowed,
                )
            except ParityError as error:
                if html:
                    report = error.details["report"]
                    console.write_page(report, html, model_uri, chosen.database.uri)
                raise
    if as_sql:
        console.say(chosen.database.script(planned))
    elif dry_run and as_json:
        console.show_json(planned.to_json())
    elif dry_run:
        show_promotion_plan(planned, chosen.database)
    else:
        if html:
            console.write_page(done.report, html, model_uri, chosen.database.uri)
        show_done(done, chosen.database, as_json)


@click.command(epilog="Example: oml-mlflow rollback clip --target db1")
@click.argument("name")
@target_option
@click.option("--to", type=click.IntRange(min=1), help="Generation; the one before by default.")
@allowing("unverified", "accept_new_geometry", "reembed")
@click.option("--pin", is_flag=True, help="Pin the name instead of moving the alias it follows.")
@click.option("--reason", default="", help="Why, for whoever reads `status`.")
@json_option
def rollback(
    name: str,
    chosen: Chosen,
    to: int | None,
    pin: bool,
    reason: str,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Make a kept generation live again, verified anew.

    Where NAME follows an alias, the alias is moved, and every name that follows it goes back: they
    are named first. With --pin, or while the registry does not answer, this name alone goes back,
    and is pinned. To go back further, name the generation with --to.
    """
    from oml_mlflow.cli.text import Outcomes, show_done, show_pass
    from oml_mlflow.commands.rollback import rollback as run

    passes: list[Pass] = []
    with console.progress() as listener:
        try:
            done = run(
                name,
                chosen.name,
                to=to,
                pin=pin,
                reason=reason,
                config=chosen.config,
                tell=(lambda text: None) if as_json else console.say,
                on_pass=passes.append,
                on_event=listener,
                **allowed,
            )
        except OmlMlflowError:
            if not passes:
                raise
    for found in passes:
        if not as_json:
            Outcomes().all_of(found)
        show_pass(found, None, as_json)
    show_done(done, chosen.database, as_json)


@click.command(epilog="Example: oml-mlflow drop clip --target db1 --yes")
@click.argument("name")
@target_option
@click.option("--yes", is_flag=True, help="Really drop it.")
def drop(name: str, chosen: Chosen, yes: bool) -> None:
    """Drop a live pair and its kept generations.

    Adopted models and the ledger stay. Without --yes it says what would be dropped.
    """
    from oml_mlflow.commands import promote as commands

    database = chosen.database
    if not yes:
        found = commands.look(name, chosen.name, config=chosen.config)
        there = [m for m in found.live_names.values() if m in found.models]
        used = "; ".join(f"{d.kind} {d.name}" for d in found.dependants)
        raise click.UsageError(
            f"this would drop {', '.join(there) or 'nothing'} in {database.uri} and generations "
            f"{sorted(found.kept()) or 'none'}; known to depend on it: {used or 'nothing'}. "
            "Nothing was changed. Give --yes."
        )
    done = commands.drop(name, chosen.name, config=chosen.config)
    if done.finished:
        console.say(f"first: {done.finished}.")
    if done.work is not None:
        console.say(f"dropped {', '.join(done.work.drops)} in {database.uri}.")


@click.command(epilog="Example: oml-mlflow pin clip --target db1 --reason 'audit until Friday'")
@click.argument("name")
@target_option
@click.option("--reason", default="", help="Why, for whoever reads `status`.")
def pin(name: str, chosen: Chosen, reason: str) -> None:
    """Keep a name as it is, whatever its alias says."""
    from oml_mlflow.commands import promote as commands

    commands.pin(name, chosen.name, reason, config=chosen.config)
    console.say(f"{name.upper()} on {chosen.name} is pinned.")


@click.command(epilog="Example: oml-mlflow unpin clip --target db1")
@click.argument("name")
@target_option
def unpin(name: str, chosen: Chosen) -> None:
    """Let a name follow its alias again."""
    from oml_mlflow.commands import promote as commands

    was = commands.unpin(name, chosen.name, config=chosen.config)
    text = "follows its alias again. Next: oml-mlflow apply." if was else "was not pinned."
    console.say(f"{name.upper()} on {chosen.name} {text}")
