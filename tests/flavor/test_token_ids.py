"""Whose ids the host front end takes: those of the model's tokenizer.json, where it carries one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import clip_folders
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oml_mlflow
from oml_mlflow import ONNXPipeline, PipelinePair
from oml_mlflow.errors import PackageError
from oml_mlflow.flavor.package import read_package
from oml_mlflow.pair.embedder import GRAPH, PairEmbedder
from oml_mlflow.pair.reference import ReferenceModel
from oml_mlflow.source.model import open_source
from oml_mlflow.source.tokenizer import load_tokenizer

ODD = json.loads((Path(__file__).parents[1] / "data" / "odd_texts.json").read_text("utf-8"))
LIMIT = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer.json, as transformers 5 saves it."""
    made = clip_folders.write_tiny(tmp_path_factory.mktemp("ids") / "model")
    load_tokenizer(made).save_pretrained(made)
    assert (made / "tokenizer.json").is_file()
    return made


@pytest.fixture(scope="module")
def pair(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelinePair:
    return ONNXPipeline(str(folder)).export2file("tiny", tmp_path_factory.mktemp("ids_pair"))


@pytest.fixture(scope="module")
def saved(pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids_saved") / "model"
    oml_mlflow.save_model(pair, path)
    return path


@pytest.fixture(scope="module")
def embedder(saved: Path) -> PairEmbedder:
    return oml_mlflow.load_model(str(saved))


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceModel:
    return ReferenceModel(open_source(str(folder)))


def apart(embedder: PairEmbedder, reference: ReferenceModel, texts: list[str]) -> np.ndarray:
    """Return how far each text's vector is from transformers'."""
    vectors = embedder.embed_text(texts)
    return np.abs(vectors - np.stack([reference.embed_text([t])[0] for t in texts])).max(axis=1)


def test_odd_texts_have_the_model_s_own_ids(
    embedder: PairEmbedder, pair: PipelinePair, saved: Path, reference: ReferenceModel
) -> None:
    texts = [text for text in ODD if "\0" not in text]
    assert apart(embedder, reference, texts).max() <= LIMIT
    # a database can't: these are among them
    assert apart(pair.embedder(GRAPH), reference, texts).max() > 100 * LIMIT
    found = json.loads((saved / "golden" / "host.json").read_text())
    assert found["ids"] == "tokenizer.json"
    assert max(found["max_abs"].values()) <= LIMIT
    assert "tokenizers==" in (saved / "requirements.txt").read_text()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_has_the_model_s_own_ids(
    text: str, embedder: PairEmbedder, reference: ReferenceModel
) -> None:
    assert apart(embedder, reference, [text, f"a {text} b" * 9]).max() <= LIMIT


def test_another_tokenizer_is_not_taken(
    pair: PipelinePair, folder: Path, saved: Path, tmp_path: Path
) -> None:
    other = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    other["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(other), "utf-8")
    foreign = PipelinePair.from_files(pair.img, pair.txt, companions=[tmp_path / "tokenizer.json"])
    oml_mlflow.save_model(foreign, tmp_path / "model")
    found = json.loads((tmp_path / "model" / "golden" / "host.json").read_text())
    assert found["ids"] == "graph"
    assert read_package(tmp_path / "model").tokenizer is None
    # of a package from before there was this evidence, neither
    shutil.copytree(saved, tmp_path / "old")
    (tmp_path / "old" / "golden" / "host.json").unlink()
    assert read_package(tmp_path / "old").tokenizer is None
    (tmp_path / "old" / "golden" / "host.json").write_text('{"ids": "tokenizer.json"}')
    (tmp_path / "old" / "source" / "tokenizer.json").write_text("{")
    with pytest.raises(PackageError, match=r"tokenizer\.json can't be read"):
        oml_mlflow.load_model(str(tmp_path / "old")).embed_text("a")
