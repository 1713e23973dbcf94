"""Compare a pair's token ids with those of transformers, text by text.

    python projects/fidelity/texts.py --cache FOLDER

Every text runs through the pair's own graph, cut at ``input_ids``, in three ways: bare; after
`oml_mlflow.pair.texts.prepare_text`, which every path of the package applies; and, for the Oracle
profile, after the steps of `oml_mlflow.pair.texts.oracle_text_expression`, run as SQL in DuckDB.
Then by the model's tokenizer.json, as `load_model` and serving do it where a version carries one.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click
import corpora
import duckdb
import onnx
from environments import environment, run_each

from oml_mlflow.errors import InputError
from oml_mlflow.graph.cut import INPUT_IDS
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import TXT
from oml_mlflow.pair.export import export_pair
from oml_mlflow.pair.sides import open_tokenizer
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.pair.texts import SQL_TEXT_STEPS, prepare_text
from oml_mlflow.source.model import open_source

RELEASES = ("0.12.0", "0.13.0", "0.15.2")
PROFILES = ("oracle-23.7", "onnxruntime")
BARE, OURS, SQL = "bare graph", "prepare_text", "SQL expression"
HOST, ANY = "tokenizer.json", "any"
GENERATED = "generated"

_LINE_BREAK = re.compile("[\n\r\v\f\x85\u2028\u2029]")
_WHITE = "\t-\r\x85 \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPECIAL = r"<\|(?:startoftext|endoftext)\|>"
# the first cause that a text shows is the one it is counted under
CAUSES: dict[str, Callable[[str], Any]] = {
    "white space before a special token": re.compile(rf"[{_WHITE}](?i:{_SPECIAL})").search,
    "NUL": lambda text: "\0" in text,
    "special token in upper case": lambda text: (
        re.search(rf"(?i){_SPECIAL}", text)
        and re.sub(_SPECIAL, "", text) != re.sub(rf"(?i){_SPECIAL}", "", text)
    ),
    "special token": re.compile(_SPECIAL).search,
    "not NFC": lambda text: not unicodedata.is_normalized("NFC", text),
    "line break": _LINE_BREAK.search,
    "white space other than single spaces": re.compile(rf"[{_WHITE}]{{2}}|(?! )[{_WHITE}]").search,
    "control character": re.compile("[\x01-\x1f\x7f]").search,
    "'s, 't and the like": re.compile(r"'(?i:s|t|re|ve|m|ll|d)").search,
    "number that is no digit 0-9": lambda text: any(
        unicodedata.category(c)[0] == "N" and not c.isascii() for c in text
    ),
    "letters outside ASCII": lambda text: any(c.isalpha() and not c.isascii() for c in text),
    "other": lambda text: True,
}
SUBSETS: dict[str, Callable[[str], bool]] = {
    "all": lambda text: True,
    "single line": lambda text: not _LINE_BREAK.search(text),
    "single line, NFC": lambda text: (
        not _LINE_BREAK.search(text) and unicodedata.is_normalized("NFC", text)
    ),
    "printable ASCII": lambda text: text.isascii() and text.isprintable(),
    "NFC": lambda text: unicodedata.is_normalized("NFC", text),
    "several lines": lambda text: bool(_LINE_BREAK.search(text)),
}


@dataclass
class Count:
    """What became of some texts."""

    texts: int = 0
    equal: int = 0
    refused: int = 0
    crashed: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, answer: dict[str, Any] | None, wanted: Sequence[int]) -> None:
        """Count one text; no answer means that it was refused before the graph."""
        self.texts += 1
        if answer is None:
            self.refused += 1
        elif answer.get("values") == list(wanted):
            self.equal += 1
        else:
            end = "differs" if "values" in answer else "error" if "error" in answer else "crash"
            self.crashed += end == "crash"
            self.causes[f"{end}: {cause_of(text)}"] += 1

    def to_row(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        judged = self.texts - self.refused
        percent = 100 * self.equal / judged if judged else None
        return {**vars(self), "causes": dict(self.causes.most_common()), "percent": percent}


def cause_of(text: str) -> str:
    """Return the first of `CAUSES` that a text shows."""
    return next(name for name, shows in CAUSES.items() if shows(text))


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(folder)


def reference_ids(folder: Path, texts: Sequence[str]) -> dict[str, list[int]]:
    """Return what transformers' own tokenizer gives, cut to 77."""
    tokenizer = _tokenizer(folder)
    ids = {}
    for at in range(0, len(texts), 1000):
        part = list(texts[at : at + 1000])
        found = tokenizer(part, truncation=True, max_length=77)["input_ids"]
        ids.update(zip(part, found, strict=True))
    return ids


