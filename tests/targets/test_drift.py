"""What was changed behind our back is found, named, and healed or left, as the policy says."""

from __future__ import annotations

from pathlib import Path

import pytest
from drifted import EmbeddedHand, Hand, OracleHand
from fleets import changed, live_versions, move, reconcile, two_targets
from oracle_fixtures import Oracle

from oml_mlflow import PipelinePair, open_target
from oml_mlflow.config.file import Config
from oml_mlflow.promotion.options import Options
from oml_mlflow.reconciler.status import Status
from oml_mlflow.targets.embedded.target import EmbeddedTarget


def hand(config: Config, name: str, oracle: Oracle) -> Hand:
    target = open_target(config.targets[name].uri)
    return (
        EmbeddedHand(target) if isinstance(target, EmbeddedTarget) else OracleHand(oracle, target)
    )


def status(config: Config, target: str, **options: object) -> Status:
    found = reconcile(config, **options)
    assert found.ok, [o.error for o in found.outcomes]
    [one] = [s for s in found.statuses if s.target == target]
    return one


@pytest.mark.parametrize("target", ["small", "big"])
def test_drift_is_found_and_healed(
    target: str,
    tmp_path: Path,
    oracle: Oracle,
    versions: tuple[PipelinePair, ...],
    second_pair: PipelinePair,
) -> None:
    config = two_targets(tmp_path, oracle)
    healing = changed(config, target, drift="heal")
    move(1)
    assert status(config, target).state == "in sync"
    by_hand = hand(config, target, oracle)
    deeds = {
        "CLIP_IMG was dropped": lambda: by_hand.drop("CLIP_IMG"),
        "CLIP_TXT was replaced by a foreign model": lambda: by_hand.replace(
            "CLIP_TXT", second_pair.txt
        ),
        "CLIP_IMG was": lambda: by_hand.alter("CLIP_IMG"),
    }
    for number, (text, deed) in enumerate(deeds.items()):
        deed()
        found = status(config, target)
        assert found.state == "degraded"
        assert found.text.startswith(text)
        assert "apply --heal" in found.hint
        # left as it is, however often it is looked at
        assert status(config, target).drift == found.drift
        healed = (
            status(config, target, options=Options(heal=True))
            if number == 0
            else status(healing, target)
        )
        assert healed.state == "in sync", healed
        assert live_versions(config)[target] == "1"
        assert reconcile(healing).outcomes == ()
    kept = open_target(config.targets[target].uri)
    with kept.session("look", create=False) as session:
        sizes = {model.size_bytes for model in session.models.list()}
    assert second_pair.txt.stat().st_size in sizes
