"""A model's tokenizer, as transformers loads it, held against what the operators in graphs do.

They have CLIP's own pipeline built in. What differs from it, and no vocabulary can express, is
refused by name. Measured with tokenizers 0.22 and 0.23, onnxruntime-extensions 0.15.2.
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from oml_mlflow.errors import SourceError, UnsupportedSource
from oml_mlflow.source.description import (
    BYTE_SYMBOLS,
    END_TOKEN,
    START_TOKEN,
    WORD_END,
    Vocabulary,
)
from oml_mlflow.source.importing import collection_paused
from oml_mlflow.source.reading import read_json, values_of

_WHOLE, _CONFIG, _PIECES = "tokenizer.json", "tokenizer_config.json", ("vocab.json", "merges.txt")
_MORE = ("special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (_WHOLE, *_PIECES, _CONFIG, *_MORE)
_SPECIAL, _SHORTEST = (START_TOKEN, END_TOKEN), 3
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# at most 32 characters, see `graph.reach`; around quotes and bars texts are changed beforehand
_ADDED = re.compile(r"<?[!-&(-;=-@\[-{}~]{1,31}")
# transformers 4 writes the first, 5 the second
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPLITS = (_CONTRACTIONS, rf"<\|startoftext\|>|<\|endoftext\|>|{_CONTRACTIONS}")
_WHITE_SPACE = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_TELLING = (
    *("", END_TOKEN, f"a {START_TOKEN}b {END_TOKEN} c{END_TOKEN}!"),
    "A photo of\ta \u3000\nCAT, isn't it the cook's? I'll see!! a_b -- (c)",
    "2019 ½ ²³ 7x naïve cafe\u0301 \u1e9e İ ﬁ Å",
    "`x` ~ 漢字 Кошка 👍🏽 \u2028z",
)


@dataclass(frozen=True)
class _Opened:
    """A tokenizer of transformers, its tokens, and the first thing that no operator does as it."""

    tokenizer: Any
    vocabulary: Vocabulary
    difference: str | None


def read_tokenizer(folder: Path, positions: int) -> Vocabulary:
    """Return what a graph needs of the tokenizer in a folder, for a model with so many positions.

    Raises:
        SourceError: See `load_tokenizer`.
        UnsupportedSource: If it does what no operator does.
    """
    opened = _open(folder)
    path = next((folder / n for n in (_WHOLE, _CONFIG) if (folder / n).is_file()), folder)
    with values_of(folder / _CONFIG):
        longest = int(min(positions, opened.tokenizer.model_max_length))
    short = f"it cuts texts to {longest} tokens (model_max_length)" if longest < _SHORTEST else None
    if difference := opened.difference or short:
        raise UnsupportedSource(
            f"{path}: this tokenizer is not supported: {difference}. No profile's operator does "
            "that. Nothing was written.",
            hint="give the tokenizer of a CLIPModel, if the model was trained with it.",
        )
    return replace(opened.vocabulary, max_length=longest)


def load_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer: an object of the class of transformers that the folder names.

    It is loaded from a copy of its files alone, so that no code in the folder is run.

    Raises:
        SourceError: If files are missing or damaged, or transformers is not installed.
        UnsupportedSource: If its class is none of transformers that uses the tokenizers library.
    """
    return _open(folder).tokenizer


def _open(folder: Path) -> _Opened:
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if _WHOLE not in present and not {*_PIECES} <= {*present}:
        raise SourceError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt. "
            "Nothing was written.",
            hint="save it there with CLIPTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    kind = _named_class(folder)
    try:
        return _open_files(tuple((n, (folder / n).read_bytes()) for n in present), kind)
    except BaseException as error:  # transformers raises nearly anything on a damaged folder
        # a panic in tokenizers' Rust code is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        for name in present:
            if name.endswith(".json"):
                read_json(folder / name, "the tokenizer")
        raise SourceError(
            f"transformers {version('transformers')} can't load the tokenizer in {folder} "
            f"({', '.join(present)}): {type(error).__name__}: {str(error)[:300]}. Nothing was "
            "written.",
            hint="fetch or save the model again.",
        ) from error


