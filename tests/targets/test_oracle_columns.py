"""Stored vectors that a DBA takes along by script, in an Oracle database."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import oracledb
import pytest
import sqlplus
from oracle_fixtures import PASSWORD, Oracle
from oracle_server.statement import ConnectionDropped, OraError

from oml_mlflow import PipelinePair, dry_run, promote
from oml_mlflow.commands.columns import check_columns, columns, fill
from oml_mlflow.commands.promote import preflight
from oml_mlflow.errors import ConfigError, QuotaExceeded, TargetError, TargetUnreachable
from oml_mlflow.names import SIDES, TXT
from oml_mlflow.planning.checks import FAILED, OK, Check
from oml_mlflow.targets.oracle.script import DIRECTORY
from oml_mlflow.targets.oracle.target import OracleTarget

ROWS, MANY_ROWS, LIMIT = 40, 500, 1e-5


@pytest.fixture(params=[ROWS, pytest.param(MANY_ROWS, marks=pytest.mark.drill)])
def target(
    versions: tuple[PipelinePair, ...], oracle: Oracle, request: pytest.FixtureRequest
) -> OracleTarget:
    """A schema with version 1 live, and its vectors of ``DOCS``."""
    found: OracleTarget = oracle.target()
    promote("models:/clip/1", found)
    dims = versions[0].dims
    with connected(found) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE DOCS (ID NUMBER, BODY VARCHAR2(200), CHANGED TIMESTAMP, "
            f"V VECTOR({dims}, FLOAT32))"
        )
        rows = [(n, f"text number {n}") for n in range(request.param)]
        insert = "INSERT INTO DOCS (ID, BODY, CHANGED) VALUES (:1, :2, SYSTIMESTAMP)"
        for row in rows:
            cursor.execute(insert, row)
        connection.commit()
    columns("clip", found, add="DOCS.V", source="BODY", side=TXT, key="ID", modified="CHANGED")
    fill("clip", found)
    return found


def connected(target: OracleTarget) -> Any:
    return oracledb.connect(user="vec", password=PASSWORD, dsn=target.uri.partition("@")[2])


def query(target: OracleTarget, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(target) as connection, connection.cursor() as cursor:
        cursor.execute(text, list(values))
        found = cursor.fetchall() if cursor.description else []
        connection.commit()
        return found


def strangers(target: OracleTarget, pair: PipelinePair, relation: str) -> list[int]:
    """Return the keys of rows whose vector is not that of their text by a pair."""
    texts = dict(query(target, "SELECT ID, BODY FROM DOCS"))
    stored = dict(query(target, f"SELECT ID, V FROM {relation}"))  # noqa: S608
    wanted = dict(zip(texts, pair.embedder().embed_text([*texts.values()]), strict=True))
    return [
        int(key)
        for key, vector in stored.items()
        if vector is None or np.abs(np.asarray(vector, np.float32) - wanted[key]).max() > LIMIT
    ]


def run_script(target: OracleTarget, oracle: Oracle, version: int, folder: Path) -> str:
    """Run the script of a promotion with stored vectors, its files in the server's folder."""
    plan = dry_run(f"models:/clip/{version}", target, reembed=True)
    script = target.script(plan)
    oracle.database.directories[DIRECTORY] = folder
    with connected(target) as connection:
        sqlplus.run(connection, script)
    return script


