from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from oml_mlflow.publish.description import (
    FAILED,
    LIMIT,
    LIVE,
    SUPERSEDED,
    Row,
    merge,
    parse,
    update,
)

PROD = Row(
    target="prod",
    name="CLIP",
    state=LIVE,
    uri="oracle://app@db1:1521/FREEPDB1",
    generation=4,
    since="2026-11-23 21:00",
    img="da8e7e3503ec42bf",
    txt="247d970473b6a3a8",
    result="verified: 24 ok, difference up to 1.2e-06",
)
DEV = Row("dev", "CLIP", LIVE, "embedded:///database", 2, "2026-11-23 20:00", "da8e", "247d", "ok")
OURS = st.builds(
    Row,
    target=st.text(max_size=12),
    name=st.text(max_size=12),
    state=st.sampled_from([LIVE, FAILED, SUPERSEDED]),
    uri=st.text(min_size=1, max_size=40).filter(lambda text: Row("", "", "", text).uri),
    generation=st.integers(0, 10**6),
    since=st.text(max_size=20),
    img=st.text(max_size=20),
    txt=st.text(max_size=20),
    result=st.text(max_size=60),
    reason=st.text(max_size=300),
    next_step=st.text(max_size=300),
)
ROWS = st.lists(OURS, min_size=1, max_size=12)
HOSTILE = st.sampled_from(
    ["-->", "<!--", "```", "|", "\\", "`", "<script>", "--", "oml_mlflow:end", "](x)", "\n\n# x"]
)
MODELS = st.text("abc -_.<>é&#%'\"`|\\\n", min_size=1, max_size=12)


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_block_says_where_a_version_is_live_and_how_to_call_it() -> None:
    merged = merge("A model of ours.\n", [DEV, PROD], "clip", "3")
    assert merged.text is not None
    assert not merged.problem
    assert merged.text.startswith("A model of ours.\n\n<!-- oml_mlflow:begin clip v3 -->\n")
    assert merged.text.endswith("<!-- oml_mlflow:end -->")
    assert (
        "| **live**&emsp; | prod&emsp;<br>`oracle://app@db1:1521/FREEPDB1`&emsp; |" in merged.text
    )
    assert "`CLIP_IMG`&emsp;<br>`CLIP_TXT`" in merged.text
    assert "`da8e7e3503ec`&emsp;<br>`247d970473b6`" in merged.text
    assert "SELECT CLIP_TXT('a cat');  -- dev\n" in merged.text
    call = "SELECT VECTOR_EMBEDDING(CLIP_TXT USING :text AS DATA) FROM DUAL;  -- prod\n"
    assert call in merged.text
    html = rendered(merged.text)
    assert html.count("<tr>") == 3
    assert html.count("<td") == 12


def test_failure_shows_reason_and_next_step_before_anything_else() -> None:
    failed = Row(
        *("prod", "CLIP", FAILED, "oracle://app@db1/P"),
        result="parity-failed",
        reason="3 of 24 probes differ | worst `café`.",
        next_step="oml-mlflow verify",
    )
    text = merge("", [DEV, failed], "clip", "4").text or ""
    assert text.index("**failed**") < text.index("**live**")
    assert "**failed** on prod, CLIP: 3 of 24 probes differ \\| worst \\`café\\`. " in text
    assert "**Next:** oml-mlflow verify" in text
    assert "3 of 24 probes differ | worst `café`." in rendered(text)


def test_only_the_changed_row_changes() -> None:
    text = merge("Words.", [DEV, PROD], "clip", "3").text
    block = parse(text)
    assert block is not None
    assert (block.model, block.version, set(block.rows)) == ("clip", "3", {DEV, PROD})
    gone = Row("prod", "CLIP", SUPERSEDED, PROD.uri, 4, result="by v4, kept as generation 4")
    again = merge(text, update(block.rows, gone), "clip", "3").text
    assert parse(again).rows == (DEV, gone)  # type: ignore[union-attr]
    assert again.count("oml_mlflow:begin") == 1  # type: ignore[union-attr]


