"""What the database itself does: what the target relies on, and what is only wanted to be known."""

from __future__ import annotations

import time
from dataclasses import replace

import oracledb
import pytest

from live.conftest import Say, Schema, execute, refused, rows
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.names import SIDES
from oml_mlflow.planning.checks import FAILED
from oml_mlflow.planning.records import LoadedModel, this_process
from oml_mlflow.promotion.candidate import Candidate
from oml_mlflow.promotion.capabilities import ask, pair_needs
from oml_mlflow.promotion.preflight import preflight
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.load import comment_text, is_size

NOTICED_S = 10.0
ATTRIBUTES = (
    "SELECT ATTRIBUTE_NAME, ATTRIBUTE_TYPE, DATA_TYPE, DATA_LENGTH, VECTOR_INFO "
    "FROM USER_MINING_MODEL_ATTRIBUTES WHERE MODEL_NAME = :model_name ORDER BY ATTRIBUTE_NAME"
)


def load(schema: Schema, candidate: Candidate, side: str, suffix: str) -> LoadedModel:
    """Load one pipeline under a scratch name, with a comment that tells it from others."""
    model = candidate.to_model(side, f"{schema.name}_{suffix}")
    model = replace(model, metadata={**model.metadata, "run_id": suffix})
    with schema.target().session("live suite") as session:
        session.models.load(model, candidate.pair.paths[side])
    return model


def comments(schema: Schema) -> dict[str, str]:
    with schema.connect() as connection:
        found = rows(connection, sql.LIST_MODELS)
    return {name: text or "" for name, _, _, text in found if name.startswith(schema.name)}


def rename(connection: oracledb.Connection, old: str, new: str, kept: str = "") -> None:
    execute(connection, f"BEGIN {sql.rename(old, new, kept)}; END;")


def test_preflight(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    target = schema.target()
    with target.session("live suite", create=False) as session:
        profile = get_profile(candidates[0].pair.profile)
        report = preflight(session, target, schema.name, candidates[0].pair.paths, profile)
    lines = [f"{check.state:8} {check.name}: {check.message}" for check in report.rows]
    say("preflight", "\n".join(["", *lines]))
    assert not [c for c in report.rows if c.state == FAILED and c.name != "capabilities"]


def test_capability_probes(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    wanted = pair_needs(candidates[0].pair.paths)
    with schema.target().session("live suite") as session:
        table = ask(session, [wanted], again=True)
        left = [m.name for m in session.models.list() if m.name.startswith("OML_MLFLOW_PROBE_")]
    shown = {True: "takes", False: "REFUSES", None: "no answer"}
    lines = [f"{shown[row.taken]:10} {row.capability}  {row.message}" for row in table.rows]
    say(f"what version {table.database_version} takes", "\n".join(["", *lines]))
    assert not table.unanswered(need for need in wanted if need.has_probe)
    assert left == []


def test_a_load_shows_in_the_catalogue(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    loaded = [load(schema, candidates[0], side, side.upper()) for side in SIDES]
    with schema.connect() as connection:
        for model in loaded:
            [(size,)] = rows(connection, sql.FIND_MODEL, model_name=model.name)
            say(f"MODEL_SIZE of {model.side}", f"{size}, of a file of {model.size_bytes} bytes")
            assert is_size(int(size), model.size_bytes)
            attributes = rows(connection, ATTRIBUTES, model_name=model.name)
            say(f"attributes of {model.side}", attributes)
            assert "DATA" in {name for name, *_ in attributes}
            for view in ("DM$VM", "DM$VP", "DM$VJ"):
                say(f"{view} of {model.side}", content(connection, f"{view}{model.name}"))
    assert comments(schema) == {model.name: comment_text(model) for model in loaded}


def content(connection: oracledb.Connection, view: str) -> object:
    """Return the rows of a view, or why there are none."""
    try:
        return rows(connection, f'SELECT * FROM "{view}"')  # noqa: S608
    except oracledb.DatabaseError as error:
        return str(error).splitlines()[0]


def test_rename_moves_both_models(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    new, old = (load(schema, candidates[0], "txt", suffix) for suffix in ("NEW", "LIVE"))
    kept = f"{schema.name}_KEPT"
    with schema.connect() as connection:
        with refused("ORA-40204"):
            rename(connection, new.name, old.name)
        rename(connection, new.name, old.name, kept)
    after = comments(schema)
    assert set(after) == {old.name, kept}
    survived = after == {old.name: comment_text(new), kept: comment_text(old)}
    say("a comment goes along with RENAME_MODEL", "yes" if survived else f"no: {after}")


def test_ddl_commits(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    model = load(schema, candidates[0], "txt", "M")
    table = f"{schema.name}_T"
    with schema.connect() as connection:
        execute(connection, f"CREATE TABLE {table} (N NUMBER)")
        execute(connection, f"INSERT INTO {table} (N) VALUES (1)")  # noqa: S608
        rename(connection, model.name, f"{schema.name}_N")
        connection.rollback()
        [(count,)] = rows(connection, f"SELECT COUNT(*) FROM {table}")  # noqa: S608
    say("RENAME_MODEL commits what was not committed", "yes" if count else "no")
    assert count == 1


def test_a_closed_session_is_not_alive(schema: Schema, say: Say) -> None:
    with schema.connect() as asking:
        other = schema.connect()
        [(session_id,)] = rows(other, sql.SESSION_ID)
        assert is_alive(asking, session_id)
        other.close()
        # a server may notice a little later that a client is gone
        given_up = time.monotonic() + NOTICED_S
        while is_alive(asking, session_id):
            assert time.monotonic() < given_up
    say("a session that is connected is alive", "yes, and one that was closed is not")


def is_alive(connection: oracledb.Connection, session_id: str) -> bool:
    with connection.cursor() as cursor:
        alive = cursor.var(oracledb.DB_TYPE_NUMBER)
        cursor.execute(sql.IS_ALIVE, session_id=session_id, alive=alive)
        return bool(alive.getvalue())


def test_grants_and_rename(schema: Schema, candidates: tuple[Candidate, ...], say: Say) -> None:
    if not schema.where.grantee:
        pytest.skip("no --oracle-grantee")
    model = load(schema, candidates[0], "txt", "M")
    grantee, renamed = schema.where.grantee, f"{schema.name}_N"
    with schema.connect() as connection:
        execute(connection, f'GRANT SELECT ON MINING MODEL {model.name} TO "{grantee}"')
        [(_, granted_to, *_)] = rows(connection, sql.LIST_GRANTS, model_name=model.name)
        assert granted_to == grantee
        rename(connection, model.name, renamed)
        followed = rows(connection, sql.LIST_GRANTS, model_name=renamed)
        stale = rows(connection, sql.LIST_GRANTS, model_name=model.name)
    say("a grant goes along with RENAME_MODEL", "yes" if followed else "no")
    assert stale == []


def test_a_session_is_shown_to_a_dba(schema: Schema, say: Say) -> None:
    with schema.connect() as connection:
        target = type(schema.target())(connection=connection)
        with target.session("a look", create=False):
            [shown] = rows(connection, sql.READ_CONTEXT)
    say("V$SESSION shows", shown)
    assert shown == ("oml_mlflow", "a look", this_process()[:64])
