from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from fleets import (
    ANYTHING,
    NAME,
    NO_HOOKS,
    changed,
    live_versions,
    move,
    reconcile,
    states,
    two_targets,
)
from oracle_fixtures import Oracle
from oracle_server.statement import ConnectionDropped

from oml_mlflow import PipelinePair, pin, promote, rollback, unpin
from oml_mlflow.config.bindings import Binding
from oml_mlflow.config.file import Config, TargetConfig
from oml_mlflow.errors import NotAccepted, OmlMlflowError, OtherRegistry, RegistryUnreachable
from oml_mlflow.promotion.hooks import HookContext, Hooks
from oml_mlflow.promotion.options import Options
from oml_mlflow.promotion.run import observe
from oml_mlflow.reconciler.loop import Reconciler
from oml_mlflow.registry.versions import registry_id


@pytest.fixture
def config(tmp_path: Path, oracle: Oracle, versions: tuple[PipelinePair, ...]) -> Config:
    return two_targets(tmp_path, oracle)


def uploads(oracle: Oracle) -> int:
    """Return how many models were loaded; the block and the call in it are statements."""
    return sum("LOAD_ONNX_MODEL" in text for text in oracle.statements()) // 2


def test_an_alias_moved_and_moved_back(config: Config, oracle: Oracle) -> None:
    move(1)
    found = reconcile(config)
    assert found.ok, [o.error for o in found.outcomes]
    assert states(found) == {"small": "in sync", "big": "in sync"}
    assert live_versions(config) == {"small": "1", "big": "1"}
    again = reconcile(config)
    assert again.outcomes == ()
    assert Reconciler(config, hooks=NO_HOOKS).look().summary() == "Nothing to do."

    move(2)
    assert reconcile(config).ok
    loaded = uploads(oracle)
    move(1)
    found = reconcile(config)
    assert found.ok
    assert live_versions(config) == {"small": "1", "big": "1"}
    assert uploads(oracle) == loaded
    client = mlflow.MlflowClient()
    assert "live as CLIP" in client.get_model_version("clip", "1").tags["oml.target.big.v1"]
    assert "oml_mlflow:begin" in (client.get_model_version("clip", "1").description or "")


def test_a_failed_version_is_not_tried_again(config: Config, oracle: Oracle) -> None:
    move(1)
    reconcile(config)
    move(3)  # other vectors
    found = reconcile(config)
    assert {o.error.code for o in found.outcomes if o.error} == {"geometry-changed"}
    assert live_versions(config) == {"small": "1", "big": "1"}
    again = reconcile(config)
    tried = {o.change.binding.target for o in (*found.outcomes, *again.outcomes)}
    assert tried == {"small", "big"}
    third = reconcile(config)
    assert third.outcomes == ()
    assert set(states(third).values()) == {"degraded"}
    [big] = [s for s in third.statuses if s.target == "big"]
    assert "clip 3 failed" in big.text
    assert "--retry" in big.hint
    shown = mlflow.MlflowClient().get_model_version("clip", "3")
    assert "geometry-changed" in shown.tags["oml.target.big.v3"]

    found = reconcile(config, options=Options(retry=True, accept_new_geometry=True))
    assert found.ok
    assert live_versions(config) == {"small": "3", "big": "3"}
    move(1)
    found = reconcile(config, options=Options(accept_new_geometry=True))
    assert found.ok
    assert live_versions(config) == {"small": "1", "big": "1"}


def test_one_target_is_not_held_up_by_another_that_is_away(config: Config) -> None:
    move(1)
    away = changed(config, "big", uri="oracle://vec@127.0.0.1:9/none?connect_timeout=1")
    found = Reconciler(away, hooks=NO_HOOKS).look(targets=["small"])
    assert list(found.surveys) == ["small"]
    assert [(s.target, s.state) for s in found.statuses] == [("small", "out of sync")]
    # what it waits for is asked, though nothing is said of it
    waiting = changed(away, "small", after=("big",))
    found = Reconciler(waiting, hooks=NO_HOOKS).look(targets=["small"])
    assert sorted(found.surveys) == ["big", "small"]
    assert [(s.target, s.waits_for) for s in found.statuses] == [("small", ("big",))]


def test_a_version_that_somebody_else_made_live_meanwhile_is_no_failure(config: Config) -> None:
    move(1)
    reconciler = Reconciler(config, hooks=NO_HOOKS)
    diff = reconciler.look()
    assert reconcile(config).ok  # as a receiver would
    found = reconciler.run(diff=diff)
    assert [outcome.error for outcome in found.outcomes] == [None, None]
    assert {o.promotion.changed for o in found.outcomes if o.promotion} == {False}
    assert states(found) == {"small": "in sync", "big": "in sync"}


