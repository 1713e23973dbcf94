"""The stand-in's engine, without transport: what it answers, and what it leaves behind."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from oracle_server import statement as types
from oracle_server.engine import Database, EngineSession, User
from oracle_server.statement import (
    CLOB,
    NUMBER,
    VARCHAR,
    Bind,
    Call,
    ConnectionDropped,
    OraError,
    Rows,
)

from oml_mlflow.pair.pipeline_pair import PipelinePair

LOAD = (
    "BEGIN DBMS_VECTOR.LOAD_ONNX_MODEL(model_name => :model_name, model_data => :model_data, "
    "metadata => JSON(:metadata)); END;"
)
METADATA = {"function": "embedding", "embeddingOutput": "embedding", "input": {"input": ["DATA"]}}
CLIENT = User("pw", privileges=frozenset({"CREATE SESSION"}))


class Lob:
    """A LOB as the wire layer hands it over."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.largest = data, len(data), 0

    def read_at(self, offset: int, amount: int) -> bytes:
        self.largest = max(self.largest, amount)
        return self.data[offset : offset + amount]


BIND_TYPES = {
    bool: types.BOOLEAN,
    int: types.NUMBER,
    float: types.BINARY_DOUBLE,
    str: types.VARCHAR,
    bytes: types.RAW,
    dict: types.JSON,
    Lob: types.BLOB,
    array: types.VECTOR,
    dt.datetime: types.TIMESTAMP,
    type(None): types.VARCHAR,
}


def call_of(sql: str, **binds: Any) -> Call:
    given = [Bind(BIND_TYPES[type(v)], 0, v, name.upper()) for name, v in binds.items()]
    return Call(sql, given)


def run(session: EngineSession, sql: str, **binds: Any) -> Any:
    return session.handle(call_of(sql, **binds))


def rows(session: EngineSession, sql: str, **binds: Any) -> list[tuple[Any, ...]]:
    found = run(session, sql, **binds)
    assert isinstance(found, Rows)
    return found.rows


def outs(session: EngineSession, sql: str, **binds: Any) -> dict[str, Any]:
    call = call_of(sql, **binds)
    session.handle(call)
    return call.out


def fails(
    session: EngineSession, code: int, sql: str, match: str = "ORA", **binds: Any
) -> OraError:
    with pytest.raises(OraError, match=match) as caught:
        run(session, sql, **binds)
    assert caught.value.code == code, str(caught.value)
    assert str(caught.value).startswith(f"ORA-{code:05d}: ")
    return caught.value


def load(session: EngineSession, name: str, data: bytes, metadata: Any = None) -> None:
    text = json.dumps(METADATA if metadata is None else metadata)
    run(session, LOAD, model_name=name, model_data=Lob(data), metadata=text)


def graph(
    *,
    domain: str = "",
    opset: int = 17,
    shape: list[Any] | None = None,
    output: list[Any] | None = None,
) -> bytes:
    """Return a model of few bytes: a text's length class as a vector of three."""
    nodes = [
        helper.make_node(
            "CategoryMapper",
            ["input"],
            ["index"],
            domain="ai.onnx.ml",
            cats_strings=["cat", "dog"],
            cats_int64s=[1, 2],
            default_int64=0,
        ),
        helper.make_node("Gather", ["table", "index"], ["embedding"]),
    ]
    if domain:
        nodes.append(helper.make_node("Odd", ["embedding"], ["other"], domain=domain))
    table = np.arange(9, dtype=np.float32).reshape(3, 3)
    ends = [
        helper.make_tensor_value_info("input", TensorProto.STRING, shape or ["n"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, output or ["n", 3]),
    ]
    weights = [helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.ravel().tolist())]
    made = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    domains = {"": opset, "ai.onnx.ml": 3} | ({domain: 1} if domain else {})
    opsets = [helper.make_opsetid(key, number) for key, number in domains.items()]
    model: bytes = helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


@pytest.fixture
def database() -> Iterator[Database]:
    with Database({"VEC": "pw", "ANN": CLIENT}, lock_wait_s=0.3) as made:
        yield made


@pytest.fixture
def session(database: Database) -> Iterator[EngineSession]:
    made = database.open_session("vec")
    yield made
    made.close()


@pytest.fixture
def reader(database: Database) -> Iterator[EngineSession]:
    made = database.open_session("ann")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair_database(tiny_pair: PipelinePair) -> Iterator[Database]:
    with Database({"VEC": "pw", "ANN": CLIENT}) as made:
        session = made.open_session("VEC")
        load(session, "clip_img", tiny_pair.img.read_bytes())
        load(session, "CLIP_TXT", tiny_pair.txt.read_bytes())
        session.close()
        yield made


# SQL


def test_values_come_back_as_they_went_in(session: EngineSession) -> None:
    run(
        session,
        "CREATE TABLE T (N NUMBER(10), X BINARY_DOUBLE, S VARCHAR2(10), C CLOB, B BLOB, "
        "W TIMESTAMP, D DATE, V VECTOR(2, FLOAT32))",
    )
    when = dt.datetime(2026, 1, 2, 3, 4, 5, 678)
    given = {
        "n": 7,
        "x": 0.5,
        "s": "café",
        "c": "long",
        "b": Lob(b"\0\1"),
        "w": when,
        "d": when,
        "v": array("f", [1, 2]),
    }
    names = ", ".join(f":{name}" for name in given)
    assert run(session, f"INSERT INTO T VALUES ({names})", **given) == 1  # noqa: S608
    found = run(session, "SELECT * FROM T")
    assert [column.type for column in found.columns] == [
        types.NUMBER,
        types.NUMBER,
        types.VARCHAR,
        types.CLOB,
        types.BLOB,
        types.TIMESTAMP,
        types.TIMESTAMP,
        types.VECTOR,
    ]
    assert found.rows == [(7, 0.5, "café", "long", b"\0\1", when, when, array("f", [1, 2]))]
    assert [c.name for c in found.columns] == list("NXSCBWDV")


