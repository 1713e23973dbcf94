"""Preflight: every check, its states, and what a failed one raises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_database import SmallDatabase, as_session

from oml_mlflow.errors import (
    CapabilityMissing,
    ForeignModel,
    GraphError,
    InvalidName,
    PreflightError,
    PrivilegeError,
)
from oml_mlflow.graph.needs import needs
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import SIDES
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.checks import FAILED, NOT_RUN, OK, SKIPPED, Check, Preflight
from oml_mlflow.planning.records import (
    ADOPT,
    CLEANING,
    LOADING,
    SWAPPING,
    LedgerEntry,
    LiveState,
    LoadedModel,
    Work,
    now,
)
from oml_mlflow.promotion.capabilities import probe_capabilities
from oml_mlflow.promotion.preflight import preflight
from oml_mlflow.targets.embedded.target import EmbeddedTarget

PROFILE = get_profile("oracle-23.7")
DECODE = "com.microsoft.extensions:DecodeImage"


def examined(
    database: SmallDatabase, pair: PipelinePair, name: str = "clip", *, adopt: bool = False
) -> Preflight:
    session = as_session(database)
    paths = {side: pair.path(side) for side in SIDES}
    return preflight(session, session, name, paths, PROFILE, adopt=adopt)


def check_of(report: Preflight, name: str) -> Check:
    [found] = [check for check in report.rows if check.name == name]
    return found


def ask(database: SmallDatabase, pair: PipelinePair) -> CapabilityTable:
    wanted = [need for side in SIDES for need in needs(pair.path(side))]
    return probe_capabilities(as_session(database), wanted)


def loaded(name: str, *, foreign: bool = False) -> LoadedModel:
    metadata = {} if foreign else {"registered_model": "clip", "version": "4"}
    return LoadedModel(name, "img", "", 512, 1_000, metadata, now(), foreign)


def entry(action: str = "promote") -> LedgerEntry:
    return LedgerEntry("CLIP", 3, "clip", "4", "", {}, 512, action=action)


def test_an_empty_database_passes(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase(own_checks=[Check("privileges", OK, "CREATE MINING MODEL")])
    report = examined(database, tiny_pair)
    assert [(check.name, check.state) for check in report.rows] == [
        ("names", OK),
        ("existing models", OK),
        ("journal", OK),
        ("img file", OK),
        ("txt file", OK),
        ("capabilities", NOT_RUN),
        ("privileges", OK),
    ]
    assert report.ok
    report.demand()
    assert "preflight --probe" in check_of(report, "capabilities").hint
    assert database.tried == 0
    document = json.loads(json.dumps(report.to_json()))
    assert document["ok"]
    assert len(document["checks"]) == 7


def test_no_checks_are_no_pass() -> None:
    assert not Preflight("nothing", ()).ok


@pytest.mark.parametrize("name", ["1clip", "clip img", "c" * 112, 'clip"; drop'])
def test_an_illegal_name_is_all_there_is_to_say(tiny_pair: PipelinePair, name: str) -> None:
    report = examined(SmallDatabase(), tiny_pair, name)
    assert [check.name for check in report.rows] == ["names"]
    with pytest.raises(InvalidName, match="Nothing was loaded") as err:
        report.demand()
    assert err.value.code == "name-invalid"
    assert "use a name such as" in err.value.hint


def test_reserved_words_can_be_export_names(tiny_pair: PipelinePair) -> None:
    report = examined(SmallDatabase(), tiny_pair, "SELECT")
    assert "SELECT_IMG and SELECT_TXT are legal" in check_of(report, "names").message


def test_existing_models_say_who_made_them(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase(entries=[entry()])
    database.loaded = {name: loaded(name) for name in ("CLIP_IMG", "CLIP_TXT", "OTHER")}
    check = check_of(examined(database, tiny_pair), "existing models")
    assert check.state == OK
    assert "CLIP_IMG (clip version 4, 1,000 bytes" in check.message
    assert "OTHER" not in check.message


def test_models_of_others_are_refused_unless_adopted(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase()
    database.loaded = {"CLIP_IMG": loaded("CLIP_IMG", foreign=True)}
    report = examined(database, tiny_pair)
    with pytest.raises(ForeignModel, match=r"CLIP_IMG .foreign") as err:
        report.demand()
    assert "--adopt" in err.value.hint
    adopted = check_of(examined(database, tiny_pair, adopt=True), "existing models")
    assert (adopted.state, "to be adopted" in adopted.message) == (OK, True)
    database.entries = [entry(ADOPT)]
    assert check_of(examined(database, tiny_pair), "existing models").state == OK


@pytest.mark.parametrize(
    ("phase", "then"),
    [
        (LOADING, "undoes it; generation 3 stays live"),
        (SWAPPING, "finishes it; then generation 4 is live"),
        (CLEANING, "finishes it; then generation 4 is live"),
    ],
)
def test_the_journal_says_what_the_next_run_does(
    tiny_pair: PipelinePair, phase: str, then: str
) -> None:
    work = Work(replace(entry(), generation=4), 3, holder="ann@host pid 7", started_at=now())
    database = SmallDatabase(live=LiveState("CLIP", 3, phase, work))
    check = check_of(examined(database, tiny_pair), "journal")
    assert check.state == OK
    assert "promote by ann@host pid 7 is under way since 2" in check.message
    assert check.message.endswith(then)


def test_files_are_held_to_the_profile(tiny_pair: PipelinePair) -> None:
    profile = replace(PROFILE, opset_limit=17)
    session = as_session(SmallDatabase())
    paths = {side: tiny_pair.path(side) for side in SIDES}
    report = preflight(session, session, "clip", paths, profile)
    assert check_of(report, "txt file").state == OK
    with pytest.raises(GraphError, match=r"opset 18; oracle-23\.7 takes at most 17") as err:
        report.demand()
    assert err.value.details["rows"] == report.to_rows()


def test_a_file_that_is_no_model_fails(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no model")
    session = as_session(SmallDatabase())
    report = preflight(session, session, "clip", {"img": path, "txt": path}, PROFILE)
    assert [check.name for check in report.failed] == ["img file", "txt file"]
    with pytest.raises(GraphError, match="2 of 6 checks failed"):
        report.demand()


def test_capabilities_are_those_the_database_answered(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase()
    ask(database, tiny_pair)
    check = check_of(examined(database, tiny_pair), "capabilities")
    assert check.state == OK
    assert "CLIPTokenizer, opset 17" in check.message
    assert "asked less than a minute ago" in check.message


def test_a_refused_capability_fails(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase(refused=frozenset({DECODE}))
    ask(database, tiny_pair)
    with pytest.raises(CapabilityMissing, match=f"{DECODE}, .* refused with ORA-54426") as err:
        examined(database, tiny_pair).demand()
    assert "--decode-op" in err.value.hint


def test_answers_of_another_version_are_none(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase(refused=frozenset({DECODE}))
    ask(database, tiny_pair)
    database.version = "23.27.0.0.0"
    check = check_of(examined(database, tiny_pair), "capabilities")
    assert check.state == NOT_RUN
    assert "when its version was 23.26.1.0.0; it is 23.27.0.0.0 now" in check.message


def test_a_need_without_answer_is_not_run(tiny_pair: PipelinePair) -> None:
    database = SmallDatabase()
    probe_capabilities(as_session(database), needs(tiny_pair.img))
    check = check_of(examined(database, tiny_pair), "capabilities")
    assert check.state == NOT_RUN
    assert "no answer about texts (VARCHAR2)" in check.message


def test_all_failures_are_told_and_the_first_one_leads(tiny_pair: PipelinePair) -> None:
    grant = "GRANT CREATE MINING MODEL TO VEC;"
    database = SmallDatabase(
        own_checks=[
            Check("privileges", FAILED, "no CREATE MINING MODEL", grant, "privilege-missing"),
            Check("quota", FAILED, "1 MiB left on USERS.", "more", "quota-exceeded"),
            Check("standby", SKIPPED, "is none"),
        ]
    )
    with pytest.raises(PrivilegeError, match=r"2 of 9 .* privileges: .*; quota: ") as e:
        examined(database, tiny_pair).demand()
    assert e.value.hint == grant
    assert [row["state"] for row in e.value.details["rows"]].count(FAILED) == 2


def test_a_check_without_a_class_of_its_own_is_a_preflight_error() -> None:
    report = Preflight("CLIP", (Check("version", FAILED, "21c", error="no-such-code"),))
    with pytest.raises(PreflightError, match="CLIP: 1 of 1 checks failed: version: 21c") as err:
        report.demand()
    assert type(err.value) is PreflightError
    assert err.value.hint


def test_the_embedded_target_is_not_asked(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=1)
    paths = {side: tiny_pair.path(side) for side in SIDES}
    with target.session("a test") as session:
        report = preflight(session, target, "clip", paths, PROFILE)
        assert session.models.list() == []
    assert check_of(report, "capabilities").state == SKIPPED
    assert check_of(report, "room").state == OK
    report.demand()