def token_graph(folder: Path, profile: str, work: Path) -> Path:
    """Export a model's pair for a profile; return its text graph up to the ids."""
    name = f"ids_{profile}".replace("-", "_").replace(".", "_")
    pair = export_pair(
        open_source(str(folder)),
        ONNXPipelineConfig(),
        name,
        work,
        profile=get_profile(profile),
        validate=False,
    )
    extractor = onnx.utils.Extractor(onnx.load(pair.path(TXT)))
    path = work / f"{name}.onnx"
    onnx.save(extractor.extract_model(["input"], [INPUT_IDS]), path)
    return path


def prepared(text: str) -> str | None:
    """Return what our own paths hand to a graph, or None where they refuse."""
    try:
        return prepare_text(text)
    except InputError:
        return None


def sql_texts(texts: Sequence[str]) -> dict[str, str]:
    """Return what the steps of `oracle_text_expression` make of texts, run as SQL in DuckDB."""
    expression = "replace(body, chr(0), '')"
    for pattern, replacement, any_case in SQL_TEXT_STEPS:
        flags = "gi" if any_case else "g"
        wanted, given = pattern.replace("'", "''"), replacement.replace("'", "''")
        expression = f"regexp_replace({expression}, '{wanted}', '{given}', '{flags}')"
    with duckdb.connect() as database, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text("".join(f"{json.dumps({'body': text})}\n" for text in texts))
        rows = database.execute(
            f"SELECT {expression} FROM read_json('{path}', columns={{body: 'VARCHAR'}}, "
            "format='newline_delimited')"
        ).fetchall()
    return {text: row[0] for text, row in zip(texts, rows, strict=True)}


def measure(
    sources: dict[str, list[str]],
    folder: Path,
    python_of: Callable[[str], str | Path],
    work: Path,
    releases: Sequence[str] = RELEASES,
    profiles: Sequence[str] = PROFILES,
) -> list[dict[str, Any]]:
    """Return one row per release, profile, way, source and subset.

    Args:
        sources: Texts by source.
        folder: Model, for its tokenizer.
        python_of: Gives the interpreter of a release's environment.
        work: Folder for the run's files.
        releases: Of onnxruntime-extensions.
        profiles: Names of profiles.
    """
    texts = list(dict.fromkeys(text for part in sources.values() for text in part))
    wanted = reference_ids(folder, texts)
    ways: dict[str, dict[str, str | None]] = {
        BARE: {text: text for text in texts},
        OURS: {text: prepared(text) for text in texts},
        SQL: dict(sql_texts(texts)),
    }
    rows = []
    for profile in profiles:
        graph = token_graph(folder, profile, work)
        used = [way for way in ways if way != SQL or profile.startswith("oracle")]
        inputs = list(dict.fromkeys(t for way in used for t in ways[way].values() if t is not None))
        for release in releases:
            entries = [{"text": text} for text in inputs]
            try:
                answers = run_each(python_of(release), graph, entries, work / release / profile)
            except RuntimeError as error:
                rows.append({"release": release, "profile": profile, "error": str(error)})
                continue
            found = dict(zip(inputs, answers, strict=True))
            for way in used:
                counts = count(sources, {t: ways[way][t] for t in texts}, found, wanted)
                rows += [
                    {"release": release, "profile": profile, "way": way, **row} for row in counts
                ]
    counts = count(
        sources,
        {text: None if prepared(text) is None else text for text in texts},
        {text: {"values": ids} for text, ids in host_ids(folder, texts).items()},
        wanted,
    )
    return rows + [{"release": ANY, "profile": ANY, "way": HOST, **row} for row in counts]


