"""The Markdown block in a version's description that says where it is live. Pure: no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from urllib.parse import quote, unquote

from oml_mlflow.documents import read_json
from oml_mlflow.names import IMG, TXT
from oml_mlflow.targets import sql_call

LIVE, SUPERSEDED, FAILED = "live", "superseded", "failed"
# problems come first
_ORDER = {FAILED: 0, LIVE: 1, SUPERSEDED: 2}

# Length of MLflow's column (Source: mlflow/store/model_registry/dbmodels/models.py); SQLite takes
# more, other databases do not.
LIMIT = 5000
_SHORT, _CUT = 12, 120
_ANY_MARKER = re.compile(r"oml_mlflow:(?:begin|end)\b")
# an HTML comment shows nowhere on the version's page (measured in the UI of MLflow 3.17)
_BLOCK = re.compile(
    r"<!-- oml_mlflow:begin (?P<model>\S+) v(?P<version>\S+) -->(?P<inside>.*?)"
    r"<!-- oml_mlflow:end -->",
    re.DOTALL,
)
_DATA = re.compile(r"<!-- oml_mlflow:data 1 (?P<rows>\[.*?\]) -->")
_PLAIN_CODE = re.compile(r"[\w .,:;/@?=&+*()%'$#-]+")
_MARKED = re.compile(r"([\\`*_\[\]|~])")


@dataclass(frozen=True)
class Row:
    """The state of a version under one export name of one target.

    Attributes:
        target: Name of the target.
        name: Export name, upper-case.
        state: ``live``, ``superseded`` or ``failed``.
        uri: The target, without secrets; empty if the row was reduced for lack of room.
        generation: Its generation; 0 if it was never live.
        since: Start of that state, such as ``2026-11-23 21:00``, UTC.
        img: First 12 characters of the image pipeline's fingerprint.
        txt: Those of the text pipeline's.
        result: A short remark, such as the verdict on its vectors.
        reason: Why it failed; of a live one, what a check of its stored vectors has shown.
        next_step: What to do about it.
        evidence: Artifact folder with the report on every probe.
    """

    target: str
    name: str
    state: str
    uri: str = ""
    generation: int = 0
    since: str = ""
    img: str = ""
    txt: str = ""
    result: str = ""
    reason: str = ""
    next_step: str = ""
    evidence: str = ""

    def __post_init__(self) -> None:
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, str):
                value = _one_line(value)
                if column.name in (IMG, TXT):
                    value = value[:_SHORT].rstrip()
                object.__setattr__(self, column.name, value)

    @property
    def place(self) -> tuple[str, str]:
        """Target and export name, the key of a row."""
        return self.target, self.name

    @property
    def is_brief(self) -> bool:
        """Whether it was reduced to its state."""
        return not self.uri

    def _to_brief(self) -> Row:
        return Row(self.target, self.name, self.state)


@dataclass(frozen=True)
class MergeResult:
    """A description with our block in it.

    Attributes:
        text: The description; None if it must stay as it is.
        problem: Why it must, or that the block was shortened; else empty.
    """

    text: str | None
    problem: str = ""


@dataclass(frozen=True)
class Block:
    """The block in a description.

    Attributes:
        model: Registered model that it is about.
        version: Version that it is about.
        rows: Its rows; empty if they can't be read.
    """

    model: str
    version: str
    rows: tuple[Row, ...] = ()


def parse(description: str | None) -> Block | None:
    """Return the block in a description; None if there is none, or its markers were changed."""
    found = _find(description or "")
    if found is None:
        return None
    data = _DATA.search(found["inside"])
    return Block(unquote(found["model"]), found["version"], _read(data["rows"]) if data else ())


def without_block(description: str) -> str:
    """Return a description without our block; as it is if its markers were changed."""
    found = _find(description)
    return description[: found.start()] + description[found.end() :] if found else description


def update(rows: Iterable[Row], *changed: Row) -> tuple[Row, ...]:
    """Return rows, in order, in which `changed` replace those of the same target and name."""
    by_place = {row.place: row for row in (*rows, *changed)}
    return tuple(sorted(by_place.values(), key=lambda r: (_ORDER.get(r.state, 9), r.place)))


def merge(description: str | None, rows: Sequence[Row], model: str, version: str) -> MergeResult:
    """Return a description whose block says `rows`; all text outside the block is kept as it is.

    A block that is there is replaced, even one of another model or version: it came along when the
    version was copied. Otherwise the block is appended.

    Args:
        description: The description as it is.
        rows: Rows of the block, reduced as far as needed to stay within `LIMIT` characters.
        model: Registered model.
        version: Its version.

    Returns:
        The description; without a text if the markers were changed, so that nobody knows what is
        ours, or if the text of others leaves no room.
    """
    text = description or ""
    found = _find(text)
    if found is not None:
        before, after = text[: found.start()], text[found.end() :]
    elif _ANY_MARKER.search(text):
        return MergeResult(
            None, "the markers around our part were changed, doubled or half removed"
        )
    else:
        gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
        before, after = text + gap, ""
    room = LIMIT - len(before) - len(after)
    ordered = update(rows)
    for kept in _reductions(ordered):
        block = _render(kept, model, version)
        if len(block) <= room:
            left = "" if kept == ordered else f"there was room for {room:,} characters only"
            return MergeResult(before + block + after, left)
    return MergeResult(None, f"the text of others leaves room for {max(room, 0):,} characters only")


def _find(text: str) -> re.Match[str] | None:
    found = _BLOCK.search(text)
    # a second block, or half of one, may be what a user made of ours: then none is touched
    return found if found and len(_ANY_MARKER.findall(text)) == 2 else None


def _reductions(rows: tuple[Row, ...]) -> Iterable[tuple[Row, ...]]:
    """Return rows with less and less in them; reducing what was reduced changes nothing."""
    yield rows
    cut = tuple(replace(r, reason=_cut(r.reason), next_step=_cut(r.next_step)) for r in rows)
    yield cut
    # rows are in the order of their importance, so that the last are reduced first
    for whole in reversed(range(len(cut))):
        yield (*cut[:whole], *(row._to_brief() for row in cut[whole:]))


def _render(rows: Sequence[Row], model: str, version: str) -> str:
    full, brief = [r for r in rows if not r.is_brief], [r for r in rows if r.is_brief]
    lines = [
        f"<!-- oml_mlflow:begin {_quoted(model)} v{version} -->",
        f"<!-- oml_mlflow:data 1 {_written(rows)} -->",
        f"**In databases** ({_escaped(_one_line(model))} v{_escaped(version)})",
        "",
    ]
    for row in full:
        if row.reason or row.next_step:
            step = f" **Next:** {_escaped(row.next_step)}" if row.next_step else ""
            where = f"{_escaped(row.target)}, {_escaped(row.name)}"
            lines += [f"**{row.state}** on {where}: {_escaped(row.reason)}{step}", ""]
    if full:
        # cells are padded, since the UI draws no lines between columns
        heads = ("State", "Target", "Models", "sha256", "Since (UTC)", "Result")
        lines += [_cells(heads), _cells([":---"] * len(heads), pad="")]
        lines += [*map(_table_row, full), ""]
    if folders := ", ".join(_code(row.evidence) for row in full if row.evidence):
        lines += [f"Every probe: {folders} in the artifacts of the source run, or model.", ""]
    if brief:
        others = ", ".join(f"{r.state} on {_escaped(r.target)} ({_escaped(r.name)})" for r in brief)
        lines += [f"In short, for lack of room: {others}.", ""]
    calls = _calls(full)
    if calls:
        lines += ["```sql", *calls, "```", ""]
    return "\n".join([*lines, "<!-- oml_mlflow:end -->"])


def _table_row(row: Row) -> str:
    sides = ((IMG, row.img), (TXT, row.txt))
    names = [_code(f"{row.name}_{side.upper()}") for side, _ in sides]
    generation = f"<br>generation {row.generation}" if row.generation else ""
    return _cells(
        (
            f"**{row.state}**",
            f"{_escaped(row.target)}<br>{_code(row.uri)}",
            "<br>".join(names),
            "<br>".join(_code(fingerprint) or "-" for _, fingerprint in sides),
            f"{_escaped(row.since) or '-'}{generation}",
            _escaped(row.result) or "-",
        )
    )


def _calls(rows: Sequence[Row]) -> list[str]:
    targets: dict[str, list[str]] = {}
    for row in rows:
        if row.state == LIVE and (call := sql_call(row.uri, row.name)):
            targets.setdefault(call, []).append(row.target if _is_plain(row.target) else "")
    return [f"{call};  -- {', '.join(filter(None, names))}" for call, names in targets.items()]


def _cells(cells: Iterable[str], pad: str = "&emsp;") -> str:
    return f"| {' | '.join(cell.replace('<br>', f'{pad}<br>') + pad for cell in cells)} |"


def _written(rows: Sequence[Row]) -> str:
    """Return rows as JSON that can't end the comment it is in."""
    columns = [list(astuple(row)[: 3 if row.is_brief else None]) for row in rows]
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("--", "-\\u002d")
    return text.replace("oml_mlflow:", "oml_mlflow\\u003a")


def _read(text: str) -> tuple[Row, ...]:
    try:
        rows = tuple(Row(*columns) for columns in read_json(text))
    except (ValueError, TypeError):
        return ()
    kinds = [type(value) for value in astuple(Row("", "", ""))]
    right = all([type(value) for value in astuple(row)] == kinds for row in rows)
    return rows if right else ()


def _quoted(model: str) -> str:
    return quote(model, safe="").replace("--", "-%2D")


def _one_line(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else f"{text[: _CUT - 1].rstrip()}…"


def _code(text: str) -> str:
    return f"`{text}`" if _is_plain(text) else _escaped(text)


def _is_plain(text: str) -> bool:
    return bool(_PLAIN_CODE.fullmatch(text)) and not _ANY_MARKER.search(text)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKED.sub(r"\\\1", text)