def test_pin_and_unpin(config: Config) -> None:
    move(1)
    reconcile(config)
    pin("clip", "big", "audit", config=config)
    move(2)
    found = reconcile(config)
    assert states(found) == {"small": "in sync", "big": "pinned"}
    [big] = [s for s in found.statuses if s.target == "big"]
    assert big.text.startswith("pinned by ")
    assert "audit" in big.text
    assert live_versions(config) == {"small": "2", "big": "1"}
    assert unpin("clip", "big", config=config)
    assert not unpin("clip", "big", config=config)
    assert states(reconcile(config)) == {"small": "in sync", "big": "in sync"}


def test_a_rollback_moves_the_alias(config: Config) -> None:
    for version in (1, 2):
        move(version)
        reconcile(config)
    told: list[str] = []
    back = rollback("clip", "big", config=config, tell=told.append)
    assert back.entry.version == "1"
    assert told == ["clip@prod goes from 2 to 1; with it go CLIP on big, CLIP on small."]
    assert live_versions(config) == {"small": "1", "big": "1"}
    assert reconcile(config).outcomes == ()
    assert str(mlflow.MlflowClient().get_model_version_by_alias("clip", "prod").version) == "1"


def test_a_pinned_rollback_leaves_the_alias(config: Config) -> None:
    for version in (1, 2):
        move(version)
        reconcile(config)
    told: list[str] = []
    back = rollback("clip", "big", pin=True, reason="bad results", config=config, tell=told.append)
    assert back.entry.version == "1"
    assert told == ["CLIP on big is pinned."]
    found = reconcile(config)
    assert states(found) == {"small": "in sync", "big": "pinned"}
    assert live_versions(config) == {"small": "2", "big": "1"}


