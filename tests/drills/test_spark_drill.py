# ruff: noqa: T201 -- the figures belong in the log
"""embed on Apache Spark, beside the same in one process; needs pyspark and Java."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from attacks import encoded

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.commands.embed import embed
from oml_mlflow.commands.embed_spark import embed_spark

TEXTS, PICTURES = 10_000, 200


def session(workers: int) -> Any:
    sql = pytest.importorskip("pyspark.sql")
    # each worker is a process with one core
    return (
        sql.SparkSession.builder.master(f"local-cluster[{workers},1,1024]")
        .config("spark.ui.enabled", "false")
        .config("spark.executorEnv.PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        .config("spark.ui.showConsoleProgress", "false")
        # a few partitions for each worker
        .config("spark.sql.files.openCostInBytes", "0")
        .config("spark.sql.files.maxPartitionBytes", "40k")
        .getOrCreate()
    )


def rows(spark: Any, path: Path) -> tuple[list[str], np.ndarray, list[str | None]]:
    found = sorted(spark.read.parquet(str(path)).collect(), key=lambda row: row["id"])
    vectors = [row["embedding"] or [np.nan] for row in found]
    width = max(map(len, vectors))
    padded = [vector if len(vector) == width else [np.nan] * width for vector in vectors]
    return [r["id"] for r in found], np.array(padded, np.float32), [r["error"] for r in found]


@pytest.mark.drill
def test_spark_gives_what_one_process_gives(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    model = tmp_path / "model"
    oml_mlflow.save_model(tiny_pair, model)
    texts, photos = tmp_path / "texts.csv", tmp_path / "photos"
    texts.write_text("sku,text\n" + "".join(f'{n},"text number {n}"\n' for n in range(TEXTS)))
    pictures = [picture.convert("RGB") for _, picture in clip_folders.photographs()]
    for n in range(PICTURES):
        path = photos / f"{n % 7}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pictures[n % len(pictures)].rotate(n), "JPEG"))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    seconds = {}
    for workers in (2, 1):
        spark = session(workers)
        try:
            # so that no time holds the imports of its workers
            embed_spark(
                str(texts),
                str(tmp_path / f"warm {workers}"),
                str(model),
                id_column="sku",
                spark=spark,
            )
            for name, source, chosen in (
                ("texts", texts, {"id_column": "sku"}),
                ("photos", photos, {}),
            ):
                out = tmp_path / f"{name} by {workers}"
                begun = time.monotonic()
                count, missing = embed_spark(
                    str(source), str(out), str(model), spark=spark, **chosen
                )
                seconds[name, workers] = time.monotonic() - begun
                local = tmp_path / f"{name} by {workers}.parquet"
                embed(source, local, str(model), **chosen)
                ids, vectors, errors = rows(spark, out)
                wanted_ids, wanted, wanted_errors = rows(spark, local)
                assert count == len(wanted_ids) == (TEXTS if name == "texts" else PICTURES + 1)
                assert [Path(i).name for i in ids] == [Path(i).name for i in wanted_ids]
                assert missing == (name == "photos")
                assert [e is None for e in errors] == [e is None for e in wanted_errors]
                np.testing.assert_allclose(vectors, wanted, atol=1e-6)
        finally:
            spark.stop()
    for name in ("texts", "photos"):
        two, one = seconds[name, 2], seconds[name, 1]
        print(f"{name}: one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f}")
