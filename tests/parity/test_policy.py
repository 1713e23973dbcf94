"""The policy, the states of a report, the page, and the golden probes that a database decodes."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_runtimes import RUN_GRAPH
from PIL import Image

from oml_mlflow.errors import ConfigError
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.parity.advice import next_steps
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.page import to_html
from oml_mlflow.parity.policy import FAILED, OK, SKIPPED, WARNED, ParityPolicy
from oml_mlflow.parity.probes import Probe, by_side, embed_probes, golden_probes, unsafe_reason
from oml_mlflow.parity.report import ParityReport

DEFAULT = ParityPolicy()
PROBES = golden_probes()
NO_PNG = {p.id: "the database documents JPEG only" for p in PROBES if p.category == "png"}


def unit_vectors(dims: int = 16) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    rows = dice.normal(size=(len(PROBES), dims)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {probe.id: row for probe, row in zip(PROBES, rows, strict=True)}


def report(
    off: dict[str, float] | None = None, policy: ParityPolicy = DEFAULT, **given: Any
) -> ParityReport:
    """Return a report in which an element of each probe of a class is off by so much.

    The vectors stay of unit length.
    """
    references = unit_vectors()
    vectors = {key: vector.copy() for key, vector in references.items()}
    limits = {p.category: policy.limits("float32", 16) for p in PROBES}
    for probe in PROBES:
        vector = vectors[probe.id]
        before = vector[0]
        vector[0] += (off or {}).get(probe.category, 0.0)
        vector[1:] *= np.sqrt((1 - vector[0] ** 2) / (1 - before**2))
    for missing in given.get("errors") or {}:
        del vectors[missing]
    return compare("title", PROBES, vectors, references, limits, policy=policy, **given)


def test_only_subsampled_jpeg_warns_by_default() -> None:
    policy = ParityPolicy()
    assert {p.category for p in PROBES if policy.level(p.category) == "warn"} == {"jpeg-420"}
    assert policy.level("a class of a later release") == "must"
    assert policy.limits("float32", 512).max_abs == 1e-4
    assert policy.limits("int8-dynamic", 400).max_abs == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("must", "warn", "warned"),
    [
        ("", "", {"jpeg-420"}),
        ("", " Emoji, cjk", {"emoji", "cjk", "jpeg-420"}),
        ("jpeg-420", "emoji", {"emoji"}),
        (
            "ascii,jpeg-444",
            "",
            {"digits", "accents", "cjk", "emoji", "long", "jpeg-420", "grey", "png"},
        ),
    ],
)
def test_settings_name_classes(must: str, warn: str, warned: set[str]) -> None:
    assert ParityPolicy.from_settings(must, warn).warn == warned


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"must": "ascci"}, "no class 'ascci'"),
        ({"warn": "ascii,webp"}, "no class 'webp'"),
        ({"must": "emoji", "warn": "emoji"}, "in must and in warn"),
        ({"must": "ascii"}, "no class of pictures"),
        ({"must": "jpeg-444"}, "no class of texts"),
        ({"max_abs": "much"}, "'much' is no number"),
        ({"max_abs": "nan"}, "'nan' is no number"),
        ({"cosine": "1.1"}, "'1.1' is no number"),
        ({"cosine": "float8=0.9"}, "no precision 'float8'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as err:
        ParityPolicy.from_settings(**settings)
    assert err.value.code == "config-invalid"
    assert err.value.hint


def test_unknown_class_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no class") as err:
        ParityPolicy.from_settings("greyscale")
    assert "ascii, digits, accents, cjk, emoji, long, jpeg-444" in err.value.hint


def test_limits_of_settings_hold_for_their_precision() -> None:
    policy = ParityPolicy.from_settings(max_abs="0.01, int8=0.02", cosine="float32=0.999")
    assert policy.limits("float32", 512).max_abs == 0.01
    assert policy.limits("int8", 512).max_abs == 0.02
    assert policy.limits("float32", 512).cosine == 0.999
    assert policy.limits("int8-dynamic", 512).cosine == 0.999


def test_the_digest_stands_for_the_policy() -> None:
    one, other = ParityPolicy(), ParityPolicy.from_settings(warn="emoji")
    assert one.digest == ParityPolicy.from_settings(warn="jpeg-420").digest
    assert ParityPolicy.from_json(other.to_json()) == other
    assert len({one.digest, other.digest, replace(one, max_abs={"int8": 0.1}).digest}) == 3


def test_a_class_over_a_limit_fails_or_warns() -> None:
    found = report({"jpeg-420": 2e-3}, skipped=NO_PNG)
    assert found.ok
    assert found.summary == "19 ok, 2 warned, 3 skipped"
    assert not report({"jpeg-444": 2e-3}, skipped=NO_PNG).ok
    assert not report({"jpeg-420": 2e-3}, ParityPolicy.from_settings(must="ascii,jpeg-420")).ok


def test_a_cosine_limit_counts_too() -> None:
    policy = ParityPolicy.from_settings(max_abs="1", cosine="0.9999")
    assert report({"ascii": 1e-3}, policy).ok
    found = report({"ascii": 0.5}, policy)
    assert [row.state for row in found.rows if row.probe.category == "ascii"] == [FAILED] * 6


@pytest.mark.parametrize("side", ["img", "txt"])
def test_nothing_compared_is_not_right(side: str) -> None:
    skipped = {probe.id: "not sent" for probe in PROBES if probe.side == side}
    found = report(skipped=skipped)
    assert found.uncompared == (side,)
    assert not found.ok
    assert not ParityReport("empty").ok
    # what is only warned about proves nothing
    skipped = {probe.id: "not sent" for probe in by_side(PROBES, "img")}
    del skipped["jpeg-420-landscape"]
    assert not report(skipped=skipped).ok


def test_a_probe_that_raises_is_a_failure_with_its_message() -> None:
    found = report(errors={"emoji-cat": "ORA-54426: text"})
    assert not found.ok
    assert found.worst.probe.id == "emoji-cat"
    assert found.max_abs() == math.inf
    assert "ORA-54426: text" in found.to_markdown()
    tolerant = ParityPolicy.from_settings(warn="emoji")
    found = report(errors={"emoji-cat": "ORA-54426: text"}, policy=tolerant)
    assert found.ok
    assert found.max_abs() < 1e-6
    assert found.min_cosine() > 0.99999


@pytest.mark.parametrize(
    ("vector", "error"),
    [(np.full(16, np.nan), "not finite"), (np.zeros(16), "all zero"), (np.ones(8), "dims 8")],
)
def test_a_vector_that_is_none_fails(vector: np.ndarray, error: str) -> None:
    references = unit_vectors()
    vectors = {**references, "ascii-cat": vector.astype(np.float32)}
    found = compare("title", PROBES, vectors, references, policy=DEFAULT)
    [row] = [row for row in found.rows if row.state == FAILED]
    assert row.error.startswith(error)


def test_classes_are_summed_up() -> None:
    found = report({"jpeg-420": 2e-3, "accents": 1e-3}, skipped=NO_PNG)
    by_name = {summary.category: summary for summary in found.by_class()}
    assert next(iter(by_name)) == "png"
    states = {name: summary.state for name, summary in by_name.items()}
    assert states == dict.fromkeys(states, OK) | {
        "png": SKIPPED,
        "jpeg-420": WARNED,
        "accents": FAILED,
    }
    accents, png = by_name["accents"], by_name["png"]
    assert (accents.count, accents.compared, accents.level) == (3, 3, "must")
    assert accents.max_abs == pytest.approx(1e-3, rel=1e-3)
    assert (png.count, png.compared) == (3, 0)
    assert math.isnan(png.max_abs)


def test_json_has_no_figures_that_are_none() -> None:
    found = report(skipped=NO_PNG, errors={"emoji-cat": "ORA-54426: text"})

    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["format_version"] == 1
    assert not stored["ok"]
    assert len(stored["probes"]) == len(PROBES)
    rows = {row["probe"]: row for row in stored["probes"]}
    assert rows["emoji-cat"]["max_abs"] is rows["png-small"]["max_abs"] is None
    assert rows["png-small"]["skipped"]


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_is_escaped() -> None:
    attack = "<script>alert('&')</script>"
    found = replace(report(skipped={"png-small": attack}), title=attack)
    html = to_html(found, {"Database": attack, attack: "x"})
    page = Page(html)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not {"src", "href", "onload"} & page.attributes
    assert not re.search(r"url\(|@import|https?:", html)
    assert page.text.count(attack) == 5
    assert len(html.encode()) < 50_000
    assert len(found._repr_html_().encode()) < 50_000
    assert "<script" not in found._repr_html_()


def test_the_page_says_the_verdict_in_words() -> None:
    assert "✓ Passed" in Page(to_html(report())).text
    assert "! Passed, with warnings" in Page(to_html(report({"jpeg-420": 2e-3}))).text
    text = Page(to_html(report({"accents": 2e-3}, skipped=NO_PNG))).text
    assert "✗ Failed" in text
    assert "✗ failed" in text
    assert "- skipped" in text
    assert "the database documents JPEG only" in text


def test_an_old_tokenizer_is_recognised() -> None:
    found = report({"accents": 0.1, "cjk": 0.1, "emoji": 0.1, "jpeg-420": 2e-3}, skipped=NO_PNG)
    [first, second] = next_steps(found)
    assert "up to 0.12" in first
    settings = re.search(r"\?warn=(\S+)\.$", first)
    assert settings is not None
    assert report({"emoji": 0.1}, ParityPolicy.from_settings(warn=settings[1])).ok
    assert "2.0e-03 per element" in second
    [only] = next_steps(report({"ascii": 0.1, "emoji": 0.1}))
    assert "do not use this pair here" in only
    [nothing] = next_steps(report())
    assert nothing.startswith("Nothing.")


def test_an_empty_report_does_not_look_like_a_pass() -> None:
    empty = ParityReport("Not compared: an operator is not in this runtime")
    assert "- Not compared" in Page(to_html(empty)).text
    assert next_steps(empty) == ["Nothing was compared, so nothing is proven."]
    unknown = Probe("x", "img", "of a later release", b"")
    found = compare("title", [unknown], {}, {})
    assert "Do not use this pair here" in next_steps(found)[0]


def test_no_golden_probe_is_known_to_crash_a_decoder() -> None:
    assert {probe.id: unsafe_reason(probe) for probe in PROBES if unsafe_reason(probe)} == {}
    grey = next(probe for probe in PROBES if probe.category == "grey")
    assert isinstance(grey.value, bytes)
    picture = Image.open(io.BytesIO(grey.value))
    pixels = np.asarray(picture)
    assert picture.mode == "RGB"
    assert np.abs(pixels.astype(int) - pixels[..., :1]).max() <= 1
    for mode, components in (("L", 1), ("CMYK", 4)):
        out = io.BytesIO()
        picture.convert(mode).save(out, "JPEG")
        reason = unsafe_reason(Probe("x", "img", "grey", out.getvalue()))
        assert reason.endswith(f"this has {components}")
    assert unsafe_reason(Probe("x", "img", "grey", b"\xff\xd8\xff\xe0\xff\xff")) != ""


def bare_vectors(pair: PipelinePair) -> dict[str, np.ndarray]:
    """Return what the files alone give: no Pillow, no preparation of texts before them."""
    img, txt = open_session(pair.img), open_session(pair.txt)
    found = {}
    for probe in PROBES:
        if isinstance(probe.value, bytes):
            found[probe.id] = run(img, np.frombuffer(probe.value, np.uint8))[0]
        else:
            found[probe.id] = run(txt, np.array([probe.value], dtype=object))[0]
    return found


def test_bare_graphs_are_right_but_for_subsampled_jpeg(tiny_pair: PipelinePair) -> None:
    references = embed_probes(tiny_pair.embedder(), PROBES)
    found = compare(
        "bare graphs", PROBES, bare_vectors(tiny_pair), references, policy=ParityPolicy()
    )
    print(f"\n{found.to_markdown()}")  # noqa: T201
    assert found.ok
    states = {summary.category: summary.state for summary in found.by_class()}
    assert states == dict.fromkeys(states, OK) | {"jpeg-420": WARNED}


def test_bare_text_graph_makes_the_reference_tokens(
    tiny_pair: PipelinePair, tiny_reference: ReferenceModel
) -> None:
    import onnx
    from onnx.utils import Extractor

    path = tiny_pair.txt.with_name("golden_ids.onnx")
    onnx.save(Extractor(onnx.load(tiny_pair.txt)).extract_model(["input"], ["input_ids"]), path)
    session = open_session(path)
    path.unlink()
    for probe in by_side(PROBES, "txt"):
        given = np.array([probe.value], dtype=object)
        [ids] = session.run(["input_ids"], {"input": given})[0].tolist()
        assert ids == tiny_reference.token_ids(str(probe.value)), probe.id


def test_a_report_of_one_side_keeps_its_meaning() -> None:
    vectors = unit_vectors()
    texts = by_side(PROBES, "txt")
    assert compare("texts", texts, vectors, vectors).ok
    assert not compare("texts", texts, {}, vectors).ok


@pytest.mark.drill
def test_the_tokenizer_of_0_12_fails_what_it_gets_wrong(
    environment: Callable[[str], Path], tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    encoded = {p.id: base64.b64encode(p.value).decode() for p in PROBES if p.side == "img"}
    texts = {p.id: p.value for p in PROBES if p.side == "txt"}
    inputs, found = tmp_path / "inputs.json", tmp_path / "vectors.json"
    inputs.write_text(json.dumps({"img": encoded, "txt": texts}), encoding="utf-8")
    command = [str(environment("0.12.0")), str(RUN_GRAPH), str(tiny_pair.img), str(tiny_pair.txt)]
    subprocess.run([*command, str(inputs), str(found)], check=True)
    given = json.loads(found.read_text(encoding="utf-8"))
    rows = given["img"] | given["txt"]
    vectors = {k: np.array(v, np.float32) for k, v in rows.items() if isinstance(v, list)}
    errors = {k: v["error"] for k, v in rows.items() if isinstance(v, dict)}
    references = embed_probes(tiny_pair.embedder(), PROBES)
    judged = compare("0.12.0", PROBES, vectors, references, policy=DEFAULT, errors=errors)
    print(f"\n{judged.to_markdown()}")  # noqa: T201
    states = {summary.category: summary.state for summary in judged.by_class()}
    wrong = {name: FAILED for name in ("accents", "cjk", "emoji")} | {"jpeg-420": WARNED}
    assert states == dict.fromkeys(states, OK) | wrong
    assert "up to 0.12" in next_steps(judged)[0]
