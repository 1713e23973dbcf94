"""Laws of the fleet plan: applied, it gives what was wanted; planned again, it is empty."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from oml_mlflow.config.bindings import FILE, TAG, Acceptance, Binding, settle
from oml_mlflow.config.file import TargetConfig
from oml_mlflow.errors import OmlMlflowError, TargetUnreachable
from oml_mlflow.planning.observed import Observed, Survey
from oml_mlflow.planning.records import (
    FAILURE,
    PIN,
    UNVERIFIED,
    VERIFIED,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Note,
    now,
)
from oml_mlflow.promotion.options import Options
from oml_mlflow.reconciler.desired import read_tag
from oml_mlflow.reconciler.diff import Diff, compare, tried
from oml_mlflow.reconciler.status import (
    DEGRADED,
    HEAL,
    IN_SYNC,
    OUT_OF_SYNC,
    PAUSED,
    PINNED,
    UNBOUND,
    UNREACHABLE,
    Change,
)
from oml_mlflow.registry.versions import BIND_TAG, Registered

TARGETS, MODELS, ALIASES, NAMES = ("dev", "test", "live"), ("a", "b"), ("x", "y"), ("N", "M")
VERSIONS = ("1", "2", "3")


@dataclass(frozen=True)
class World:
    targets: Mapping[str, TargetConfig]
    surveys: Mapping[str, Survey | OmlMlflowError]
    bindings: tuple[Binding, ...]
    models: Mapping[str, Registered | None]

    def plan(self, options: Options = Options()) -> Diff:  # noqa: B008 -- frozen
        accepted = {name: (Acceptance(),) for name in self.targets}
        kept, refused = settle(self.bindings, accepted, self.targets)
        policies = dict.fromkeys(self.targets, "p")
        return compare(
            self.targets, self.surveys, kept, refused, self.models, policies, options=options
        )

    def applied(self, changes: tuple[Change, ...]) -> World:
        """Return the world once changes were carried out."""
        surveys = dict(self.surveys)
        for change in changes:
            survey = surveys[change.binding.target]
            assert isinstance(survey, Survey)
            name = change.binding.name
            notes = survey.names[name].notes if name in survey.names else {}
            one = held(name, change.binding.model, change.version, change.registry, notes)
            one = replace(
                one,
                state=LiveState(name, change.before + 1),
                ledger=(replace(one.ledger[0], generation=change.before + 1),),
            )
            surveys[change.binding.target] = replace(survey, names={**survey.names, name: one})
        return replace(self, surveys=surveys)


def held(
    name: str,
    model: str,
    version: str,
    registry: str = "r:1",
    notes: Mapping[str, Note] | None = None,
    missing: bool = False,
    verification: str = VERIFIED,
) -> Observed:
    prints = {side: f"{model}{version}{side}" for side in ("img", "txt")}
    entry = LedgerEntry(
        name, 1, model, version, "", prints, 4, registry=registry, verification=verification
    )
    models = {
        f"{name}_{side.upper()}": LoadedModel(
            f"{name}_{side.upper()}", side, print_, 4, 1, {}, now()
        )
        for side, print_ in prints.items()
        if not (missing and side == "img")
    }
    return Observed(name, LiveState(name, 1), (entry,), models, notes=dict(notes or {}))


@st.composite
def worlds(draw: st.DrawFn, troubled: bool = True) -> World:
    chained = draw(st.booleans())
    targets = {}
    for number, name in enumerate(TARGETS):
        after = (TARGETS[number - 1],) if chained and number else ()
        paused = troubled and draw(st.integers(0, 9)) == 0
        drift = draw(st.sampled_from(["report", "heal"]))
        targets[name] = TargetConfig(
            name, f"embedded:///{name}", after=after, paused=paused, drift=drift
        )
    models: dict[str, Registered | None] = {}
    for model in MODELS:
        aliases = draw(st.dictionaries(st.sampled_from(ALIASES), st.sampled_from(VERSIONS)))
        models[model] = Registered(model, aliases, {}, "r:1")
        if troubled and draw(st.integers(0, 9)) == 0:
            models[model] = None
    surveys: dict[str, Survey | OmlMlflowError] = {}
    for target in TARGETS:
        if troubled and draw(st.integers(0, 9)) == 0:
            surveys[target] = TargetUnreachable("away")
            continue
        names = {}
        for name in NAMES:
            if draw(st.booleans()):
                notes = {}
                if troubled and draw(st.integers(0, 5)) == 0:
                    notes[PIN] = Note(name, PIN, {}, now(), "somebody")
                names[name] = held(
                    name,
                    draw(st.sampled_from(MODELS)),
                    draw(st.sampled_from(VERSIONS)),
                    notes=notes,
                    missing=troubled and draw(st.integers(0, 5)) == 0,
                )
        surveys[target] = Survey(target, "1", names)
    bindings = draw(
        st.lists(
            st.builds(
                Binding,
                st.sampled_from(TARGETS),
                st.sampled_from(NAMES),
                st.sampled_from(MODELS),
                st.sampled_from(ALIASES),
                st.sampled_from([FILE, TAG]),
            ),
            max_size=6,
        )
    )
    return World(targets, surveys, tuple(bindings), models)


def settled(world: World, options: Options) -> World:
    """Return the world after all that can be done was done, a link of a chain at a time."""
    for _ in range(len(TARGETS) + 1):
        world = world.applied(world.plan(options).changes)
    return world


@settings(max_examples=300, deadline=None)
@given(worlds(), st.booleans(), st.booleans())
def test_after_an_apply_the_plan_is_empty(world: World, take_over: bool, heal: bool) -> None:
    options = Options(take_over=take_over, heal=heal)
    after = settled(world, options)
    assert after.plan(options).changes == ()
    assert settled(after, options) == after


@settings(max_examples=300, deadline=None)
@given(worlds(troubled=False))
def test_applied_it_gives_what_was_wanted(world: World) -> None:
    options = Options(take_over=True)
    after = settled(world, options)
    for status in after.plan(options).statuses:
        if status.binding is None or status.is_error or not status.wanted:
            continue
        if status.waits_for:
            # a link before is not bound to the version, and never will be
            continue
        assert status.state == IN_SYNC
        assert status.live is not None
        assert status.live.version == status.wanted
        assert status.live.registered_model == status.binding.model


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_only_what_is_out_of_line_is_changed(world: World) -> None:
    plan = world.plan()
    for status in plan.statuses:
        change = status.change
        if change is None:
            continue
        assert status.state in (OUT_OF_SYNC, DEGRADED)
        assert status.state not in (PAUSED, PINNED, UNBOUND, UNREACHABLE)
        assert change.version == status.wanted
        is_same = status.live is not None and status.live.version == status.wanted
        assert not is_same or change.kind == HEAL
        assert status.live is None or status.live.registered_model == change.binding.model
    assert len({c.binding.place for c in plan.changes}) == len(plan.changes)


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_bindings_does_not_matter(world: World, shuffled: random.Random) -> None:
    bindings = list(world.bindings)
    shuffled.shuffle(bindings)
    assert replace(world, bindings=tuple(bindings)).plan().changes == world.plan().changes


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_what_failed_is_not_tried_again(world: World) -> None:
    for change in world.plan().changes:
        survey = world.surveys[change.binding.target]
        assert isinstance(survey, Survey)
        name = change.binding.name
        content = {"tried": tried(change, {change.binding.target: "p"}, survey), "code": "c"}
        one = survey.names.get(name) or Observed(name, LiveState(name), (), {})
        noted = replace(one, notes={**one.notes, FAILURE: Note(name, FAILURE, content)})
        surveys = {
            **world.surveys,
            change.binding.target: replace(survey, names={**survey.names, name: noted}),
        }
        remembered = replace(world, surveys=surveys)
        assert change not in remembered.plan().changes
        assert change in remembered.plan(Options(retry=True)).changes
        anew = replace(survey, names={**survey.names, name: noted}, capabilities="others")
        surveys = {**world.surveys, change.binding.target: anew}
        assert change in replace(world, surveys=surveys).plan().changes


def test_what_could_not_be_compared_says_so() -> None:
    survey = Survey("u", "1", {"N": held("N", "a", "1", verification=UNVERIFIED)})
    world = World(
        {"dev": TargetConfig("dev", "embedded:///x")},
        {"dev": survey},
        (Binding("dev", "N", "a", "x"),),
        {"a": Registered("a", {"x": "1"}, {}, "r:1")},
    )
    [status] = world.plan().statuses
    assert status.state == "unverified"


def test_two_bindings_of_one_place_count_for_nothing() -> None:
    bindings = [Binding("dev", "N", "a", "x"), Binding("dev", "N", "b", "x")]
    kept, refused = settle(bindings, {"dev": (Acceptance(),)}, ())
    assert kept == ()
    assert len(refused) == 2
    assert "bound twice" in refused[0].reason
    kept, refused = settle(bindings[:1], {"dev": (Acceptance("c*"),)}, ())
    assert kept == ()
    assert "does not accept a@x as N" in refused[0].reason
    assert 'model = "a", alias = "x", name = "N"' in refused[0].hint
    kept, refused = settle(bindings[:1], {"dev": (Acceptance("a", "x", "n"),)}, ())
    assert refused == ()
    assert kept == (bindings[0],)


def test_a_tag_is_read_as_bindings() -> None:
    assert BIND_TAG == "oml.bind"
    assert read_tag("clip", "prod -> db1 as Vision; dev->db-2 ;") == [
        Binding("db1", "VISION", "clip", "prod", TAG),
        Binding("db-2", "CLIP", "clip", "dev", TAG),
    ]
    assert read_tag("clip", "prod db1") is None
