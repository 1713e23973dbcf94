"""Edges where others' bytes and values come in, and mutated inputs for each.

Each edge reads what its strategy gives, and may raise errors of ours only.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import yaml
from hypothesis import strategies as st

from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import load_config
from oml_mlflow.flavor.package import read_package
from oml_mlflow.graph.metadata import parse_metadata
from oml_mlflow.graph.needs import Capability
from oml_mlflow.planning.capabilities import Answer, CapabilityTable
from oml_mlflow.planning.geometry import pack_vectors, unpack_vectors
from oml_mlflow.planning.records import Grant, LedgerEntry, Work, now
from oml_mlflow.promotion.options import Options
from oml_mlflow.publish.description import Row, merge, parse
from oml_mlflow.reconciler.plan_file import read_plan
from oml_mlflow.reconciler.status import Change
from oml_mlflow.targets.embedded.schema import ledger_entry, ledger_row, loaded_model, note_from
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.targets.oracle.ledger import ledger_entry as oracle_entry
from oml_mlflow.targets.oracle.models import model_from
from oml_mlflow.targets.oracle.notes import note_from as oracle_note
from oml_mlflow.targets.oracle.statements import ledger_columns
from oml_mlflow.webhook.receiver import to_delivery

ODD = (
    *(None, True, 0, 5, -1, 10**400, 1.5, float("nan"), float("inf"), "", "x", "../x", "a\0b"),
    *("x" * 5000, "\ud800", [], {}, [1], [[]], {"a": 1}, [{"a": None}], datetime(1, 1, 1)),
)
DEEP = ("[" * 50_000, "[" * 3_000 + "]" * 3_000, '{"a":' * 2_000 + "1" + "}" * 2_000)
BYTES = (b"", b"\0", b"\xff", b"5", b"[]", b"{}", b"null", b"- a", b"\xef\xbb\xbf", b"a: &a [*a]")
TAGGED = ("!!bool x", "!!timestamp x", "!!int ''", "!!float x", "!!python/name:os.system")

Edge = tuple[Callable[[Any], object], st.SearchStrategy[Any]]


def _leaves(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    inner: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    for key, each in inner:
        found += _leaves(each, (*way, key))
    return found


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Put odd values in the place of some of a document's, or take some out."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        ways = _leaves(document)
        if not ways:
            return document
        *way, last = draw(st.sampled_from(ways))
        place = document
        for key in way:
            place = place[key]
        if draw(st.integers(0, 4)) == 0:
            del place[last]
        else:
            place[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return document


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut bytes short, overwrite some, put some in."""
    at = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(["cut", "write", "insert", "whole"]))
    if kind == "cut":
        return data[:at]
    if kind == "write":
        some = draw(st.binary(min_size=1, max_size=200))
        return data[:at] + some + data[at + len(some) :]
    if kind == "insert":
        return data[:at] + draw(st.sampled_from(BYTES)) + data[at:]
    return draw(st.sampled_from([*BYTES, *(text.encode() for text in DEEP)]))


def json_of(document: Any) -> st.SearchStrategy[bytes]:
    """Return a JSON document mutated, as values and as bytes."""
    text = json.dumps(document, default=str)
    written = changed(document).map(lambda value: json.dumps(value, default=str).encode())
    return st.one_of(written, damaged_bytes(text.encode()), st.sampled_from(DEEP).map(str.encode))


def yaml_of(document: Any) -> st.SearchStrategy[bytes]:
    """Return a YAML document mutated, as values and as bytes."""
    text = yaml.safe_dump(document)
    written = changed(document).map(lambda value: yaml.dump(value, allow_unicode=False).encode())
    tagged = st.sampled_from(TAGGED).map(lambda tag: text.replace("dims: ", f"dims: {tag} "))
    return st.one_of(written, written, damaged_bytes(text.encode()), tagged.map(str.encode))


