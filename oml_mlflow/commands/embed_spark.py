"""The verb embed past one machine: Apache Spark, through ``mlflow.pyfunc.spark_udf``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc

from oml_mlflow.commands.table import SIDES, SUFFIXES, usual_column
from oml_mlflow.errors import InputError, OutputError, UnsupportedSource
from oml_mlflow.names import IMG

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_RESULT = "embedding array<float>, error string"


def embed_spark(
    source: str,
    output: str,
    model_uri: str,
    *,
    column: str = "",
    side: str = "",
    id_column: str = "",
    spark: SparkSession | None = None,
) -> tuple[int, int]:
    """Embed as `oml_mlflow.commands.embed.embed` does, on the workers of a Spark session.

    Args:
        source: Folder of pictures, or a table, where Spark finds it.
        output: Folder that Spark writes; Parquet, or JSON Lines if it ends in .jsonl.
        model_uri: Such as ``models:/clip@prod``; each worker fetches it.
        column: As in `embed`; pictures are bytes or data: URLs.
        side: As in `embed`.
        id_column: Column that names the rows; of a folder's it is their path.
        spark: The session; the active one by default, or a new one as Spark is configured.

    Returns:
        The rows written, and how many of them have no vector.

    Raises:
        InputError: If a table has no such column.
        OutputError: If Spark can't write: the output is there already, for example.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession as Session
        from pyspark.sql import functions as f
    except ImportError as error:
        raise UnsupportedSource(
            "--engine spark needs pyspark.", hint="pip install pyspark"
        ) from error
    session = spark or Session.builder.appName("oml-mlflow embed").getOrCreate()
    try:
        rows, column, side, id_column = _read(session, source, column, side, id_column)
        name = next(name for name, of in SIDES.items() if of == side)
        model = mlflow.pyfunc.spark_udf(
            session, model_uri, _RESULT, env_manager="local", params={"on_error": "null"}
        )
        made = model(f.struct(f.col(column).alias(name)))
        named = rows.select(f.col(id_column).cast("string").alias("id"), made.alias("made"))
        # where a batch has an error, MLflow writes "None" for those of the other rows
        reason = f.when(f.col("made.embedding").isNull(), f.col("made.error")).alias("error")
        written = named.select("id", "made.embedding", reason).write
        kind = "json" if Path(output).suffix == ".jsonl" else "parquet"
        written.format(kind).save(output)
        back = session.read.format(kind).load(output)
        return back.count(), back.filter(f.col("embedding").isNull()).count()
    except PySparkException as error:
        raise OutputError(
            f"Spark could not embed {source} ({str(error).splitlines()[0][:300]}). What {output} "
            "holds may be half of it.",
            hint="see Spark's own log; name another output.",
        ) from error


def _read(
    session: SparkSession, source: str, column: str, side: str, id_column: str
) -> tuple[DataFrame, Any, Any, Any]:
    kind = {".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}.get(
        Path(source).suffix
    )
    if kind is None:
        endings = ",".join(ending[1:] for ending in SUFFIXES)
        both = f"*.{{{endings},{endings.upper()}}}"
        options = {"recursiveFileLookup": "true", "pathGlobFilter": both}
        return (
            session.read.format("binaryFile").options(**options).load(source),
            "content",
            IMG,
            "path",
        )
    options = {"header": "true", "multiLine": "true", "escape": '"'} if kind == "csv" else {}
    rows = session.read.format(kind).options(**options).load(source)
    column, side = usual_column(rows.columns, column, side)
    if column not in rows.columns or id_column not in rows.columns or not side:
        raise InputError(
            f"{source} has columns {', '.join(rows.columns)[:300]}; wanted one to embed, and one "
            "that names the rows. Nothing was embedded.",
            hint="name them with --column and --id, and --side if it is called otherwise.",
        )
    return rows, column, side, id_column