def test_columns_have_types_without_values(pair_database: Database) -> None:
    session = pair_database.open_session("vec")
    run(session, "CREATE TABLE E (N NUMBER, C CLOB, B BLOB, V VECTOR(16, FLOAT32))")
    wanted = [types.NUMBER, types.CLOB, types.BLOB, types.VECTOR]
    sql = "SELECT N, C, B AS X, V FROM E WHERE N = :n OR N IS NULL"
    assert [c.type for c in run(session, sql, n=1).columns] == wanted
    run(session, "INSERT INTO E (N) VALUES (NULL)")
    assert [c.type for c in run(session, sql, n=1).columns] == wanted
    found = run(session, "SELECT VECTOR_EMBEDDING(CLIP_TXT USING :d AS DATA) FROM DUAL", d=None)
    assert found.columns[0].type == types.VECTOR
    run(session, "DROP TABLE E")
    session.close()


def test_an_empty_text_is_null(session: EngineSession) -> None:
    assert rows(session, "SELECT NVL(:a, 'x'), NVL('', 'y') FROM DUAL", a="") == [("x", "y")]


def test_times_and_context(session: EngineSession) -> None:
    session.module = "oml_mlflow"
    ((now, text, user, module),) = rows(
        session,
        "SELECT SYS_EXTRACT_UTC(SYSTIMESTAMP), TO_CHAR(SYSTIMESTAMP, 'YYYY-MM-DD\"T\"HH24:MI'), "
        "USER, SYS_CONTEXT('USERENV', 'MODULE') FROM DUAL",
    )
    assert abs((now - dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)).total_seconds()) < 9
    assert text.startswith(f"{now:%Y-%m-%dT}")
    assert (user, module) == ("VEC", "oml_mlflow")


@pytest.mark.parametrize(
    ("code", "sql"),
    [
        (942, "SELECT * FROM NOPE"),
        (942, "SELECT * FROM SYS.MODELS"),
        (942, "SELECT * FROM SQLITE_MASTER"),
        (942, "SELECT * FROM V$SESSION"),
        (904, "SELECT NOPE FROM T"),
        (904, 'SELECT "NOPE" FROM T'),
        (904, "SELECT JSON_EXTRACT('{}', '$') FROM DUAL"),
        (904, "INSERT INTO T (NOPE) VALUES (1)"),
        (955, "CREATE TABLE T (N NUMBER)"),
        (902, "CREATE TABLE U (N TEXTUAL)"),
        (906, "CREATE TABLE U (N VARCHAR2)"),
        (910, "CREATE TABLE U (N VARCHAR2(4001))"),
        (1, "INSERT INTO T (NAME) VALUES ('a')"),
        (1400, "INSERT INTO T (NAME) VALUES (NULL)"),
        (1400, "INSERT INTO T (NAME) VALUES ('')"),
        (1407, "UPDATE T SET NAME = NULL"),
        (12899, "INSERT INTO T (NAME) VALUES ('abcdef')"),
        (1722, "INSERT INTO T (NAME, N) VALUES ('b', 'x')"),
        (1843, "INSERT INTO T (NAME, W) VALUES ('b', '2026-01-01')"),
        (51803, "INSERT INTO T (NAME, V) VALUES ('b', TO_VECTOR('[1, 2, 3]'))"),
        (932, "INSERT INTO T (NAME, V) VALUES ('b', 'x')"),
        (933, "SELECT 1 FROM DUAL;"),
        (933, "SELECT 1 FROM T AS X"),
        (933, "SELECT 1 FROM T LIMIT 1"),
        (1008, "SELECT :a FROM DUAL"),
        (1756, "SELECT 'a FROM DUAL"),
        (911, "SELECT `a` FROM DUAL"),
        (900, "PRAGMA page_count"),
        (3001, "MERGE INTO T USING DUAL ON (1 = 1) WHEN MATCHED THEN UPDATE SET N = 1"),
        (1917, "GRANT SELECT ON T TO NOBODY"),
        (990, "GRANT EXECUTE ON T TO ANN"),
        (1031, "GRANT CREATE TABLE TO ANN"),
        (1927, "REVOKE SELECT ON T FROM ANN"),
        (1732, "DELETE FROM USER_TABLES"),
        (1430, "ALTER TABLE T ADD (N VARCHAR2(5))"),
        (1789, "SELECT NAME FROM T UNION ALL SELECT NAME, N FROM T"),
        (1790, "SELECT NAME FROM T UNION ALL SELECT N FROM T"),
        (1790, "SELECT 1 FROM DUAL UNION SELECT 'a' FROM DUAL"),
        (1790, "SELECT NAME, TO_CLOB(NULL) FROM T UNION ALL SELECT NAME, TO_CHAR(NULL) FROM T"),
    ],
)
def test_codes_of_sql(session: EngineSession, code: int, sql: str) -> None:
    run(
        session,
        "CREATE TABLE T (NAME VARCHAR2(5) NOT NULL, N NUMBER, W TIMESTAMP, V VECTOR(2, FLOAT32), "
        "CONSTRAINT T_PK PRIMARY KEY (NAME))",
    )
    run(session, "INSERT INTO T (NAME, N) VALUES ('a', 1)")
    fails(session, code, sql)
    assert rows(session, "SELECT NAME, N FROM T") == [("a", 1)]


def test_a_unique_constraint_is_named(session: EngineSession) -> None:
    run(session, "CREATE TABLE T (NAME VARCHAR2(5), CONSTRAINT T_PK PRIMARY KEY (NAME))")
    run(session, "INSERT INTO T VALUES ('a')")
    fails(session, 1, "INSERT INTO T VALUES ('a')", r"\(VEC\.T_PK\)")


