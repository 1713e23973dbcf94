"""What only a real database knows of stored vectors that follow their model."""

from __future__ import annotations

import time
from dataclasses import replace

import sqlplus

from live.conftest import Say, Schema, execute, rows
from oml_mlflow.commands.columns import check_columns, columns, fill
from oml_mlflow.names import TXT
from oml_mlflow.planning.records import COLUMN, ColumnSwap, Work
from oml_mlflow.promotion.candidate import Candidate
from oml_mlflow.promotion.promote import promote_candidate
from oml_mlflow.targets.oracle.column_script import embed_due, fill_column, live_view, swap_column

ROWS = 20


def test_stored_vectors_by_the_blocks_of_a_script(
    schema: Schema, candidates: tuple[Candidate, ...], say: Say
) -> None:
    target, table, live = schema.target(), f"{schema.name}_DOCS", f"{schema.name}_TXT"
    promote_candidate(candidates[0], target, schema.name)
    dims = candidates[0].pair.dims
    with schema.connect() as connection:
        execute(
            connection,
            f"CREATE TABLE {table} (ID NUMBER, BODY VARCHAR2(200), CHANGED TIMESTAMP, "
            f"V VECTOR({dims}, FLOAT32))",
        )
        insert = f"INSERT INTO {table} (ID, BODY, CHANGED) VALUES (:id, :body, SYSTIMESTAMP)"  # noqa: S608
        for n in range(ROWS):
            execute(connection, insert, id=n, body=f"text number {n}")
        connection.commit()
    chosen = {"source": "BODY", "side": TXT, "key": "ID", "modified": "CHANGED"}
    [column] = [
        each
        for each in columns(schema.name, target, add=f"{table}.V", **chosen)
        if each.kind == COLUMN
    ]
    begun = time.perf_counter()
    [filled] = fill(schema.name, target)
    say(f"seconds in which fill embeds {ROWS} rows", f"{time.perf_counter() - begun:.2f}")
    assert (filled.rows, filled.left) == (ROWS, 0)
    [check] = check_columns(schema.name, target)
    assert (check.ok, check.sampled) == (True, ROWS)

    # what loads and swaps models is that of any promotion; here the live one fills the new column
    with target.session("live suite", create=False) as session:
        entry = session.journal.ledger(schema.name)[-1]
    swap = ColumnSwap(f"{table}.V", TXT, "V_G2", "V_G1", "g-another", entry.geometry)
    work = Work(replace(entry, generation=2), 1, incoming={TXT: live}, columns=(swap,))
    view = live_view(column)
    with schema.connect() as connection, schema.connect() as reader, reader.cursor() as cursor:
        cursor.arraysize = cursor.prefetchrows = 1
        cursor.execute(f"SELECT ID, V FROM {table} ORDER BY ID")  # noqa: S608
        read = [cursor.fetchone()]
        begun = time.perf_counter()
        sqlplus.run(connection, fill_column(work, swap, column))
        say(f"seconds in which the script fills {ROWS} rows", f"{time.perf_counter() - begun:.2f}")
        read += cursor.fetchall()
        say("a query that was open while the column was added", f"{len(read)} of {ROWS} rows")
        changed = f"UPDATE {table} SET BODY = 'another', CHANGED = SYSTIMESTAMP WHERE ID = 7"  # noqa: S608
        execute(connection, changed)
        connection.commit()
        sqlplus.run(connection, embed_due(work, swap, column))
        sqlplus.run(connection, swap_column(work, swap, column))
        stored, shown = (
            {key: list(vector) for key, vector in rows(connection, f"SELECT ID, V FROM {name}")}  # noqa: S608
            for name in (table, view)
        )
        text = f"SELECT VECTOR_EMBEDDING({live} USING BODY AS DATA) FROM {table} WHERE ID = 7"  # noqa: S608
        [(fresh,)] = rows(connection, text)
    assert shown.pop(7) == list(fresh) != stored.pop(7)
    assert shown == stored
