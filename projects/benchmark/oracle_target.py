"""Upload, memory, swap and rollback of a full-size pair in the Oracle stand-in, side by side.

Nothing here says how fast an Oracle database is: the server is the tests' stand-in, on loopback.
What is compared is ours: the upload with a bare loop that writes the same LOB, the memory of a
promotion of 350 MB with that of a pair of about 1 MB, both in a fresh process without torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "stand-in"  # noqa: S105 -- of a server that lives as long as this script

PROMOTE = """
import json, resource, sys
from oml_mlflow import promote
done = promote(sys.argv[1], sys.argv[2], sys.argv[3])
assert "torch" not in sys.modules
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_kib": peak, "swap_s": done.swap_s, "rows": done.report.summary,
                  "max_abs": done.report.max_abs(), "fingerprints": done.entry.fingerprints}))
"""
ROLLBACK = """
import json, sys, time
from oml_mlflow import rollback
seen = []
begun = time.perf_counter()
done = rollback(sys.argv[1], sys.argv[2], on_event=seen.append)
print(json.dumps({"swap_s": done.swap_s, "all_s": time.perf_counter() - begun,
                  "uploads": sum(e.stage == "upload" for e in seen),
                  "rows": done.report.summary, "fingerprints": done.entry.fingerprints}))
"""
UPLOAD = """
import json, sys, time
from pathlib import Path
import oracledb
from oml_mlflow.files import fingerprint_file
from oml_mlflow.planning.records import LoadedModel, now
from oml_mlflow.targets.oracle.target import OracleTarget
from oml_mlflow.targets.oracle.load import _CHUNK_BYTES, send
uri, path, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
size, digest = path.stat().st_size, fingerprint_file(path)
times = {"bare": [], "ours": [], "whole": []}
with OracleTarget.from_uri(uri).session("benchmark") as session:
    db = session._db
    model = LoadedModel("B", "img", digest, 512, size, {}, now())
    for turn in range(rounds + 1):
        begun = time.perf_counter()
        blob = db.connection.createlob(oracledb.DB_TYPE_BLOB)
        with path.open("rb") as file:
            at = 1
            while chunk := file.read(_CHUNK_BYTES):
                blob.write(chunk, at)
                at += len(chunk)
        bare = time.perf_counter() - begun
        del blob
        seen = []
        begun = time.perf_counter()
        blob = send(db, model, path, lambda event: seen.append((time.perf_counter(), event)), "")
        whole = time.perf_counter() - begun
        del blob
        # from the first chunk that was through to the last one
        share = (size - seen[0][1].done) / size
        ours = (seen[-1][0] - seen[0][0]) / share
        if turn:  # the first one warms up
            for key, value in (("bare", bare), ("ours", ours), ("whole", whole)):
                times[key].append(value)