def test_set_operations_have_common_types(session: EngineSession) -> None:
    run(session, "CREATE TABLE T (NAME VARCHAR2(5), N NUMBER, C CLOB)")
    run(session, "INSERT INTO T VALUES ('a', 1, NULL)")
    found = run(
        session,
        "SELECT 'x', NAME, N, TO_CLOB(NULL) FROM T UNION ALL SELECT 'yy', TO_CHAR(NULL), "
        "TO_NUMBER(NULL), C FROM T UNION ALL SELECT 'z', NULL, NULL, TO_CLOB('text') FROM DUAL",
    )
    assert [column.type for column in found.columns] == [VARCHAR, VARCHAR, NUMBER, CLOB]
    assert sorted(found.rows) == [
        ("x", "a", 1, None),
        ("yy", None, None, None),
        ("z", None, None, "text"),
    ]


def test_like_distinguishes_case(session: EngineSession) -> None:
    assert rows(session, "SELECT 1 FROM DUAL WHERE 'abc' LIKE 'A%'") == []


def test_catalogue(session: EngineSession) -> None:
    run(session, "CREATE TABLE T (NAME VARCHAR2(5) NOT NULL, V VECTOR(2, FLOAT32))")
    run(session, "ALTER TABLE T ADD (MORE CLOB)")
    run(session, "CREATE VIEW W AS SELECT NAME, MODEL_NAME FROM T, USER_MINING_MODELS")
    run(session, "CREATE UNIQUE INDEX T_I ON T (NAME)")
    run(session, "CREATE HYBRID VECTOR INDEX T_H ON T (MORE) PARAMETERS ('MODEL clip_txt')")
    assert rows(session, "SELECT TABLE_NAME FROM USER_TABLES") == [("T",)]
    assert rows(
        session,
        "SELECT COLUMN_NAME, DATA_TYPE, NULLABLE, VECTOR_INFO FROM USER_TAB_COLUMNS "
        "WHERE TABLE_NAME = 'T' ORDER BY COLUMN_ID",
    ) == [
        ("NAME", "VARCHAR2", "N", None),
        ("V", "VECTOR", "Y", "VECTOR(2,FLOAT32)"),
        ("MORE", "CLOB", "Y", None),
    ]
    ((text,),) = rows(session, "SELECT TEXT_VC FROM USER_VIEWS WHERE VIEW_NAME = 'W'")
    assert text == "SELECT NAME, MODEL_NAME FROM T, USER_MINING_MODELS"
    assert rows(session, "SELECT * FROM W") == []
    assert rows(session, "SELECT INDEX_NAME, INDEX_TYPE, PARAMETERS FROM USER_INDEXES") == [
        ("T_H", "DOMAIN", "MODEL clip_txt"),
        ("T_I", "NORMAL", None),
    ]
    run(session, "DROP VIEW W")
    run(session, "DROP TABLE T PURGE")
    assert rows(session, "SELECT INDEX_NAME FROM USER_INDEXES") == []
    fails(session, 942, "SELECT * FROM W")
    assert rows(session, "SELECT VERSION_FULL FROM PRODUCT_COMPONENT_VERSION") == [("23.26.1.0.0",)]
    assert rows(session, "SELECT DEFAULT_TABLESPACE FROM USER_USERS") == [("USERS",)]
    assert ("LOAD_ONNX_MODEL",) in rows(
        session, "SELECT PROCEDURE_NAME FROM ALL_PROCEDURES WHERE OBJECT_NAME = 'DBMS_VECTOR'"
    )


def test_schemas_are_apart(session: EngineSession, reader: EngineSession) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (1)")
    session.commit()
    fails(reader, 942, "SELECT N FROM T")
    fails(reader, 942, "SELECT N FROM VEC.T")
    run(session, "GRANT SELECT ON T TO ANN")
    assert rows(reader, "SELECT N FROM VEC.T") == [(1,)]
    fails(reader, 942, "SELECT N FROM T")
    fails(reader, 942, "DELETE FROM VEC.T")
    assert rows(reader, "SELECT OWNER, TABLE_NAME, PRIVILEGE FROM USER_TAB_PRIVS") == [
        ("VEC", "T", "SELECT")
    ]


# transactions and sessions


def test_transactions(database: Database, session: EngineSession) -> None:
    other = database.open_session("vec")
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (1)")
    assert session.in_transaction
    assert rows(other, "SELECT * FROM T") == []
    session.rollback()
    assert not session.in_transaction
    run(session, "INSERT INTO T VALUES (2)")
    run(session, "COMMIT")
    assert rows(other, "SELECT * FROM T") == [(2,)]
    run(session, "INSERT INTO T VALUES (3)")
    run(session, "CREATE TABLE U (N NUMBER)")
    assert rows(other, "SELECT COUNT(*) FROM T") == [(2,)]
    run(other, "INSERT INTO T VALUES (4)")
    other.close()
    assert rows(session, "SELECT COUNT(*) FROM T") == [(2,)]


def test_failed_ddl_commits_what_was_before(database: Database, session: EngineSession) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (1)")
    fails(session, 955, "CREATE TABLE T (N NUMBER)")
    other = database.open_session("vec")
    assert rows(other, "SELECT N FROM T") == [(1,)]
    other.close()


def test_a_session_waits_for_another(database: Database, session: EngineSession) -> None:
    other = database.open_session("vec")
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (1)")
    fails(other, 30006, "INSERT INTO T VALUES (2)")
    database.lock_wait_s = 20
    waiting = threading.Thread(target=run, args=(other, "UPDATE T SET N = N + 1"))
    waiting.start()
    session.commit()
    waiting.join(20)
    other.commit()
    assert rows(session, "SELECT N FROM T") == [(2,)]
    other.close()


