"""Verbs that inspect a database: status, history, verify, preflight, sql."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import html_option, json_option, name_option, target_option
from oml_mlflow.cli.reconcile import status_of_all, verify_all
from oml_mlflow.planning.records import WHOLE, LedgerEntry


@click.command()
@click.argument("model_uri", required=False)
@target_option
@name_option
@html_option
@json_option
def verify(
    model_uri: str | None,
    target: str | None,
    timeout: float | None,
    name: str | None,
    html: str | None,
    as_json: bool,
) -> None:
    """Compare the live pair with the references of version MODEL_URI; exit 3 if it differs.

    Without MODEL_URI every live pair of all configured targets, or of --target, is compared with
    the references of its own version.
    """
    if model_uri is None:
        if name or html:
            raise click.UsageError("--name and --html are about one MODEL_URI.")
        verify_all(target, timeout, as_json)
        return
    from oml_mlflow.promotion.verify import verify as run

    database = console.open_database(target, timeout)
    with console.progress() as listener:
        report = run(model_uri, database, name, on_event=listener)
    if html:
        console.write_page(report, html, model_uri, database.uri)
    if as_json:
        console.show_json(report.to_json())
    else:
        console.show_report(report)
    sys.exit(0 if report.ok else 3)


@click.command()
@target_option
@json_option
def status(target: str | None, timeout: float | None, as_json: bool) -> None:
    """Show the status of every bound name; or, with --target, what is in that database.

    Without targets in the configuration it is about the one database that verbs are about.
    """
    if target is None and console.configuration().targets:
        status_of_all(as_json)
        return
    from oml_mlflow.promotion.apply import observe

    database = console.open_database(target, timeout)
    with database.session("status", create=False) as session:
        models, ledger = session.list_models(), session.ledger()
        names = dict.fromkeys(entry.name for entry in ledger)
        pairs = [observe(session, name) for name in names]
    if as_json:
        live = [
            {
                "name": pair.name,
                "generation": pair.state.generation,
                "phase": pair.state.phase,
                "live": vars(pair.live) if pair.live else None,
                "is_whole": pair.is_whole(),
                "kept": sorted(pair.kept()),
                "dependants": [vars(dependant) for dependant in pair.dependants],
            }
            for pair in pairs
        ]
        console.show_json(
            {
                "format_version": "1.0",
                "target": database.uri,
                "live": live,
                "models": [vars(m) for m in models],
                "ledger": [vars(e) for e in ledger],
            }
        )
        return
    console.show_table(
        f"Live in {database.uri}",
        ("name", "version", "generation", "state", "", "largest difference", "geometry", "kept"),
        [_live_row(pair) for pair in pairs],
    )
    console.show_table(
        "Loaded",
        ("model", "dims", "bytes", "sha256", "version", "loaded (UTC)"),
        [
            (
                m.name,
                m.dims or "?",
                f"{m.size_bytes:,}",
                f"{m.fingerprint[:12]}…" if m.fingerprint else "?",
                m.damage or ("foreign" if m.foreign else _origin(m.metadata)),
                f"{m.loaded_at:%Y-%m-%d %H:%M:%S}",
            )
            for m in models
        ],
    )


def _live_row(pair: Any) -> tuple[Any, ...]:
    live, kept = pair.live, ", ".join(map(str, sorted(pair.kept()))) or "none"
    if live is None:
        return (pair.name, "nothing", pair.state.generation, pair.state.phase, "", "", "", kept)
    state = pair.state.phase
    if state == WHOLE and not pair.is_whole():
        state = "NOT what the ledger says"
    return (
        pair.name,
        live.origin,
        live.generation,
        state,
        live.verification,
        _largest(live),
        live.geometry or "unknown",
        kept,
    )


@click.command()
@click.argument("name", required=False)
@target_option
@json_option
def history(name: str | None, target: str | None, timeout: float | None, as_json: bool) -> None:
    """List what was done in a database, oldest first; of one export NAME or of all."""
    database = console.open_database(target, timeout)
    with database.session("history", create=False) as session:
        ledger = session.ledger(name)
    if as_json:
        console.show_json({"format_version": "1.0", "ledger": [vars(entry) for entry in ledger]})
        return
    console.show_table(
        f"Ledger of {database.uri}",
        (
            *["name", "generation", "what", "version"],
            "",
            "largest difference",
            "geometry",
            "when",
            "by",
        ),
        [
            (
                e.name,
                e.generation,
                e.action + (f" to {e.restores}" if e.action == "rollback" else ""),
                "" if e.action == "drop" else e.origin,
                e.verification if e.fingerprints else "",
                _largest(e),
                e.geometry,
                f"{e.promoted_at:%Y-%m-%d %H:%M:%S}" if e.promoted_at else "",
                e.promoted_by,
            )
            for e in ledger
        ],
    )


@click.command()
@click.argument("model_uri")
@target_option
@name_option
@click.option("--adopt", is_flag=True, help="Accept foreign models under the live names.")
@click.option(
    "--probe",
    is_flag=True,
    help="Ask the database what it can run: loads models of a few kB and drops them again.",
)
@json_option
def preflight(
    model_uri: str,
    target: str | None,
    timeout: float | None,
    name: str | None,
    adopt: bool,
    probe: bool,
    as_json: bool,
) -> None:
    """Check a database before version MODEL_URI is promoted into it; exit 1 if a check fails."""
    from oml_mlflow.promotion.preflight import examine

    database = console.open_database(target, timeout)
    with console.progress() as listener:
        report, table = examine(
            model_uri, database, name, adopt=adopt, probe=probe, on_event=listener
        )
    if as_json:
        console.show_json(report.to_json())
    else:
        if table is not None:
            console.show_table(
                f"What {database.uri} takes",
                ("needs", "answer", "with"),
                [
                    (
                        row.capability,
                        {True: "takes it", False: "REFUSES it", None: "not run"}[row.taken],
                        row.message,
                    )
                    for row in table.rows
                ],
            )
        console.show_table(
            f"Preflight of {model_uri} for {database.uri}",
            ("check", "state", "found", "what to do"),
            [(c.name, c.state, c.message, c.hint) for c in report.rows],
        )
    sys.exit(0 if report.ok else 1)


@click.command()
@click.argument("model_uri")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@target_option
@name_option
@json_option
def fingerprints(
    model_uri: str,
    files: tuple[str, ...],
    target: str | None,
    timeout: float | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Show sha256 of exported FILES, of the artifact of MODEL_URI, and of the bytes in a database.

    All are computed anew from the bytes. Exit 3 if one differs from what was logged.
    """
    from oml_mlflow.promotion.verify import trace_bytes

    paths = [Path(file) for file in files]
    traces = trace_bytes(model_uri, console.open_database(target, timeout), name, paths)
    if as_json:
        console.show_json({"equal": all(t.ok for t in traces), "bytes": [vars(t) for t in traces]})
    else:
        rows = [(t.side, t.place, t.sha256, "equal" if t.ok else "DIFFERS") for t in traces]
        console.show_table(f"Bytes of {model_uri}", ("side", "where", "sha256", ""), rows)
    sys.exit(0 if all(t.ok for t in traces) else 3)