@collection_paused()
def _named_class(folder: Path) -> Any:
    """Return the class that a folder names, if transformers has it, in a form that is fast."""
    paths = [folder / _CONFIG, folder / "config.json"]
    config, model = (read_json(p, "the tokenizer") if p.is_file() else {} for p in paths)
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "CLIPTokenizer")
    try:
        import transformers
    except ImportError as error:
        raise SourceError(
            f"the tokenizer in {folder} can't be read without {error.name}. Nothing was written.",
            hint="pip install 'oml-mlflow[build]'.",
        ) from error
    own_code = "auto_map" in config or "AutoTokenizer" in (model.get("auto_map") or {})
    names = (f"{name}Fast", name, name.removesuffix("Fast"))
    known = [getattr(transformers, form, None) for form in names]
    fast = transformers.PreTrainedTokenizerFast
    forms = [form for form in known if inspect.isclass(form) and issubclass(form, fast)]
    if own_code or not forms:
        what = "code of the folder's own" if own_code else "not one that it can be read with"
        raise UnsupportedSource(
            f"{paths[not config]}: tokenizer class {name} is {what}, with transformers "
            f"{version('transformers')}. It is neither run nor replaced. Nothing was written.",
            hint="save the tokenizer as a CLIPTokenizer, if the model was trained with one.",
        )
    return forms[0]


@lru_cache(2)
@collection_paused()
def _open_files(files: tuple[tuple[str, bytes], ...], kind: Any) -> _Opened:
    """Return the tokenizer in files, each a name and its content."""
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file, content in files:
            (copy / file).write_bytes(content)
        only = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = kind.from_pretrained(copy, **only)
        whole = Tokenizer.from_file(str(copy / _WHOLE)) if (copy / _WHOLE).is_file() else None
    loaded = json.loads(tokenizer.backend_tokenizer.to_str())
    held = json.loads(whole.to_str()) if whole else None
    vocabulary = _vocabulary(loaded)
    # as it is in use: transformers 4.57 with an added_tokens.json does not do what its flags say
    ids = vocabulary.ids | vocabulary.added
    found_in = {t: tokenizer(t.upper())["input_ids"][1:-1] for t in vocabulary.any_case}
    any_case = tuple(token for token, found in found_in.items() if ids.get(token) in found)
    vocabulary = replace(vocabulary, any_case=any_case)
    differences = chain(
        *(_differences_described(description) for description in (held, loaded) if description),
        _differences_in_use(tokenizer, vocabulary, whole, held and _vocabulary(held)),
    )
    return _Opened(tokenizer, vocabulary, next(differences, None))


def _differences_in_use(
    tokenizer: Any, vocabulary: Vocabulary, whole: Any, held: Vocabulary | None
) -> Iterator[str]:
    """Yield what a call gives in another way than the description, or tokenizer.json, says."""
    backend, name = tokenizer.backend_tokenizer, type(tokenizer).__name__
    calls = {text: tokenizer(text)["input_ids"] for text in _TELLING}
    start, end = (vocabulary.ids[token] for token in _SPECIAL)
    if calls[""] != [start, end]:
        around = " ".join(tokenizer.convert_ids_to_tokens(calls[""]))
        yield f"it puts {around or 'nothing'} around a text, not {START_TOKEN} {END_TOKEN}"
    if calls[END_TOKEN] != [start, end, end]:
        yield f"it takes {END_TOKEN} in a text for words (split_special_tokens)"
    for text, ids in calls.items():
        if any(t.encode(text).ids != ids for t in (backend, whole or backend)):
            yield f"{name} reads {text!r} in another way than {_WHOLE} says"
    if held and replace(held, any_case=vocabulary.any_case) != vocabulary:
        yield f"{name} reads other tokens than {_WHOLE} holds"
    if tokenizer.get_vocab() != vocabulary.ids | vocabulary.added:
        yield "two of its tokens have the same id"
    for word in ("".join(pair) for pair in vocabulary.merges if pair[1].endswith(WORD_END)):
        tokens = backend.model.tokenize(word.removesuffix(WORD_END))
        if [token.value for token in tokens] != [word]:
            yield f"operators look up the word {word!r}, and its merges make other tokens of it"
    if tokenizer.truncation_side != "right":
        yield f"it cuts long texts on the {tokenizer.truncation_side} (truncation_side)"