def test_many_sessions_at_once(database: Database, session: EngineSession) -> None:
    database.lock_wait_s = 30
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (0)")
    session.commit()

    def count_up() -> None:
        for _ in range(10):
            own = database.open_session("vec")
            run(own, "UPDATE T SET N = N + 1")
            own.commit()
            own.close()

    threads = [threading.Thread(target=count_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert rows(session, "SELECT N FROM T") == [(60,)]


def test_liveness_of_sessions(database: Database, session: EngineSession) -> None:
    block = (
        "BEGIN IF DBMS_SESSION.IS_SESSION_ALIVE(:id) THEN :alive := 1; ELSE :alive := 0; "
        "END IF; END;"
    )
    other = database.open_session("vec")
    ((unique_id,),) = rows(other, "SELECT DBMS_SESSION.UNIQUE_SESSION_ID FROM DUAL")
    assert unique_id == other.unique_id != session.unique_id
    assert len(unique_id) <= 24
    assert outs(session, block, id=unique_id, alive=None) == {"ALIVE": 1}
    other.close()
    assert outs(session, block, id=unique_id, alive=None) == {"ALIVE": 0}


def test_logins(database: Database) -> None:
    for user, code in (("nobody", 1017), ("LOCKED", 1045)):
        database.users["LOCKED"] = User("pw", privileges=frozenset())
        with pytest.raises(OraError) as caught:
            database.open_session(user)
        assert caught.value.code == code


# PL/SQL


def test_a_block(session: EngineSession) -> None:
    run(session, "CREATE TABLE T (NAME VARCHAR2(5) PRIMARY KEY, N NUMBER)")
    block = """
    DECLARE
      l_count NUMBER := 0;
      l_text VARCHAR2(40) := 'n:';
      e_mine EXCEPTION;
      PRAGMA EXCEPTION_INIT(e_mine, -20801);
    BEGIN
      INSERT INTO T (NAME, N) VALUES (:name, 1);
      INSERT INTO T (NAME, N) VALUES ('b', l_count + 5);
      UPDATE T SET N = N + 1 WHERE N >= 1;
      IF SQL%ROWCOUNT <> 2 THEN
        RAISE_APPLICATION_ERROR(-20801, 'not two');
      ELSIF SQL%NOTFOUND OR l_count IS NOT NULL AND l_count IN (1, 2) THEN
        NULL;
      ELSE
        l_text := l_text || SQL%ROWCOUNT;
      END IF;
      SELECT COUNT(*), MAX(N) INTO l_count, :largest FROM T;
      FOR r IN (SELECT NAME, N FROM T ORDER BY NAME) LOOP
        l_text := l_text || ' ' || r.name || r.n;
      END LOOP;
      BEGIN
        INSERT INTO T (NAME) VALUES ('b');
      EXCEPTION
        WHEN DUP_VAL_ON_INDEX THEN l_text := l_text || ' dup';
      END;
      BEGIN
        SELECT N INTO l_count FROM T WHERE NAME = 'z';
      EXCEPTION
        WHEN NO_DATA_FOUND THEN l_text := l_text || ' none';
      END;
      BEGIN
        RAISE_APPLICATION_ERROR(-20801, 'mine');
      EXCEPTION
        WHEN e_mine THEN l_text := l_text || ' ' || SQLCODE || ' ' || SUBSTR(SQLERRM, 1, 9);
      END;
      EXECUTE IMMEDIATE 'UPDATE T SET N = :1 WHERE NAME = :2' USING 40 + 2, 'b';
      EXECUTE IMMEDIATE 'SELECT N FROM T WHERE NAME = ' || '''b''' INTO l_count;
      :text := l_text || ' ' || l_count;
      COMMIT;
    END;"""
    found = outs(session, block, name="a", largest=None, text=None)
    assert found == {"LARGEST": 6, "TEXT": "n:2 a2 b6 dup none -20801 ORA-20801 42"}
    assert not session.in_transaction


@pytest.mark.parametrize(
    ("told", "block"),
    [
        ("PLS-00103", "BEGIN NULL END;"),
        ("PLS-00103", "BEGIN END;"),
        ("PLS-00103", "BEGIN NULL; END"),
        ("PLS-00103", "BEGIN WHILE TRUE LOOP NULL; END LOOP; END;"),
        ("PLS-00103", "DECLARE PROCEDURE p IS BEGIN NULL; END; BEGIN NULL; END;"),
        ("PLS-00103", "BEGIN IF TRUE THEN NULL; END; END;"),
        ("PLS-00103", "BEGIN COMMIT; SAVEPOINT a; END;"),
        ("PLS-00201", "BEGIN x := 1; END;"),
        ("PLS-00201", "BEGIN IF nope = 1 THEN NULL; END IF; END;"),
        ("PLS-00201", "BEGIN NULL; EXCEPTION WHEN NOPE THEN NULL; END;"),
        ("PLS-00201", "BEGIN DBMS_LOCK.SLEEP(1); END;"),
        ("PLS-00215", "DECLARE x VARCHAR2; BEGIN NULL; END;"),
        ("PLS-00302", "BEGIN DBMS_VECTOR.NOPE(1); END;"),
        ("PLS-00382", "BEGIN IF 1 THEN NULL; END IF; END;"),
        ("PLS-00428", "BEGIN SELECT 1 FROM DUAL; END;"),
        ("PLS-00221", "BEGIN DBMS_SESSION.UNIQUE_SESSION_ID; END;"),
        ("PLS-00222", "DECLARE x NUMBER := DBMS_SESSION.SLEEP(1); BEGIN NULL; END;"),
        ("ORA-00942", "BEGIN COMMIT; INSERT INTO NOPE VALUES (1); END;"),
        ("ORA-00904", "BEGIN UPDATE T SET NOPE = 1; END;"),
    ],
)
def test_what_does_not_compile_is_not_run(
    database: Database, session: EngineSession, told: str, block: str
) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    before = database.faults.statements
    fails(session, 6550, block, rf"line 1, column \d+:\n.*{told}")
    assert database.faults.statements == before + 1


def test_an_unhandled_error_undoes_the_block(session: EngineSession) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    run(session, "INSERT INTO T VALUES (1)")
    fails(
        session,
        20999,
        "BEGIN\n  INSERT INTO T VALUES (2);\n  RAISE_APPLICATION_ERROR(-20999, 'stop');\nEND;",
        "ORA-20999: stop\nORA-06512: at line 3",
    )
    assert rows(session, "SELECT N FROM T") == [(1,)]
    fails(session, 1476, "BEGIN INSERT INTO T VALUES (3 / (1 - 1)); COMMIT; :x := 1 / 0; END;", x=1)


def test_ddl_in_a_block_that_fails_half_way_is_committed(
    database: Database, session: EngineSession
) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    fails(
        session,
        40203,
        "BEGIN INSERT INTO T VALUES (1); EXECUTE IMMEDIATE 'CREATE TABLE U (N NUMBER)'; "
        "INSERT INTO T VALUES (2); DBMS_DATA_MINING.RENAME_MODEL('NONE', 'OTHER'); END;",
    )
    other = database.open_session("vec")
    assert rows(other, "SELECT N FROM T ORDER BY N") == [(1,), (2,)]
    assert rows(other, "SELECT TABLE_NAME FROM USER_TABLES ORDER BY 1") == [("T",), ("U",)]
    other.close()


# packages


@pytest.mark.parametrize(
    "call",
    [
        "DBMS_VECTOR.LOAD_ONNX_MODEL(name => 'x', model_data => :blob)",
        "DBMS_VECTOR.LOAD_ONNX_MODEL(model_name => 'x')",
        "DBMS_VECTOR.LOAD_ONNX_MODEL(model_name => 'x', model_data => :text)",
        "DBMS_VECTOR.LOAD_ONNX_MODEL(model_name => 'x', model_data => :blob, metadata => :text)",
        "DBMS_VECTOR.LOAD_ONNX_MODEL('x', :blob, JSON(:text), 1)",
        "DBMS_VECTOR.LOAD_ONNX_MODEL('d', 'f', model_data => :blob)",
        "DBMS_VECTOR.DROP_ONNX_MODEL(model => 'x')",
        "DBMS_VECTOR.DROP_ONNX_MODEL('x', force => 1)",
        "DBMS_VECTOR.DROP_ONNX_MODEL('x', force => 'TRUE')",
        "DBMS_DATA_MINING.DROP_MODEL()",
        "DBMS_DATA_MINING.RENAME_MODEL('x')",
        "DBMS_DATA_MINING.RENAME_MODEL('x', 'y', 'z', 'w')",
        "DBMS_DATA_MINING.RENAME_MODEL('x', new_name => 'y')",
        "DBMS_SESSION.SLEEP(TRUE)",
        "DBMS_APPLICATION_INFO.SET_MODULE('x')",
        "DBMS_APPLICATION_INFO.SET_ACTION('x', 'y')",
        "DBMS_APPLICATION_INFO.SET_CLIENT_INFO(info => 'x')",
    ],
)
def test_wrong_arguments(session: EngineSession, call: str) -> None:
    binds = {"blob": Lob(b"x"), "text": "{}"}
    used = {name: value for name, value in binds.items() if f":{name}" in call}
    fails(session, 6550, f"BEGIN {call}; END;", "PLS-00306", **used)


def test_right_arguments(database: Database, session: EngineSession, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph())
    database.directories["DUMP"] = tmp_path
    for name, arguments in {
        "A": "'a', :blob",
        "B": "model_data => :blob, model_name => 'vec.b', metadata => :json",
        "C": "'c', :blob, JSON('{\"function\": \"embedding\"}')",
        "D": "'DUMP', 'm.onnx', 'd'",
        "E": "directory => 'DUMP', file_name => 'm.onnx', model_name => 'e', metadata => :json",
    }.items():
        given = {"blob": Lob(graph()), "json": METADATA}
        binds = {key: value for key, value in given.items() if f":{key}" in arguments}
        run(session, f"BEGIN DBMS_VECTOR.LOAD_ONNX_MODEL({arguments}); END;", **binds)
        assert name in database.models("vec")
    fails(session, 29532, "BEGIN DBMS_VECTOR.LOAD_ONNX_MODEL('DUMP', 'no.onnx', 'f'); END;")
    run(session, "BEGIN DBMS_VECTOR.DROP_ONNX_MODEL('a', force => TRUE); END;")
    run(session, "BEGIN DBMS_DATA_MINING.DROP_MODEL('b'); END;")
    run(session, "BEGIN DBMS_APPLICATION_INFO.SET_MODULE('m', action_name => 'a'); END;")
    assert (session.module, session.action) == ("m", "a")
    assert list(database.models("vec")) == ["C", "D", "E"]


# models


def test_the_bytes_loaded_are_the_bytes_kept(
    pair_database: Database, tiny_pair: PipelinePair
) -> None:
    models = pair_database.models("vec")
    for name, path in (("CLIP_IMG", tiny_pair.img), ("CLIP_TXT", tiny_pair.txt)):
        fingerprint, size, kept = models[name]
        assert kept.read_bytes() == path.read_bytes()
        assert size == path.stat().st_size
        assert len(fingerprint) == 64
    session = pair_database.open_session("vec")
    assert rows(
        session,
        "SELECT MODEL_NAME, MINING_FUNCTION, ALGORITHM, MODEL_SIZE, COMMENTS "
        "FROM USER_MINING_MODELS WHERE MODEL_NAME = 'CLIP_IMG'",
    ) == [("CLIP_IMG", "EMBEDDING", "ONNX", tiny_pair.img.stat().st_size, None)]
    found = run(session, "SELECT CREATION_DATE FROM USER_MINING_MODELS")
    assert found.columns[0].type == types.DATE
    assert rows(
        session,
        "SELECT ATTRIBUTE_NAME, ATTRIBUTE_TYPE, DATA_TYPE, DATA_LENGTH, VECTOR_INFO "
        "FROM USER_MINING_MODEL_ATTRIBUTES WHERE MODEL_NAME = 'CLIP_TXT' ORDER BY 1",
    ) == [
        ("DATA", "TEXT", "VARCHAR2", 32767, None),
        ("ORA$ONNXTARGET", "VECTOR", "VECTOR", None, "VECTOR(16,FLOAT32)"),
    ]
    session.close()


def test_vectors_are_those_of_the_pair(pair_database: Database, tiny_pair: PipelinePair) -> None:
    session = pair_database.open_session("vec")
    picture = clip_folders.photographs()[0][1]
    pictures = [clip_folders.as_png(picture), clip_folders.as_jpeg_444(picture)]
    texts = ["a photo of a cat", "un café ☕"]
    embedder = tiny_pair.embedder()
    wanted = [*embedder.embed_image(pictures), *embedder.embed_text(texts)]
    cases = [("CLIP_IMG", Lob(p)) for p in pictures] + [("clip_txt", t) for t in texts]
    for (name, value), vector in zip(cases, wanted, strict=True):
        sql = f"SELECT VECTOR_EMBEDDING({name} USING :d AS data) E FROM DUAL"  # noqa: S608
        found = run(session, sql, d=value)
        assert (found.columns[0].type, found.columns[0].vector_dims) == (types.VECTOR, 16)
        np.testing.assert_allclose(np.array(found.rows[0][0]), vector, atol=1e-6)
    session.close()


def test_embedding_within_sql(pair_database: Database) -> None:
    session = pair_database.open_session("vec")
    run(session, "CREATE TABLE T (S VARCHAR2(50), V VECTOR(16, FLOAT32))")
    run(session, "INSERT INTO T (S) VALUES ('a cat')")
    run(session, "INSERT INTO T (S) VALUES (NULL)")
    run(session, "UPDATE T SET V = VECTOR_EMBEDDING(clip_txt USING S AS DATA)")
    ((near,), (none,)) = rows(
        session,
        "SELECT VECTOR_DISTANCE(V, VECTOR_EMBEDDING(CLIP_TXT USING :q AS DATA), COSINE) D "
        "FROM T ORDER BY S NULLS LAST",
        q="a cat",
    )
    assert abs(near) < 1e-6
    assert none is None
    run(session, "CREATE VIEW W AS SELECT VECTOR_EMBEDDING(CLIP_TXT USING S AS DATA) E FROM T")
    assert len(rows(session, "SELECT E FROM W WHERE E IS NOT NULL")) == 1
    sql = "SELECT VECTOR_EMBEDDING({} USING {} AS {}) FROM DUAL"
    assert rows(session, sql.format("CLIP_IMG", ":d", "DATA"), d=None) == [(None,)]
    fails(session, 40284, sql.format("NOPE", "'x'", "DATA"))
    fails(session, 904, sql.format("CLIP_TXT", "'x'", "TEXT"))
    fails(session, 932, sql.format("CLIP_IMG", "'x'", "DATA"))
    fails(session, 932, sql.format("CLIP_TXT", ":d", "DATA"), d=Lob(b"x"))
    for statement in ("DROP VIEW W", "DROP TABLE T"):
        run(session, statement)
    session.close()


def test_granted_models(pair_database: Database) -> None:
    session, reader = pair_database.open_session("vec"), pair_database.open_session("ann")
    sql = "SELECT VECTOR_EMBEDDING(vec.clip_txt USING 'a cat' AS DATA) FROM DUAL"
    fails(reader, 40284, sql)
    run(session, "GRANT SELECT, ALTER ON MINING MODEL clip_txt TO ANN WITH GRANT OPTION")
    made = "SELECT TABLE_NAME, GRANTEE, PRIVILEGE, GRANTABLE, TYPE FROM USER_TAB_PRIVS_MADE"
    assert rows(session, made + " ORDER BY 3") == [
        ("CLIP_TXT", "ANN", "ALTER", "YES", "MINING MODEL"),
        ("CLIP_TXT", "ANN", "SELECT", "YES", "MINING MODEL"),
    ]
    assert len(rows(reader, sql)[0][0]) == 16
    assert rows(reader, "SELECT MODEL_NAME FROM ALL_MINING_MODELS") == [("CLIP_TXT",)]
    run(session, "REVOKE SELECT, ALTER ON MINING MODEL clip_txt FROM ANN")
    fails(reader, 40284, sql)
    fails(session, 40361, "GRANT EXECUTE ON MINING MODEL clip_txt TO ANN")
    fails(session, 40203, "GRANT SELECT ON MINING MODEL nope TO ANN")
    session.close()
    reader.close()


@pytest.mark.parametrize("follow", [True, False])
def test_grants_and_comments_through_a_rename(follow: bool) -> None:
    switches = {"grants_follow_rename": follow, "comments_follow_rename": follow}
    with Database({"VEC": "pw", "ANN": CLIENT}, **switches) as database:
        session = database.open_session("vec")
        for name in ("LIVE", "SLOT"):
            load(session, name, graph())
            run(session, f"COMMENT ON MINING MODEL {name} IS 'it''s {name}'")
            run(session, f"GRANT SELECT ON MINING MODEL {name} TO ANN")
        run(session, "BEGIN DBMS_DATA_MINING.RENAME_MODEL('slot', 'live', 'old'); END;")
        found = dict(rows(session, "SELECT MODEL_NAME, COMMENTS FROM USER_MINING_MODELS"))
        assert set(found) == {"LIVE", "OLD"}
        assert found["LIVE"] == ("it's SLOT" if follow else None)
        made = rows(session, "SELECT TABLE_NAME FROM USER_TAB_PRIVS_MADE ORDER BY 1")
        assert made == ([("LIVE",), ("OLD",)] if follow else [])
        session.close()


def test_rename_and_drop(database: Database, session: EngineSession) -> None:
    rename = "BEGIN DBMS_DATA_MINING.RENAME_MODEL(:a, :b, :c); END;"
    for name in ("A", "B", "C"):
        load(session, name, graph())
    fails(session, 40204, rename, a="A", b="B", c=None)
    fails(session, 40204, rename, a="A", b="B", c="C")
    fails(session, 40203, rename, a="X", b="B", c="Y")
    fails(session, 40281, rename, a="A", b="B", c="1")
    assert sorted(database.models("vec")) == ["A", "B", "C"]
    run(session, rename, a="A", b="B", c="D")
    assert sorted(database.models("vec")) == ["B", "C", "D"]
    kept = database.models("vec")["C"][2]
    run(session, "BEGIN DBMS_VECTOR.DROP_ONNX_MODEL('C'); END;")
    assert not kept.exists()
    fails(session, 40203, "BEGIN DBMS_VECTOR.DROP_ONNX_MODEL('C', TRUE); END;")
    fails(session, 1704, f"COMMENT ON MINING MODEL B IS '{'x' * 4001}'")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        *((40281, name) for name in ("1A", "_A", "A-B", "TABLE", "A" * 124, "")),
        *((1031, "ANN.A"), (40204, "taken"), (955, "T")),
    ],
)
def test_names(session: EngineSession, code: int, name: str) -> None:
    load(session, "TAKEN", graph())
    run(session, "CREATE TABLE T (N NUMBER)")
    binds = {"model_name": name, "model_data": Lob(graph()), "metadata": json.dumps(METADATA)}
    fails(session, code, LOAD, **binds)


