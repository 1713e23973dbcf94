"""The command line, `oml-mlflow`: thin verbs over the Python interface.

Exit codes: 0 ok, 1 handled error, 3 vectors differ, 64 usage, 75 try again, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from oml_mlflow import __version__, console
from oml_mlflow.profiles import DEFAULT_PROFILE, get_profile

if TYPE_CHECKING:
    from oml_mlflow.graph.finding import Finding

_DEFAULT_TARGET = "embedded:///database"
_F = TypeVar("_F", bound=Callable[..., Any])


def _target_option(function: _F) -> _F:
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0),
        default=30.0,
        show_default=True,
        help="Seconds to wait for another process to let go of the database.",
    )
    target = click.option(
        "--target",
        default=_DEFAULT_TARGET,
        show_default=True,
        envvar="OML_MLFLOW_TARGET",
        help="Database, such as embedded:///folder.",
    )
    return target(timeout(function))


_json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON document.")
_name_option = click.option(
    "--name", help="Export name in the database; the registered model's name by default."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Turn CLIP models into pipeline pairs, version them, and promote them into databases.

    The registry is MLflow's: set MLFLOW_TRACKING_URI as for every MLflow command.
    """


@cli.command()
@click.argument("model")
@click.argument("export_name")
@click.option("--output-dir", type=click.Path(file_okay=False), help="Folder; here by default.")
@click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True, help="What the target takes."
)
@click.option("--decode-op", help="The target's decode operator, domain:Name, or raw.")
@click.option("--no-validate", is_flag=True, help="Don't compare with the model's Python code.")
@click.option(
    "--quantize-model", is_flag=True, help="Store weights as INT8: a quarter of the size."
)
@click.option("--use-float16", is_flag=True, help="Store weights as float16: half the size.")
def export(
    model: str,
    export_name: str,
    output_dir: str | None,
    profile: str,
    decode_op: str | None,
    no_validate: bool,
    quantize_model: bool,
    use_float16: bool,
) -> None:
    """Write EXPORT_NAME_img.onnx and EXPORT_NAME_txt.onnx.

    MODEL is a hub id such as openai/clip-vit-base-patch32, or a folder in the Hugging Face layout.
    """
    from oml_mlflow.pipeline import ONNXPipeline
    from oml_mlflow.precision import loss_sentence, read_precisions
    from oml_mlflow.template import ONNXPipelineConfig

    config = ONNXPipelineConfig(quantize_model=quantize_model, use_float16=use_float16)
    with console.progress() as listener:
        pair = ONNXPipeline(model, config).export2file(
            export_name,
            output_dir,
            profile=profile,
            decode_op=decode_op,
            validate=not no_validate,
            on_event=listener,
        )
    rows = [(pair.path(s), f"{pair.path(s).stat().st_size:,}", f) for s, f in _sides(pair)]
    console.show_table(f"Pair of {model}, {pair.dims} dims", ("file", "bytes", "sha256"), rows)
    for side, precision in read_precisions(pair.metadata).items():
        loss = loss_sentence(pair.loss[side]) if side in pair.loss else "loss not measured"
        console.out.print(f"{side}: {precision}, {loss}.", markup=False)