@click.command()
@click.argument("statement")
@click.option(
    "--untrusted",
    is_flag=True,
    help="Only read this database: no files, network or settings, whoever wrote STATEMENT.",
)
@target_option
@json_option
def sql(
    statement: str, untrusted: bool, target: str | None, timeout: float | None, as_json: bool
) -> None:
    """Run SQL in an embedded database; loaded models are functions, as in CLIP_TXT('a cat').

    STATEMENT may do all that you may: it reads and writes files, loads extensions, and can change
    this database's own tables. Run untrusted text with --untrusted.
    """
    from oml_mlflow.targets.embedded.target import EmbeddedTarget

    chosen = console.choose_target(target, timeout)
    database = EmbeddedTarget.from_uri(chosen.uri, timeout_s=chosen.timeout_s)
    with database.connect("a statement", untrusted=untrusted) as connection:
        rows = connection.execute(statement).fetchall()
        columns = connection.columns
    if as_json:
        console.show_json({"columns": columns, "rows": rows})
    elif columns:
        console.show_table(f"{len(rows)} rows", columns, rows)


def _origin(facts: dict[str, Any]) -> str:
    if facts.get("registered_model") == "":
        return "export2db"
    return f"{facts.get('registered_model', '?')} {facts.get('version', '?')}"


def _largest(entry: LedgerEntry) -> str:
    return f"{entry.parity['max_abs']:.1e}" if "max_abs" in entry.parity else ""


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