@pytest.mark.parametrize(
    ("code", "data", "metadata"),
    [
        (54400, b"", METADATA),
        (54400, b"junk that is no model", METADATA),
        (54400, graph()[:-20], METADATA),
        (54400, graph(domain="ai.onnx.contrib"), METADATA),
        (54400, graph(opset=20), METADATA),
        (54408, graph(), METADATA | {"input": {"data": ["DATA"]}}),
        (54420, graph(), METADATA | {"input": {"input": ["A", "B"]}}),
        (54423, graph(output=["n", "m"]), METADATA),
        (54426, graph(shape=["n", "m"]), METADATA),
        (54427, graph(output=[2, 3]), METADATA),
        (40102, graph(), METADATA | {"function": "regression"}),
        (40102, graph(), METADATA | {"embeddingOutput": "nope"}),
        (40102, graph(), []),
    ],
)
def test_models_that_are_refused(
    database: Database, session: EngineSession, code: int, data: bytes, metadata: Any
) -> None:
    if code == 54423:
        code = 54426
    text = json.dumps(metadata)
    fails(session, code, LOAD, model_name="A", model_data=Lob(data), metadata=text)
    assert database.models("vec") == {}
    assert not list(database.folder.glob("*.onnx"))


def test_a_model_is_received_in_chunks(session: EngineSession) -> None:
    lob = Lob(graph() + b"\0" * 3_000_000)
    binds = {"model_name": "A", "model_data": lob, "metadata": json.dumps(METADATA)}
    fails(session, 54400, LOAD, **binds)
    assert lob.largest <= 2**20


