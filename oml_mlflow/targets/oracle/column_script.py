"""The part of a promotion's script that takes stored vectors along: expand and contract.

DDL commits and frees locks, so that columns and models can't change in one transaction: a column is
added and filled, and once the models are swapped, a view is replaced that applications read. No
column is renamed or dropped, and there are no triggers. Unverified on a real database.
"""

# every name in it has passed `check_column`, and every value is quoted
# ruff: noqa: S608

from __future__ import annotations

from dataclasses import replace

from oml_mlflow.names import check_column
from oml_mlflow.planning.records import ColumnSwap, Dependant, Work
from oml_mlflow.targets.oracle.column_statements import embedded
from oml_mlflow.targets.oracle.quoting import literal

_ROWS_PER_COMMIT = 256


def live_view(column: Dependant) -> str:
    """Return the view that always shows the vectors in use, such as ``DOCS_V_LIVE``.

    It is of the models' owner, also where the table is another user's (``APP_DOCS_V_LIVE``).
    """
    return f"{column.name.replace('.', '_')}_LIVE".upper()


def fill_column(work: Work, swap: ColumnSwap, column: Dependant) -> str:
    """Return the block that adds a column, unless it is kept, and embeds all rows into it."""
    table = _checked(column)
    name, registered = literal(work.entry.name), literal(swap.column)
    grants = (
        f"-- {table} is another user's, who grants first (the option: if others read the view):\n"
        f"--   GRANT SELECT ON {table} TO <this user> WITH GRANT OPTION;\n"
        f"--   GRANT UPDATE, ALTER ON {table} TO <this user>;\n"
        if "." in table
        else ""
    )
    added = f"ALTER TABLE {table} ADD ({swap.incoming} VECTOR({int(work.entry.dims)}, FLOAT32))"
    return f"""-- {swap.incoming} beside {swap.column}, filled by the new model, while readers use
-- {column.stored}. It may take hours; stopped, the script can be run again from here on.
{grants}DECLARE
  is_there EXCEPTION;
  PRAGMA EXCEPTION_INIT(is_there, -1430);
BEGIN
  EXECUTE IMMEDIATE {literal(added)};
EXCEPTION
  WHEN is_there THEN NULL;
END;
/
BEGIN
  INSERT INTO OML_MLFLOW_KEPT (NAME, COLUMN_NAME, STORED_COLUMN, GEOMETRY, SINCE)
    VALUES ({name}, {registered}, {literal(swap.incoming)}, {literal(swap.geometry)}, SYSTIMESTAMP);
  COMMIT;
EXCEPTION
  WHEN DUP_VAL_ON_INDEX THEN NULL;
END;
/
UPDATE OML_MLFLOW_KEPT SET NEXT_SINCE = SYSTIMESTAMP WHERE NEXT_SINCE IS NULL AND
  {_kept(work, swap.column, swap.incoming)};
COMMIT;
{embed_due(work, swap, column)}"""


def swap_column(work: Work, swap: ColumnSwap, column: Dependant) -> str:
    """Return the statements that show the new column as live, once its model is."""
    table = _checked(column)
    name, registered = literal(work.entry.name), literal(swap.column)
    view = (
        f"CREATE OR REPLACE VIEW {live_view(column)} AS SELECT {column.key}, {swap.incoming} AS "
        f"{column.name.rpartition('.')[2]} FROM {table}"
    )
    key = f"NAME = {name} AND COLUMN_NAME = {registered}"
    return f"""-- The view that applications read: the old vectors until here, then the new ones.
{view};
UPDATE OML_MLFLOW_KEPT SET SINCE = NEXT_SINCE, NEXT_SINCE = NULL WHERE
  {_kept(work, swap.column, swap.incoming)};
UPDATE OML_MLFLOW_COLUMNS SET STORED_COLUMN = {literal(swap.incoming)},
  GEOMETRY = {literal(swap.geometry)} WHERE {key};
COMMIT;
-- {column.stored} stays for a way back. Once that is not wanted:
--   ALTER TABLE {table} SET UNUSED ({column.stored});"""


def embed_due(work: Work, swap: ColumnSwap, column: Dependant) -> str:
    """Return the block that embeds row by row; a row that can't be is told, and stays NULL.

    Rows without a vector, and those that were changed since the column is filled, where a column
    tells so.
    """
    table = _checked(column)
    value = embedded(replace(column, model=work.incoming[swap.side]))
    due = f"{swap.incoming} IS NULL"
    if column.modified:
        since = f"SELECT SINCE FROM OML_MLFLOW_KEPT WHERE {_kept(work, swap.column, swap.incoming)}"
        due = f"({due} OR {column.modified} >= ({since}))"
    return f"""DECLARE
  done NUMBER := 0;
  refused NUMBER := 0;
BEGIN
  FOR due IN (SELECT {column.key} AS ID_OF_ROW FROM {table}
      WHERE {column.source} IS NOT NULL AND {due}) LOOP
    BEGIN
      UPDATE {table} SET {swap.incoming} =
        {value}
        WHERE {column.key} = due.ID_OF_ROW;
      done := done + 1;
    EXCEPTION
      WHEN OTHERS THEN
        refused := refused + 1;
        DBMS_OUTPUT.PUT_LINE('not embedded: ' || due.ID_OF_ROW || ': ' || SQLERRM);
    END;
    IF MOD(done, {_ROWS_PER_COMMIT}) = 0 THEN
      COMMIT;
    END IF;
  END LOOP;
  COMMIT;
  DBMS_OUTPUT.PUT_LINE(done || ' rows of {swap.column} embedded, ' || refused || ' refused');
END;
/"""


def _kept(work: Work, column: str, stored: str) -> str:
    """Return the condition for the row of one column of vectors."""
    return (
        f"NAME = {literal(work.entry.name)} AND COLUMN_NAME = {literal(column)} "
        f"AND STORED_COLUMN = {literal(stored)}"
    )


def _checked(column: Dependant) -> str:
    """Return a column's table, once all names that go into the script are plain ones."""
    for each in filter(None, (column.stored, column.source, column.key, column.modified)):
        check_column(f"{column.table}.{each}")
    return column.table
