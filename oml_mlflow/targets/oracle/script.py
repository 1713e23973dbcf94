"""The SQL*Plus script of a promotion, for a DBA to run by hand."""

# every name and value in it is quoted by `quoting` or `statements`
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oml_mlflow.names import IMG
from oml_mlflow.planning.records import COLUMN, INDEX, Dependant, LoadedModel, Work
from oml_mlflow.targets.oracle import quoting
from oml_mlflow.targets.oracle import statements as sql
from oml_mlflow.targets.oracle.column_script import embed_due, fill_column, swap_column
from oml_mlflow.targets.oracle.journal import names_by_side
from oml_mlflow.targets.oracle.load import ATTRIBUTE, comment_text, load_metadata

DIRECTORY = "OML_MLFLOW_FILES"
_NOW = """TO_CHAR(SYS_EXTRACT_UTC(SYSTIMESTAMP), 'YYYY-MM-DD"T"HH24:MI:SS.FF6"+00:00"')"""


def promotion_script(
    work: Work,
    models: Sequence[LoadedModel],
    files: Mapping[str, Path],
    dependants: Sequence[Dependant] = (),
) -> str:
    """Return the script that does what a promotion would do. Nothing is run.

    It is for SQL*Plus, whose lines are short and whose blocks end in ``/``. It can't compare
    vectors with references: that is `oml-mlflow verify` afterwards.

    Args:
        work: What is to be done.
        models: Models to load, under slot names, or kept ones, for their sizes.
        files: Files to load, by model name or by side.
        dependants: What depends on the live models: registered columns go live with new ones.
    """
    known = {each.name: each for each in dependants if each.kind == COLUMN}
    swaps = [(swap, known[swap.column]) for swap in work.columns]
    loads = [(m, path) for m in models if (path := files.get(m.name) or files.get(m.side))]
    # to whoever finds it, it is a load, and can be undone: only this script knows of columns
    left = [each for each in dependants if each.kind == INDEX] if swaps else []
    parts = [_head(work, loads, left), _tables(), _journal(replace(work, columns=()))]
    parts += [_load(model, path) for model, path in loads]
    if loads:
        parts.append(_look([model for model, _path in loads]))
    parts += [fill_column(work, swap, column) for swap, column in swaps]
    if swaps:
        parts.append("-- What was written meanwhile.")
    parts += [embed_due(work, swap, column) for swap, column in swaps]
    parts.append(_swap(work, models))
    parts += [swap_column(work, swap, column) for swap, column in swaps]
    parts.append(_clean(work))
    return "\n\n".join(parts) + "\n"


def _head(work: Work, loads: Sequence[tuple[LoadedModel, Path]], left: Sequence[Dependant]) -> str:
    entry = work.entry
    lines = [
        f"-- Makes {_remark(entry.origin)} generation {entry.generation} of {entry.name}; until "
        f"then generation {work.before} is live.",
        "-- For SQL*Plus, as the owner of the models. It was printed by oml-mlflow; nothing was "
        "run.",
        "-- If it stops, run it no further: the next `oml-mlflow promote` finishes or undoes it.",
    ]
    if loads:
        lines += [
            "--",
            f"-- Needs these files in the folder of DIRECTORY {DIRECTORY}, which a DBA makes:",
            f"--   CREATE DIRECTORY {DIRECTORY} AS '/folder/on/the/database/server';",
            f"--   GRANT READ, WRITE ON DIRECTORY {DIRECTORY} TO <this user>;",
            *(f"--   {_remark(p.name)}  sha256 {m.fingerprint}" for m, p in loads),
        ]
    for each in left:
        lines.append(f"-- {each.kind} {each.name} is not taken along: make it anew afterwards.")
    lines += ["WHENEVER SQLERROR EXIT FAILURE ROLLBACK", "SET DEFINE OFF"]
    return "\n".join(lines)


def _tables() -> str:
    made = ";\n".join(sql.CREATE_TABLES.values())
    added = "\n".join(f"{block}\n/" for block in sql.ADD_COLUMNS.values())
    return f"""-- Tables of oml_mlflow; those that are there stay as they are.
{made};
{sql.NOTE_VERSION}
/
-- Tables of an earlier release get the columns that they lack.
{added}"""