def test_external_tensors_are_refused(session: EngineSession) -> None:
    model = onnx.load_from_string(graph())
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    binds = {"model_name": "A", "model_data": Lob(model.SerializeToString()), "metadata": "{}"}
    binds["metadata"] = json.dumps(METADATA)
    fails(session, 54400, LOAD, "external initializers", **binds)


# privileges and quotas


def test_privileges() -> None:
    users = {"ANN": CLIENT, "ROLE": User("pw", frozenset({"CREATE SESSION"}), {"CREATE TABLE"})}
    with Database(users) as database:
        session = database.open_session("ann")
        binds = {"model_name": "A", "model_data": Lob(graph()), "metadata": "{}"}
        fails(session, 1031, LOAD, **binds)
        fails(session, 1031, "CREATE TABLE T (N NUMBER)")
        fails(session, 1031, "CREATE VIEW V AS SELECT 1 X FROM DUAL")
        assert rows(session, "SELECT PRIVILEGE FROM SESSION_PRIVS") == [("CREATE SESSION",)]
        session.close()
        session = database.open_session("role")
        fails(session, 1950, "CREATE TABLE T (N NUMBER)")
        assert len(rows(session, "SELECT PRIVILEGE FROM SESSION_PRIVS")) == 2
        assert rows(session, "SELECT USERNAME, PRIVILEGE FROM USER_SYS_PRIVS") == [
            ("ROLE", "CREATE SESSION")
        ]
        session.close()