def test_a_rollback_without_a_registry_pins(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        move(version)
        reconcile(config)
    gone = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(gone)
    mlflow.set_registry_uri(gone)
    told: list[str] = []
    rollback("clip", "big", config=config, tell=told.append)
    assert "CLIP on big is pinned, since the registry could not be asked" in told[0]
    assert live_versions(config)["big"] == "1"


def test_a_fixed_version_is_pinned(config: Config) -> None:
    move(1)
    reconcile(config)
    with pytest.raises(NotAccepted, match="follows clip@prod, which is version 1"):
        promote("models:/clip/2", "big", "clip", config=config)
    promote("models:/clip/2", "big", "clip", pin=True, config=config)
    found = reconcile(config)
    assert states(found) == {"small": "in sync", "big": "pinned"}
    assert live_versions(config) == {"small": "1", "big": "2"}


def models_of(config: Config, oracle: Oracle) -> tuple[list[str], list[str]]:
    folder = Path(config.targets["small"].uri.removeprefix("embedded:///"))
    return sorted(p.name for p in folder.glob("models/*")), sorted(oracle.fingerprints())


def test_nothing_is_dropped_because_something_is_missing(
    config: Config, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move(1)
    reconcile(config)
    move(2)
    reconcile(config)
    before = models_of(config, oracle)
    client = mlflow.MlflowClient()

    def check(expected: dict[str, str], found_config: Config = config) -> None:
        found = reconcile(found_config)
        assert found.outcomes == ()
        assert states(found) == expected
        assert models_of(config, oracle) == before
        assert live_versions(config) == {"small": "2", "big": "2"}

    unbound = {"small": "unbound", "big": "unbound"}
    client.delete_registered_model_alias("clip", "prod")
    check(unbound)
    move(2)
    check({"small": "in sync", "big": "in sync"})
    check(unbound, replace(config, bindings=()))
    client.delete_model_version("clip", "2")
    check(unbound)
    other = client.create_registered_model("other")
    client.delete_registered_model("clip")
    check(unbound)
    client.delete_registered_model(other.name)
    with pytest.raises(OtherRegistry, match="no model at all"):
        reconcile(config)
    assert models_of(config, oracle) == before

    # a model of the same name made anew is not the one that the ledger names
    client.create_registered_model("clip")
    client.create_model_version("clip", str(tmp_path))
    move(1)
    found = reconcile(config)
    assert found.outcomes == ()
    assert set(states(found).values()) == {"degraded"}
    assert all("deleted and re-created" in s.text for s in found.statuses)
    assert models_of(config, oracle) == before


@pytest.mark.parametrize("registry", ["unreachable", "erroring", "different"])
def test_a_registry_that_is_not_ours_stops_the_pass(
    registry: str, config: Config, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    move(1)
    reconcile(config)
    before = models_of(config, oracle)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wanted: type[OmlMlflowError] = RegistryUnreachable
    if registry == "unreachable":
        uri = "http://127.0.0.1:9"
    elif registry == "erroring":
        (tmp_path / "broken.db").write_bytes(b"no database at all" * 100)
        uri = f"sqlite:///{tmp_path / 'broken.db'}"
    else:
        ours = registry_id()
        shutil.copy(tmp_path / "mlflow.db", tmp_path / "other.db")
        import sqlite3

        with sqlite3.connect(tmp_path / "other.db") as raw:
            raw.execute("UPDATE experiments SET creation_time = creation_time + 1")
            raw.execute("UPDATE registered_model_aliases SET version = 2")
        uri, wanted = f"sqlite:///{tmp_path / 'other.db'}", OtherRegistry
        assert ours
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with pytest.raises(wanted, match="Nothing was changed"):
        reconcile(config)
    assert models_of(config, oracle) == before
    assert live_versions(config) == {"small": "1", "big": "1"}
    if registry == "different":
        found = reconcile(config, options=Options(take_over=True))
        assert found.ok
        assert live_versions(config) == {"small": "2", "big": "2"}


def test_tags_bind_inside_what_a_target_accepts(config: Config) -> None:
    move(1)
    free = replace(config, bindings=())
    client = mlflow.MlflowClient()
    client.set_registered_model_tag("clip", "oml.bind", "prod -> small as VISION; prod -> big")
    assert reconcile(free).outcomes == ()
    free = changed(free, "small", allow_tag_bindings=True)
    found = reconcile(free)
    assert [o.change.binding.name for o in found.outcomes] == ["VISION"]
    refused = [s for s in found.statuses if s.is_error]
    assert [s.target for s in refused] == ["big"]
    assert "takes no bindings from tags" in refused[0].text
    client.set_registered_model_tag("clip", "oml.bind", "nonsense")
    [unread] = [s for s in reconcile(free).statuses if s.is_error]
    assert "can't be read" in unread.text
    client.set_registered_model_tag("clip", "oml.paused", "true")
    assert states(reconcile(config))["big"] == "paused"


class Freeze:
    """A hook that stops promotions at a stage, and writes down what it was told."""

    def __init__(self, stage: str) -> None:
        self.stage, self.told = stage, []

    def before_load(self, context: HookContext) -> None:
        self._tell("before_load", context)

    def after_verify(self, context: HookContext) -> None:
        self._tell("after_verify", context)

    def after_swap(self, context: HookContext) -> None:
        self._tell("after_swap", context)

    def on_failure(self, context: HookContext) -> None:
        self._tell("on_failure", context)

    def _tell(self, stage: str, context: HookContext) -> None:
        self.told.append((stage, context.target, context.version, context.alias))
        if stage == self.stage:
            raise RuntimeError("change freeze")


@pytest.mark.parametrize("stage", ["before_load", "after_verify"])
def test_a_veto_keeps_the_old_pair_live(stage: str, config: Config, oracle: Oracle) -> None:
    config = replace(config, concurrency=1)
    move(1)
    reconcile(config)
    before = models_of(config, oracle)
    move(2)
    freeze = Freeze(stage)
    found = Reconciler(config, hooks=Hooks((("freeze", freeze),))).run()
    [outcome] = found.outcomes
    assert outcome.error is not None
    assert outcome.error.code == "hook-veto"
    assert "change freeze" in outcome.error.message
    assert live_versions(config) == {"small": "1", "big": "1"}
    assert models_of(config, oracle) == before
    assert freeze.told[0] == ("before_load", "big", "2", "prod")
    assert freeze.told[-1][0] == "on_failure"
    told = Freeze("never")
    found = Reconciler(config, hooks=Hooks((("told", told),))).run(options=Options(retry=True))
    assert found.ok
    assert [stage for stage, target, *_ in told.told if target == "big"] == [
        *["before_load", "after_verify", "after_swap"]
    ]


def test_an_interrupted_upload_is_continued(config: Config, oracle: Oracle) -> None:
    move(1)
    reconcile(config)
    move(2)
    loads = 0

    def crash(index: int, text: str, session: object) -> None:
        nonlocal loads
        loads += "LOAD_ONNX_MODEL" in text
        if loads == 3:
            raise ConnectionDropped("killed")

    oracle.database.faults.before_statement = crash
    found = reconcile(config)
    assert [o.error.code for o in found.outcomes if o.error] == ["target-unreachable"]
    oracle.database.faults.before_statement = None
    loaded = uploads(oracle)
    found = reconcile(config)
    assert found.ok
    assert live_versions(config) == {"small": "2", "big": "2"}
    [done] = [o.promotion for o in found.outcomes if o.change.binding.target == "big"]
    assert done is not None
    assert "is undone" in done.finished
    assert uploads(oracle) == loaded + 1


def test_what_a_killed_run_loaded_is_used_when_it_is_wanted_again(
    config: Config, oracle: Oracle
) -> None:
    move(1)
    reconcile(config)
    move(2)
    oracle.database.faults.before_statement = crash_in("SELECT VECTOR_EMBEDDING")
    assert [o.error.code for o in reconcile(config).outcomes if o.error] == ["target-unreachable"]
    oracle.database.faults.before_statement = None
    loaded = uploads(oracle)
    move(1)
    found = reconcile(config)
    assert found.ok
    assert live_versions(config) == {"small": "1", "big": "1"}
    assert {"CLIP_IMG_S2", "CLIP_TXT_S2"} < set(oracle.fingerprints())
    move(2)
    assert reconcile(config).ok
    assert live_versions(config) == {"small": "2", "big": "2"}
    assert uploads(oracle) == loaded
    # once live, it is a generation like any other
    with oracle.target().session("look", create=False) as session:
        assert observe(session, NAME).unfinished() == {}


def test_what_a_killed_run_loaded_is_not_kept_for_ever(config: Config, oracle: Oracle) -> None:
    config = changed(config, "big", uri=f"{oracle.uri}?keep=1")
    move(1)
    reconcile(config)
    move(2)
    oracle.database.faults.before_statement = crash_in("SELECT VECTOR_EMBEDDING")
    reconcile(config)
    oracle.database.faults.before_statement = None
    move(3)
    assert reconcile(config, options=Options(accept_new_geometry=True)).ok
    # the generation before is kept, and nothing else
    with oracle.target().session("look", create=False) as session:
        observed = observe(session, NAME)
        assert (observed.unfinished(), sorted(observed.kept())) == ({}, [1])
        assert len(session.models.list()) == 4


def crash_in(wanted: str) -> Callable[[int, str, object], None]:
    def crash(index: int, text: str, session: object) -> None:
        if text.startswith(wanted) and "_S" in text:
            raise ConnectionDropped("killed")

    return crash


def test_an_upload_without_its_identity_is_made_again(config: Config, oracle: Oracle) -> None:
    move(1)
    reconcile(config)
    move(2)

    def crash(index: int, text: str, session: object) -> None:
        if "COMMENT ON MINING MODEL" in text:
            raise ConnectionDropped("killed")

    oracle.database.faults.before_statement = crash
    found = reconcile(config)
    assert [o.error.code for o in found.outcomes if o.error] == ["target-unreachable"]
    oracle.database.faults.before_statement = None
    found = reconcile(config)
    assert found.ok, [o.error for o in found.outcomes]
    assert live_versions(config) == {"small": "2", "big": "2"}


@pytest.mark.parametrize("middle", ["embedded", "oracle"])
def test_a_chain_waits_for_a_target_that_is_down(
    middle: str, tmp_path: Path, oracle: Oracle, versions: object
) -> None:
    uris = {name: f"embedded:///{tmp_path / name}" for name in ("dev", "test", "live")}
    if middle == "oracle":
        uris["test"] = oracle.uri
    after = {"dev": (), "test": ("dev",), "live": ("test",)}
    targets = {n: TargetConfig(n, uri, ANYTHING, after=after[n]) for n, uri in uris.items()}
    config = Config(targets, tuple(Binding(t, NAME, "clip", "prod") for t in targets))
    move(1)
    found = reconcile(config)
    assert [o.change.binding.target for o in found.outcomes] == ["dev", "test", "live"]
    move(2)
    (tmp_path / "no folder").write_text("a file")
    nowhere = "oracle://vec@127.0.0.1:9/FREEPDB1"
    if middle == "embedded":
        nowhere = f"embedded:///{tmp_path / 'no folder'}"
    down = changed(config, "test", uri=nowhere)
    found = reconcile(down)
    assert [o.change.binding.target for o in found.outcomes if not o.error] == ["dev"]
    waiting = {s.target: s for s in found.statuses}
    assert waiting["test"].state == ("unreachable" if middle == "oracle" else "out of sync")
    assert waiting["live"].waits_for == ("test",)
    assert waiting["live"].live is not None
    assert waiting["live"].live.version == "1"
    found = reconcile(config)
    assert [o.change.binding.target for o in found.outcomes] == ["test", "live"]
    assert live_versions(config) == dict.fromkeys(targets, "2")


def test_a_chain_of_aliases_asks_what_was_verified_before(tmp_path: Path, versions: object) -> None:
    targets = {
        "dev": TargetConfig("dev", f"embedded:///{tmp_path / 'dev'}", ANYTHING),
        "live": TargetConfig("live", f"embedded:///{tmp_path / 'live'}", ANYTHING, after=("dev",)),
    }
    bindings = (Binding("dev", NAME, "clip", "dev"), Binding("live", NAME, "clip", "prod"))
    config = Config(targets, bindings)
    move(2)
    assert reconcile(config).outcomes == ()
    for version in (1, 2):
        move(version, "dev")
        reconcile(config)
    assert live_versions(config) == {"dev": "2", "live": "2"}
    # dev has gone on, but had version 1 verified
    move(1)
    reconcile(config)
    assert live_versions(config) == {"dev": "2", "live": "1"}
