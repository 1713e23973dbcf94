"""The Oracle target through the unmodified driver, against the stand-in."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracledb
import pytest
from drifted import old_ledger
from oracle_server.engine import Database, User
from oracle_server.server import OracleServer
from oracle_server.statement import ConnectionDropped, OraError

import oml_mlflow
from oml_mlflow.errors import (
    ConfigError,
    ForeignModel,
    InvalidName,
    LoginRefused,
    ModelRefused,
    OmlMlflowError,
    PlanStale,
    PrivilegeError,
    QuotaExceeded,
    TargetError,
    TargetLocked,
    TargetUnreachable,
)
from oml_mlflow.events import Event
from oml_mlflow.files import spool
from oml_mlflow.graph.metadata import metadata_findings
from oml_mlflow.graph.profiles import PROFILES
from oml_mlflow.names import IMG, SIDES, TXT, model_name, slot_name
from oml_mlflow.oml4py import connected_target
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.records import (
    CLEANING,
    LOADING,
    SWAPPING,
    WHOLE,
    Dependant,
    Grant,
    LedgerEntry,
    LoadedModel,
    Work,
    now,
)
from oml_mlflow.secrets import Secret
from oml_mlflow.targets import open_target
from oml_mlflow.targets.oracle.load import comment_text, is_size, load_metadata
from oml_mlflow.targets.oracle.quoting import quote_name
from oml_mlflow.targets.oracle.script import promotion_script
from oml_mlflow.targets.oracle.session import OracleSession
from oml_mlflow.targets.oracle.settings import OracleSettings
from oml_mlflow.targets.oracle.target import OracleTarget

PASSWORD = "pw-Zx81-marked"  # noqa: S105
LIVE = {side: model_name("CLIP", side) for side in SIDES}


@pytest.fixture
def database() -> Iterator[Database]:
    with Database(users={"VEC": User(PASSWORD), "APP": User("app"), "RO": User("ro")}) as found:
        yield found


@pytest.fixture
def server(database: Database) -> Iterator[OracleServer]:
    with OracleServer(database) as found:
        yield found
        assert found.errors == []


@pytest.fixture
def target(server: OracleServer, monkeypatch: pytest.MonkeyPatch) -> OracleTarget:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    return OracleTarget.from_uri(f"oracle://vec@{server.dsn}")


def connect(
    server: OracleServer, user: str = "vec", password: str = PASSWORD
) -> oracledb.Connection:
    return oracledb.connect(user=user, password=password, dsn=server.dsn)


def models_of(pair: PipelinePair, generation: int) -> dict[str, LoadedModel]:
    """Return the pair as models of a generation, under their slot names."""
    return {
        side: LoadedModel(
            name=slot_name("CLIP", side, generation),
            side=side,
            fingerprint=pair.fingerprints[side],
            dims=pair.dims,
            size_bytes=pair.path(side).stat().st_size,
            metadata={
                **pair.metadata,
                "ends": vars(pair.ends[side]),
                "registered_model": "clip",
                "version": str(generation),
            },
            loaded_at=now(),
        )
        for side in SIDES
    }


def work_of(
    pair: PipelinePair, generation: int, before: int, grants: tuple[Grant, ...] = ()
) -> Work:
    slots = {side: slot_name("CLIP", side, generation) for side in SIDES}
    entry = LedgerEntry(
        name="CLIP",
        generation=generation,
        registered_model="clip",
        version=str(generation),
        run_id="run'1",
        fingerprints=pair.fingerprints,
        dims=pair.dims,
        parity={"max_abs": 1e-5},
        promoted_at=now(),
        restores=generation,
        promoted_by="me",
    )
    kept = {side: slot_name("CLIP", side, before) for side in SIDES} if before else {}
    return Work(entry, before, tuple(slots.values()), slots, kept, grants, holder="me")


def load_pair(session: OracleSession, pair: PipelinePair, work: Work) -> None:
    for side, model in models_of(pair, work.entry.generation).items():
        session.models.load(model, pair.path(side))


def promote(session: OracleSession, pair: PipelinePair, generation: int, before: int) -> None:
    work = work_of(pair, generation, before)
    session.journal.begin(work)
    load_pair(session, pair, work)
    session.journal.swap(work)
    session.journal.end(work)


def live_versions(session: OracleSession) -> dict[str, str]:
    return {
        model.name: model.metadata["version"]
        for model in session.models.list()
        if model.name in LIVE.values()
    }


# connecting


def test_uri_settings_and_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = OracleSettings.from_uri(
        "oracle://vec@prod_low?config_dir=/etc/oracle&wallet_location=/etc/wallet&keep=3"
        "&call_timeout=60&warn=emoji"
    )
    assert (settings.user, settings.dsn, settings.keep) == ("vec", "prod_low", 3)
    assert settings.uri == (
        "oracle://vec@prod_low?config_dir=/etc/oracle&wallet_location=/etc/wallet"
    )
    assert settings.policy.level("emoji") == "warn"
    assert OracleSettings.from_uri(settings.uri).uri == settings.uri
    secure = OracleSettings.from_uri("oracle://vec@db:2484/pdb?protocol=tcps")
    assert secure.dsn == "tcps://db:2484/pdb"
    assert secure.uri == "oracle://vec@db:2484/pdb?protocol=tcps"

    secret = Secret(PASSWORD)
    shown = [str(secret), repr(secret), f"{secret:>8}", json.dumps({"p": secret})]
    shown += [str(replace(settings, password=secret)), str(pickle.dumps(secret))]
    assert not [text for text in shown if PASSWORD in text]
    assert secret.reveal() == PASSWORD

    elsewhere = "ELSEWHERE"
    monkeypatch.setenv(elsewhere, PASSWORD)
    assert replace(settings, password_env=elsewhere).find_password().reveal() == PASSWORD
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n", encoding="utf-8")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as refused:
        replace(settings, password_file=path).find_password()
    assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert replace(settings, password_file=path).find_password().reveal() == PASSWORD
    monkeypatch.delenv("OML_MLFLOW_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="there is no password") as missing:
        settings.find_password()
    assert "password_file=" in missing.value.hint


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"oracle://vec:{PASSWORD}@host/x", "holds a password"),
        (f"oracle://vec/{PASSWORD}@host/x", "holds a password"),
        (f"oracle://vec:a@{PASSWORD}@host/x", "holds a password"),
        (f"oracle://vec@host/x?password={PASSWORD}", "holds a password"),
        (f"oracle://vec@host/x?wallet_password={PASSWORD}", "holds a password"),
        ("oracle://vec@host/x?kep=2", "'kep': no such setting"),
        ("oracle://vec@host/x?keep=-1", "keep='-1' is no whole number"),
        ("oracle://host/x", "names no user"),
        ("oracle://vec@host/x?protocol=udp", "protocol='udp' is unknown"),
    ],
)
def test_wrong_uris_are_refused_without_repeating_a_password(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        open_target(uri)
    assert PASSWORD not in "".join(traceback.format_exception(refused.value))


def test_wrong_password_service_and_host(
    server: OracleServer, target: OracleTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "wrong-" + PASSWORD
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", wrong)
    with pytest.raises(LoginRefused, match="ORA-01017") as refused, target.session("x"):
        pass
    assert wrong not in "".join(traceback.format_exception(refused.value))
    assert "OML_MLFLOW_PASSWORD" in refused.value.hint
    nowhere = open_target(f"oracle://vec@127.0.0.1:{server.port}/NOWHERE")
    with pytest.raises(TargetUnreachable, match="DPY-6001"), nowhere.session("x"):
        pass
    nobody = open_target("oracle://vec@127.0.0.1:1/FREEPDB1", timeout_s=2)
    with pytest.raises(TargetUnreachable, match="DPY-6005"), nobody.session("x"):
        pass
    alias = open_target("oracle://vec@no_such_alias")
    with pytest.raises(ConfigError, match=r"DPY-402|DPY-4000"), alias.session("x"):
        pass


def test_connect_takes_what_oml_connect_takes(server: OracleServer) -> None:
    try:
        oml_mlflow.connect("vec", PASSWORD, server.dsn)
        found = connected_target()
        assert PASSWORD not in repr(found) + str(vars(found))
        with found.session("reading", create=False) as session:
            assert session.version == "23.26.1.0.0"
    finally:
        oml_mlflow.disconnect()
    with pytest.raises(ConfigError, match="credentials in it") as refused:
        oml_mlflow.connect("vec", None, f"vec/{PASSWORD}@host")
    assert PASSWORD not in str(refused.value)
    with pytest.raises(ConfigError, match="no user or dsn"):
        oml_mlflow.connect("vec")


def test_session_is_seen_and_closed(database: Database, target: OracleTarget) -> None:
    seen = []
    database.faults.before_statement = lambda _i, _text, session: seen.append(
        (session.module, session.action, session.client_info)
    )
    with target.session("the promotion of models:/clip/3", create=False) as session:
        session.models.list()
    assert seen[-1][:2] == ("oml_mlflow", "the promotion of models:/clip/3")
    assert "pid" in seen[-1][2]


def test_a_closed_connection_is_refused(server: OracleServer) -> None:
    connection = oracledb.connect(user="vec", password=PASSWORD, dsn=server.dsn)
    target = OracleTarget(connection=connection)
    connection.close()
    with (
        pytest.raises(TargetUnreachable, match=r"handed in failed: DPY-1001"),
        target.session("a test"),
    ):
        pass


def test_a_connection_that_is_lost_under_a_lock_is_told(server: OracleServer) -> None:
    connection = oracledb.connect(user="vec", password=PASSWORD, dsn=server.dsn)
    with (
        pytest.raises(TargetUnreachable, match="The lock is free once this session is gone"),
        OracleTarget(connection=connection).session("a test") as session,
        session.lock("CLIP", "a test"),
    ):
        connection.close()


def test_handed_in_connection_is_put_back(server: OracleServer, tiny_pair: PipelinePair) -> None:
    with connect(server) as connection:
        connection.module, connection.action, connection.clientinfo = "theirs", "job", "me"
        connection.call_timeout, connection.autocommit = 12345, True
        handler = connection.outputtypehandler = lambda cursor, metadata: None
        target = OracleTarget(connection=connection)
        assert target.uri == f"oracle://vec@{server.dsn}"
        with target.session("a purpose") as session:
            promote(session, tiny_pair, 1, 0)
        assert connection.is_healthy()
        assert (connection.call_timeout, connection.autocommit) == (12345, True)
        assert connection.outputtypehandler is handler
        query = (
            "SELECT SYS_CONTEXT('USERENV', 'MODULE'), SYS_CONTEXT('USERENV', 'ACTION'), "
            "SYS_CONTEXT('USERENV', 'CLIENT_INFO') FROM DUAL"
        )
        assert connection.cursor().execute(query).fetchone() == ("theirs", "job", "me")


def test_transaction_in_progress_is_refused(database: Database, server: OracleServer) -> None:
    with connect(server) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE T (A NUMBER)")
        cursor.execute("INSERT INTO T VALUES (1)")
        before = len(database.statements)
        target = OracleTarget(connection=connection)
        with pytest.raises(ConfigError, match="transaction in progress"), target.session("x"):
            pass
        assert len(database.statements) == before
        connection.rollback()
        assert cursor.execute("SELECT COUNT(*) FROM T").fetchone() == (0,)


def test_pool_gets_its_connection_back(server: OracleServer) -> None:
    pool = oracledb.create_pool(user="vec", password=PASSWORD, dsn=server.dsn, min=1, max=2)
    target = OracleTarget(pool=pool)
    with target.session("reading", create=False) as session:
        assert pool.busy == 1
        session.models.list()
    assert pool.busy == 0
    with pytest.raises(OmlMlflowError, match="stop"), target.session("x"):
        raise OmlMlflowError("stop")
    assert pool.busy == 0
    pool.close()


def test_a_closed_pool_is_refused(server: OracleServer) -> None:
    pool = oracledb.create_pool(user="vec", password=PASSWORD, dsn=server.dsn, min=1, max=2)
    named, unnamed = OracleTarget(pool=pool), OracleTarget(pool=pool)
    assert named.uri.startswith("oracle://vec@")
    pool.close()
    for target in (named, unnamed):
        with pytest.raises(TargetError, match="Nothing was changed") as caught, target.session("x"):
            pass
        assert caught.value.hint
    with pytest.raises(TargetError, match="handed in"):
        repr(unnamed)


def test_one_way_in_is_needed() -> None:
    with pytest.raises(ConfigError, match="0 of them"):
        OracleTarget()


# reading


def test_missing_tables_read_as_empty_and_reading_writes_nothing(
    database: Database, target: OracleTarget
) -> None:
    with target.session("reading", create=False) as session:
        assert (
            session.models.list()
            == session.journal.ledger()
            == session.vectors.dependants("clip")
            == []
        )
        assert session.journal.state("clip").phase == WHOLE
        assert session.vectors.geometries("clip") == {}
        assert session.capabilities() is None
        assert session.models.grants(["CLIP_IMG"]) == ()
        assert not session.vectors.forget_column("clip", "DOCS.EMBEDDING")
        assert {check.state for check in session.checks(1000)} == {"ok"}
        with pytest.raises(TargetError, match="for reading only"):
            session.journal.begin(Work(LedgerEntry("CLIP", 1, "", "", "", {}, 16), 0))
    texts = [text.split()[0].upper() for _session, text in database.statements]
    assert set(texts) <= {"SELECT", "ROLLBACK"}
    with target.session("doing nothing"):
        pass
    assert not [t for _s, t in database.statements if t.startswith("CREATE")]


# loading


def test_load_sends_the_very_bytes(
    server: OracleServer, database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    events: list[Event] = []
    models = models_of(tiny_pair, 1)
    with target.session("loading") as session:
        for side, model in models.items():
            session.models.load(model, tiny_pair.path(side), events.append)
        found = {model.name: model for model in session.models.list()}
        assert found["CLIP_IMG_S1"].metadata == models[IMG].metadata
        assert not found["CLIP_IMG_S1"].foreign
        assert session.models.fingerprint("clip_txt_s1") == tiny_pair.fingerprints[TXT]
    sizes = {side: tiny_pair.path(side).stat().st_size for side in SIDES}
    stored = database.models("VEC")
    for side in SIDES:
        name = models[side].name
        assert stored[name][:2] == (tiny_pair.fingerprints[side], sizes[side])
    assert server.received_lob_bytes == sum(sizes.values())
    assert events[-1] == Event("upload", "CLIP_TXT_S1", sizes[TXT], sizes[TXT])


def test_load_metadata_is_what_the_rules_take(tiny_pair: PipelinePair) -> None:
    for side, model in models_of(tiny_pair, 1).items():
        metadata = load_metadata(model)
        assert metadata["input"] == {tiny_pair.ends[side].input: ["DATA"]}
        assert metadata["modelDescription"]["sha256"] == model.fingerprint
        assert metadata["normalization"] is True
        assert metadata.get("tokenizer") == ("clip" if side == TXT else None)
        shape = {tiny_pair.ends[side].input: [None]}
        assert list(metadata_findings(metadata, shape, [tiny_pair.ends[side].output])) == []
        long = replace(model, metadata={**model.metadata, "note": "x" * 5000})
        assert len(comment_text(long)) <= 4000
        assert json.loads(comment_text(long))["metadata"]["version"] == "1"


def test_vectors_are_those_of_the_pair(target: OracleTarget, tiny_pair: PipelinePair) -> None:
    texts = ["a cat", "café ☕", " two\nlines "]
    picture = next(p for p in golden_probes() if p.side == IMG and p.category == "jpeg-444")
    assert isinstance(picture.value, bytes)
    with target.session("embedding") as session:
        promote(session, tiny_pair, 1, 0)
        found = session.models.embed("CLIP_TXT", TXT, texts)
        picture_vectors = session.models.embed("CLIP_IMG", IMG, [picture.value])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tiny_pair.embedder().embed_text(texts), atol=1e-5)
    assert picture_vectors.shape == (1, tiny_pair.dims)


def test_wrong_fingerprint_loads_nothing(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    model = replace(models_of(tiny_pair, 1)[IMG], fingerprint="0" * 64)
    with target.session("loading") as session, pytest.raises(TargetError, match="has sha256"):
        session.models.load(model, tiny_pair.path(IMG))
    assert database.models("VEC") == {}
    assert not [t for _s, t in database.statements if "LOAD_ONNX" in t]


def test_taken_name_is_left_alone(
    server: OracleServer, database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    database.load_foreign_model("VEC", "CLIP_IMG_S1", tiny_pair.path(IMG))
    with target.session("loading") as session:
        with pytest.raises(ForeignModel, match="CLIP_IMG_S1 is taken"):
            session.models.load(models_of(tiny_pair, 1)[IMG], tiny_pair.path(IMG))
        [found] = session.models.list()
    assert found.foreign
    assert server.received_lob_bytes == 0


def test_size_in_bytes_or_as_documented() -> None:
    assert is_size(133_322_334, 133_322_334)
    assert is_size(127, 133_322_334)
    assert not is_size(133_322_333, 133_322_334)


# the swap


def test_promotions_are_recorded_and_kept(target: OracleTarget, tiny_pair: PipelinePair) -> None:
    with target.session("promoting") as session:
        promote(session, tiny_pair, 1, 0)
        promote(session, tiny_pair, 2, 1)
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "2")
        names = [model.name for model in session.models.list()]
        assert names == ["CLIP_IMG", "CLIP_IMG_S1", "CLIP_TXT", "CLIP_TXT_S1"]
        entries = session.journal.ledger("clip")
        assert [entry.generation for entry in entries] == [1, 2]
        assert entries[1].run_id == "run'1"
        assert entries[1].fingerprints == tiny_pair.fingerprints
        assert entries[1].parity == {"max_abs": 1e-5}
        assert (session.journal.state("CLIP").generation, session.journal.state("CLIP").phase) == (
            2,
            WHOLE,
        )
        with pytest.raises(PlanStale, match="generation 2 of CLIP is live"):
            session.journal.begin(work_of(tiny_pair, 2, 1))
        session.models.drop(["CLIP_IMG_S1", "CLIP_TXT_S1", "CLIP_TXT_S9"])
        assert len(session.models.list()) == 2


def test_stale_swap_changes_nothing(target: OracleTarget, tiny_pair: PipelinePair) -> None:
    with target.session("promoting") as session:
        promote(session, tiny_pair, 1, 0)
        work = work_of(tiny_pair, 2, 1)
        with pytest.raises(PlanStale):
            session.journal.swap(work)
        session.journal.begin(work)
        with pytest.raises(PlanStale):
            session.journal.begin(work)
        with pytest.raises(TargetError, match="CLIP_IMG_S2 is not loaded"):
            session.journal.swap(work)
        assert session.journal.state("CLIP").phase == LOADING
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "1")


def drop_at(database: Database, number: int, *, after: bool) -> Callable[[], bool]:
    """Drop the connection at the nth statement from now; return whether that happened."""
    seen = iter(range(10_000))
    happened = []

    def hook(_index: int, _text: str, _session: object) -> None:
        if next(seen) == number:
            happened.append(True)
            raise ConnectionDropped

    name = "after_statement" if after else "before_statement"
    setattr(database.faults, name, hook)
    return lambda: bool(happened)


@pytest.mark.parametrize(
    ("after", "follow"),
    [
        (False, True),
        (True, False),
        pytest.param(True, True, marks=pytest.mark.drill),
        pytest.param(False, False, marks=pytest.mark.drill),
    ],
)
def test_each_crash_inside_a_swap_is_healed(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair, after: bool, follow: bool
) -> None:
    database.grants_follow_rename = database.comments_follow_rename = follow
    grants = tuple(Grant(name, "APP", "SELECT") for name in LIVE.values())
    with target.session("promoting") as session:
        promote(session, tiny_pair, 1, 0)
    crashes, number = 0, 0
    while True:
        generation = number + 2
        work = work_of(tiny_pair, generation, generation - 1, grants)
        with target.session("promoting") as session:
            session.journal.begin(work)
            load_pair(session, tiny_pair, work)
        happened = drop_at(database, number, after=after)
        try:
            with target.session("promoting") as session:
                session.journal.swap(work)
        except TargetUnreachable:
            crashes += 1
        database.faults.before_statement = database.faults.after_statement = None
        with target.session("healing") as session:
            state = session.journal.state("CLIP")
            fingerprints = {m.name: m.metadata.get("version") for m in session.models.list()}
            live = {fingerprints.get(name) for name in LIVE.values()}
            if state.phase in (LOADING, WHOLE):
                assert live == {str(generation - 1)}
            elif state.phase == CLEANING:
                assert live == {str(generation)}
            else:
                assert (state.phase, state.work) == (SWAPPING, work)
            session.journal.swap(work)
            assert set(session.models.grants(list(LIVE.values()))) == set(grants)
            assert live_versions(session) == dict.fromkeys(LIVE.values(), str(generation))
            session.journal.end(work)
            session.models.drop(list(work.outgoing.values()))
            assert session.journal.ledger("CLIP")[-1].generation == generation
            assert session.journal.state("CLIP").phase == WHOLE
        if not happened():
            break
        number += 1
    assert crashes == number
    assert number > 10


def test_crash_between_the_halves_of_a_rename(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    work = work_of(tiny_pair, 2, 1)
    with target.session("promoting") as session:
        promote(session, tiny_pair, 1, 0)
        session.journal.begin(work)
        load_pair(session, tiny_pair, work)
    database.faults.crash_in_rename = True
    with pytest.raises(TargetUnreachable), target.session("promoting") as session:
        session.journal.swap(work)
    database.faults.crash_in_rename = False
    with target.session("healing") as session:
        assert session.journal.state("CLIP").phase == SWAPPING
        assert "CLIP_IMG" not in {model.name for model in session.models.list()}
        session.journal.swap(work)
        session.journal.end(work)
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "2")


def test_refused_swap_is_taken_back(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    with target.session("promoting") as session:
        promote(session, tiny_pair, 1, 0)
        work = work_of(tiny_pair, 2, 1)
        session.journal.begin(work)
        load_pair(session, tiny_pair, work)
        full = OraError(1536, "space quota exceeded for tablespace 'USERS'")
        database.faults.fail_statement = lambda _index, text: (
            full if text.lstrip().startswith("INSERT INTO OML_MLFLOW_LEDGER") else None
        )
        with pytest.raises(QuotaExceeded, match="The live pair is as it was"):
            session.journal.swap(work)
        database.faults.fail_statement = None
        assert session.journal.state("CLIP").phase == LOADING
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "1")
        session.journal.swap(work)
        session.journal.end(work)
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "2")


@pytest.mark.parametrize("follow", [False, True])
def test_grants_are_exactly_those_of_the_work(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair, follow: bool
) -> None:
    database.grants_follow_rename = follow
    wanted = (Grant("CLIP_IMG", "APP", "SELECT"), Grant("CLIP_TXT", "APP", "SELECT", True))
    with target.session("promoting") as session, connect_as_owner(target) as owner:
        promote(session, tiny_pair, 1, 0)
        work = work_of(tiny_pair, 2, 1, wanted)
        session.journal.begin(work)
        load_pair(session, tiny_pair, work)
        owner.cursor().execute("GRANT SELECT ON MINING MODEL CLIP_IMG TO APP")
        owner.cursor().execute("GRANT SELECT ON MINING MODEL CLIP_IMG_S2 TO RO")
        session.journal.swap(replace(work, revokes=(Grant("CLIP_IMG_S2", "RO", "SELECT"),)))
        session.journal.end(work)
        assert set(session.models.grants(["CLIP_IMG", "CLIP_TXT"])) == set(wanted)


def connect_as_owner(target: OracleTarget) -> oracledb.Connection:
    return oracledb.connect(user="vec", password=PASSWORD, dsn=target.uri.partition("@")[2])


def test_model_without_its_comment_is_recognised_by_the_ledger(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    with target.session("promoting") as session, connect_as_owner(target) as owner:
        promote(session, tiny_pair, 1, 0)
        owner.cursor().execute("COMMENT ON MINING MODEL CLIP_IMG IS ''")
        found = {model.name: model for model in session.models.list()}
        assert not found["CLIP_IMG"].foreign
        assert found["CLIP_IMG"].fingerprint == tiny_pair.fingerprints[IMG]
        database.load_foreign_model("VEC", "OTHER_IMG", tiny_pair.path(IMG))
        assert [m.name for m in session.models.list() if m.foreign] == ["OTHER_IMG"]


# the lock


def test_lock_names_its_holder_and_is_given_back(target: OracleTarget) -> None:
    with target.session("one") as one, target.session("two") as two:
        with one.lock("clip", "the promotion of models:/clip/1"):
            with (
                pytest.raises(TargetLocked, match="models:/clip/1") as locked,
                two.lock("CLIP", "y"),
            ):
                pass
            assert "pid" in locked.value.details["holder"]
            assert "V$SESSION" in locked.value.hint
            with two.lock("other", "another name"):
                pass
        with two.lock("clip", "y"):
            pass
        with pytest.raises(OmlMlflowError, match="stop"), one.lock("clip", "z"):
            raise OmlMlflowError("stop")
        with two.lock("clip", "y"):
            pass


def test_lock_of_a_dead_session_is_taken_over(
    server: OracleServer, target: OracleTarget, caplog: pytest.LogCaptureFixture
) -> None:
    with target.session("one") as one, pytest.raises(TargetUnreachable, match="DPY-4011"):
        work_without_connection(server, one)
    with caplog.at_level(logging.WARNING), target.session("two") as two, two.lock("clip", "y"):
        pass
    assert "took the lock of CLIP over" in caplog.text


def work_without_connection(server: OracleServer, session: OracleSession) -> None:
    with session.lock("clip", "x"):
        server.drop_connections()
        session.models.list()


# what else is kept


def test_geometries_columns_and_capabilities(target: OracleTarget) -> None:
    vectors = {"a": np.arange(9000, dtype=np.float32), "b": np.ones(3, np.float32)}
    table = CapabilityTable((), now(), "23.26.1.0.0")
    column = Dependant("column", "DOCS.EMBEDDING", "CLIP_TXT", "BODY")
    with connect_as_owner(target) as owner:
        columns = "BODY VARCHAR2(100), TITLE VARCHAR2(100), EMBEDDING VECTOR(512, FLOAT32)"
        owner.cursor().execute(f"CREATE TABLE DOCS ({columns})")
    with target.session("keeping") as session:
        with pytest.raises(InvalidName, match="names no column"):
            session.vectors.register_column("clip", replace(column, source="BODY) --"))
        with pytest.raises(TargetError, match="ORA-00904"):
            session.vectors.register_column("clip", replace(column, source="MISSING"))
        session.vectors.save("clip", "g1", vectors)
        session.vectors.save("clip", "g1", {})
        found = session.vectors.geometries("CLIP")["g1"]
        assert found.keys() == vectors.keys()
        np.testing.assert_array_equal(found["a"], vectors["a"])
        session.vectors.register_column("clip", column)
        session.vectors.register_column("clip", replace(column, source="TITLE"))
        assert session.vectors.dependants("CLIP") == [replace(column, source="TITLE")]
        assert session.vectors.forget_column("CLIP", "DOCS.EMBEDDING")
        assert not session.vectors.forget_column("CLIP", "DOCS.EMBEDDING")
        session.save_capabilities(table)
        session.save_capabilities(table)
        assert session.capabilities() == table


def test_views_that_name_a_model_depend_on_it(
    target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    with target.session("promoting") as session, connect_as_owner(target) as owner:
        promote(session, tiny_pair, 1, 0)
        cursor = owner.cursor()
        cursor.execute("CREATE TABLE DOCS (BODY VARCHAR2(100))")
        call = "SELECT VECTOR_EMBEDDING({} USING BODY AS DATA) AS V FROM DOCS"
        cursor.execute(f"CREATE VIEW BY_TEXT AS {call.format('clip_txt')}")
        promote(session, tiny_pair, 2, 1)
        cursor.execute(f"CREATE VIEW BY_KEPT AS {call.format('CLIP_TXT_S1')}")
        assert session.vectors.dependants("clip") == [Dependant("view", "BY_TEXT", "CLIP_TXT")]


def test_reembedding_is_an_update(target: OracleTarget) -> None:
    text = target.reembedding(Dependant("column", "DOCS.V", "CLIP_TXT", "BODY"))
    assert text.startswith("UPDATE DOCS SET V = VECTOR_EMBEDDING(CLIP_TXT USING REGEXP_REPLACE(")
    assert text.endswith("WHERE BODY IS NOT NULL;\nCOMMIT;")
    picture = target.reembedding(Dependant("column", "S.PICS.V", "CLIP_IMG", "PICTURE"))
    assert "UPDATE S.PICS SET V = VECTOR_EMBEDDING(CLIP_IMG USING PICTURE AS DATA)" in picture
    assert "REBUILD" in target.reembedding(Dependant("hybrid vector index", "IX", "CLIP_TXT"))
    with pytest.raises(ConfigError, match="is no column"):
        target.reembedding(Dependant("column", "X; DROP TABLE Y", "CLIP_TXT", "BODY"))


# preflight


def test_checks_name_the_grant(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    database.users["VEC"].privileges = frozenset({"CREATE SESSION"})
    database.users["VEC"].quota_bytes = 2**20
    with target.session("preflight", create=False) as session:
        checks = {check.name: check for check in session.checks(10 * 2**20)}
    assert checks["privileges"].state == "failed"
    assert checks["privileges"].hint == (
        'ask a DBA for: GRANT CREATE MINING MODEL, CREATE TABLE TO "VEC";'
    )
    assert checks["quota"].state == "failed"
    assert 'ALTER USER "VEC" QUOTA 1' in checks["quota"].hint
    assert checks["database version"].state == "ok"
    with (
        target.session("loading") as session,
        pytest.raises(PrivilegeError, match="ORA-01031") as no,
    ):
        session.models.load(models_of(tiny_pair, 1)[IMG], tiny_pair.path(IMG))
    assert "GRANT CREATE MINING MODEL, CREATE TABLE TO VEC;" in no.value.hint


def test_old_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    with (
        Database(users={"VEC": PASSWORD}, version="23.6.0.24.10") as old,
        OracleServer(old) as server,
        OracleTarget.from_uri(f"oracle://vec@{server.dsn}").session("x", create=False) as session,
    ):
        [check] = [c for c in session.checks(1) if c.name == "database version"]
    assert (check.state, check.error) == ("failed", "target-unsupported")


def test_profiles_by_version(target: OracleTarget) -> None:
    stored = ["onnxruntime", "oracle-23.7", "oracle-26ai"]
    assert target.rank_profiles(stored, "23.9.0.25.7") == [
        "oracle-23.7",
        "oracle-26ai",
        "onnxruntime",
    ]
    assert target.rank_profiles(stored, "23.26.1.0.0") == [
        "oracle-26ai",
        "oracle-23.7",
        "onnxruntime",
    ]


def test_a_profile_with_another_decode_operator_ranks_behind_its_base(target: OracleTarget) -> None:
    own = "+com.example.Decode"
    stored = [
        *("onnxruntime+raw", "oracle-23.7+raw", "onnxruntime", f"oracle-23.7{own}"),
        *(f"oracle-26ai{own}", "oracle-26ai", "oracle-23.7", f"onnxruntime{own}"),
    ]
    assert target.rank_profiles(stored, "23.9.0.25.7") == [
        "oracle-23.7",
        f"oracle-23.7{own}",
        "oracle-26ai",
        f"oracle-26ai{own}",
        "onnxruntime",
        f"onnxruntime{own}",
    ]


def test_probes_that_must_not_be_sent(target: OracleTarget) -> None:
    pictures = [p for p in golden_probes() if isinstance(p.value, bytes)]
    profile = PROFILES["oracle-23.7"]
    for probe in pictures:
        is_png = probe.category == "png"
        assert bool(target.skip_reason(probe, profile)) == is_png, probe.id


# faults


def test_faults_have_their_errors(
    database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    model, path = models_of(tiny_pair, 1)[IMG], tiny_pair.path(IMG)

    def load_fails(
        error: type[OmlMlflowError], match: str, fault: str, value: object
    ) -> OmlMlflowError:
        before = getattr(database.faults, fault)
        setattr(database.faults, fault, value)
        with pytest.raises(error, match=match) as found, target.session("loading") as session:
            session.models.load(model, path)
        setattr(database.faults, fault, before)
        assert "No model CLIP_IMG_S1 was loaded" in str(found.value)
        assert "CLIP_IMG_S1" not in database.models("VEC")
        return found.value

    with target.session("making tables") as session, session.lock("CLIP", "making tables"):
        pass
    load_fails(TargetUnreachable, r"DPY-4011|reset|pipe", "drop_after_lob_bytes", 10_000)
    quota = load_fails(QuotaExceeded, "ORA-01536", "quota_exceeded", True)
    assert "ALTER USER VEC QUOTA UNLIMITED ON USERS;" in quota.hint
    decode = frozenset({"com.microsoft.extensions:DecodeImage"})
    refused = load_fails(ModelRefused, "ORA-", "refused_operators", decode)
    assert "preflight --probe" in refused.hint


def test_stall_ends_with_the_call_timeout(
    database: Database, server: OracleServer, target: OracleTarget
) -> None:
    impatient = open_target(f"{target.uri}?call_timeout=0.3")
    with impatient.session("reading", create=False) as session:
        database.faults.stall_statement = lambda _index, text: (
            30.0 if "USER_MINING_MODELS" in text else None
        )
        with pytest.raises(TargetUnreachable, match="DPY-4024") as late:
            session.models.list()
        database.faults.stall_statement = None
        assert session.models.list() == []
    assert "call_timeout=" in late.value.hint


def test_password_is_nowhere(
    database: Database,
    target: OracleTarget,
    tiny_pair: PipelinePair,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with target.session("promoting") as session, session.lock("clip", "all of it"):
        promote(session, tiny_pair, 1, 0)
    assert PASSWORD not in caplog.text + repr(target) + target.uri + str(vars(target))
    assert not [text for _session, text in database.statements if PASSWORD in text]


def test_quoted_names() -> None:
    assert quote_name("App User") == '"App User"'
    with pytest.raises(TargetError, match="is no name"):
        quote_name('X" TO Y --')


# plan --sql and the spool


def test_script_says_what_would_run(tiny_pair: PipelinePair) -> None:
    grants = (Grant("CLIP_IMG", "APP", "SELECT"),)
    work = replace(work_of(tiny_pair, 2, 1, grants), drops=("CLIP_IMG_S0",))
    files = {side: tiny_pair.path(side) for side in SIDES}
    script = promotion_script(work, list(models_of(tiny_pair, 2).values()), files)
    order = [
        "CREATE TABLE IF NOT EXISTS OML_MLFLOW_LEDGER",
        "INSERT INTO OML_MLFLOW_LOCK",
        "PHASE = 'loading'",
        "directory => 'OML_MLFLOW_FILES'",
        "EXECUTE IMMEDIATE 'COMMENT ON MINING MODEL CLIP_IMG_S2 IS ''{",
        "VECTOR_EMBEDDING(CLIP_TXT_S2 USING",
        "PHASE = 'swapping'",
        "versioned_model_name => 'CLIP_IMG_S1'",
        "'GRANT SELECT ON MINING MODEL CLIP_IMG TO \"APP\"'",
        "INSERT INTO OML_MLFLOW_LEDGER",
        "DROP_ONNX_MODEL(model_name => 'CLIP_IMG_S0'",
        "PHASE = 'whole', WORK = NULL",
    ]
    places = [script.index(text) for text in order]
    assert places == sorted(places)
    assert max(map(len, script.splitlines())) < 2500
    assert "run''1" in script


def test_script_runs(
    server: OracleServer, database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    folder = tiny_pair.path(IMG).parent
    database.directories["OML_MLFLOW_FILES"] = folder
    work = work_of(tiny_pair, 1, 0)
    files = {side: tiny_pair.path(side) for side in SIDES}
    script = promotion_script(work, list(models_of(tiny_pair, 1).values()), files)
    with connect(server) as connection:
        for statement in statements_of(script):
            connection.cursor().execute(statement)
    with target.session("reading", create=False) as session:
        assert live_versions(session) == dict.fromkeys(LIVE.values(), "1")
        assert session.journal.state("CLIP").phase == WHOLE
        assert session.journal.ledger()[0].promoted_at is not None
        assert {m.foreign for m in session.models.list()} == {False}


def test_script_runs_on_a_ledger_of_an_earlier_release(
    server: OracleServer, database: Database, target: OracleTarget, tiny_pair: PipelinePair
) -> None:
    database.directories["OML_MLFLOW_FILES"] = tiny_pair.path(IMG).parent
    work = work_of(tiny_pair, 1, 0)
    work = replace(work, entry=replace(work.entry, registry="sqlite:17"))
    files = {side: tiny_pair.path(side) for side in SIDES}
    script = promotion_script(work, list(models_of(tiny_pair, 1).values()), files)
    with connect(server) as connection:
        connection.cursor().execute(old_ledger())
        for statement in statements_of(script):
            connection.cursor().execute(statement)
    with target.session("reading", create=False) as session:
        assert session.journal.ledger()[0].registry == "sqlite:17"


def statements_of(script: str) -> list[str]:
    """Split a script as SQL*Plus does: blocks end in a line with ``/``, the rest in ``;``."""
    found, lines = [], []
    for line in script.splitlines():
        if not lines and (not line or line.startswith(("--", "WHENEVER", "SET "))):
            continue
        lines.append(line)
        is_block = lines[0].startswith(("BEGIN", "DECLARE"))
        if is_block and line == "/":
            found.append("\n".join(lines[:-1]))
            lines = []
        elif not is_block and line.endswith(";"):
            found.append("\n".join(lines).removesuffix(";"))
            lines = []
    assert not lines
    return found


def test_spool_is_private_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with spool() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a.onnx").write_bytes(b"x")
        with spool() as other:
            assert folder.exists()
            assert other != folder
    with pytest.raises(OmlMlflowError, match="stop"), spool() as folder:
        raise OmlMlflowError("stop")
    leftover = folder.with_name(f"{folder.name}-killed")
    leftover.mkdir(mode=0o700)
    (leftover / "a.onnx").write_bytes(b"x")
    with spool():
        assert not leftover.exists()
    assert list(tmp_path.iterdir()) == []