def test_quota() -> None:
    size = len(graph())
    granted = frozenset({"CREATE SESSION", "CREATE TABLE", "CREATE MINING MODEL"})
    with Database({"VEC": User("pw", granted, quota_bytes=40_000)}) as database:
        session = database.open_session("vec")
        ((before, most),) = rows(session, "SELECT BYTES, MAX_BYTES FROM USER_TS_QUOTAS")
        load(session, "A", graph())
        ((after, _),) = rows(session, "SELECT BYTES, MAX_BYTES FROM USER_TS_QUOTAS")
        assert (after - before, most) == (size, 40_000)
        run(session, "CREATE TABLE T (B BLOB)")
        fails(session, 1536, "INSERT INTO T VALUES (:b)", b=Lob(b"x" * 50_000))
        assert rows(session, "SELECT * FROM T") == []
        database.users["VEC"].quota_bytes = after
        binds = {"model_name": "B", "model_data": Lob(graph()), "metadata": json.dumps(METADATA)}
        fails(session, 1536, LOAD, **binds)
        assert list(database.models("vec")) == ["A"]
        session.close()


# faults


def test_statements_are_counted_within_blocks(database: Database, session: EngineSession) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")
    seen: list[tuple[str, int, str]] = []
    faults = database.faults
    start = faults.statements
    faults.before_statement = lambda i, text, _: seen.append(("before", i - start, text[:6]))
    faults.after_statement = lambda i, text, _: seen.append(("after", i - start, text[:6]))
    run(session, "BEGIN INSERT INTO T VALUES (1); EXECUTE IMMEDIATE 'DROP TABLE T'; COMMIT; END;")
    assert seen == [
        ("before", 0, "BEGIN "),
        ("before", 1, "INSERT"),
        ("after", 1, "INSERT"),
        ("before", 2, "DROP T"),
        ("after", 2, "DROP T"),
        ("before", 3, "COMMIT"),
        ("after", 3, "COMMIT"),
        ("after", 0, "BEGIN "),
    ]
    session.commit()
    assert seen[-1] == ("after", 4, "COMMIT")
    assert database.statements[-1] == (session.unique_id, "COMMIT")