def _journal(work: Work) -> str:
    name, before = quoting.literal(work.entry.name), int(work.before)
    written = json.dumps(json.loads(work.to_json()), separators=(",\n", ":"))
    if before:
        text = f"oml_mlflow: generation {before} is not live, or something is under way"
        otherwise = f"RAISE_APPLICATION_ERROR(-{sql.STALE_CODE}, {quoting.literal(text)})"
    else:
        otherwise = (
            "INSERT INTO OML_MLFLOW_LIVE (NAME, GENERATION, PHASE, WORK, CHANGED_AT)\n"
            f"      VALUES ({name}, 0, 'loading', journal, {_NOW})"
        )
    return f"""-- The lock: fails if another promoter holds it. Counts while this session is alive.
INSERT INTO OML_MLFLOW_LOCK (NAME, HOLDER, PURPOSE, SINCE, SESSION_ID)
  VALUES ({name}, 'a script in SQL*Plus', 'generation {int(work.entry.generation)}',
    {_NOW},
    DBMS_SESSION.UNIQUE_SESSION_ID);
COMMIT;

-- The journal: says what is under way, until it is whole again.
DECLARE
  journal CLOB := {quoting.literal(written)};
BEGIN
  UPDATE OML_MLFLOW_LIVE SET PHASE = 'loading', WORK = journal,
    CHANGED_AT = {_NOW}
    WHERE NAME = {name} AND GENERATION = {before} AND PHASE = 'whole';
  IF SQL%ROWCOUNT = 0 THEN
    {otherwise};
  END IF;
  COMMIT;
END;
/"""


def _load(model: LoadedModel, path: Path) -> str:
    metadata = json.dumps(load_metadata(model), separators=(",\n", ":"))
    comment = sql.comment(model.name, comment_text(model, line_breaks=True))
    return f"""-- Loads {_remark(path.name)} under a name that nothing uses yet. Commits by itself.
BEGIN
  DBMS_VECTOR.LOAD_ONNX_MODEL(
    directory => {quoting.literal(DIRECTORY)},
    file_name => {quoting.literal(path.name)},
    model_name => {quoting.literal(model.name)},
    metadata => JSON({quoting.literal(metadata)}));
  EXECUTE IMMEDIATE {quoting.literal(comment)};
END;
/"""


def _look(models: Sequence[LoadedModel]) -> str:
    names = ", ".join(quoting.literal(model.name) for model in models)
    lines = [
        "-- Look at it before the swap. Sizes in bytes should be: "
        + ", ".join(f"{model.name} {model.size_bytes}" for model in models),
        f"SELECT MODEL_NAME, MODEL_SIZE FROM USER_MINING_MODELS WHERE MODEL_NAME IN ({names});",
    ]
    for model in models:
        token = quoting.model_token(model.name)
        if model.side == IMG:
            picture = f"TO_BLOB(BFILENAME('{DIRECTORY}', 'some.jpg'))"
            lines.append(
                f"-- SELECT VECTOR_EMBEDDING({token} USING {picture} AS {ATTRIBUTE}) FROM DUAL;"
            )
        else:
            call = f"VECTOR_EMBEDDING({token} USING 'a photo of a cat' AS {ATTRIBUTE})"
            lines.append(f"SELECT {call} FROM DUAL;")
    return "\n".join(lines)


def _swap(work: Work, models: Sequence[LoadedModel]) -> str:
    size_of = {model.name: model.size_bytes for model in models}
    names = names_by_side(work)
    block = sql.swap_block(
        work.entry,
        work.before,
        {side: size_of[n.slot] for side, n in names.items() if n.slot in size_of},
        revokes=work.revokes,
        renames=[(n.slot, n.live, n.kept) for n in names.values()],
        grants=work.grants,
        at=_NOW,
    )
    return f"""-- The swap. Each rename commits by itself: between the two the pair is mixed, and
-- until the grants behind them others may not be able to use the new models. PHASE in
-- OML_MLFLOW_LIVE is 'swapping' for exactly that long:
--   SELECT GENERATION, PHASE FROM OML_MLFLOW_LIVE WHERE NAME = {quoting.literal(work.entry.name)};
{block}
/"""


def _clean(work: Work) -> str:
    name = quoting.literal(work.entry.name)
    lines = ["-- Clean-up: drops generations that are too many, and gives the lock back."]
    for dropped in work.drops:
        call = (
            f"DBMS_VECTOR.DROP_ONNX_MODEL(model_name => {quoting.literal(dropped)}, force => TRUE)"
        )
        lines += [f"BEGIN {call}; END;", "/"]
    lines += [
        f"UPDATE OML_MLFLOW_LIVE SET PHASE = 'whole', WORK = NULL, CHANGED_AT = {_NOW}",
        f"  WHERE NAME = {name} AND PHASE = 'cleaning';",
        f"DELETE FROM OML_MLFLOW_LOCK WHERE NAME = {name}",
        "  AND SESSION_ID = DBMS_SESSION.UNIQUE_SESSION_ID;",
        "COMMIT;",
        f"-- Then compare the vectors: oml-mlflow verify {work.entry.name}",
    ]
    return "\n".join(lines)


def _remark(text: str) -> str:
    """Return a text without line breaks, for a comment."""
    return " ".join(text.split())
