"""Verbs that look: status, models, history, verify, preflight."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oml_mlflow.cli import console
from oml_mlflow.cli.console import (
    allowing,
    config_option,
    declared_option,
    html_option,
    json_option,
    name_option,
    target_option,
    target_options,
)
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.planning.records import WHOLE, LedgerEntry

if TYPE_CHECKING:
    from oml_mlflow.commands.chosen import Chosen
    from oml_mlflow.planning.observed import Observed, Survey


@click.command(epilog="Example: oml-mlflow verify clip --target db1 --html report.html")
@click.argument("name", required=False)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@target_options
@click.option(
    "--bytes",
    "of_bytes",
    is_flag=True,
    help="Compare sha256 instead: of exported FILES, the version's artifact and the database.",
)
@click.option(
    "--columns",
    "of_columns",
    is_flag=True,
    help="Compare stored vectors instead: random rows of registered columns, embedded again.",
)
@click.option(
    "--rows",
    "sampled",
    type=click.IntRange(min=1),
    default=200,
    help="Of a column; 200 by default.",
)
@click.option("--seed", type=int, help="With --columns: draws the same rows again.")
@html_option
@json_option
def verify(
    name: str | None,
    files: tuple[str, ...],
    target: str | None,
    timeout: float | None,
    of_bytes: bool,
    of_columns: bool,
    sampled: int,
    seed: int | None,
    html: str | None,
    as_json: bool,
) -> None:
    """Compare live pairs with their versions' references.

    Of export NAME, or else of all declared targets, or --target. Exits 3 if one differs. With
    --bytes all are computed anew from the bytes; with --columns random rows of stored vectors.
    """
    from oml_mlflow.commands import operate

    if name is None:
        if html or of_bytes or of_columns:
            raise click.UsageError("--html, --bytes and --columns are about one NAME.")
        sys.exit(_verify_all(target, timeout, as_json))
    if files and not of_bytes:
        raise click.UsageError("FILES are for --bytes.")
    chosen = console.choose(target, timeout)
    if of_columns:
        sys.exit(_verify_columns(name, chosen, sampled, seed, as_json))
    if of_bytes:
        traces = operate.verify_bytes(
            name, chosen.name, [Path(file) for file in files], config=chosen.config
        )
        is_same = all(trace.ok for trace in traces)
        if as_json:
            console.show_json({"equal": is_same, "bytes": [vars(t) for t in traces]})
        else:
            rows = [(t.side, t.place, t.sha256, "equal" if t.ok else "DIFFERS") for t in traces]
            console.show_table(f"Bytes of {name}", ("side", "where", "sha256", ""), rows)
        sys.exit(0 if is_same else 3)
    with console.progress() as listener:
        report = operate.verify(name, chosen.name, config=chosen.config, on_event=listener)
    if html:
        console.write_page(report, html, name, chosen.database.uri)
    if as_json:
        console.show_json(report.to_json())
    else:
        console.show_report(report)
    sys.exit(0 if report.ok else 3)


def _verify_columns(name: str, chosen: Chosen, rows: int, seed: int | None, as_json: bool) -> int:
    from oml_mlflow.commands.columns import check_columns

    drawn = secrets.randbelow(10**6) if seed is None else seed
    found = check_columns(name, chosen.name, rows=rows, seed=drawn, config=chosen.config)
    is_right = all(c.ok for c in found)
    if as_json:
        shown = [
            {"column": c.column.name, "rows": c.rows, "missing": c.missing, "changed": c.changed}
            | {"sampled": c.sampled, "differ": [str(key) for key in c.differ], "ok": c.ok}
            for c in found
        ]
        console.show_json({"ok": is_right, "seed": drawn, "columns": shown})
        return 0 if is_right else 3
    table = [
        (
            *(c.column.name, f"{c.rows:,}", f"{c.missing:,}", f"{c.changed:,}", c.sampled),
            f"{c.finds(0.01):.0%}",
            ", ".join(map(str, c.differ[:5])) or "none",
        )
        for c in found
    ]
    headings = ("column", "rows", "NULL", "changed", "sampled", "finds 1 % wrong", "differ")
    console.show_table(f"Stored vectors of {name}, seed {drawn}", headings, table)
    for c in found:
        if not c.ok:
            console.say(f"{c.summary}.")
    return 0 if is_right else 3


def _verify_all(target: str | None, timeout: float | None, as_json: bool) -> int:
    from oml_mlflow.cli.text import error_json, progress_line, worst
    from oml_mlflow.commands import operate

    codes, results = set(), []
    with console.progress() as listener:
        found = operate.verify_all(target, config=console.configuration(timeout), on_event=listener)
        for number, one in enumerate(found, 1):
            error, ok = one.error, one.report is not None and one.report.ok
            text = ""
            if one.entry and one.report:
                text = f"{one.entry.origin} (generation {one.entry.generation}), "
                text += one.report.summary
            codes.add(error.exit_code if error else 0 if ok else 3)
            shown = error_json(error) if error else None
            results.append(
                {"target": one.target, "name": one.name, "ok": ok, "text": text, "error": shown}
            )
            if not as_json:
                what = f"{one.name} on {one.target}"
                console.say(progress_line(f"{number}", what, text, error, ok=ok))
    if as_json:
        console.show_json({"ok": codes <= {0}, "pairs": results})
    elif not results:
        console.say("nothing from the registry is live.")
    return worst(codes)


@click.command(epilog="Example: oml-mlflow status --drift")
@declared_option
@click.option(
    "--drift",
    "only_drift",
    is_flag=True,
    help="List only models dropped, replaced or altered by others; the registry is not asked.",
)
@config_option
@json_option
def status(target: str | None, only_drift: bool, as_json: bool) -> None:
    """Show how every bound name stands.

    Exits 75 if a target can't be reached, and with --drift 3 if there is any.
    """
    from oml_mlflow.cli.text import looking_code, show_pass_json, show_statuses
    from oml_mlflow.commands import operate
    from oml_mlflow.registry.answering import shown_registry

    config = console.configuration()
    if only_drift:
        _show_drift(operate.survey(target=target, config=config), as_json)
    found = operate.status(target=target, config=config)
    if as_json:
        show_pass_json((), found.statuses)
    else:
        title = f"Targets of {config.path}, registry {shown_registry()}"
        show_statuses(title, found.statuses)
    sys.exit(looking_code(found.statuses))


def _show_drift(surveys: Mapping[str, Survey | OmlMlflowError], as_json: bool) -> None:
    from oml_mlflow.cli.text import error_json, worst

    found = {t: s for t, s in surveys.items() if not isinstance(s, OmlMlflowError)}
    unread = {t: s for t, s in surveys.items() if isinstance(s, OmlMlflowError)}
    rows = [
        (target, name, text)
        for target, survey in found.items()
        for name, observed in survey.names.items()
        for text in observed.drift()
    ]
    if as_json:
        columns = ("target", "name", "what")
        away = {name: error_json(error) for name, error in unread.items()}
        drift = [dict(zip(columns, row, strict=True)) for row in rows]
        console.show_json({"drift": drift, "unreachable": away})
    else:
        if rows:
            console.show_table("Drift", ("target", "name", "what"), rows)
        for name, error in unread.items():
            console.say(f"{name} was not checked: {error}")
        next_step = " Next: oml-mlflow apply --heal." if rows else ""
        console.say(
            f"{len(rows)} changes outside this package in {len(found)} of {len(surveys)} targets."
            + next_step
        )
    sys.exit(worst({3} if rows else {error.exit_code for error in unread.values()}))


@click.command(epilog="Example: oml-mlflow models --target db1")
@target_option
@json_option
def models(chosen: Chosen, as_json: bool) -> None:
    """Show what one database holds."""
    from oml_mlflow.commands import operate

    pairs, loaded = operate.contents(chosen.name, config=chosen.config)
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
        rows = [vars(model) for model in loaded]
        console.show_json({"target": chosen.database.uri, "live": live, "models": rows})
        return
    console.show_table(
        f"Live in {chosen.database.uri}",
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
            for m in loaded
        ],
    )


def _live_row(pair: Observed) -> tuple[Any, ...]:
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


@click.command(epilog="Example: oml-mlflow history clip --target db1")
@click.argument("name", required=False)
@target_option
@json_option
def history(name: str | None, chosen: Chosen, as_json: bool) -> None:
    """List what was done in a database, oldest first.

    Under one export NAME or all.
    """
    from oml_mlflow.commands import operate

    ledger = operate.history(name, chosen.name, config=chosen.config)
    if as_json:
        console.show_json({"ledger": [vars(entry) for entry in ledger]})
        return
    console.show_table(
        f"Ledger of {chosen.database.uri}",
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


def _origin(facts: Mapping[str, Any]) -> str:
    if facts.get("registered_model") == "":
        return "export2db"
    return f"{facts.get('registered_model', '?')} {facts.get('version', '?')}"


def _largest(entry: LedgerEntry) -> str:
    return f"{entry.parity['max_abs']:.1e}" if "max_abs" in entry.parity else ""


@click.command(epilog="Example: oml-mlflow preflight models:/clip@prod --target db1 --probe")
@click.argument("model_uri")
@target_option
@name_option
@allowing("adopt")
@click.option(
    "--probe",
    is_flag=True,
    help="Ask the database what it can run: loads models of a few kB and drops them again.",
)
@json_option
def preflight(
    model_uri: str,
    chosen: Chosen,
    name: str | None,
    adopt: bool,
    probe: bool,
    as_json: bool,
) -> None:
    """Check a database before a promotion into it.

    Exits 1 if a check fails.
    """
    from oml_mlflow.commands import promote as commands

    database = chosen.database
    with console.progress() as listener:
        report, table = commands.preflight(
            model_uri,
            chosen.name,
            name,
            adopt=adopt,
            probe=probe,
            config=chosen.config,
            on_event=listener,
        )
    if as_json:
        console.show_json(report.to_json())
    else:
        if table is not None:
            answers = {True: "takes it", False: "REFUSES it", None: "not run"}
            console.show_table(
                f"What {database.uri} takes",
                ("needs", "answer", "with"),
                [(row.capability, answers[row.taken], row.message) for row in table.rows],
            )
        console.show_table(
            f"Preflight of {model_uri} for {database.uri}",
            ("check", "state", "found", "what to do"),
            [(c.name, c.state, c.message, c.hint) for c in report.rows],
        )
    sys.exit(0 if report.ok else 1)