def test_a_crash_in_a_block(database: Database, session: EngineSession) -> None:
    run(session, "CREATE TABLE T (N NUMBER)")

    def crash(_: int, text: str, __: EngineSession) -> None:
        if text.startswith("DROP"):
            raise ConnectionDropped

    database.faults.before_statement = crash
    with pytest.raises(ConnectionDropped):
        run(
            session,
            "BEGIN INSERT INTO T VALUES (1); COMMIT; INSERT INTO T VALUES (2); "
            "EXECUTE IMMEDIATE 'DROP TABLE T'; EXCEPTION WHEN OTHERS THEN NULL; END;",
        )
    session.close()
    other = database.open_session("vec")
    assert rows(other, "SELECT N FROM T") == [(1,)]
    other.close()


def test_a_crash_within_a_rename(database: Database, session: EngineSession) -> None:
    load(session, "LIVE", graph())
    load(session, "SLOT", graph())
    database.faults.crash_in_rename = True
    with pytest.raises(ConnectionDropped):
        run(session, "BEGIN DBMS_DATA_MINING.RENAME_MODEL('SLOT', 'LIVE', 'OLD'); END;")
    assert sorted(database.models("vec")) == ["OLD", "SLOT"]


def test_faults(database: Database, session: EngineSession) -> None:
    faults = database.faults
    run(session, "CREATE TABLE T (N NUMBER)")
    faults.fail_statement = {faults.statements + 1: OraError(60, "deadlock detected")}
    run(session, "INSERT INTO T VALUES (1)")
    fails(session, 60, "INSERT INTO T VALUES (2)")
    faults.fail_statement = lambda _, text: OraError(4031, "no") if "3" in text else None
    fails(session, 4031, "INSERT INTO T VALUES (3)")
    faults.quota_exceeded = True
    fails(session, 1536, "INSERT INTO T VALUES (4)")
    binds = {"model_name": "A", "model_data": Lob(graph()), "metadata": json.dumps(METADATA)}
    fails(session, 1536, LOAD, **binds)
    faults.quota_exceeded = False
    faults.refused_operators = {":Gather"}
    binds["model_data"] = Lob(graph())
    fails(session, 54400, LOAD, "operator :Gather", **binds)
    faults.refused_operators = set()
    load(session, "A", graph())
    faults.wrong_vectors = lambda vector: vector[::-1] + 1
    sql = "SELECT VECTOR_EMBEDDING(A USING 'dog' AS DATA) FROM DUAL"
    assert rows(session, sql) == [(array("f", [9, 8, 7]),)]


def test_a_stall_ends_with_a_break(database: Database, session: EngineSession) -> None:
    faults = database.faults
    faults.stall_statement = lambda *_: 60.0
    call = call_of("SELECT 1 FROM DUAL")
    threading.Timer(0.1, call.cancelled.set).start()
    with pytest.raises(OraError, match="ORA-01013"):
        session.handle(call)
    done = threading.Event()
    faults.stall_statement = {faults.statements: done}
    threading.Timer(0.1, done.set).start()
    assert rows(session, "SELECT 1 FROM DUAL") == [(1,)]
    faults.stall_statement = {faults.statements: 0.05}
    assert rows(session, "SELECT 1 FROM DUAL") == [(1,)]


def test_a_worker_that_dies_drops_the_connection(
    database: Database, session: EngineSession, tmp_path: Path
) -> None:
    load(session, "A", graph())
    sql = "SELECT VECTOR_EMBEDDING(A USING 'dog' AS DATA) FROM DUAL"
    process = database.worker.process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(ConnectionDropped):
        run(session, sql)
    assert rows(session, sql) == [(array("f", [6, 7, 8]),)]


def test_the_worker_runs_in_the_python_it_is_told(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\necho started >> {tmp_path / "log"}\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    with Database({"VEC": "pw"}, worker_python=str(script)) as database:
        session = database.open_session("vec")
        load(session, "A", graph())
        session.close()
    assert (tmp_path / "log").read_text() == "started\n"


def test_a_stranger_s_model(database: Database, session: EngineSession, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(graph())
    before = database.faults.statements
    database.load_foreign_model("vec", "CLIP_IMG", path, METADATA)
    assert database.faults.statements == before
    assert rows(session, "SELECT MODEL_NAME, COMMENTS FROM USER_MINING_MODELS") == [
        ("CLIP_IMG", None)
    ]


def test_nothing_is_left_behind() -> None:
    with Database({"VEC": "pw"}) as database:
        session = database.open_session("vec")
        load(session, "A", graph())
        session.close()
        assert list(database.folder.iterdir())
    assert not database.folder.exists()
