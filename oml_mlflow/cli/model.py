"""Verbs that need no database: export, log, relog, check, embed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from oml_mlflow._version import __version__
from oml_mlflow.cli import console
from oml_mlflow.graph.profiles import DEFAULT_PROFILE, get_profile

if TYPE_CHECKING:
    from oml_mlflow.graph.finding import Finding


@click.command(epilog="Example: oml-mlflow export openai/clip-vit-base-patch32 clip")
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
    from oml_mlflow.graph.precision import loss_sentence, read_precisions
    from oml_mlflow.oml4py import ONNXPipeline
    from oml_mlflow.pair.template import ONNXPipelineConfig

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


@click.command(
    epilog="Example: oml-mlflow log clip_img.onnx clip_txt.onnx --register clip --alias prod"
)
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

    from oml_mlflow.flavor.evidence import exported_name
    from oml_mlflow.flavor.save import log_model
    from oml_mlflow.pair.pipeline_pair import PipelinePair
    from oml_mlflow.registry.answering import answering, started_run
    from oml_mlflow.registry.versions import ModelVersion, register_alias

    pair = PipelinePair.from_files(img, txt, source=source)
    if reason := pair.unverifiable:
        console.err.print(f"not run: {reason}; no vectors are kept to compare with.", markup=False)
    if experiment:
        with answering(f"experiment {experiment} can't be used"):
            mlflow.set_experiment(experiment)
    with console.progress() as listener, started_run(f"log {exported_name(pair)}"):
        info = log_model(
            pair,
            name=exported_name(pair),
            registered_model_name=registered,
            profiles=profiles or None,
            on_event=listener,
        )
    console.out.print(f"logged {info.model_uri}", markup=False)
    if registered:
        version = ModelVersion(registered, str(info.registered_model_version))
        console.out.print(f"registered {version.uri}", markup=False)
        if alias:
            register_alias(version, alias)
            console.out.print(f"alias {alias} is {version.uri}", markup=False)


@click.command(epilog="Example: oml-mlflow relog models:/clip@prod")
@click.argument("model_uri")
@console.json_option
def relog(model_uri: str, as_json: bool) -> None:
    """Make a new version of the same bytes, with today's code.

    MODEL_URI's evidence and geometry are kept; code and pins are this release's. Neither alias nor
    database is touched; what the files were compared with is said.
    """
    from oml_mlflow.commands.build import relog as run
    from oml_mlflow.flavor.manifest import UNANCHORED
    from oml_mlflow.registry.versions import get_version, is_anchored

    source = get_version(model_uri)
    anchored = is_anchored(source)
    made = f"models:/{source.name}/{run(source.uri).registered_model_version}"
    if as_json:
        console.show_json({"source": source.uri, "anchored": anchored, "version": made})
        return
    if not anchored:
        console.out.print(
            f"{source.uri} was {UNANCHORED}; they were compared with its MLmodel file only.",
            markup=False,
        )
    console.out.print(
        f"registered {made}: the bytes of {source.uri}, code of oml_mlflow {__version__}. "
        f"Next: point the alias to it, or oml-mlflow promote {made}",
        markup=False,
    )


@click.command(epilog="Example: oml-mlflow check clip_txt.onnx --profile oracle-23.7")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--profile", default=DEFAULT_PROFILE, show_default=True, help="What is to take the file."
)
@click.option("--decode-op", help="The target's own decode operator as domain:Name, or raw.")
@click.option("--metadata", help="JSON metadata to load it with, or a file that holds it.")
@click.option("--name", help="Name of the in-database model, to be judged too.")
@console.json_option
def check(
    file: str,
    profile: str,
    decode_op: str | None,
    metadata: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Judge an ONNX file by a profile's rules, without a database.

    Exits 1 if it would be refused. The file is only read, nothing in it is run.
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


@click.command(epilog="Example: oml-mlflow embed photos photos.parquet --model models:/clip@prod")
@click.argument("source")
@click.argument("output")
@click.option("--model", "model_uri", required=True, help="Such as models:/clip@prod.")
@click.option("--column", default="", help="Column to embed; image or text by default.")
@click.option("--side", default="", type=click.Choice(["", "img", "txt"]), help="What it holds.")
@click.option(
    "--id", "id_column", default="", help="Column that names the rows; else their number."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="16 pictures or 32 texts by default."
)
@click.option("--provider", "providers", multiple=True, help="ONNX Runtime's, of the encoder.")
@click.option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    show_default=True,
    help="Spark: the session that spark-submit or Spark's own configuration describes.",
)
@console.json_option
def embed(
    source: str,
    output: str,
    model_uri: str,
    column: str,
    side: str,
    id_column: str,
    batch_size: int | None,
    providers: tuple[str, ...],
    engine: str,
    as_json: bool,
) -> None:
    """Embed the pictures or texts of SOURCE into OUTPUT.

    SOURCE is a folder of pictures, with its subfolders, or a .parquet, .csv or .jsonl file whose
    column holds texts, or pictures as bytes, paths or data: URLs. OUTPUT, .parquet or .jsonl, gets
    id, embedding and error for each row. What can't be embedded has none, and says why. The same
    command goes on where one was stopped.
    """
    chosen = {"column": column, "side": side, "id_column": id_column}
    if engine == "spark":
        from oml_mlflow.commands.embed_spark import embed_spark

        rows, missing = embed_spark(source, output, model_uri, **chosen)
        found: dict[str, Any] = {"output": output, "rows": rows, "missing": missing}
        reasons: tuple[str, ...] = ()
    else:
        from oml_mlflow.commands.embed import embed as run

        with console.progress(quiet=as_json) as listener:
            done = run(
                source,
                output,
                model_uri,
                **chosen,
                batch_size=batch_size,
                providers=providers or None,
                on_event=listener,
            )
        reasons = done.reasons
        found = {"output": str(done.path), "rows": done.rows, "missing": done.missing}
        found |= {"done_before": done.done_before}
    if as_json:
        console.show_json({**found, "reasons": list(reasons)})
        return
    for reason in reasons:
        console.err.print(f"not embedded: {reason}", markup=False)
    more = found["missing"] - len(reasons)
    if reasons and more:
        console.err.print(f"and {more:,} more; column error of {output} says why", markup=False)
    earlier = f", {found['done_before']:,} of them by an earlier run" * bool(
        found.get("done_before")
    )
    console.say(
        f"{output}: {found['rows']:,} rows{earlier}, {found['missing']:,} without a vector."
    )


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


def _sides(pair: Any) -> list[tuple[str, str]]:
    return list(pair.fingerprints.items())
