"""Statements about columns of vectors that are registered: the rest of `statements`.

Names are those that `check_column` has passed. Unverified on a real database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from oml_mlflow.names import TXT
from oml_mlflow.pair.texts import oracle_text_expression
from oml_mlflow.planning.records import Dependant
from oml_mlflow.targets.oracle.quoting import model_token
from oml_mlflow.targets.oracle.statements import KEY, STORED

CLAIMS = (
    "SELECT NAME FROM OML_MLFLOW_COLUMNS WHERE UPPER(COLUMN_NAME) = UPPER(:column_name) "
    "AND NAME <> :name ORDER BY NAME"
)
FORGET_COLUMN = "DELETE FROM OML_MLFLOW_COLUMNS WHERE NAME = :name AND COLUMN_NAME = :column_name"
INSERT_COLUMN = (
    "INSERT INTO OML_MLFLOW_COLUMNS (NAME, COLUMN_NAME, MODEL_NAME, SOURCE, KEY_COLUMN, GEOMETRY, "
    "STORED_COLUMN, MODIFIED_COLUMN) "
    "VALUES (:name, :column_name, :model_name, :source, :key, :geometry, :stored, :modified)"
)
NOTE_GEOMETRY = (
    "UPDATE OML_MLFLOW_COLUMNS SET GEOMETRY = :geometry WHERE COLUMN_NAME = :column_name"
)
NOTE_SINCE = (
    "INSERT INTO OML_MLFLOW_KEPT (NAME, COLUMN_NAME, STORED_COLUMN, GEOMETRY, SINCE) "
    "VALUES (:name, :column_name, :stored, :geometry, SYSTIMESTAMP)"
)
READ_KEPT = (
    "SELECT K.COLUMN_NAME, C.MODEL_NAME, C.SOURCE, C.KEY_COLUMN, K.GEOMETRY, K.STORED_COLUMN "
    "FROM OML_MLFLOW_KEPT K JOIN OML_MLFLOW_COLUMNS C ON C.NAME = K.NAME "
    "AND C.COLUMN_NAME = K.COLUMN_NAME WHERE K.NAME = :name ORDER BY K.COLUMN_NAME, K.STORED_COLUMN"
)
# added by releases that came later, in the order of `Dependant`
_LATER = (KEY, "GEOMETRY", STORED, "MODIFIED_COLUMN")


def look_at_columns(table: str, columns: Sequence[str]) -> str:
    """Return a query without rows that fails if a column does not exist."""
    return f"SELECT {', '.join(columns)} FROM {table} WHERE 1 = 0"  # noqa: S608


def read_columns(there: Collection[str]) -> str:
    """Return the query of a name's registered columns; columns that are not there are NULL."""
    later = ", ".join(column if column in there else "TO_CHAR(NULL)" for column in _LATER)
    return (
        f"SELECT COLUMN_NAME, MODEL_NAME, SOURCE, {later} FROM OML_MLFLOW_COLUMNS "  # noqa: S608
        "WHERE NAME = :name ORDER BY COLUMN_NAME"
    )


def embedded(column: Dependant) -> str:
    """Return the expression that embeds a registered column's source."""
    source = column.source or "<source>"
    value = oracle_text_expression(source) if column.model.endswith(TXT.upper()) else source
    return f"VECTOR_EMBEDDING({model_token(column.model)} USING {value} AS DATA)"


def count_rows(column: Dependant) -> str:
    """Return the query that counts rows with a source, and those of them without a vector."""
    table, stored = column.table, column.stored
    return (
        f"SELECT COUNT(*), COUNT(CASE WHEN {stored} IS NULL THEN 1 END) FROM {table} "  # noqa: S608
        f"WHERE {column.source} IS NOT NULL"
    )


def list_missing(column: Dependant, most: int, *, behind: bool) -> str:
    """Return the query of the next keys without a vector, behind ``:after`` or from the first."""
    table, stored = column.table, column.stored
    after = f"{column.key} > :after AND " if behind else ""
    return (
        f"SELECT {column.key} FROM {table} WHERE {after}{stored} IS NULL "  # noqa: S608
        f"AND {column.source} IS NOT NULL ORDER BY {column.key} "
        f"FETCH FIRST {int(most)} ROWS ONLY"
    )


def fill_rows(column: Dependant) -> str:
    """Return the statement that embeds rows without a vector from one key to another."""
    table, stored = column.table, column.stored
    return (
        f"UPDATE {table} SET {stored} = {embedded(column)} "  # noqa: S608
        f"WHERE {column.key} BETWEEN :first AND :last AND {stored} IS NULL "
        f"AND {column.source} IS NOT NULL"
    )


def sample_rows(column: Dependant, most: int, seed: int) -> str:
    """Return the query of random rows: key, vector, and what the live model gives."""
    table, stored = column.table, column.stored
    return (
        f"SELECT {column.key}, {stored}, {embedded(column)} AS FRESH FROM (SELECT {column.key}, "  # noqa: S608
        f"{stored}, {column.source} FROM {table} WHERE {stored} IS NOT NULL "
        f"AND {column.source} IS NOT NULL ORDER BY ORA_HASH({column.key}, 4294967295, {int(seed)}) "
        f"FETCH FIRST {int(most)} ROWS ONLY)"
    )


def count_keys(table: str, key: str) -> str:
    """Return the query that counts rows, and different keys."""
    return f"SELECT COUNT(*), COUNT(DISTINCT {key}) FROM {table}"  # noqa: S608
