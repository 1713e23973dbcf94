"""What is sent to load a model into Oracle: a BLOB, metadata, its identity in a comment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import oracledb

from oml_mlflow.errors import TargetError
from oml_mlflow.events import Event, Listener
from oml_mlflow.files import fingerprint_file
from oml_mlflow.names import TXT
from oml_mlflow.planning.records import LoadedModel
from oml_mlflow.targets.oracle.connection import Database
from oml_mlflow.targets.oracle.errors import translated

ATTRIBUTE = "DATA"
FORMAT = 1
# 256 KiB to 8 MiB differ by less than two runs do (measured on loopback); memory grows with it
_CHUNK_BYTES = 2**20
_COMMENT_LIMIT = 4000
# metadata to keep when a comment would get too long
_SHORT = ("registered_model", "version", "run_id", "profile", "ends", "precision")


def is_size(reported: int, size_bytes: int) -> bool:
    """Return whether MODEL_SIZE means so many bytes.

    For ONNX models 26ai was reported to give bytes; the documentation of USER_MINING_MODELS says
    megabytes, so both are accepted.
    """
    return reported == size_bytes or abs(reported * 2**20 - size_bytes) <= 2**20


def load_metadata(model: LoadedModel) -> dict[str, Any]:
    """Return the JSON metadata that a model is loaded with.

    The input mapping is explicit: nothing is left to defaults, which differ between releases.
    Source: "JSON Metadata Parameters for ONNX Models", AI Vector Search User's Guide.
    """
    known = model.metadata
    ends = known.get("ends") or {}
    found: dict[str, Any] = {
        "function": "embedding",
        "embeddingOutput": ends.get("output", "embedding"),
        "input": {ends.get("input", "input"): [ATTRIBUTE]},
    }
    if known.get("distance_metrics"):
        found["suitableDistanceMetrics"] = list(known["distance_metrics"])
    if known.get("post_processors"):
        found["normalization"] = {"name": "Normalize"} in list(known["post_processors"])
    if model.side == TXT and known.get("max_seq_length"):
        found["maxSequenceLength"] = int(known["max_seq_length"])
        found["tokenizer"] = "clip"
    if known.get("languages"):
        found["languages"] = list(known["languages"])
    described = {
        "written_by": "oml_mlflow",
        "side": model.side,
        "sha256": model.fingerprint,
        "dims": model.dims,
        "model_name": known.get("model_name"),
        "registered_model": known.get("registered_model"),
        "version": known.get("version"),
        "run_id": known.get("run_id"),
        "profile": known.get("profile"),
    }
    found["modelDescription"] = {key: value for key, value in described.items() if value}
    return found


def comment_text(model: LoadedModel, *, line_breaks: bool = False) -> str:
    """Return the identity of a model, as its comment holds it: ASCII, at most 4000 characters.

    Args:
        model: The model.
        line_breaks: Break lines, whose length SQL*Plus limits.
    """
    separators = (",\n" if line_breaks else ",", ":")
    identity: dict[str, Any] = {
        "oml_mlflow": FORMAT,
        "side": model.side,
        "sha256": model.fingerprint,
        "dims": model.dims,
        "size_bytes": model.size_bytes,
        "loaded_at": model.loaded_at.isoformat(timespec="seconds"),
        "metadata": model.metadata,
    }
    text = json.dumps(identity, separators=separators)
    if len(text) > _COMMENT_LIMIT:
        short = {key: model.metadata[key] for key in _SHORT if key in model.metadata}
        text = json.dumps({**identity, "metadata": short}, separators=separators)
    return text


def send(db: Database, model: LoadedModel, path: Path, on_event: Listener, state: str) -> Any:
    """Return a temporary BLOB with a file's bytes, if they are those of the fingerprint.

    The file is read twice, first for its fingerprint: hashing while sending would cost a third of
    the rate where a network is faster than SHA-256 (measured by projects/benchmark/oracle_target.py
    on loopback). Its status shows whether anybody wrote to it in between.
    """
    with translated(f"sending {path.name} to {db.uri}", state=state), path.open("rb") as file:
        before = _status(file)
        found = fingerprint_file(path)
        if found != model.fingerprint:
            raise TargetError(
                f"{model.name}: {path.name} has sha256 {found[:12]}…, wanted "
                f"{model.fingerprint[:12]}…. {state}",
                hint="log the pair again.",
            )
        # not bytes, which the driver binds as RAW or copies whole
        blob = db.connection.createlob(oracledb.DB_TYPE_BLOB)
        done, total = 0, os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK_BYTES):
            blob.write(chunk, done + 1)
            done += len(chunk)
            on_event(Event("upload", model.name, done, total))
        if _status(file) != before:
            raise TargetError(
                f"{model.name}: {path.name} was written to while it was sent. {state}",
                hint="don't write to it meanwhile, and run it again.",
            )
    return blob


def _status(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