def test_block_of_a_copied_version_is_replaced() -> None:
    text = (merge("Words.", [PROD], "clip", "3").text or "") + "\n\nMore words."
    copied = merge(text, [DEV], "clip prod", "1").text or ""
    assert "oml_mlflow:begin clip%20prod v1 -->" in copied
    assert "oml_mlflow:begin clip v3" not in copied
    assert "db1" not in copied
    assert copied.startswith("Words.\n\n<!--")
    assert copied.endswith("-->\n\nMore words.")
    assert parse(copied).rows == (DEV,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("<!-- oml_mlflow:end -->", ""),
        lambda text: text.replace("<!-- oml_mlflow:begin clip v3 -->", ""),
        lambda text: text.replace("<!-- oml_mlflow:begin clip", "<!-- oml_mlflow:begin  clip"),
        lambda text: text.replace("oml_mlflow:end -->", "oml_mlflow:end--> "),
        lambda text: text + text,
        lambda text: text + "\n<!-- oml_mlflow:end -->",
    ],
)
def test_changed_markers_are_left_alone(change) -> None:  # type: ignore[no-untyped-def]
    text = change(merge("Words.", [PROD], "clip", "3").text)
    merged = merge(text, [DEV], "clip", "3")
    assert merged.text is None
    assert "markers" in merged.problem
    assert parse(text) is None


@pytest.mark.parametrize("data", ["[[1]]", "[", "{}", '[["a","b","live",5]]', "[[null,1,2]]"])
def test_unreadable_rows_are_made_anew(data: str) -> None:
    text = f"<!-- oml_mlflow:begin clip v3 -->\n<!-- oml_mlflow:data 1 {data} -->\nx\n"
    text += "<!-- oml_mlflow:end -->"
    assert parse(text).rows == ()  # type: ignore[union-attr]
    assert parse(merge(text, [DEV], "clip", "3").text).rows == (DEV,)  # type: ignore[union-attr]


def test_rows_are_reduced_to_what_there_is_room_for() -> None:
    rows = [
        Row(f"db{i:02}", "CLIP", LIVE, f"oracle://app@db{i}/P", i, "2026", "aa", "bb", "ok")
        for i in range(30)
    ]
    failed = Row("new", "CLIP", FAILED, "oracle://app@new/P", reason="long " * 90, next_step="x")
    words = "w" * 1500
    merged = merge(words, [*rows, failed], "clip", "3")
    assert merged.text is not None
    assert len(merged.text) <= LIMIT
    assert "room" in merged.problem
    found = {row.target: row for row in parse(merged.text).rows}  # type: ignore[union-attr]
    assert len(found) == 31
    assert not found["new"].is_brief
    assert found["db29"] == Row("db29", "CLIP", LIVE)
    assert "live on db29 (CLIP)" in merged.text
    fresh = Row("db29", "CLIP", SUPERSEDED, "oracle://app@db29/P", 29, result="by v4")
    again = merge(merged.text, update(found.values(), fresh), "clip", "3").text
    assert "superseded on db29 (CLIP)" in (again or "")


def test_text_of_others_that_leaves_no_room_stays_as_it_is() -> None:
    merged = merge("w" * 4900, [PROD], "clip", "3")
    assert merged.text is None
    assert "room for 98 characters" in merged.problem


@given(st.text(max_size=5100), ROWS, MODELS, st.integers(1, 10**6).map(str))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back_and_the_rest_is_untouched(
    words: str, rows: list[Row], model: str, version: str
) -> None:
    merged = merge(words, rows, model, version)
    if merged.text is None:
        assert merged.problem
        return
    assert len(merged.text) <= LIMIT
    assert merged.text.startswith(words)
    block = parse(merged.text)
    assert block is not None
    assert (block.model, block.version) == (model, version)
    assert {r.place for r in block.rows} == {r.place for r in rows}
    if not merged.problem:
        assert block.rows == update(rows)
    after = "\n\nWritten later"
    assert merge(merged.text, block.rows, model, version).text == merged.text
    if len(merged.text) + len(after) <= LIMIT:
        longer = merge(merged.text + after, block.rows, model, version).text
        assert longer == merged.text + after


@given(st.lists(st.one_of(HOSTILE, st.text(max_size=5)), max_size=8).map("".join))
@settings(max_examples=150, deadline=None)
def test_nothing_in_a_row_leaves_its_cell(nasty: str) -> None:
    row = Row(
        *(f"t{nasty}", f"N{nasty}", FAILED, f"embedded:{nasty}", 1, nasty, nasty, nasty),
        result=nasty,
        reason=nasty,
        next_step=nasty,
    )
    text = merge("", [row, DEV], "clip", "3").text
    assert text is not None
    assert set(parse(text).rows) == {row, DEV}  # type: ignore[union-attr]
    html = rendered(text)
    assert (html.count("<tr>"), html.count("<td")) == (3, 12)
    assert "<script" not in html
    assert "<a " not in html
    assert html.count("<pre>") == 1
