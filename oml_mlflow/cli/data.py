"""Verbs about a database's own data: columns, sql."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import json_option, target_option

if TYPE_CHECKING:
    from oml_mlflow.commands.chosen import Chosen


@click.command(
    epilog="Example: oml-mlflow columns clip --add docs.embedding --source body --side txt"
)
@click.argument("name")
@target_option
@click.option("--add", help="Column that holds vectors: table.column.")
@click.option("--source", help="With --add: the column that was embedded.")
@click.option("--side", type=click.Choice(["img", "txt"]), help="With --add: which pipeline.")
@click.option("--remove", help="Column to forget: table.column.")
@json_option
def columns(
    name: str,
    chosen: Chosen,
    add: str | None,
    source: str | None,
    side: str | None,
    remove: str | None,
    as_json: bool,
) -> None:
    """Show, register or forget what depends on a name.

    A promotion that would make registered columns worthless is refused, and names them.
    """
    from oml_mlflow.commands.data import columns as run

    if add and not (source and side):
        raise click.UsageError("--add needs --source and --side.")
    found = run(
        name,
        chosen.name,
        add=add,
        source=source or "",
        side=side or "",
        remove=remove,
        config=chosen.config,
    )
    if as_json:
        console.show_json({"dependants": [vars(d) for d in found]})
        return
    rows = [(d.kind, d.name, d.model, d.source) for d in found]
    console.show_table(f"Depends on {name}", ("kind", "name", "model", "made from"), rows)


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
