"""A stored model file whose bytes were exchanged is refused, named, and written anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from drifted import OracleHand
from fleets import changed, live_versions, move, reconcile, two_targets
from oracle_fixtures import Oracle

from oml_mlflow import PipelinePair, dry_run, promote, rollback
from oml_mlflow.errors import TargetError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.promotion.verify import trace_bytes, verify
from oml_mlflow.targets.embedded import files
from oml_mlflow.targets.embedded.target import EmbeddedTarget
from oml_mlflow.targets.oracle.target import OracleTarget

ASKED = "SELECT CLIP_TXT('a cat')"


def exchange(path: Path) -> None:
    """Write a model of the same size, which loads and gives other vectors."""
    data = bytearray(path.read_bytes())
    weights = max((t.raw_data for t in onnx.load(path).graph.initializer), key=len)
    at = data.index(weights)
    # the sign of each float32
    data[at + 3 : at + len(weights) : 4] = bytes(b ^ 0x80 for b in weights[3::4])
    path.write_bytes(data)


@pytest.fixture
def target(tmp_path: Path) -> EmbeddedTarget:
    return EmbeddedTarget(tmp_path / "database", timeout_s=2)


def stored(target: EmbeddedTarget, pair: PipelinePair, side: str = "txt") -> Path:
    return target.model_path(pair.fingerprints[side])


def again(target: EmbeddedTarget) -> EmbeddedTarget:
    """Return the target as another process has it, which has hashed nothing."""
    files._hashed.clear()
    return EmbeddedTarget(target.folder, timeout_s=2)


def text_vector(target: EmbeddedTarget) -> np.ndarray:
    [(vector,)] = target.sql(ASKED)
    return np.asarray(vector, np.float32)


def drift(target: EmbeddedTarget) -> tuple[str, ...]:
    return target.survey().names["CLIP"].drift()


def link_to_another(path: Path) -> None:
    another = path.with_name("another")
    shutil.copy(path, another)
    exchange(another)
    path.unlink()
    path.symlink_to(another)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DEEDS: list[tuple[Callable[[Path], None], str]] = [
    (exchange, "altered: its file .* has sha256 .* instead of"),
    (truncate, "altered: its file .* has sha256"),
    (Path.unlink, "dropped: its file .* is gone"),
    (link_to_another, "altered: its file .* has sha256"),
    (fifo, r"made unreadable: its file .* can't be read \(it is no file\)"),
]


def test_a_damaged_file_is_refused_named_and_repaired(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    path = stored(target, versions[0])
    promote("models:/clip/1", target)
    right = text_vector(target)
    for act, text in DEEDS:
        act(path)
        for user in (target, again(target)):
            with pytest.raises(
                TargetError, match=rf"CLIP_TXT was {text}.*Nothing was embedded\."
            ) as err:
                user.sql(ASKED)
            assert "promote its version again" in err.value.hint
            assert user.sql("SELECT len(CLIP_IMG(NULL))") == [(None,)]
            [found] = drift(user)
            assert found.startswith(f"CLIP_TXT was {text.partition(':')[0]}")
        planned = dry_run("models:/clip/1", target)
        assert planned.work is None
        assert planned.pending.endswith("written again")
        done = promote("models:/clip/1", target)
        assert not done.changed
        assert done.finished.startswith("CLIP_TXT was")
        assert drift(target) == drift(again(target)) == ()
        assert not path.is_symlink()
        assert fingerprint_file(path) == versions[0].fingerprints["txt"]
        np.testing.assert_array_equal(text_vector(target), right)


def test_a_folder_in_its_place_is_told(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    path = stored(target, versions[0])
    path.unlink()
    path.mkdir()
    with pytest.raises(TargetError, match="it is no file"):
        target.sql(ASKED)
    with pytest.raises(TargetError, match="can't be read"):
        trace_bytes("models:/clip/1", target)
    with pytest.raises(TargetError, match="can't be written") as err:
        promote("models:/clip/1", target)
    assert "move away what is there" in err.value.hint
    assert not list(path.parent.glob(".loading-*"))


def test_drift_is_healed_in_place(
    tmp_path: Path, oracle: Oracle, versions: tuple[PipelinePair, ...]
) -> None:
    config = two_targets(tmp_path, oracle)
    move(1)
    reconcile(config)
    target = EmbeddedTarget(tmp_path / "small")
    exchange(stored(target, versions[0], "img"))
    exchange(stored(target, versions[0]))
    files._hashed.clear()
    [small] = [s for s in reconcile(config).statuses if s.target == "small"]
    assert small.state == "degraded"
    assert len(small.drift) == 2
    assert "apply --heal" in small.hint
    found = reconcile(changed(config, "small", drift="heal"))
    assert found.ok
    assert {s.state for s in found.statuses} == {"in sync"}
    with target.session("look", create=False) as session:
        assert [entry.generation for entry in session.journal.ledger()] == [1]
    assert text_vector(target).shape == (16,)


def test_a_kept_generation_with_other_bytes_stays_away(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    promote("models:/clip/2", target)
    exchange(stored(target, versions[0]))
    with pytest.raises(TargetError, match=r"CLIP can't go back to generation 1 \(clip 1\): ") as e:
        rollback("clip", target)
    assert "CLIP_TXT_S1 was altered" in e.value.message
    assert "The live pair is as it was." in e.value.message
    with target.session("look") as session:
        assert session.journal.state("CLIP").generation == 2
    assert drift(target) == ()
    # repaired, and live again without being loaded anew
    assert promote("models:/clip/1", target).changed
    assert rollback("clip", target, to=2).entry.version == "2"


def test_another_version_replaces_a_damaged_one(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget
) -> None:
    promote("models:/clip/1", target)
    exchange(stored(target, versions[0]))
    assert promote("models:/clip/2", target).entry.generation == 2
    with pytest.raises(TargetError, match="can't go back"):
        rollback("clip", target)


def test_a_file_is_hashed_once(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("models:/clip/1", target)
    hashed: list[str] = []
    hash_open = files.fingerprint_open

    def spy(file: object) -> str:
        hashed.append(hash_open(file))  # type: ignore[arg-type]
        return hashed[-1]

    monkeypatch.setattr(files, "fingerprint_open", spy)
    for path in (target.folder / "models").iterdir():
        os.utime(path, (1, 1))
    # what promoting noted is of before that: hashed by the first survey, noted by the next session
    for _ in range(3):
        assert drift(again(target)) == ()
    assert len(hashed) == 6
    with target.session("a promotion"):
        pass
    hashed.clear()
    assert drift(again(target)) == ()
    assert hashed == []
    # a process that runs a model hashes its file itself, once
    user = again(target)
    for _ in range(3):
        text_vector(user)
    assert hashed == [versions[0].fingerprints["txt"]]


def test_a_file_that_changes_while_it_is_loaded(
    versions: tuple[PipelinePair, ...], target: EmbeddedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("models:/clip/1", target)
    path, opened = stored(target, versions[0]), PairEmbedder.open

    def exchange_then_open(self: PairEmbedder, side: str) -> None:
        exchange(path)
        opened(self, side)

    monkeypatch.setattr(PairEmbedder, "open", exchange_then_open)
    # DuckDB computes constants twice if the first time fails
    with pytest.raises(
        TargetError, match=r"replaced while it was loaded|altered: .* Nothing was embedded"
    ):
        again(target).sql(ASKED)


def test_what_an_oracle_target_sees(
    tmp_path: Path, oracle: Oracle, versions: tuple[PipelinePair, ...]
) -> None:
    """Oracle gives no bytes back: other ones of the same size are seen by their vectors only."""
    config = two_targets(tmp_path, oracle)
    move(1)
    reconcile(config)
    target = OracleTarget.from_uri(oracle.uri)
    other = tmp_path / "other.onnx"
    shutil.copy(versions[0].txt, other)
    exchange(other)
    OracleHand(oracle, target).replace("CLIP_TXT", other)
    assert target.survey().names["CLIP"].drift() == ()
    assert all(trace.ok for trace in trace_bytes("models:/clip/1", target))
    assert not verify("models:/clip/1", target).ok
    assert live_versions(config)["big"] == "1"
