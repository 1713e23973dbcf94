"""What earlier releases saved, registered and promoted goes on working: loaded, served, moved."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
from registry_copies import relocate, using
from serving import post, served

import oml_mlflow
from oml_mlflow import PipelinePair, open_target
from oml_mlflow.flavor.package import read_package
from oml_mlflow.parity.probes import Embedder

# each holds `mlflow.db` and its artifacts (`clip` 1 and 2, `prod` on 2; the same vectors),
# `database` (2 live, 1 kept, and a table whose vectors CLIP_TXT made) and `pair`, exported files
KEPT = sorted(Path(__file__).parent.glob("data/at-*.tar.xz"))
# where the files lay is written in them as this
ROOT = "@ROOT@"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a fixture, and tell its registry where it lies now."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    relocate(root, ROOT)
    return root


@pytest.fixture(params=KEPT, ids=lambda path: path.name.removesuffix(".tar.xz"))
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = unpack(request.param, tmp_path)
    monkeypatch.chdir(root)
    return root


def check_vectors(embedder: Embedder, folder: Path) -> None:
    """Compare with the vectors that were right when a version was logged."""
    package = read_package(folder)
    references = package.references().vectors
    for probe in package.probes():
        embed = embedder.embed_text if isinstance(probe.value, str) else embedder.embed_image
        np.testing.assert_allclose(embed([probe.value])[0], references[probe.id], atol=1e-5)


def files_of(root: Path, version: int) -> Path:
    with using(f"sqlite:///{root / 'mlflow.db'}"):
        return Path(mlflow.artifacts.download_artifacts(f"models:/clip/{version}"))


def test_there_are_some() -> None:
    assert [path.name for path in KEPT] == ["at-4ce8128.tar.xz"]


def test_files_are_a_pair(kept: Path) -> None:
    pair = PipelinePair.from_files(kept / "pair" / "clip_img.onnx", kept / "pair" / "clip_txt.onnx")
    assert (pair.dims, pair.profile) == (16, "oracle-23.7")
    assert pair.metadata["template"] == "multimodal_clip"
    check_vectors(pair.embedder(), files_of(kept, 1))


def test_a_version_is_loaded(kept: Path) -> None:
    for version in (1, 2):
        with using(f"sqlite:///{kept / 'mlflow.db'}"):
            pair = oml_mlflow.load_model(f"models:/clip/{version}")
        check_vectors(pair, files_of(kept, version))


def test_a_version_is_served_by_the_code_it_carries(kept: Path) -> None:
    folder = files_of(kept, 2)
    program = Path(sys.executable).with_name("mlflow")
    with served(folder, program, kept / "serve.log") as url:
        status, answer = post(url, {"dataframe_records": [{"text": "two red stars"}]})
    assert status == 200, answer
    expected = read_package(folder).embedder().embed_text(["two red stars"])[0]
    np.testing.assert_allclose(answer["predictions"][0]["embedding"], expected, atol=1e-5)


def test_a_database_answers_and_goes_back(kept: Path) -> None:
    target = open_target(f"embedded:///{kept / 'database'}")
    before = (kept / "database" / "catalog.duckdb").read_bytes()
    assert list(target.survey().names) == ["CLIP"]
    assert (kept / "database" / "catalog.duckdb").read_bytes() == before
    question = "SELECT max(array_cosine_distance(embedding, CLIP_TXT(body))) FROM notes"
    assert target.sql(question)[0][0] == pytest.approx(0, abs=1e-5)
    with using(f"sqlite:///{kept / 'mlflow.db'}"):
        assert oml_mlflow.rollback("clip", target).entry.version == "1"
        assert target.sql(question)[0][0] == pytest.approx(0, abs=1e-5)
        # the same vectors: nothing has to be accepted
        assert oml_mlflow.promote("models:/clip/2", target).entry.version == "2"
    live = "SELECT registered_model, version, action FROM oml.ledger ORDER BY generation"
    assert [row[2] for row in target.sql(live)] == ["promote", "promote", "rollback", "promote"]
    # without a version it counts as the first, and says so from then on
    assert target.sql("FROM oml.schema_versions") == [(1,)]


def test_a_registry_is_promoted_into_a_new_database(kept: Path, tmp_path: Path) -> None:
    target = open_target(f"embedded:///{tmp_path / 'new'}")
    with using(f"sqlite:///{kept / 'mlflow.db'}"):
        done = oml_mlflow.promote("models:/clip@prod", target)
        assert (done.entry.version, done.report.ok) == ("2", True)
        found = oml_mlflow.promote("models:/clip/1", target)
        assert (found.entry.version, found.report.ok) == ("1", True)
        assert oml_mlflow.rollback("clip", target).entry.version == "2"
