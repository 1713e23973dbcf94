"""A column of an embedded database, filled by its own SQL, beside the same pair in this process.

python projects/benchmark/main.py --cache FOLDER --only columns
"""

from __future__ import annotations

import shutil
from pathlib import Path

from embedding import BATCH, SIZES, TEXTS, export, jpegs, medians

from oml_mlflow.names import IMG, TXT
from oml_mlflow.oml4py import ONNXPipeline, connect, disconnect
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PICTURES = 2_000


def measure(cache: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measure rows a second; return the figures by side."""
    pair, folder = export(cache, "clip"), cache / "database"
    shutil.rmtree(folder, ignore_errors=True)
    connect(target=f"embedded:///{folder}")
    ONNXPipeline(str(cache / "model")).export2db("clip", validate=False)
    disconnect()
    embedder, result = pair.embedder(), {}
    sides = {
        IMG: ("BLOB", jpegs(SIZES["0.3 MP"], PICTURES), embedder.embed_image),
        TXT: ("VARCHAR", TEXTS["short"] * 16, embedder.embed_text),
    }
    with EmbeddedTarget(folder).connect("a benchmark") as connection:
        for side, (kind, values, embed) in sides.items():
            name = f"CLIP_{side.upper()}"
            # there may be thousands of pictures, so that no round is run only to warm up
            connection.execute(f"CREATE TABLE {side} (value {kind}, vector FLOAT[{pair.dims}])")
            for at in range(0, len(values), 100):
                rows = [[value] for value in values[at : at + 100]]
                connection.executemany(f"INSERT INTO {side} (value) VALUES (?)", rows)
            update = f"UPDATE {side} SET vector = {name}(value)"
            connection.execute(f"SELECT {name}(value) FROM {side} LIMIT {BATCH}").fetchall()
            embed(values[:BATCH])
            seconds = medians(
                {
                    "SQL": lambda update=update: connection.execute(update),
                    "in process": lambda embed=embed, values=values: embed(values),
                },
                rounds,
                warm=0,
            )
            rates = {key: len(values) / taken for key, taken in seconds.items()}
            result[f"{len(values)} rows, {side}"] = {
                **{f"{key}, a second": rate for key, rate in rates.items()},
                "SQL / in process": rates["SQL"] / rates["in process"],
            }
    return result