def test_vectors_follow_by_script_and_come_back(
    versions: tuple[PipelinePair, ...], target: OracleTarget, oracle: Oracle, tmp_path: Path
) -> None:
    old, new = versions[0], versions[2]
    with pytest.raises(ConfigError, match="--sql --reembed"):
        promote("models:/clip/3", target, reembed=True)
    plan = dry_run("models:/clip/3", target, reembed=True)
    for side in SIDES:
        shutil.copy(getattr(new, side), tmp_path / plan.paths[side].name)
    before = query(target, "SELECT ID, V FROM DOCS ORDER BY ID")
    script = run_script(target, oracle, 3, tmp_path)
    assert "CREATE OR REPLACE VIEW DOCS_V_LIVE" in script
    assert not strangers(target, new, "DOCS_V_LIVE")
    assert query(target, "SELECT ID, V FROM DOCS ORDER BY ID") == before
    [check] = check_columns("clip", target)
    assert (check.ok, check.sampled) == (True, min(len(before), 200))
    # what is written since is seen by fill, in the column that is in use
    query(target, "INSERT INTO DOCS (ID, BODY, CHANGED) VALUES (1000, 'new', SYSTIMESTAMP)")
    [filled] = fill("clip", target)
    assert (filled.rows, filled.left) == (1, 0)
    query(target, "UPDATE DOCS SET BODY = 'other', CHANGED = SYSTIMESTAMP WHERE ID = 3")
    back = run_script(target, oracle, 1, tmp_path)
    assert "LOAD_ONNX_MODEL" not in back
    assert not strangers(target, old, "DOCS_V_LIVE")
    again = query(target, "SELECT ID, V FROM DOCS WHERE ID <> 3 AND ID < 1000 ORDER BY ID")
    assert again == [row for row in before if row[0] != 3]
    run_script(target, oracle, 3, tmp_path)
    assert not strangers(target, new, "DOCS_V_LIVE")
    assert dry_run("models:/clip/3", target, reembed=True).work is None


def checked(target: OracleTarget) -> Check:
    rows = preflight("models:/clip/1", target)[0].rows
    return next(row for row in rows if row.name == "columns")


def test_a_column_of_another_user_is_filled_once_its_owner_has_granted_it(
    versions: tuple[PipelinePair, ...], oracle: Oracle
) -> None:
    target, dims = oracle.target(), versions[0].dims
    promote("models:/clip/1", target)
    dsn = target.uri.partition("@")[2]
    with oracledb.connect(user="app", password="app", dsn=dsn) as owner:  # noqa: S106

        def run(text: str) -> None:
            with owner.cursor() as cursor:
                cursor.execute(text)
            owner.commit()

        run(f"CREATE TABLE NOTES (ID NUMBER, BODY VARCHAR2(200), V VECTOR({dims}, FLOAT32))")
        run("INSERT INTO NOTES (ID, BODY) VALUES (1, 'a dog')")
        wanted = 'GRANT SELECT, UPDATE ON app.notes TO "VEC";'
        with pytest.raises(TargetError) as caught:
            columns("clip", target, add="app.notes.v", source="body", side=TXT, key="id")
        assert caught.value.hint == f"ask its owner for: {wanted}"
        run("GRANT SELECT ON NOTES TO VEC")
        columns("clip", target, add="app.notes.v", source="body", side=TXT, key="id")
        check = checked(target)
        assert (check.state, check.message) == (FAILED, "VEC can't fill APP.NOTES.")
        assert wanted.upper() in check.hint.upper()
        # what does not touch the column is not refused for it
        assert promote("models:/clip/2", target).changed
        run(wanted.rstrip(";"))
        assert checked(target).state == OK
        [filled] = fill("clip", target)
        assert (filled.rows, filled.left) == (1, 0)
        script = target.script(dry_run("models:/clip/3", target, reembed=True))
        assert "GRANT UPDATE, ALTER ON app.notes TO <this user>;" in script
        assert "CREATE OR REPLACE VIEW APP_NOTES_V_LIVE" in script


def test_a_fill_that_is_cut_off_goes_on_where_it_was(target: OracleTarget, oracle: Oracle) -> None:
    query(target, "UPDATE DOCS SET V = NULL")
    faults, seen = oracle.database.faults, []

    def cut(index: int, text: str, session: object) -> None:
        if text.startswith("UPDATE DOCS SET V"):
            seen.append(index)
            if len(seen) == 3:
                raise ConnectionDropped

    faults.before_statement = cut
    with pytest.raises(TargetUnreachable):
        fill("clip", target, batch=10)
    faults.before_statement = None
    full = OraError(1536, "space quota exceeded for tablespace 'USERS'")
    faults.fail_statement = lambda _index, text: full if text.startswith("UPDATE DOCS") else None
    with pytest.raises(QuotaExceeded, match="USERS"):
        fill("clip", target, batch=10)
    faults.fail_statement = None
    rows = query(target, "SELECT COUNT(*), COUNT(V) FROM DOCS")[0]
    assert rows[1] == 20
    [filled] = fill("clip", target, batch=10)
    assert (filled.rows, filled.left, filled.failed) == (rows[0] - 20, 0, ())
