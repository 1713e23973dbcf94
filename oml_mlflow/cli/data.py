"""Verbs about a database's own data: columns, fill, sql."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import json_option, target_option

if TYPE_CHECKING:
    from oml_mlflow.commands.chosen import Chosen

_SHOWN = 20


@click.command(
    epilog="Example: oml-mlflow columns clip --add docs.embedding --source body --side txt"
)
@click.argument("name")
@target_option
@click.option("--add", help="Column that holds vectors: table.column.")
@click.option("--source", help="With --add: the column that was embedded.")
@click.option("--side", type=click.Choice(["img", "txt"]), help="With --add: which pipeline.")
@click.option("--key", help="With --add: the column that tells rows apart, for fill and verify.")
@click.option(
    "--modified",
    help="With --add, Oracle: the column with the time of a row's last change, for --reembed.",
)
@click.option("--remove", help="Column to forget: table.column.")
@json_option
def columns(
    name: str,
    chosen: Chosen,
    add: str | None,
    source: str | None,
    side: str | None,
    key: str | None,
    modified: str | None,
    remove: str | None,
    as_json: bool,
) -> None:
    """Show, register or forget what depends on a name.

    A promotion that would make registered columns worthless is refused, and names them.
    """
    from oml_mlflow.commands.columns import columns as run

    if add and not (source and side):
        raise click.UsageError("--add needs --source and --side.")
    found = run(
        name,
        chosen.name,
        add=add,
        source=source or "",
        side=side or "",
        key=key or "",
        modified=modified or "",
        remove=remove,
        config=chosen.config,
    )
    if as_json:
        console.show_json({"dependants": [vars(d) for d in found]})
        return
    rows = [(d.kind, d.name, d.beside, d.model, d.source, d.key) for d in found]
    headings = ("kind", "name", "kept as", "model", "made from", "key")
    console.show_table(f"Depends on {name}", headings, rows)


@click.command(epilog="Example: oml-mlflow fill clip --target db1 --until 06:00")
@click.argument("name")
@target_option
@click.option("--column", default="", help="One of them: table.column. All with a key by default.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Rows of a commit."
)
@click.option("--pause", type=click.FloatRange(min=0), default=0.0, help="Seconds between batches.")
@click.option("--until", type=click.DateTime(["%H:%M"]), help="Stop then, today or tomorrow.")
@json_option
def fill(
    name: str,
    chosen: Chosen,
    column: str,
    batch: int,
    pause: float,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Embed the rows without a vector in NAME's registered columns.

    By the database's own SQL, a batch of keys at a time, each committed: others get their turn, and
    what was stopped goes on where it was. Rows that can't be embedded are named and stay NULL.
    """
    from oml_mlflow.commands.columns import fill as run

    with console.progress(quiet=as_json) as listener:
        found = run(
            name,
            chosen.name,
            column=column,
            batch=batch,
            pause_s=pause,
            until=_next(until) if until else None,
            config=chosen.config,
            on_event=listener,
        )
    if as_json:
        rows = [
            {"column": f.column.name, "rows": f.rows, "left": f.left}
            | {"failed": [{"key": str(key), "reason": reason} for key, reason in f.failed]}
            for f in found
        ]
        console.show_json({"columns": rows})
        return
    for each in found:
        for key, reason in each.failed[:_SHOWN]:
            console.err.print(f"not embedded: {each.column.key} {key}: {reason}", markup=False)
        if len(each.failed) > _SHOWN:
            console.err.print(f"and {len(each.failed) - _SHOWN:,} more; --json has all")
        console.say(f"{each.column.name}: {each.rows:,} rows filled, {each.left:,} are left.")


def _next(clock: datetime) -> datetime:
    """Return the next time that a clock shows so."""
    now = datetime.now().astimezone()
    then = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)


@click.command(epilog="""Example: oml-mlflow sql "SELECT CLIP_TXT('a cat')" """)
@click.argument("statement")
@click.option(
    "--untrusted",
    is_flag=True,
    help="Only read this database: no files, network or settings, whoever wrote STATEMENT.",
)
@target_option
@json_option
def sql(statement: str, untrusted: bool, chosen: Chosen, as_json: bool) -> None:
    """Run SQL in an embedded database.

    Loaded models are functions, as in CLIP_TXT('a cat'). STATEMENT may do all that you may: it
    reads and writes files, loads extensions, and can change this database's own tables. Run
    untrusted text with --untrusted. With --json, vectors are lists of numbers, bytes are base64,
    NaN and infinities are "NaN", "Infinity" and "-Infinity", and dates, decimals and the like text.
    """
    from oml_mlflow.commands.data import sql as run

    columns, rows = run(statement, chosen.name, untrusted=untrusted, config=chosen.config)
    if as_json:
        console.show_json({"columns": columns, "rows": rows})
    elif columns:
        console.show_table(f"{len(rows)} rows", columns, rows)
