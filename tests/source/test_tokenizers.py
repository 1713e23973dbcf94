# ruff: noqa: S106 -- tokens of a tokenizer, not of a log-in
"""Tokenizers of many kinds: the ids of the folder's own, from either operator, or a refusal."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from clip_folders import END, START
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizerFast

from oml_mlflow.errors import OmlMlflowError, SourceError, UnsupportedSource
from oml_mlflow.graph.ops import make_graph_model, tensor_info
from oml_mlflow.graph.profiles import CLIP_TOKENIZER, JSON_TOKENIZER
from oml_mlflow.graph.reach import reach_bytes, read_merges
from oml_mlflow.graph.runtime import open_session
from oml_mlflow.graph.text import read_vocabulary, text_head
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.pair.texts import prepare_text
from oml_mlflow.source.description import Vocabulary
from oml_mlflow.source.model import open_source
from oml_mlflow.source.tokenizer import TOKENIZER_FILES, load_tokenizer, read_tokenizer

MERGES = 1500
IS_4 = version("transformers") < "5"
# behind what looks like a special token, 4.57 goes on with punctuation, and pairs follow 5
SPLIT = re.compile(r"<\|(?:start|end)oftext\|>(?=[^\w\s]|_)", re.IGNORECASE)
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
PIECES = [*"abcxyz019`~^é漢ß²½'!?_<|>A ", "\n", "\u2009", "the", "cat", "2019", "İ", "e\u0301"]
PIECES += [
    "cab",
    "zz",
    " 12 ",
    START,
    END,
    "<|StartOfText|>",
    "<|EndOfText|>",
    "<cat-toy>",
    "<Cat-Toy>",
    "sks",
]
TEXTS = [
    "",
    "A photo of a CAT",
    "the cat in 2019, 121 of 12",
    "un café `x` 漢字 👍",
    "a <cat-toy> <CAT-TOY>s, sks",
    f"A {START}b <|STARTOFTEXT|> c <|EndOfText|> {END}",
    "the cat " * 80,
]
Files = dict[str, Any]


@cache
def small_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's own tokens and merges, up to those that are ever needed here."""
    ids, lines = clip_folders._vocabulary()
    merges = lines.split("\n")[1 : MERGES + 1]
    tokens = [*list(json.loads(ids))[: 512 + MERGES], START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def pieces(keep: Callable[[str], bool] = lambda _: True, *more: str, **config: Any) -> Files:
    """Return a folder's files as transformers 4 reads them: the tokens to keep, and more merges."""
    ids, merges = small_vocabulary()
    tokens = [t for t in ids if keep(t) and t not in (START, END)]
    tokens += [t for t in ("".join(m.split()) for m in more) if t not in tokens]
    new = {token: number for number, token in enumerate([*tokens, START, END])}
    kept = [m for m in [*merges, *more] if {*m.split(), "".join(m.split())} <= new.keys()]
    return {
        "vocab.json": new,
        "merges.txt": "\n".join(["#version: 0.2", *kept, ""]),
        "tokenizer_config.json": clip_folders.TOKENIZER | config,
    }


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"config.json": {"model_type": "clip"}, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@cache
def whole_text() -> str:
    with tempfile.TemporaryDirectory() as name:
        made = CLIPTokenizerFast.from_pretrained(write(Path(name), pieces()))
        text: str = made.backend_tokenizer.to_str()
        return text


def whole(**config: Any) -> Files:
    """Return a folder's files as transformers 5 writes them."""
    return {
        "tokenizer.json": json.loads(whole_text()),
        "tokenizer_config.json": clip_folders.TOKENIZER | config,
    }


def changed(change: Callable[[dict[str, Any]], Any], **config: Any) -> Files:
    """Return them with a tokenizer.json that is another, read by the class that takes any."""
    files = whole(**(FAST | config))
    change(files["tokenizer.json"])
    return files


def published() -> Files:
    """Return files as those on the hub: the start token is found in any case, the end is not."""
    files = whole()
    description = files["tokenizer.json"]
    for token in description["added_tokens"]:
        token["normalized"] = token["content"] == START
    split, by_bytes = description["pre_tokenizer"]["pretokenizers"]
    split["pattern"]["Regex"] = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    del by_bytes["use_regex"]
    merges = description["model"]["merges"]
    description["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    return files


def both_in_any_case() -> Files:
    """Return files as transformers 4.57 saves them anew."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    files = pieces()
    ids = files["vocab.json"]
    files["tokenizer_config.json"]["added_tokens_decoder"] = {
        str(ids[t]): {"content": t, "normalized": True, "special": True, **flags}
        for t in (START, END)
    }
    return files


def adding(*contents: str, **flags: bool) -> Files:
    """Return files with added tokens."""
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False)
    number = len(small_vocabulary()[0])

    def add(description: dict[str, Any]) -> None:
        description["added_tokens"] += [
            {"id": number + i, "content": content, **usual, "normalized": True, **flags}
            for i, content in enumerate(contents)
        ]

    return changed(add)


def flagged(**flags: bool) -> Files:
    return changed(lambda d: [token.update(flags) for token in d["added_tokens"]])


def model(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda description: description["model"].update(values)


def normalizer(*names: str) -> Callable[[dict[str, Any]], Any]:
    steps = [{"type": name} for name in names]
    return lambda d: d.update(normalizer={"type": "Sequence", "normalizers": steps})


def digits_together(description: dict[str, Any]) -> None:
    pattern = description["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"[\p{N}]|", r"[\p{N}]+|")


def template(description: dict[str, Any]) -> None:
    ids = small_vocabulary()[0]
    single: list[Any] = [{"SpecialToken": {"id": t, "type_id": 0}} for t in (START, END)]
    single.insert(1, {"Sequence": {"id": "A", "type_id": 0}})
    tokens = {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (START, END)}
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": tokens,
    }


def no_backtick(token: str) -> bool:
    return "`" not in token


def legacy(**added: int) -> Files:
    return {**pieces(), "added_tokens.json": {t.replace("_", "-"): i for t, i in added.items()}}


def merging(*more: str) -> Files:
    return pieces(lambda _: True, *more)


def with_words(*words: str) -> Files:
    files = pieces()
    ids = files["vocab.json"]
    more = {word: len(ids) + number for number, word in enumerate(words)}
    return {**files, "vocab.json": ids | more}


def word_level(description: dict[str, Any]) -> None:
    ids = small_vocabulary()[0]
    description["model"] = {"type": "WordLevel", "vocab": ids, "unk_token": END}


def without_end() -> Files:
    ids = small_vocabulary()[0]
    return {**pieces(), "vocab.json": {t: i for t, i in ids.items() if t != END}}


def with_unknown(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(description: dict[str, Any]) -> None:
        kept = pieces(no_backtick)
        lines = kept["merges.txt"].split("\n")[1:-1]
        description["model"] |= {"vocab": kept["vocab.json"], "merges": lines, **values}
        for token in description["added_tokens"]:
            token["id"] = kept["vocab.json"][token["content"]]
        template(description)
        for token in description["post_processor"]["special_tokens"].values():
            token["ids"] = [kept["vocab.json"][token["id"]]]

    return change


NEW = len(small_vocabulary()[0])
BOTH = (CLIP_TOKENIZER, JSON_TOKENIZER)
ASCII = {*map(chr, range(33, 127)), "</w>"}
# files, and whether they are what the published CLIP's reading is right for
RIGHT: dict[str, tuple[Callable[[], Files], bool]] = {
    "vocab.json and merges.txt": (pieces, True),
    "tokenizer.json": (whole, True),
    "class PreTrainedTokenizerFast": (lambda: whole(**FAST), True),
    "class CLIPTokenizerFast": (lambda: whole(tokenizer_class="CLIPTokenizerFast"), True),
    "no class": (lambda: whole(tokenizer_class=None), True),
    "as on the hub": (published, False),
    "saved by transformers 4": (both_in_any_case, False),
    "added_tokens.json of special tokens": (
        lambda: {**pieces(), "added_tokens.json": {START: NEW - 2, END: NEW - 1}},
        True,
    ),
    "template": (lambda: changed(template), True),
    "no white space replaced": (lambda: changed(normalizer("NFC", "Lowercase")), True),
    "special tokens that strip": (lambda: flagged(lstrip=True, rstrip=True), True),
    "padding on the left": (lambda: whole(padding_side="left", pad_token=START), True),
    "20 tokens": (lambda: pieces(model_max_length=20), False),
    "no backtick": (lambda: pieces(no_backtick), False),
    "ASCII": (lambda: pieces(lambda t: {*t.replace("</w>", "")} <= ASCII), False),
    "no digit 2": (lambda: pieces(lambda t: "2" not in t), False),
    "no byte of 漢": (lambda: pieces(lambda t: t.replace("</w>", "") not in "æ¼¢"), False),
    "23 tokens": (
        lambda: pieces(lambda t: t.replace("</w>", "") in "abcdefghijk" and t != "k"),
        False,
    ),
    "words that no merge makes": (lambda: with_words("cab</w>", "zz</w>", "zz"), True),
    "merges of digits": (lambda: merging("2 0", "20 1", "1 2</w>", "a 1</w>"), True),
    "symbols missing, fuse_unk off": (lambda: changed(with_unknown()), False),
}
ADDED: dict[str, Callable[[], Files]] = {
    "added token": lambda: adding("<cat-toy>"),
    "two, one in the other": lambda: adding("<cat-toy>", "<cat"),
    "added word": lambda: adding("sks"),
    "lstrip": lambda: adding("<cat-toy>", lstrip=True),
    "rstrip": lambda: adding("<cat-toy>", rstrip=True),
    "special, normalized": lambda: adding("<cat-toy>", special=True),
    "added_tokens.json": lambda: legacy(sks=NEW),
}
REFUSED: dict[str, tuple[Callable[[], Files], str]] = {
    "special": (
        lambda: adding("<cat-toy>", normalized=False, special=True),
        r"added token '<cat-toy>' .*normalized=False, special=True",
    ),
    "single word": (lambda: adding("sks", single_word=True), "added token 'sks' .single_word=True"),
    "in upper case": (lambda: adding("<Cat-Toy>"), "added token '<Cat-Toy>'"),
    "with a quote": (lambda: adding("cat's"), 'added token "cat\'s"'),
    "33 bytes": (lambda: adding("a" * 33), "added token 'aaa"),
    "additional_special_tokens": (
        lambda: whole(additional_special_tokens=["<cat-toy>"]),
        "added token '<cat-toy>'",
    ),
    "pad token of its own": (lambda: whole(pad_token="!"), "added token '!'"),
    "special tokens, single word": (
        lambda: flagged(single_word=True),
        "added token .*single_word=True",
    ),
    "cased": (
        lambda: changed(normalizer("NFC")),
        "its normalizer is NFC, where CLIP's is NFC and Lowercase",
    ),
    "cased, class CLIPTokenizer": (
        lambda: changed(normalizer("NFC"), tokenizer_class="CLIPTokenizer"),
        "its normalizer is NFC",
    ),
    "NFKC": (
        lambda: changed(normalizer("NFKC", "Lowercase")),
        "its normalizer is NFKC and Lowercase",
    ),
    "accents stripped": (
        lambda: changed(normalizer("NFD", "StripAccents", "Lowercase")),
        "normalizer is NFD and StripAccents",
    ),
    "no normalizer": (
        lambda: changed(lambda d: d.update(normalizer=None)),
        "its normalizer is none",
    ),
    "digits together": (
        lambda: changed(digits_together),
        "its pre-tokenizer .Split and ByteLevel. splits",
    ),
    "white space": (
        lambda: changed(lambda d: d.update(pre_tokenizer={"type": "WhitespaceSplit"})),
        "its pre-tokenizer .WhitespaceSplit.",
    ),
    "no ends": (
        lambda: changed(lambda d: d.update(post_processor=None)),
        "it puts nothing around a text",
    ),
    "own ends": (
        lambda: pieces(bos_token="a", eos_token="b"),
        "it puts a b around|added token 'a'",
    ),
    "cut on the left": (lambda: whole(truncation_side="left"), "on the left .truncation_side"),
    "words for special tokens": (
        lambda: whole(split_special_tokens=True),
        "split_special_tokens|another way than",
    ),
    "ignore_merges": (lambda: changed(model(ignore_merges=True)), "ignore_merges is True"),
    "dropout": (lambda: changed(model(dropout=0.5)), "dropout is 0.5"),
    "word level": (lambda: changed(word_level), "its model is WordLevel"),
    "no unknown token": (
        lambda: changed(with_unknown(unk_token=None)),
        "lacks symbols of single bytes, .*'unk_token': None",
    ),
    "fused unknown": (lambda: changed(with_unknown(fuse_unk=True)), "'fuse_unk': True"),
    "merges out of order": (
        lambda: merging("aaa a", "aa a"),
        "a merge takes what only a later one makes",
    ),
    "word that merges tear": (
        lambda: merging("q z</w>", "x q", "xq z</w>"),
        "operators look up the word 'xqz</w>'",
    ),
    "2 tokens": (lambda: whole(model_max_length=2), "to 2 tokens .model_max_length"),
    "no end token": (without_end, "lacks .* or"),
    "code of its own": (
        lambda: whole(auto_map={"AutoTokenizer": ["own.Own", None]}),
        "tokenizer class CLIPTokenizer is code of the folder's own",
    ),
    "unknown class": (
        lambda: whole(tokenizer_class="OwnTokenizer"),
        "tokenizer class OwnTokenizer is not one",
    ),
    "no tokenizer's class": (
        lambda: whole(tokenizer_class="CLIPModel"),
        "tokenizer class CLIPModel is not one",
    ),
    "class without a fast form": (
        lambda: whole(tokenizer_class="CanineTokenizer"),
        "tokenizer class CanineTokenizer is not one",
    ),
}


def written_head(vocabulary: Vocabulary, operator: str, path: Path) -> Path:
    """Write the graph from texts to token ids."""
    g, graph_input = text_head(vocabulary, operator)
    output = tensor_info("input_ids", np.int64, ["batch", "sequence"])
    header = make_graph_model("head", 17, g.nodes, graph_input, output, [], {})
    header.graph.initializer.extend(
        onnx.numpy_helper.from_array(item.load(), item.name) for item in g.initializers
    )
    path.write_bytes(header.SerializeToString())
    return path


def given_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)  # noqa: S311
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(1, 12))) for _ in range(count)]
    # behind punctuation and white space, CLIPTokenizer takes 's and the like for two words
    return [*TEXTS, *(t.replace("'", "") for t in texts), "it's the cat's"]


def check(folder: Path, texts: list[str], operators: tuple[str, ...] = BOTH) -> None:
    """Check graphs, each made from what the one before holds, against the folder's own ids."""
    vocabulary, tokenizer = read_tokenizer(folder, 77), load_tokenizer(folder)
    length, any_case = vocabulary.max_length, vocabulary.any_case
    for operator in (*operators, operators[0]):
        path = written_head(vocabulary, operator, folder / "head.onnx")
        session = open_session(path)
        for text in (t for t in texts if not (IS_4 and SPLIT.search(t))):
            own = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            prepared = prepare_text(text, any_case=any_case)
            ids = session.run(None, {"input": np.array([prepared], dtype=object)})[0]
            assert ids[0].tolist() == own, (operator, text)
        vocabulary = read_vocabulary(onnx.load(path).graph.node, length)


@pytest.mark.parametrize("name", RIGHT)
def test_tokenizers_that_are_right(name: str, tmp_path: Path) -> None:
    check(write(tmp_path / name, RIGHT[name][0]()), given_texts(0, 60))


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / name, ADDED[name]())
    check(folder, given_texts(1, 60), (JSON_TOKENIZER,))
    with pytest.raises(UnsupportedSource, match=r"added tokens .*CLIPTokenizer takes none") as err:
        text_head(read_tokenizer(folder, 77), CLIP_TOKENIZER)
    assert 'profile="onnxruntime"' in err.value.hint


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_are_refused(name: str, tmp_path: Path) -> None:
    files, message = REFUSED[name]
    with pytest.raises(UnsupportedSource, match=message) as err:
        read_tokenizer(write(tmp_path / "model", files()), 77)
    assert err.value.code == UnsupportedSource.code
    assert "Nothing was written" in str(err.value)
    assert str(tmp_path / "model") in str(err.value)


# what only a call can tell, or no class can load
UNREADABLE = {"code of its own", "unknown class", "no tokenizer's class", "no end token", "dropout"}
UNREADABLE |= {"class without a fast form", "ignore_merges", "2 tokens"}
# transformers 5 reads this as the published one, whatever the file says, and 4.57 doesn't
UNREADABLE |= {"cased, class CLIPTokenizer"}
OTHERS = [*(n for n, row in RIGHT.items() if not row[1]), *ADDED]
OTHERS += [name for name in REFUSED if name not in UNREADABLE]
if IS_4:  # it reads the published CLIP so, too
    OTHERS.remove("saved by transformers 4")


@pytest.mark.parametrize("name", OTHERS)
def test_with_the_published_reading_they_would_be_wrong(name: str, tmp_path: Path) -> None:
    """Each differs from a tokenizer of CLIP's pipeline with the same tokens, as once exported."""
    made = (RIGHT.get(name) or (ADDED.get(name),))[0] or REFUSED[name][0]
    folder = write(tmp_path / "model", made())
    own, published = (
        load_tokenizer(folder),
        CLIPTokenizerFast.from_pretrained(write(tmp_path / "clip", pieces())),
    )
    texts = [*given_texts(2, 60), "aaaaa a cat's 33 " + "a" * 33, "ﬁ Å ｆ", "hey!!", "sks's"]
    texts += [" ".join("abcdefghijk" * 9), "xqz aaaaaa"]
    length = min(77, own.model_max_length)
    assert any(
        own(text, truncation=True, max_length=length)["input_ids"]
        != published(text, truncation=True, max_length=77)["input_ids"]
        for text in texts
    )


def with_model(folder: Path, files: Files) -> Path:
    """Write a tiny model of as many tokens as the tokenizer has."""
    ids = (files.get("vocab.json") or files["tokenizer.json"]["model"]["vocab"]).values()
    clip_folders.write_tiny(folder, vocab_size=max(ids) + 2, eos_token_id=max(ids))
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    return write(folder, {**files, "config.json": (folder / "config.json").read_text()})


@pytest.mark.parametrize(
    ("made", "profile"),
    [
        (lambda: pieces(no_backtick), "oracle-23.7"),
        (lambda: published(), "oracle-23.7"),
        (lambda: adding("<cat-toy>"), "onnxruntime"),
    ],
    ids=["no backtick", "any case", "added token"],
)
def test_vectors_of_a_pair(made: Callable[[], Files], profile: str, tmp_path: Path) -> None:
    folder = with_model(tmp_path / "model", made())
    pair = ONNXPipeline(str(folder)).export2file("clip", tmp_path / "pair", profile=profile)
    texts = [*TEXTS, "a `quoted` cat", "<|StartOfText|> <CAT-toy>"]
    wanted = ReferenceModel(open_source(str(folder))).embed_text(texts)
    np.testing.assert_allclose(pair.embedder().embed_text(texts), wanted, atol=1e-5)


@pytest.mark.parametrize("validate", [True, False])
def test_a_refused_tokenizer_leaves_nothing(validate: bool, tmp_path: Path) -> None:
    for name, made in {"cased": REFUSED["cased"][0], "added": ADDED["added token"]}.items():
        folder, out = with_model(tmp_path / name, made()), tmp_path / "pair"
        with pytest.raises(UnsupportedSource, match=r"its normalizer is NFC|added tokens"):
            ONNXPipeline(str(folder)).export2file("clip", out, validate=validate)
        assert not out.is_dir() or not list(out.iterdir())


def test_an_added_token_counts_in_what_a_text_can_reach(tmp_path: Path) -> None:
    long = "<" + "x" * 31
    for contents, more in (((long,), 32), ((), 0)):
        vocabulary = read_tokenizer(write(tmp_path / f"{more}", adding(*contents)), 77)
        path = written_head(vocabulary, JSON_TOKENIZER, tmp_path / f"{more}.onnx")
        reach = reach_bytes(read_merges(path), 77)
        assert reach is not None
        assert reach >= 77 * more


DAMAGES: dict[str, Callable[[Files], Any]] = {
    "deep tokenizer.json": lambda f: f.update({"tokenizer.json": "[" * 10**5}),
    "deep tokenizer_config.json": lambda f: f.update({"tokenizer_config.json": '{"a":' * 10**5}),
    "BOM": lambda f: f.update({"tokenizer.json": "\ufeff" + json.dumps(f["tokenizer.json"])}),
    "BOM in the configuration": lambda f: f.update({"tokenizer_config.json": "\ufeff{}"}),
    "a list": lambda f: f.update({"tokenizer.json": []}),
    "no model": lambda f: f["tokenizer.json"].pop("model"),
    "vocabulary of words": lambda f: f["tokenizer.json"]["model"].update(vocab={"a": "b"}),
    "merges of three": lambda f: f["tokenizer.json"]["model"].update(merges=["a b c"]),
    "merge of no tokens": lambda f: f["tokenizer.json"]["model"].update(merges=["~~ ~~~"]),
    "negative id": lambda f: f["tokenizer.json"]["model"]["vocab"].update(a=-1),
    "length of words": lambda f: f["tokenizer_config.json"].update(model_max_length="77"),
    "length of nothing": lambda f: f["tokenizer_config.json"].update(model_max_length=[]),
    "class of numbers": lambda f: f["tokenizer_config.json"].update(tokenizer_class=3),
    "end token of numbers": lambda f: f["tokenizer_config.json"].update(eos_token=3),
    "special tokens": lambda f: f.update({"special_tokens_map.json": "[1"}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tokenizers_are_named(name: str, tmp_path: Path) -> None:
    files = whole()
    DAMAGES[name](files)
    with pytest.raises(SourceError, match="Nothing was written") as err:
        read_tokenizer(write(tmp_path / "model", files), 77)
    assert str(tmp_path / "model") in str(err.value)
    assert err.value.hint


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SourceError, match="can't be read without transformers") as err:
        read_tokenizer(write(tmp_path / "model", whole()), 77)
    assert "oml-mlflow[build]" in err.value.hint


def test_special_tokens_are_found_in_the_cases_that_the_folder_says(tmp_path: Path) -> None:
    """Without flags in the folder, transformers 5 takes lower case only and 4.57 any."""
    found = {
        made: read_tokenizer(write(tmp_path / made.__name__, made()), 77).any_case
        for made in (published, both_in_any_case, pieces)
    }
    assert found[published] == (START,)
    assert found[both_in_any_case] == tuple(sorted((START, END)))
    added = read_tokenizer(write(tmp_path / "a", adding("sks")), 77).any_case
    assert added == (*found[pieces], "sks")
    assert found[pieces] == (tuple(sorted((START, END))) if IS_4 else ())


@pytest.mark.drill
def test_with_transformers_4(transformers_4: Path) -> None:
    """The same tables and texts, with the other tokenizer."""
    root = Path(__file__).parents[2]
    files = ["tests/source/test_tokenizers.py", "tests/pair/test_pictures_and_texts.py"]
    files.append("tests/pair/test_long_texts.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "not picture and not drill", *files],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(transformers_4)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


VALUES: list[Any] = [None, 0, -1, 1e308, True, "", "a", END, [], {}, [[]], [1], ["a"], {"a": 1}]


def mutate(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one of its values exchanged."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        return value | {key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def survive(folder: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    files = rng.choice([pieces, published, both_in_any_case, whole])()
    name = rng.choice(sorted(files))
    if rng.random() < 0.5 or isinstance(files[name], str):
        text = files[name] if isinstance(files[name], str) else json.dumps(files[name])
        at = rng.randrange(len(text))
        files[name] = text[:at] + rng.choice(["", "\0", "9", '"', "}", "\ufeff"]) + text[at + 1 :]
    else:
        files[name] = mutate(files[name], rng)
    with contextlib.suppress(OmlMlflowError):
        check(write(folder, files), TEXTS[:4], (JSON_TOKENIZER,))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_tokenizers_are_right_or_refused(seed: int, tmp_path: Path) -> None:
    survive(tmp_path / "model", seed)


@pytest.mark.drill
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutated_tokenizers_are_right_or_refused_long_form(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    survive(tmp_path_factory.mktemp("mutated") / "model", seed)


@pytest.mark.drill
@pytest.mark.parametrize("name", RIGHT)
def test_tokenizers_that_are_right_long_form(name: str, tmp_path: Path) -> None:
    check(write(tmp_path / name, RIGHT[name][0]()), given_texts(3, 3000))


@pytest.mark.drill
@pytest.mark.parametrize("name", ADDED)
def test_added_tokens_long_form(name: str, tmp_path: Path) -> None:
    check(write(tmp_path / name, ADDED[name]()), given_texts(4, 3000), (JSON_TOKENIZER,))
