"""However long a text is, little of it reaches the graph, and its vector is that of the whole."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
from transformers import CLIPTokenizerFast

from oml_mlflow.errors import InputError
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.graph.reach import reach_bytes, read_merges
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.pair.texts import prepare_text

LONG = 160_000
# what 77 tokens and the longest chain of merges span in CLIP's vocabulary
REACH = 3362
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SINGLE = ["a", "ab", "é", "e\u0301\u0316", "漢", "😀", "İ", "ẞ", "Ж", "\U00010400", "2", "²"]
SINGLE += ["\u0301", "\u0f73\u0301", "각", "\u1100\u1161", "'re", "!'s", "!", "_", "<|", "<|a"]
SINGLE += [
    " a",
    "\n",
    "\u2009",
    "<|endoftext|>",
    "<|EndOfText|>",
    "<|endoftext",
    " <|startoftext|> ",
]


@pytest.fixture(scope="module")
def tokenizer(vocabulary_folder: Path) -> Any:
    return CLIPTokenizerFast.from_pretrained(vocabulary_folder)


@pytest.fixture(scope="module")
def merges(tiny_pair: PipelinePair) -> list[tuple[str, str]]:
    return read_merges(tiny_pair.txt)


@pytest.fixture(scope="module")
def embedders(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Any:
    other = tiny_pair.for_profile(get_profile("onnxruntime"), tmp_path_factory.mktemp("json"))
    return {"oracle-23.7": tiny_pair.embedder(), "onnxruntime": other.embedder()}


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, truncation=True, max_length=77)["input_ids"]
    return found


def any_case(tokenizer: Any) -> list[str]:
    """Return the special tokens that are found in any case: transformers 5 has none, 4.57 both."""
    return [t.content for t in tokenizer.added_tokens_decoder.values() if t.normalized]


def letters(length: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(LETTERS[:16]), length))


def chained(rng: random.Random, merges: list[tuple[str, str]], length: int) -> str:
    """Return letters in which what comes later is merged with what is before it."""
    behind: dict[str, list[str]] = {}
    plain = [(a, b) for a, b in merges if (a + b).isascii() and (a + b).isalpha()]
    for left, right in plain:
        behind.setdefault(left, []).append(right)
    parts = [rng.choice(plain)[0]]
    while sum(map(len, parts)) < length:
        parts.append(rng.choice(behind.get(parts[-1]) or plain[0]))
    return "".join(parts)


def texts(rng: random.Random, merges: list[tuple[str, str]], count: int) -> Iterator[str]:
    """Yield long texts of many kinds, most of them a single word."""
    for i in range(count):
        length = rng.choice([REACH - 1, REACH, REACH + 1, REACH + 40, 5000])
        period = "".join(rng.choices(LETTERS, k=rng.choice([1, 2, 2, 3, 3, 4, 7])))
        flawed = list((period * length)[:length])
        for _ in range(rng.randrange(4)):
            flawed[rng.randrange(length)] = rng.choice(LETTERS)
        marks = "".join(rng.choices("\u0301\u0316\u0345\u0f73\u0344\u05b0", k=length))
        yield [
            "".join(rng.choices(LETTERS[: rng.choice([1, 2, 3, 5, 26])], k=length)),
            "".join(flawed),
            chained(rng, merges, length),
            "".join(rng.choices(SINGLE, k=length)),
            rng.choice(SINGLE) * length,
            rng.choice("a!é") + marks + rng.choice(["", "b"]),
        ][i % 6]


def check_ids(tokenizer: Any, merges: list[tuple[str, str]], seed: int, count: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    for text in texts(rng, merges, count):
        prepared = prepare_text(text, reach=REACH, any_case=any_case(tokenizer))
        assert len(prepared) <= 2 * REACH
        assert ids(tokenizer, prepared) == ids(tokenizer, text), (text[:50], len(text))


def test_reach_is_read_from_the_graph(
    embedders: dict[str, PairEmbedder], merges: list[tuple[str, str]]
) -> None:
    assert reach_bytes(merges, 77) == REACH
    assert reach_bytes(merges, 20) == REACH - 57 * 32
    for embedder in embedders.values():
        embedder.embed_text(["a"])
        assert embedder._reading == (REACH, True)


def test_without_order_among_merges_there_is_no_reach() -> None:
    assert reach_bytes([("ab", "c"), ("a", "b")], 77) is None
    assert reach_bytes([("a", "b"), ("ab", "c</w>")], 10) is not None


def test_a_chain_of_merges_is_within_reach() -> None:
    """Each merge loses to the one behind it: the last letter decides on the first token."""
    chain = "abcdefgh"
    reach = reach_bytes(list(itertools.pairwise(chain))[::-1], 1)
    assert reach - reach_bytes([("a", "b")], 1) == len(chain) - 2  # type: ignore[operator]


def test_long_texts_have_the_ids_of_the_whole(
    tokenizer: Any, merges: list[tuple[str, str]]
) -> None:
    check_ids(tokenizer, merges, 1, 24)


@pytest.mark.drill
def test_long_texts_have_the_ids_of_the_whole_long_form(
    tokenizer: Any, merges: list[tuple[str, str]]
) -> None:
    check_ids(tokenizer, merges, 2, 6000)


@pytest.mark.parametrize("profile", ["oracle-23.7", "onnxruntime"])
def test_long_texts_have_the_vectors_of_the_model(
    profile: str, embedders: dict[str, PairEmbedder], tiny_reference: ReferenceModel
) -> None:
    length = 20_000
    given = [
        letters(LONG),
        "ab" * length,
        "a photo " * 2000,
        " \n" * length + "a cat",
        "é" * length,
    ]
    given += ["a" + "\u0301" * length + "\u0316", "<|endoftext|>" * 2000, "é" * length, "cat"]
    ours = embedders[profile].embed_text(given)
    np.testing.assert_allclose(ours, tiny_reference.embed_text(given), atol=1e-5)


@pytest.mark.parametrize("single", SINGLE)
def test_little_of_a_long_text_is_passed_on(single: str) -> None:
    prepared = prepare_text(single * LONG, reach=REACH)
    assert len(prepared.replace(" ", "")) <= REACH


def test_a_shorter_maximum_is_honoured(
    tiny_folder: Path, tmp_path: Path, tiny_reference: ReferenceModel
) -> None:
    from oml_mlflow import ONNXPipeline, ONNXPipelineConfig

    config = ONNXPipelineConfig.from_template("multimodal_clip", max_seq_length=20)
    pair = ONNXPipeline(str(tiny_folder), config=config).export2file("short", tmp_path)
    embedder, text = pair.embedder(), letters(LONG)
    whole = tiny_reference.token_ids(text)
    wanted = tiny_reference.embed_ids(np.array([[*whole[:19], clip_folders.END_ID]]))
    np.testing.assert_allclose(embedder.embed_text([text]), wanted, atol=1e-5)
    assert embedder._reading[0] == REACH - 57 * 32


def test_where_a_pair_says_no_length_long_texts_are_refused(
    tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(str(tiny_pair.txt))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "x_txt.onnx"))
    embedder = PairEmbedder(tiny_pair.img, tmp_path / "x_txt.onnx", tiny_pair.dims)
    same = tiny_pair.embedder().embed_text(["a cat " * 3000])
    np.testing.assert_array_equal(embedder.embed_text(["a cat " * 3000]), same)
    with pytest.raises(InputError, match=r"text 1: has 20,001 characters, more than the 20,000"):
        embedder.embed_text(["a", "a" * 20_001])


@pytest.mark.drill
@pytest.mark.parametrize("profile", ["oracle-23.7", "onnxruntime"])
def test_time_of_long_texts(profile: str, embedders: dict[str, PairEmbedder]) -> None:
    embedders[profile].embed_text(["a cat"])
    for length in (10_000, 40_000, LONG, 1_000_000):
        for what, text in {"letters": letters(length), **{s: s * length for s in SINGLE}}.items():
            start = time.process_time()
            embedders[profile].embed_text([text[:length]])
            spent = time.process_time() - start
            print(f"{profile}: {length:,} x {what!r}: {spent:.3f} s")  # noqa: T201
