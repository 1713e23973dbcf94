"""What the registry could not be told is told by a later pass; what it was told costs nothing."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from fleets import ANYTHING, NAME, live_versions, move, reconcile
from mlflow.exceptions import MlflowException

from oml_mlflow import PipelinePair, promote
from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config, TargetConfig


@pytest.fixture
def config(tmp_path: Path, versions: tuple[PipelinePair, ...]) -> Config:
    target = TargetConfig("small", f"embedded:///{tmp_path / 'small'}", ANYTHING)
    return Config({"small": target}, (Binding("small", NAME, "clip", "prod"),))


def tag(version: str) -> str:
    found = mlflow.MlflowClient().get_model_version("clip", version).tags
    return str(found.get(f"oml.target.small.v{version}", ""))


def test_what_could_not_be_told_is_told_later(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    move(1)
    with monkeypatch.context() as away:

        def refuse(*arguments: object, **named: object) -> None:
            raise MlflowException("no answer")

        away.setattr(mlflow.MlflowClient, "update_model_version", refuse)
        found = reconcile(config)
    assert found.ok
    assert "can't be shown" in found.warnings[0]
    assert live_versions(config) == {"small": "1"}
    assert reconcile(config).warnings == ()
    assert "live as CLIP" in tag("1")

    def count(*arguments: object, **named: object) -> None:
        raise AssertionError("told again")

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version", count)
    assert reconcile(config).warnings == ()


def test_a_promotion_by_hand_is_shown_by_the_next_pass(config: Config) -> None:
    move(2)
    promote("models:/clip/2", config.targets["small"].uri, "clip")
    assert tag("2") == ""
    assert reconcile(config).outcomes == ()
    assert "live as CLIP" in tag("2")
