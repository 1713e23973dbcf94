"""Promotion, rollback and drop in an Oracle stand-in, through the unmodified driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracledb
import pytest
from click.testing import CliRunner
from oracle_fixtures import PASSWORD, Oracle, running
from oracle_server.engine import Database, User
from oracle_server.server import OracleServer
from oracle_server.statement import ConnectionDropped, OraError
from oracle_server.wallet import write_alias, write_wallet

import oml_mlflow
from oml_mlflow import ONNXPipeline, PipelinePair, drop, dry_run, promote, rollback
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import (
    CapabilityMissing,
    ForeignModel,
    GeometryChanged,
    OmlMlflowError,
    ParityError,
    TargetLocked,
)
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.planning.records import WHOLE, Dependant
from oml_mlflow.promotion.verify import verify

JPEG = next(p.value for p in golden_probes() if p.category == "jpeg-444")
TEXT = "a photo of a cat"


def connect(oracle: Oracle, user: str = "vec", password: str = PASSWORD) -> oracledb.Connection:
    return oracledb.connect(user=user, password=password, dsn=oracle.server.dsn)


def embedded_by(oracle: Oracle, model: str, value: str | bytes, **who: str) -> np.ndarray:
    with connect(oracle, **who) as connection:
        data = value
        if isinstance(value, bytes):
            data = connection.createlob(oracledb.DB_TYPE_BLOB, value)
        sql = f"SELECT VECTOR_EMBEDDING({model} USING :v AS data) FROM dual"  # noqa: S608
        [(vector,)] = connection.cursor().execute(sql, v=data).fetchall()
    return np.asarray(vector, np.float32)


def test_promote_and_back_loads_each_pair_once(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    done = promote("models:/clip/1", target)
    assert done.entry.generation == 1
    assert done.report.ok
    states = {c.category: c.state for c in done.report.by_class()}
    assert states["png"] == "skipped"
    assert states["jpeg-420"] in ("ok", "warned")
    assert oracle.fingerprints() == {
        "CLIP_IMG": versions[0].fingerprints["img"],
        "CLIP_TXT": versions[0].fingerprints["txt"],
    }
    reference = versions[0].embedder()
    for model, value, wanted in (
        ("CLIP_TXT", TEXT, reference.embed_text([TEXT])[0]),
        ("CLIP_IMG", JPEG, reference.embed_image([JPEG])[0]),
    ):
        np.testing.assert_allclose(embedded_by(oracle, model, value), wanted, atol=1e-4)
    promote("models:/clip/2", target)
    sent = oracle.server.received_lob_bytes
    back = rollback("clip", target)
    assert (back.entry.version, back.entry.action, back.report.ok) == ("1", "rollback", True)
    assert oracle.fingerprints()["CLIP_IMG"] == versions[0].fingerprints["img"]
    again = promote("models:/clip/2", target)
    assert again.entry.fingerprints == versions[1].fingerprints
    pictures = sum(len(p.value) for p in golden_probes() if isinstance(p.value, bytes))
    assert oracle.server.received_lob_bytes - sent < 4 * pictures + 300_000
    assert sum("LOAD_ONNX_MODEL" in text.upper() for text in oracle.statements()) % 2 == 0


def test_export2db_is_one_call_and_leaves_no_file(
    mlflow_store: Path,
    tiny_folder: Path,
    tiny_pair: PipelinePair,
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spooled = tmp_path / "temporary"
    spooled.mkdir()
    monkeypatch.setenv("TMPDIR", str(spooled))
    monkeypatch.setattr("tempfile.tempdir", None)
    oml_mlflow.connect("vec", PASSWORD, oracle.server.dsn)
    try:
        ONNXPipeline(str(tiny_folder)).export2db("clip")
    finally:
        oml_mlflow.disconnect()
    assert oracle.fingerprints() == {
        f"CLIP_{side.upper()}": sha256 for side, sha256 in tiny_pair.fingerprints.items()
    }
    # .ses is onnxruntime's own
    assert not [path for path in spooled.rglob("*") if path.is_file() and path.name != ".ses"]


@pytest.mark.parametrize("follow", [True, False])
def test_grants_are_the_same_before_and_after(
    versions: tuple[PipelinePair, ...], monkeypatch: pytest.MonkeyPatch, follow: bool
) -> None:
    with running(monkeypatch, grants_follow_rename=follow) as oracle:
        target = oracle.target()
        promote("models:/clip/1", target)
        with connect(oracle) as connection:
            for statement in (
                "GRANT SELECT ON MINING MODEL CLIP_TXT TO APP",
                "GRANT SELECT ON MINING MODEL CLIP_IMG TO OPS WITH GRANT OPTION",
                "GRANT ALTER ON MINING MODEL CLIP_IMG TO OPS",
            ):
                connection.cursor().execute(statement)
        before = grants(oracle)
        assert len(before) == 3
        promote("models:/clip/2", target)
        assert grants(oracle) == before
        app = {"user": "app", "password": "app"}
        np.testing.assert_allclose(
            embedded_by(oracle, "VEC.CLIP_TXT", TEXT, **app),
            versions[1].embedder().embed_text([TEXT])[0],
            atol=1e-4,
        )
        with connect(oracle) as connection:
            connection.cursor().execute("REVOKE SELECT ON MINING MODEL CLIP_TXT FROM APP")
        rollback("clip", target)
        assert grants(oracle) == [row for row in before if row[1] != "APP"]


def grants(oracle: Oracle) -> list[tuple[str, ...]]:
    sql = (
        "SELECT TABLE_NAME, GRANTEE, PRIVILEGE, GRANTABLE FROM USER_TAB_PRIVS_MADE "
        "WHERE TABLE_NAME IN ('CLIP_IMG', 'CLIP_TXT') ORDER BY TABLE_NAME, GRANTEE, PRIVILEGE"
    )
    with connect(oracle) as connection:
        return list(connection.cursor().execute(sql).fetchall())


def test_a_foreign_model_is_untouched_without_adopt(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    metadata = {
        "function": "embedding",
        "embeddingOutput": "embedding",
        "input": {"input": ["DATA"]},
    }
    for side in ("img", "txt"):
        oracle.database.load_foreign_model(
            "VEC", f"CLIP_{side.upper()}", versions[2].path(side), metadata
        )
    before = oracle.fingerprints()
    target = oracle.target()
    with pytest.raises(ForeignModel, match=r"CLIP_IMG .*--adopt"):
        promote("models:/clip/1", target)
    assert oracle.fingerprints() == before
    with pytest.raises(GeometryChanged):
        promote("models:/clip/1", target, adopt=True)
    assert oracle.fingerprints() == before
    promote("models:/clip/3", target, adopt=True)  # the vectors are this version's own
    promote("models:/clip/1", target, accept_new_geometry=True)
    target.keep = 0
    promote("models:/clip/2", target)
    assert {"CLIP_IMG_S1", "CLIP_TXT_S1"} <= set(oracle.fingerprints())
    drop("clip", target)
    assert set(oracle.fingerprints()) == {"CLIP_IMG_S1", "CLIP_TXT_S1"}


def test_of_two_promoters_one_wins_and_the_other_says_who(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    with (
        target.session("the first") as session,
        session.lock("CLIP", "promote models:/clip/1"),
        pytest.raises(TargetLocked, match=r"pid \d+") as err,
    ):
        promote("models:/clip/2", oracle.target())
    assert err.value.exit_code == 75
    assert "promote models:/clip/1" in str(err.value)
    assert oracle.fingerprints() == {}
    assert promote("models:/clip/2", target).entry.generation == 1


def test_a_refused_decode_operator_leads_to_the_stored_profile_that_fits(
    mlflow_store: Path, tiny_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oml_mlflow.graph.profiles import get_profile

    own = get_profile("oracle-23.7", decode_op="ai.onnx.contrib:DecodeImage")
    both = ["oracle-23.7", own]
    oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="one")
    oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="two", profiles=both)
    operator = "com.microsoft.extensions:DecodeImage"
    with running(monkeypatch) as accepting:
        assert promote("models:/two/1", accepting.target()).entry.profile == "oracle-23.7"
    with running(monkeypatch) as refusing:
        refusing.database.faults.refused_operators = {operator}
        with pytest.raises(CapabilityMissing, match=operator) as err:
            promote("models:/one/1", refusing.target())
        assert "--decode-op" in err.value.hint
        assert refusing.fingerprints() == {}
        assert not [t for t in refusing.statements() if "ONE_" in t and "LOAD_ONNX" in t]


def test_a_new_geometry_names_columns_views_and_indexes(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    promote("models:/clip/1", target)
    with connect(oracle) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE NOTES (ID NUMBER, BODY VARCHAR2(4000), V VECTOR(16, FLOAT32))")
        cursor.execute(
            "CREATE VIEW ASKED AS SELECT VECTOR_EMBEDDING(CLIP_TXT USING BODY AS data) V FROM NOTES"
        )
        cursor.execute("INSERT INTO NOTES (ID, BODY) VALUES (1, 'a cat')")
        connection.commit()
    with target.session("a test") as session:
        session.vectors.register_column("CLIP", Dependant("column", "NOTES.V", "CLIP_TXT", "BODY"))
    before = oracle.fingerprints()
    with pytest.raises(GeometryChanged, match=r"column NOTES\.V .*view ASKED") as err:
        promote("models:/clip/3", target)
    assert oracle.fingerprints() == before
    assert "UPDATE NOTES SET V = VECTOR_EMBEDDING(CLIP_TXT" in err.value.hint
    assert promote("models:/clip/2", target).changed
    promote("models:/clip/3", target, accept_new_geometry=True)
    [statement] = err.value.details["reembedding"]
    with connect(oracle) as connection:
        for part in filter(None, (part.strip() for part in statement.split(";"))):
            connection.cursor().execute(part)
        [(vector,)] = connection.cursor().execute("SELECT V FROM NOTES").fetchall()
    wanted = versions[2].embedder().embed_text(["a cat"])[0]
    np.testing.assert_allclose(np.asarray(vector), wanted, atol=1e-4)


def test_a_short_fine_tuning_is_another_geometry_and_a_new_file_is_not(
    mlflow_store: Path,
    tiny_pair: PipelinePair,
    tuned_pair: PipelinePair,
    resaved_pair: PipelinePair,
    oracle: Oracle,
) -> None:
    for pair in (tiny_pair, tuned_pair, resaved_pair):
        oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    target = oracle.target()
    promote("models:/clip/1", target)
    with pytest.raises(GeometryChanged, match=r"dims 16→16, mean cosine 0\.9\d"):
        promote("models:/clip/2", target)
    assert str(dry_run("models:/clip/3", target).geometry) == "same"
    assert promote("models:/clip/3", target).changed


def test_export2db_asks_the_database_first(
    mlflow_store: Path, tiny_folder: Path, oracle: Oracle
) -> None:
    oracle.database.faults.refused_operators = {"com.microsoft.extensions:DecodeImage"}
    oml_mlflow.connect("vec", PASSWORD, oracle.server.dsn)
    try:
        with pytest.raises(CapabilityMissing, match="DecodeImage"):
            ONNXPipeline(str(tiny_folder)).export2db("clip")
    finally:
        oml_mlflow.disconnect()
    assert oracle.fingerprints() == {}


def test_a_refusal_that_was_mended_is_asked_about_again(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    oracle.database.faults.refused_operators = {"ai.onnx.contrib:CLIPTokenizer"}
    with pytest.raises(CapabilityMissing, match="CLIPTokenizer"):
        promote("models:/clip/1", target)
    oracle.database.faults.refused_operators = set()
    assert promote("models:/clip/1", target).changed


def test_a_wallet_and_an_alias(
    versions: tuple[PipelinePair, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    folder = tmp_path / "wallet"
    folder.mkdir()
    tls = write_wallet(folder)
    with (
        Database(users={"VEC": User(PASSWORD)}) as database,
        OracleServer(database, tls=tls) as server,
    ):
        write_alias(folder, "PROD", server.port)
        uri = f"oracle://vec@PROD?config_dir={folder}&wallet_location={folder}"
        assert promote("models:/clip/1", uri).report.ok
        assert database.models("VEC").keys() == {"CLIP_IMG", "CLIP_TXT"}
        assert server.errors == []


def test_wrong_vectors_leave_the_live_pair(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    promote("models:/clip/1", target)
    before = oracle.fingerprints()
    oracle.database.faults.wrong_vectors = lambda vector: vector[::-1].copy()
    with pytest.raises(ParityError) as err:
        promote("models:/clip/2", target)
    assert err.value.exit_code == 3
    oracle.database.faults.wrong_vectors = None
    assert oracle.fingerprints() == before
    assert verify("models:/clip/1", target).ok


def test_reading_verbs_write_nothing(versions: tuple[PipelinePair, ...], oracle: Oracle) -> None:
    where = ["--target", oracle.uri]
    run = CliRunner().invoke
    for arguments in (
        ["promote", "models:/clip/1", "--dry-run", *where],
        ["promote", "models:/clip/1", *where, "--sql"],
        ["models", *where],
        ["history", *where],
        ["preflight", "models:/clip/1", *where],
    ):
        done = run(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert {text.split()[0].upper() for text in oracle.statements()} <= {"SELECT", "ROLLBACK"}
    assert oracle.fingerprints() == {}


def test_the_script_of_a_plan_loads_only_what_is_not_kept(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    script = target.script(dry_run("models:/clip/1", target))
    assert script.count("LOAD_ONNX_MODEL(") == 2
    assert "unverified" in script
    assert PASSWORD not in script
    promote("models:/clip/1", target)
    assert "Nothing to do" in target.script(dry_run("models:/clip/1", target))
    promote("models:/clip/2", target)
    script = target.script(dry_run("models:/clip/1", target))
    assert script.count("LOAD_ONNX_MODEL(") == 0
    assert script.count("RENAME_MODEL(") == 2


@pytest.mark.parametrize(
    "word", ["LOAD_ONNX_MODEL", "RENAME_MODEL", "INSERT INTO OML_MLFLOW_LEDGER"]
)
def test_an_instance_that_crashes_is_mended_by_the_next_run(
    versions: tuple[PipelinePair, ...], oracle: Oracle, word: str
) -> None:
    target = oracle.target()
    promote("models:/clip/1", target)

    def crash(index: int, text: str, session: object) -> None:
        if word in text.upper() and not text.lstrip().upper().startswith("BEGIN"):
            oracle.database.faults.before_statement = None
            raise ConnectionDropped

    oracle.database.faults.before_statement = crash
    with pytest.raises(OmlMlflowError, match="next run") as err:
        promote("models:/clip/2", target)
    assert err.value.exit_code == 75
    done = promote("models:/clip/2", target)
    assert done.finished
    assert oracle.fingerprints()["CLIP_IMG"] == versions[1].fingerprints["img"]
    with target.session("a test") as session:
        assert session.journal.state("CLIP").phase == WHOLE


def test_a_client_killed_behind_the_load_leaves_a_model_that_is_known(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    promote("models:/clip/1", target)

    def kill(index: int, text: str, session: object) -> None:
        if text.startswith("BEGIN") and "LOAD_ONNX_MODEL" in text:
            oracle.database.faults.after_statement = None
            raise ConnectionDropped

    oracle.database.faults.after_statement = kill
    with pytest.raises(OmlMlflowError, match="next run"):
        promote("models:/clip/2", target)
    with target.session("a test", create=False) as session:
        [found] = [model for model in session.models.list() if "_S" in model.name]
    assert (found.name, found.foreign) == ("CLIP_IMG_S2", False)
    assert found.fingerprint == versions[1].fingerprints["img"]
    assert promote("models:/clip/2", target).finished


def test_an_error_in_the_swap_is_told_and_finished_later(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target = oracle.target()
    promote("models:/clip/1", target)
    seen: list[str] = []

    def fail(index: int, text: str) -> OraError | None:
        if "RENAME_MODEL" in text.upper() and not text.lstrip().upper().startswith("BEGIN"):
            seen.append(text)
            return OraError(600, "internal error") if len(seen) == 2 else None
        return None

    oracle.database.faults.fail_statement = fail
    with pytest.raises(OmlMlflowError, match="ORA-00600"):
        promote("models:/clip/2", target)
    oracle.database.faults.fail_statement = None
    done = promote("models:/clip/2", target)
    assert done.finished
    assert oracle.fingerprints()["CLIP_TXT"] == versions[1].fingerprints["txt"]
