"""embed: folders and tables, in this process and by the command line."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import Call, Run

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.commands import embed as verb
from oml_mlflow.commands.embed import embed
from oml_mlflow.errors import InputError, NameTaken, OutputError
from oml_mlflow.events import Event
from oml_mlflow.files import locked
from oml_mlflow.parity.probes import golden_probes

PICTURES = [p.value for p in golden_probes() if isinstance(p.value, bytes)][:6]
TEXTS = ["a cat", "two\nlines, and a comma", "", 'a "quoted" word', "x " * 300]


@pytest.fixture(scope="module")
def model(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "model"
    oml_mlflow.save_model(tiny_pair, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, picture in enumerate(PICTURES):
        path = tmp_path / "photos" / f"album {number % 2}" / f"{number}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    return [json.loads(line) for line in path.read_text().splitlines()]


def matrix(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["embedding"] for row in rows], np.float32)


@pytest.mark.parametrize("output", ["vectors.parquet", "vectors.jsonl"])
def test_a_folder_is_read_with_its_subfolders(
    output: str, photos: Path, model: Path, tiny_pair: PipelinePair, tmp_path: Path, call: Call
) -> None:
    (photos / "album 1" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbut no more")
    said = call("embed", photos, tmp_path / output, "--model", model)
    rows = read(tmp_path / output)
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*") if p.is_file())
    assert [row["id"] for row in rows] == [n for n in names if not n.endswith(".txt")]
    good = [row for row in rows if row["error"] is None]
    wanted = tiny_pair.embedder().embed_image([photos / row["id"] for row in good])
    np.testing.assert_allclose(matrix(good), wanted, atol=1e-6)
    [bad] = [row for row in rows if row["error"] is not None]
    assert bad["id"] == "album 1/bad.png"
    assert bad["embedding"] is None
    assert bad["error"].startswith(f"{photos}/album 1/bad.png can't be decoded")
    assert "not embedded: album 1/bad.png: " in said.stderr
    assert "7 rows, 1 without a vector" in said.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("vectors")) == [output]


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


Write = Callable[[Path, list[dict[str, Any]]], None]


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.csv", as_csv), ("t.jsonl", as_lines), ("t.ndjson", as_lines), ("t.parquet", as_parquet)],
)
def test_tables_of_texts(
    name: str, write: Write, model: Path, tiny_pair: PipelinePair, tmp_path: Path, run: Run
) -> None:
    write(tmp_path / name, [{"sku": f"s{n}", "text": text} for n, text in enumerate(TEXTS)])
    out = tmp_path / "out.parquet"
    said = json.loads(run("embed", tmp_path / name, out, "--model", model, "--id", "sku", "--json"))
    assert (said["rows"], said["missing"]) == (len(TEXTS), 0)
    rows = read(out)
    assert [row["id"] for row in rows] == [f"s{n}" for n in range(len(TEXTS))]
    np.testing.assert_allclose(matrix(rows), tiny_pair.embedder().embed_text(TEXTS), atol=1e-6)
    kind = pq.read_schema(out).field("embedding").type
    assert kind == pa.list_(pa.field("element", pa.float32()))


def test_pictures_in_tables(
    photos: Path, model: Path, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    path = next(photos.rglob("*.JPG"))
    url = f"data:image/png;base64,{base64.b64encode(PICTURES[1]).decode()}"
    relative = path.relative_to(tmp_path).as_posix()
    as_lines(
        tmp_path / "t.jsonl",
        [{"p": relative}, {"p": url}, {"p": "gone.jpg"}, {"p": None}, {"p": "data:;base64,?"}],
    )
    out = tmp_path / "lines.jsonl"
    done = embed(tmp_path / "t.jsonl", out, str(model), column="p", side="img")
    rows = read(out)
    wanted = tiny_pair.embedder().embed_image([path, PICTURES[1]])
    np.testing.assert_allclose(matrix(rows[:2]), wanted, atol=1e-6)
    assert [row["id"] for row in rows] == list("01234")
    assert done.missing == 3
    assert "No such file" in rows[2]["error"]
    assert "NoneType" in rows[3]["error"]
    # as Hugging Face's datasets store pictures, and plain bytes
    as_parquet(
        tmp_path / "t.parquet",
        [{"image": {"bytes": p, "path": "x"}, "raw": p} for p in PICTURES[:2]],
    )
    wanted = tiny_pair.embedder().embed_image(PICTURES[:2])
    for column, side in (("", ""), ("raw", "img")):
        out = tmp_path / f"of {column}.parquet"
        embed(tmp_path / "t.parquet", out, str(model), column=column, side=side)
        np.testing.assert_allclose(matrix(read(out)), wanted, atol=1e-6)


def test_a_stopped_run_goes_on(
    model: Path, tiny_pair: PipelinePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_ROWS_PER_PART", 8)
    texts = [f"number {n}" for n in range(50)]
    as_csv(tmp_path / "t.csv", [{"text": text} for text in texts])
    source, out = tmp_path / "t.csv", tmp_path / "out.parquet"

    def stop(event: Event) -> None:
        if event.done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(source, out, str(model), on_event=stop)
    assert not out.exists()
    (tmp_path / "other.csv").write_text("text\nothers\n")
    with pytest.raises(InputError, match=r"begun with another source\."):
        embed(tmp_path / "other.csv", out, str(model))
    with locked(tmp_path / "out.parquet.parts"), pytest.raises(InputError, match="another process"):
        embed(source, out, str(model))
    told: list[Event] = []
    done = embed(source, out, str(model), on_event=told.append)
    assert (done.rows, done.done_before, len(told)) == (50, 24, 26)
    rows = read(out)
    assert [row["id"] for row in rows] == [str(n) for n in range(50)]
    np.testing.assert_allclose(matrix(rows), tiny_pair.embedder().embed_text(texts), atol=1e-6)
    with pytest.raises(NameTaken, match="is there already"):
        embed(source, out, str(model))


def test_parts_that_a_killed_run_did_not_remove_are_no_rows(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\na\nb\n")
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "000000000000-2.parquet").write_bytes(b"of an output that was whole")
    done = embed(tmp_path / "t.csv", tmp_path / "out.jsonl", str(model))
    assert (done.rows, done.done_before) == (2, 0)


@pytest.mark.parametrize(
    ("name", "text", "chosen", "said"),
    [
        ("t.csv", "text\na\n", {"column": "caption"}, "has no column 'caption'"),
        ("t.csv", "text\na\n", {"id_column": "sku"}, "has no column 'sku'"),
        ("t.csv", "caption\na\n", {"column": "caption"}, "pictures or texts"),
        ("t.csv", "", {}, "has no column 'image or text': it has no rows"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', {}, "can't be read"),
        ("t.jsonl", '["a"]\n', {}, "line 1 is no object"),
        ("t.parquet", "no parquet", {}, "can't be read"),
        ("t.xlsx", "", {}, "wanted a folder"),
    ],
)
def test_what_can_t_be_read_is_refused(
    name: str, text: str, chosen: dict[str, str], said: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        embed(tmp_path / name, tmp_path / "out.parquet", str(model), **chosen)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_outputs_that_can_t_be_written(model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no format"):
        embed(photos, tmp_path / "out.xlsx", str(model))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        embed(photos, tmp_path / "file" / "out.parquet", str(model))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        embed(tmp_path / "empty", tmp_path / "out.parquet", str(model))