def host_ids(folder: Path, texts: Sequence[str]) -> dict[str, list[int]]:
    """Return the ids that `load_model` gives where a version carries tokenizer.json."""
    with tempfile.TemporaryDirectory() as saved:
        _tokenizer(folder).save_pretrained(saved)
        tokenizer = open_tokenizer(Path(saved) / "tokenizer.json", 77)
    found = tokenizer.encode_batch(list(texts))
    return {text: ids.ids for text, ids in zip(texts, found, strict=True)}


def count(
    sources: dict[str, list[str]],
    inputs: dict[str, str | None],
    found: dict[str, dict[str, Any]],
    wanted: dict[str, list[int]],
) -> list[dict[str, Any]]:
    """Return a row per source and subset, and of all sources that registries carry."""
    totals = {name: Count() for name in SUBSETS}
    rows = []
    for source, texts in sources.items():
        counts = {name: Count() for name in SUBSETS}
        for text in texts:
            given = inputs[text]
            answer = None if given is None else found[given]
            for name, holds in SUBSETS.items():
                if holds(text):
                    counts[name].add(text, answer, wanted[text])
                    if not source.startswith(GENERATED):
                        totals[name].add(text, answer, wanted[text])
        rows += [{"source": source, "subset": n, **c.to_row()} for n, c in counts.items()]
    everything = "all but generated"
    return rows + [{"source": everything, "subset": n, **c.to_row()} for n, c in totals.items()]


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as tables, and the residue by cause."""
    lines = []
    for key in dict.fromkeys((r["release"], r["profile"], r.get("way")) for r in rows):
        part = [r for r in rows if (r["release"], r["profile"], r.get("way")) == key]
        lines += ["", f"### extensions {key[0]}, profile {key[1]}, {key[2]}", ""]
        if "error" in part[0]:
            lines.append(part[0]["error"])
            continue
        lines += [f"| source | {' | '.join(SUBSETS)} | refused | crashes |"]
        lines += ["|---" * (len(SUBSETS) + 3) + "|"]
        for source in dict.fromkeys(row["source"] for row in part):
            cells = {row["subset"]: row for row in part if row["source"] == source}
            figures = " | ".join(_figure(cells[name]) for name in SUBSETS)
            every = cells["all"]
            lines.append(f"| {source} | {figures} | {every['refused']} | {every['crashed']} |")
        residue: Counter[str] = Counter()
        for row in part:
            if row["subset"] == "all" and row["source"] != "all but generated":
                residue.update(
                    {(row["source"].startswith(GENERATED), c): n for c, n in row["causes"].items()}
                )
        lines.append("")
        lines += [
            f"- {cause}: {number}{', generated' if generated else ''}"
            for (generated, cause), number in residue.most_common()
        ]
    return "\n".join(lines)


def _figure(row: dict[str, Any]) -> str:
    if row["percent"] is None:
        return "–"
    return f"{row['percent']:.3f} % of {row['texts'] - row['refused']:,}"


def tiny_model(cache: Path) -> Path:
    """Return a tiny model with CLIP's own vocabulary, made by the tests' code."""
    sys.path[:0] = [
        str(Path(__file__).resolve().parents[2] / "tests"),
        str(Path(__file__).resolve().parents[2] / "tests" / "support"),
    ]
    import clip_folders

    folder = cache / "tiny"
    return folder if folder.exists() else clip_folders.write_tiny(folder)


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="For downloads.")
@click.option("--release", "releases", multiple=True, default=RELEASES, help="Of extensions.")
@click.option("--profile", "profiles", multiple=True, default=PROFILES)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for all rows.")
def main(
    cache: Path, releases: tuple[str, ...], profiles: tuple[str, ...], output: Path | None
) -> None:
    """Print how many texts get the ids that transformers gives."""
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    sources = corpora.text_sources(cache)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        rows = measure(
            sources,
            tiny_model(cache),
            lambda release: environment(cache, release),
            Path(work),
            releases,
            profiles,
        )
    if output:
        output.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