def _differences_described(description: dict[str, Any]) -> Iterator[str]:
    """Yield what of a tokenizer.json no operator does."""
    model, vocab = description["model"], description["model"]["vocab"]
    if model["type"] != "BPE":
        yield f"its model is {model['type']}, where CLIP's is BPE"
    if not {*_SPECIAL} <= vocab.keys():
        yield f"it is not CLIP's: its vocabulary lacks {START_TOKEN} or {END_TOKEN}"
    normalizers = _steps(description["normalizer"], "normalizers")
    if [s for s in normalizers if s != _WHITE_SPACE] != [{"type": "NFC"}, {"type": "Lowercase"}]:
        yield f"its normalizer is {_names(normalizers)}, where CLIP's is NFC and Lowercase"
    pretokenizers = _steps(description["pre_tokenizer"], "pretokenizers")
    without = [{k: v for k, v in s.items() if k != "trim_offsets"} for s in pretokenizers]
    split = {"type": "Split", "behavior": "Removed", "invert": True}
    if without not in [[split | {"pattern": {"Regex": s}}, _BYTES] for s in _SPLITS]:
        yield f"its pre-tokenizer ({_names(pretokenizers)}) splits texts in another way than CLIP's"
    for token in description["added_tokens"]:
        if not _is_buildable(token):
            flags = ", ".join(f"{flag}={token[flag]}" for flag in _FLAGS)
            yield f"added token {token['content']!r} ({flags}) is not taken as the model takes it"
    usual = {"end_of_word_suffix": WORD_END, "dropout": None, "ignore_merges": None}
    for key, wanted in (usual | {"continuing_subword_prefix": None}).items():
        if (model.get(key) or None) != wanted:
            yield f"{key} is {model.get(key)!r}, where CLIP's is {wanted!r}"
    unknown = {key: model[key] for key in ("unk_token", "fuse_unk", "byte_fallback")}
    symbols = {symbol + end for symbol in BYTE_SYMBOLS for end in ("", WORD_END)}
    if not symbols <= vocab.keys() and [*unknown.values()] != [END_TOKEN, False, False]:
        yield f"it lacks symbols of single bytes, and its settings for unknown ones are {unknown}"
    made: dict[str, int] = {"".join(pair): i for i, pair in enumerate(model["merges"])}
    if any(made.get(part, -1) >= i for i, pair in enumerate(model["merges"]) for part in pair):
        yield "a merge takes what only a later one makes, and the order would be another"


def _is_buildable(token: dict[str, Any]) -> bool:
    """Return whether an operator finds an added token exactly where the tokenizers library does.

    HfJsonTokenizer, the one that takes added tokens, looks for them in the text in lower case.
    White space beside a token doesn't count in CLIP's pipeline, with or without lstrip and rstrip.
    """
    found = token["normalized"] and _ADDED.fullmatch(token["content"])
    return not token["single_word"] and (token["content"] in _SPECIAL or bool(found))


def _vocabulary(description: dict[str, Any]) -> Vocabulary:
    tokens, model = description["added_tokens"], description["model"]
    return Vocabulary(
        model["vocab"],
        tuple(_carried_out(model.get("merges", ()))),
        0,
        tuple(sorted(token["content"] for token in tokens if token["normalized"])),
        {t["content"]: t["id"] for t in tokens if t["content"] not in _SPECIAL},
    )


def _carried_out(merges: Iterable[Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield the merges that CLIP's tokenizer can come to carry out, in their order.

    Every digit is a word of its own to CLIP, and "2019" is one to an operator. A part that is no
    symbol, and that no merge makes, never comes up.
    """
    known = {symbol + end for symbol in BYTE_SYMBOLS for end in ("", WORD_END)}
    for a, b in merges:
        if {a, b} <= known and not set("0123456789") & set(a + b):
            known.add(a + b)
            yield a, b


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [] if part is None else part.get(key, [part])
    return steps


def _names(steps: list[dict[str, Any]]) -> str:
    return " and ".join(step["type"] for step in steps) or "none"
