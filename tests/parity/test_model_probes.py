"""Probes of a model's own: what they are, what they are kept for, and what they do not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from oml_mlflow.flavor.evidence import gather_evidence
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.model_probes import model_probes
from oml_mlflow.parity.policy import CLASSES, FAILED, OK, Limits, ParityPolicy
from oml_mlflow.parity.probes import (
    Probe,
    References,
    golden_probes,
    read_probes,
    save_probes,
    unsafe_reason,
)
from oml_mlflow.planning.geometry import geometry_id, key_vectors
from oml_mlflow.source.model import Source, open_source


@pytest.fixture(scope="module")
def source(tiny_folder: Path) -> Source:
    return open_source(str(tiny_folder))


def texts(probes: tuple[Probe, ...]) -> dict[str, str]:
    return {probe.id: probe.value for probe in probes if isinstance(probe.value, str)}


def test_probes_of_a_plain_model_are_few_small_and_always_the_same(source: Source) -> None:
    probes = model_probes(source)
    assert probes == model_probes(source)
    assert len(probes) <= 16
    assert len({probe.id for probe in (*probes, *golden_probes())}) == len(probes) + 24
    assert all(probe.category in CLASSES[probe.side] for probe in probes)
    assert sum(len(probe.value) for probe in probes) < 60_000
    assert not any(probe.is_golden for probe in probes)
    digits = texts(probes)["own-digits-1"], texts(probes)["own-digits-2"]
    assert {pair for text in digits for pair in pairwise(text)} == {
        (a, b) for a in "0123456789" for b in "0123456789"
    }


def test_odd_vocabularies_get_probes_of_what_is_odd(source: Source) -> None:
    vocabulary = source.vocabulary
    merges = (*vocabulary.merges, ("1", "9</w>"), ("it", "'s</w>"), ("C", "at</w>"))
    ids = {token: n for token, n in vocabulary.ids.items() if token not in ("`", "~</w>")}
    odd = replace(source, vocabulary=replace(vocabulary, ids=ids, merges=merges))
    added = ["<|startoftext|>", "<cat>", "two words", "\0", "<|EndOfText|>", *"abcdefgh"]
    probes = model_probes(odd, added)
    found = texts(probes)
    assert len(probes) <= 24
    assert found["own-digit-merges"] == "19"
    assert found["own-merges"] == "Cat it's"
    assert found["own-symbols"] == "` ~"
    assert found["own-token-1"] == "a photo of <cat>, x<cat>y <CAT>"
    assert "own-token-2" in found
    # unprintable; white space before a special token ends the process of some databases
    assert not {"own-token-3", "own-token-4"} & found.keys()
    categories = {probe.id: probe.category for probe in probes}
    assert categories["own-symbols"] == "ascii"
    assert categories["own-digit-merges"] == "digits"


def test_they_are_read_back_as_what_they_are(source: Source, tmp_path: Path) -> None:
    probes = (*golden_probes(), *model_probes(source)[2:])
    save_probes(tmp_path, probes)
    assert read_probes(tmp_path) == probes
    assert (tmp_path / "probes.json").read_text().count('"golden": false') == 13


@pytest.fixture(scope="module")
def runs() -> Iterator[Counter[bytes | str]]:
    """How often a graph of a pair was run whole on an input, while it is watched."""
    counted: Counter[bytes | str] = Counter()
    real = onnxruntime.InferenceSession.run

    def run(self: Any, names: Any, feed: dict[str, np.ndarray], *rest: Any) -> Any:
        # not those of a part: the host front end's figures are of another way to the same vectors
        if "embedding" in names:
            counted.update(
                value.tobytes() if value.dtype == np.uint8 else str(value)
                for value in feed.values()
            )
        return real(self, names, feed, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "run", run)
        yield counted


def test_no_golden_probe_is_embedded_twice(
    tiny_pair: PipelinePair, runs: Counter[bytes | str]
) -> None:
    """Neither after an export nor for a second profile that shares the bytes."""
    golden = [np.array([p.value], object) for p in golden_probes() if p.side == "txt"]
    for pair, times in ((tiny_pair, 0), (replace(tiny_pair, proof=None), 1)):
        runs.clear()
        evidence = gather_evidence([pair, replace(pair, profile="oracle-26ai")])
        assert {runs[str(text)] for text in golden} == {times}
        assert evidence.pairs["oracle-23.7"] == evidence.pairs["oracle-26ai"]
        assert evidence.exactness is not None
        assert evidence.exactness.ok


def test_only_what_a_bare_graph_gets_right_is_stored(tiny_pair: PipelinePair) -> None:
    proof = tiny_pair.proof
    assert proof is not None
    glued = Probe("own-line", "txt", "ascii", "a cat\non a mat", is_golden=False)
    vectors = {**proof.vectors.vectors, glued.id: tiny_pair.embedder().embed_text([glued.value])[0]}
    more = replace(
        proof, probes=(*proof.probes, glued), vectors=References(vectors, proof.vectors.runtime)
    )
    evidence = gather_evidence([replace(tiny_pair, proof=more)])
    stored = {probe.id for probe in evidence.probes}
    asked = {probe.id for probe in proof.probes}
    prepared = {"own-transparent", "own-16-bit", "own-cmyk", "own-grey-jpeg"}
    assert stored == asked - prepared
    assert not any(unsafe_reason(probe) for probe in evidence.probes)
    assert evidence.pairs["oracle-23.7"].vectors.keys() == stored
    assert evidence.exactness is not None
    assert len(evidence.exactness.rows) == 24
    assert any(
        "token ids: equal on" in line for line in evidence.exactness.to_markdown().split("\n")
    )


def test_another_profile_s_pair_keeps_them(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    from oml_mlflow.graph.profiles import PROFILES

    other = tiny_pair.for_profile(PROFILES["onnxruntime"], tmp_path)
    evidence = gather_evidence([other])
    assert evidence.exactness is not None
    assert evidence.exactness.ok
    assert evidence.exactness.stages == ()  # those of other bytes
    assert any(probe.id == "own-digits-1" for probe in evidence.probes)


def test_the_geometry_is_what_the_golden_probes_say(tiny_pair: PipelinePair) -> None:
    assert tiny_pair.proof is not None
    golden, own = golden_probes(), tiny_pair.proof.probes
    vectors = tiny_pair.proof.vectors.vectors
    before, after = key_vectors(golden, vectors), key_vectors(own, vectors)
    assert len(own) > len(golden)
    assert geometry_id(before) == geometry_id(after)


UNIT = np.full(64, 0.125, np.float32)


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        (UNIT * np.float32(0.5), "length 0.5, wanted 1"),
        (UNIT * np.float32(2), "length 2, wanted 1"),
        (UNIT * np.float32(1.002), "length 1.002, wanted 1"),
        (UNIT.astype(np.float16).astype(np.float32), ""),
        (UNIT * np.float32(1.0005), ""),
    ],
)
def test_a_vector_that_is_not_of_unit_length_is_never_verified(
    vector: np.ndarray, error: str
) -> None:
    """However wide the limits of a target are, and where its class only warns."""
    probe = golden_probes()[0]
    wide = {probe.category: Limits(1.0, 0.0)}
    tolerant = ParityPolicy(frozenset({probe.category}))
    for policy in (None, tolerant):
        report = compare("Any", [probe], {probe.id: vector}, {probe.id: UNIT}, wide, policy=policy)
        assert (report.worst.state, report.worst.error) == (FAILED if error else OK, error)