def text_of(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[str]:
    return strategy.map(lambda data: data.decode("utf-8", "replace"))


ENTRY = LedgerEntry(
    "CLIP", 2, "clip", "1", "run", {"img": "a" * 64, "txt": "b" * 64}, 16, {"max_abs": 0.1}, now()
)
WORK = Work(ENTRY, 1, ("CLIP_IMG_S2",), {"img": "CLIP_IMG_S2"}, {}, (Grant("M", "G", "SELECT"),))
TABLE = CapabilityTable((Answer(Capability("input", "string", 17, 8), True),), now(), "23.7")
CHANGE = Change(Binding("dev", "CLIP", "clip", "prod"), "1", "1:2", 0, "")
PLAN = {
    "format_version": 1,
    "standings": [{"change": asdict(CHANGE)}],
    "made": {"by": "me", "at": "now"},
    "terms": asdict(Options()),
    "target": "",
    "models": [],
    "waiting": [["dev", "CLIP", "1"]],
}
CONFIG = """concurrency = 2
[targets.dev]
uri = "embedded:///database"
accept = [{ model = "clip", alias = "prod" }]
[[bindings]]
model = "clip"
alias = "prod"
targets = ["dev"]
"""
BODY = {"entity": "model_version_alias", "action": "created", "data": {"name": "m", "alias": "a"}}


def of_files(folder: Path, saved: Path) -> dict[str, Edge]:
    """Return the edges at files.

    Args:
        folder: Where to write them.
        saved: A model folder that `save_model` wrote.
    """
    package = folder / "package"
    shutil.copytree(saved, package, copy_function=os.link)
    mlmodel = yaml.safe_load((saved / "MLmodel").read_text(encoding="utf-8"))

    def put(path: Path, data: bytes) -> Path:
        path.unlink(missing_ok=True)  # not the file that it is a link to
        path.write_bytes(data)
        return path

    def golden(name: str) -> Edge:
        original = (saved / "golden" / name).read_bytes()

        def read(data: bytes) -> None:
            put(package / "golden" / name, data)
            try:
                found = read_package(package)
                found.probes()
                found.references()
            finally:
                put(package / "golden" / name, original)

        is_json = name.endswith("json")
        return read, json_of(json.loads(original)) if is_json else damaged_bytes(original)

    def read_mlmodel(data: bytes) -> None:
        put(package / "MLmodel", data)
        try:
            found = read_package(package)
            found.check_fingerprints()
            found.references()
        finally:
            put(package / "MLmodel", (saved / "MLmodel").read_bytes())

    section = {"flavors": {"oml_mlflow": mlmodel["flavors"]["oml_mlflow"]}}
    references = next((saved / "golden").glob("pair-*.npz")).name
    return {
        "MLmodel": (read_mlmodel, yaml_of(section)),
        "probes.json": golden("probes.json"),
        references: golden(references),
        "references' runtime": golden(references.replace("npz", "json")),
        "plan": (lambda data: read_plan(put(folder / "plan.json", data)), json_of(PLAN)),
        "configuration": (
            lambda data: load_config(put(folder / "oml_mlflow.toml", data), environ={}),
            st.one_of(damaged_bytes(CONFIG.encode()), st.sampled_from(DEEP).map(_as_toml)),
        ),
    }


def _as_toml(text: str) -> bytes:
    return f"target = {text}".encode()


def of_records() -> dict[str, Edge]:
    """Return the edges at what targets, registry and network hand over."""
    parity = text_of(json_of({"max_abs": 0.1}))
    row = ledger_row(ENTRY)
    columns = [column.lower() for column in ledger_columns()]
    known = {**asdict(ENTRY), "promoted_at": "2026-01-01T00:00:00+00:00", "img_sha256": "a"}
    identity = {
        "oml_mlflow": 1,
        "side": "img",
        "sha256": "a" * 64,
        "dims": 16,
        "size_bytes": 5,
        "metadata": {},
        "loaded_at": "2026-01-01T00:00:00+00:00",
    }
    content = text_of(json_of({"by": "me", "version": "1"}))
    at = datetime(2026, 1, 1)
    block = merge(None, [Row("dev", "CLIP", "live")], "clip", "1").text or ""
    rows = '[["dev","CLIP","live"]]'
    assert rows in block

    def oracle_row(values: Mapping[str, Any]) -> object:
        return oracle_entry(tuple(values.get(column) for column in columns))

    return {
        "journal": (Work.from_json, text_of(json_of(json.loads(WORK.to_json())))),
        "capabilities": (CapabilityTable.from_json, text_of(json_of(json.loads(TABLE.to_json())))),
        "embedded ledger": (lambda text: ledger_entry((*row[:8], text, *row[9:])), parity),
        "embedded model": (
            lambda text: loaded_model(("CLIP_IMG", "img", "a" * 64, 16, 5, text, at)),
            text_of(json_of({"registered_model": "clip", "ends": {}})),
        ),
        "embedded note": (lambda text: note_from(("CLIP", "pin", text, at, "me")), content),
        "Oracle's ledger": (oracle_row, changed({**known, "parity": "{}"})),
        "Oracle's comment": (
            lambda text: model_from("CLIP_IMG", 5, None, text),
            text_of(json_of(identity)),
        ),
        "Oracle's note": (
            lambda text: oracle_note("CLIP", "pin", text, at.isoformat(), ""),
            content,
        ),
        "description": (
            lambda text: parse(block.replace(rows, text)),
            text_of(json_of(json.loads(rows))),
        ),
        "geometry": (unpack_vectors, damaged_bytes(pack_vectors({"a": np.ones(4, np.float32)}))),
        "metadata": (parse_metadata, text_of(json_of({"function": "embedding"}))),
        "webhook": (lambda data: to_delivery("1", data), json_of(BODY)),
    }


def of_database(folder: Path, made: Path) -> dict[str, Edge]:
    """Return the edges at an embedded database's files; what is refused stays as it is.

    Args:
        folder: Where to write them.
        made: A database with a log that was not written into it yet.
    """
    catalog, log = "catalog.duckdb", "catalog.duckdb.wal"

    def reads(name: str) -> Edge:
        original = {path.name: path.read_bytes() for path in (made / catalog, made / log)}

        def read(data: bytes) -> None:
            written = {**original, name: data}
            for file, content in written.items():
                (folder / file).write_bytes(content)
            target = EmbeddedTarget(folder)
            try:
                target.survey()
            except Exception:
                assert (folder / catalog).read_bytes() == written[catalog]
                raise
            # a log that DuckDB could do again is part of the file now
            target.sql("SELECT count(*) FROM kept")

        return read, damaged_bytes(original[name])

    return {"catalog": reads(catalog), "log": reads(log)}


def make_database(folder: Path) -> Path:
    """Make an embedded database whose last rows are in its log only."""
    target = EmbeddedTarget(folder / "source")
    target.sql("CREATE TABLE kept AS SELECT i FROM range(5000) r(i)")
    raw = duckdb.connect(str(folder / "source" / "catalog.duckdb"))
    raw.execute("SET checkpoint_threshold = '1GB'")
    raw.execute("INSERT INTO kept SELECT i FROM range(50) r(i)")
    made = Path(shutil.copytree(folder / "source", folder / "made"))
    raw.close()
    return made