print(json.dumps({"size": size, **times}))
"""


def run(code: str, *arguments: str) -> dict:
    """Run code in a fresh process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def log_pairs(folder: Path) -> dict[str, int]:
    """Log a tiny pair, a full-size one and the latter in other bytes; return their sizes."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    import clip_folders
    import onnx

    import oml_mlflow
    from oml_mlflow import ONNXPipeline, PipelinePair

    sizes = {}
    for name, write in (("tiny", clip_folders.write_tiny), ("full", clip_folders.write_full)):
        model = write(folder / f"{name}_model")
        pair = ONNXPipeline(str(model)).export2file("clip", folder / name, validate=False)
        sizes[name] = sum(pair.path(side).stat().st_size for side in ("img", "txt"))
        oml_mlflow.log_model(pair, name="clip", registered_model_name=name)
        shutil.rmtree(model)
    (folder / "again").mkdir()
    for side in ("img", "txt"):
        found = onnx.load(str(folder / "full" / f"clip_{side}.onnx"))
        found.doc_string = "saved again"
        onnx.save(found, str(folder / "again" / f"clip_{side}.onnx"))
    again = PipelinePair.from_files(
        folder / "again" / "clip_img.onnx", folder / "again" / "clip_txt.onnx"
    )
    oml_mlflow.log_model(again, name="clip", registered_model_name="full")
    return sizes


@contextlib.contextmanager
def windows(faults: Any) -> Iterator[dict[str, float]]:
    """Time the renames and grants that the stand-in runs."""
    ran: list[tuple[str, float]] = []
    faults.after_statement = lambda index, text, session: ran.append((text, time.perf_counter()))
    seen: dict[str, float] = {}
    yield seen
    faults.after_statement = None
    # the block itself is a statement too, and ends last
    inside = [(text.lstrip().upper(), at) for text, at in ran]
    renames = [at for text, at in inside if text.startswith("DBMS_DATA_MINING.RENAME_MODEL")]
    grants = [at for text, at in inside if text.startswith("GRANT")]
    seen |= {"mixed": renames[1] - renames[0], "grants": max(grants) - renames[0]}


def grant(dsn: str, models: tuple[str, ...]) -> None:
    """Give another user the live models."""
    import oracledb

    with oracledb.connect(user="vec", password=PASSWORD, dsn=dsn) as connection:
        for model in models:
            connection.cursor().execute(f"GRANT SELECT ON MINING MODEL {model} TO APP")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each upload is timed.")
def main(rounds: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="oracle-benchmark-") as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ |= {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_REGISTRY_URI": uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OML_MLFLOW_PASSWORD": PASSWORD,
        }
        os.chdir(folder)
        # in a process of its own: torch stays out of this one
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import json, "
            f"oracle_target; from pathlib import Path; "
            f"print(json.dumps(oracle_target.log_pairs(Path({name!r}))))"
        )
        measure(folder, run(script), rounds)


def measure(folder: Path, sizes: dict[str, int], rounds: int) -> None:
    """Run everything against one stand-in."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    from oracle_server.engine import Database, User
    from oracle_server.server import OracleServer

    with (
        Database(users={"VEC": User(PASSWORD), "APP": User(PASSWORD)}) as database,
        OracleServer(database) as server,
    ):
        target = f"oracle://vec@{server.dsn}"
        tiny = run(PROMOTE, "models:/tiny/1", target, "TINY")
        full = run(PROMOTE, "models:/full/1", target, "FULL")
        loaded = {model: found[0] for model, found in database.models("VEC").items()}
        equal = all(loaded[f"FULL_{s.upper()}"] == f for s, f in full["fingerprints"].items())
        print(f"pair: {sizes['full'] / 1e6:.0f} MB against {sizes['tiny'] / 1e6:.1f} MB")
        print(f"bytes received = bytes logged: {equal}; {full['rows']}, {full['max_abs']:.1e}")
        more = (full["peak_kib"] - tiny["peak_kib"]) / 1024
        print(
            f"peak memory of a promotion: {full['peak_kib'] / 1024:.0f} MiB, of the tiny one "
            f"{tiny['peak_kib'] / 1024:.0f} MiB: {more:+.0f} MiB (limit +64)"
        )
        found = run(UPLOAD, target, str(folder / "full" / "clip_img.onnx"), str(rounds))
        kinds = ("ours", "bare", "whole")
        rates = {kind: [found["size"] / 1e6 / s for s in found[kind]] for kind in kinds}
        shares = [o / b for o, b in zip(rates["ours"], rates["bare"], strict=True)]
        print(
            f"upload: ours {statistics.median(rates['ours']):.0f} MB/s, bare loop "
            f"{statistics.median(rates['bare']):.0f} MB/s; ratio {statistics.median(shares):.2f} "
            f"(median of {rounds} turns, {min(shares):.2f} to {max(shares):.2f}; limit 0.9); with "
            f"the fingerprint taken before, {statistics.median(rates['whole']):.0f} MB/s"
        )
        grant(server.dsn, ("FULL_IMG", "FULL_TXT"))
        with windows(database.faults) as seen:
            second = run(PROMOTE, "models:/full/2", target, "FULL")
        print(
            f"inside the swap statement: mixed {seen['mixed'] * 1000:.1f} ms (between renames), "
            f"without grants {seen['grants'] * 1000:.1f} ms (first rename to last grant)"
        )
        back = run(ROLLBACK, target, "FULL")
        again = run(PROMOTE, "models:/full/2", target, "FULL")
        print(
            f"rollback: {back['uploads']} uploads, swap {back['swap_s']:.2f} s (limit 2), verified "
            f"again ({back['rows']}), {back['all_s']:.1f} s in all"
        )
        same = back["fingerprints"] == full["fingerprints"]
        same = same and again["fingerprints"] == second["fingerprints"]
        print(f"promote, roll back, promote again: same fingerprints: {same}")


if __name__ == "__main__":
    main()