@cli.command()
@click.argument("img", type=click.Path(exists=True, dir_okay=False))
@click.argument("txt", type=click.Path(exists=True, dir_okay=False))
@click.option("--register", "registered", help="Name of the registered model.")
@click.option("--alias", help="Alias to point to the new version.")
@click.option("--source", help="Hub id or folder of the model, to compare the pair with.")
@click.option("--profile", "profiles", multiple=True, help="Store a pair for it; repeatable.")
@click.option("--experiment", help="MLflow experiment.")
def log(
    img: str,
    txt: str,
    registered: str | None,
    alias: str | None,
    source: str | None,
    profiles: tuple[str, ...],
    experiment: str | None,
) -> None:
    """Log the pair in files IMG and TXT to MLflow, and register it."""
    if alias and not registered:
        raise click.UsageError("--alias needs --register.")
    import mlflow

    from oml_mlflow.flavor import log_model
    from oml_mlflow.model_card import exported_name
    from oml_mlflow.pair import PipelinePair
    from oml_mlflow.registry import get_version, register_alias
    from oml_mlflow.runtime import not_run_reason

    pair = PipelinePair.from_files(img, txt, source=source)
    if reason := not_run_reason(pair.unknown_operators):
        console.err.print(f"not run: {reason}; no vectors are kept to compare with.", markup=False)
    if experiment:
        mlflow.set_experiment(experiment)
    with console.progress() as listener, mlflow.start_run(run_name=f"log {exported_name(pair)}"):
        info = log_model(
            pair,
            name=exported_name(pair),
            registered_model_name=registered,
            profiles=profiles or None,
            on_event=listener,
        )
    console.out.print(f"logged {info.model_uri}", markup=False)
    if registered:
        version = get_version(f"models:/{registered}/{info.registered_model_version}")
        if alias:
            register_alias(version, alias)
        shown = f"registered {version.uri}" + (f", alias {alias}" if alias else "")
        console.out.print(shown, markup=False)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True, help="What is to take the file."
)
@click.option("--decode-op", help="The target's own decode operator as domain:Name, or raw.")
@click.option("--metadata", help="JSON metadata to load it with, or a file that holds it.")
@click.option("--name", help="Name of the in-database model, to be judged too.")
@_json_option
def check(
    file: str,
    profile: str,
    decode_op: str | None,
    metadata: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Judge any ONNX FILE by a profile's rules, without a database; exit 1 if it would be refused.

    The file is only read, nothing in it is run.
    """
    from oml_mlflow.graph.metadata import parse_metadata
    from oml_mlflow.graph.rules import check_file

    target = get_profile(profile, decode_op=decode_op)
    given = parse_metadata(metadata) if metadata is not None else None
    findings = check_file(file, target, metadata=given, name=name)
    is_taken = not any(finding.is_error for finding in findings)
    if as_json:
        rows = [finding.to_row() for finding in findings]
        console.show_json(
            {"file": file, "profile": profile, "decode_op": decode_op, "ok": is_taken}
            | {"findings": rows}
        )
    else:
        _show_findings(file, profile, findings)
    sys.exit(0 if is_taken else 1)


def _show_findings(file: str, profile: str, findings: list[Finding]) -> None:
    if findings:
        console.show_table(
            f"{file} against {profile}",
            ("severity", "rule", "code", "where", "what", "what to do"),
            [(f.severity, f.rule, f.shown_code, f.where, f.message, f.hint) for f in findings],
        )
    errors = sum(finding.is_error for finding in findings)
    console.out.print(
        f"{file}: {errors} errors, {len(findings) - errors} warnings for {profile}. Rules "
        "that only a database can judge were not run.",
        markup=False,
    )


@cli.command()
@click.argument("model_uri")
@_target_option
@_name_option
@click.option(
    "--unverified",
    is_flag=True,
    help="Promote a pair too that nothing here can run, so that nothing is compared.",
)
@_json_option
def promote(
    model_uri: str,
    target: str,
    timeout: float,
    name: str | None,
    unverified: bool,
    as_json: bool,
) -> None:
    """Load, verify and make live the version MODEL_URI, such as models:/clip@prod."""
    from oml_mlflow.promotion import promote as run
    from oml_mlflow.targets import open_target

    database = open_target(target, timeout_s=timeout)
    with console.progress() as listener:
        done = run(model_uri, database, name, unverified=unverified, on_event=listener)
    entry = done.entry
    if as_json:
        console.show_json({"changed": done.changed, **vars(entry), "target": database.uri})
        return
    verb = "is now" if done.changed else "was already"
    compared = (
        f"{len(done.report.rows)} probes, largest difference {done.report.max_abs():.1e}"
        if done.report.rows
        else f"{entry.verification}. {done.report.title}"
    )
    console.out.print(
        f"{entry.name} in {database.uri} {verb} {entry.registered_model} version {entry.version} "
        f"(generation {entry.generation}); {compared}.",
        markup=False,
    )


@cli.command()
@click.argument("model_uri")
@_target_option
@_name_option
@_json_option
def verify(model_uri: str, target: str, timeout: float, name: str | None, as_json: bool) -> None:
    """Compare the live pair with the references of version MODEL_URI; exit 3 if it differs."""
    from oml_mlflow.promotion import verify as run
    from oml_mlflow.targets import open_target

    with console.progress() as listener:
        report = run(model_uri, open_target(target, timeout_s=timeout), name, on_event=listener)
    if as_json:
        console.show_json({"ok": report.ok, "probes": report.to_rows()})
    else:
        rows = [
            (
                r["probe"],
                r["category"],
                f"{r['max_abs']:.1e}",
                f"{r['cosine']:.7f}",
                "within" if r["ok"] else f"DIFFERS {r['error']}",
            )
            for r in report.to_rows()
        ]
        console.show_table(report.title, ("probe", "category", "max abs", "cosine", ""), rows)
    sys.exit(0 if report.ok else 3)


@cli.command()
@_target_option
@_json_option
def status(target: str, timeout: float, as_json: bool) -> None:
    """List what is loaded in a database, and what was promoted when."""
    from oml_mlflow.targets import open_target

    database = open_target(target, timeout_s=timeout)
    with database.session("status", create=False) as session:
        models, ledger = session.list_models(), session.ledger()
    if as_json:
        console.show_json(
            {"models": [vars(m) for m in models], "ledger": [vars(e) for e in ledger]}
        )
        return
    console.show_table(
        f"Loaded in {database.uri}",
        ("model", "dims", "bytes", "sha256", "version", "loaded (UTC)"),
        [
            (
                m.name,
                m.dims,
                f"{m.size_bytes:,}",
                f"{m.fingerprint[:12]}…",
                _origin(m.metadata),
                f"{m.loaded_at:%Y-%m-%d %H:%M:%S}",
            )
            for m in models
        ],
    )
    console.show_table(
        "Ledger",
        ("name", "generation", "version", "", "largest difference", "promoted (UTC)"),
        [
            (
                e.name,
                e.generation,
                _origin(vars(e)),
                e.verification,
                f"{e.parity.get('max_abs', float('nan')):.1e}",
                f"{e.promoted_at:%Y-%m-%d %H:%M:%S}",
            )
            for e in ledger
        ],
    )


@cli.command()
@click.argument("model_uri")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@_target_option
@_name_option
@_json_option
def fingerprints(
    model_uri: str,
    files: tuple[str, ...],
    target: str,
    timeout: float,
    name: str | None,
    as_json: bool,
) -> None:
    """Show sha256 of exported FILES, of the artifact of MODEL_URI, and of the bytes in a database.

    All are computed anew from the bytes. Exit 3 if one differs from what was logged.
    """
    from oml_mlflow.custody import trace_bytes
    from oml_mlflow.targets import open_target

    paths = [Path(file) for file in files]
    traces = trace_bytes(model_uri, open_target(target, timeout_s=timeout), name, paths)
    if as_json:
        console.show_json({"equal": all(t.ok for t in traces), "bytes": [vars(t) for t in traces]})
    else:
        rows = [(t.side, t.place, t.sha256, "equal" if t.ok else "DIFFERS") for t in traces]
        console.show_table(f"Bytes of {model_uri}", ("side", "where", "sha256", ""), rows)
    sys.exit(0 if all(t.ok for t in traces) else 3)


@cli.command()
@click.argument("statement")
@_target_option
@_json_option
def sql(statement: str, target: str, timeout: float, as_json: bool) -> None:
    """Run SQL in an embedded database; loaded models are functions, as in CLIP_TXT('a cat')."""
    from oml_mlflow.targets.embedded import EmbeddedTarget

    database = EmbeddedTarget.from_uri(target, timeout_s=timeout)
    with database.connect("a statement") as connection:
        rows = connection.execute(statement).fetchall()
        columns = connection.columns
    if as_json:
        console.show_json({"columns": columns, "rows": rows})
    elif columns:
        console.show_table(f"{len(rows)} rows", columns, rows)


def main() -> None:
    """Run the command line."""
    console.run(cli)


def _sides(pair: Any) -> list[tuple[str, str]]:
    return list(pair.fingerprints.items())


def _origin(facts: dict[str, Any]) -> str:
    if facts.get("registered_model") == "":
        return "export2db"
    return f"{facts.get('registered_model', '?')} {facts.get('version', '?')}"


if __name__ == "__main__":
    main()
