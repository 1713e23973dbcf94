"""After a full run with a marked password, it is nowhere."""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path

import oracledb
import pytest
from click.testing import CliRunner
from oracle_fixtures import PASSWORD, running
from oracle_server.statement import OraError

import oml_mlflow
from oml_mlflow import PipelinePair, dry_run, promote
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import OmlMlflowError

MARKS = (PASSWORD.encode(), PASSWORD[::-1].encode(), PASSWORD.encode("utf-16-le"))


def told_by(error: BaseException | None) -> list[bytes]:
    """Return everything that an error and those behind it say."""
    told, waiting, seen = list[bytes](), [error], set[int]()
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        told.append(f"{found} {found!r} {found.args} {vars(found)}".encode())
        if isinstance(found, OmlMlflowError):
            told.append(f"{found.message} {found.hint} {found.details}".encode())
            told.append(pickle.dumps(found))
        waiting += [found.__cause__, found.__context__]
    return told


def failed(run: Callable[[], object]) -> bytes:
    with pytest.raises(OmlMlflowError) as err:
        run()
    return b"\n".join(told_by(err.value))


def rows_of(path: Path) -> bytes:
    """Return every value in an SQLite file."""
    connection = sqlite3.connect(path)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    found = [connection.execute(f'SELECT * FROM "{table}"').fetchall() for (table,) in tables]  # noqa: S608
    connection.close()
    return repr(found).encode()


def test_the_password_is_nowhere_after_a_full_run(
    mlflow_store: Path,
    tiny_pair: PipelinePair,
    resaved_pair: PipelinePair,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    log = logging.FileHandler(tmp_path / "debug.log")
    logging.getLogger().addHandler(log)
    levels = {name: logging.getLogger(name).level for name in ("oml_mlflow", "oracledb")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    shown: list[bytes] = []

    def run(*arguments: str, exit_code: int = 0) -> None:
        done = CliRunner().invoke(cli, [*arguments, "--target", uri])
        found = done.exception.exit_code if isinstance(done.exception, OmlMlflowError) else None
        assert (done.exit_code if found is None else found) == exit_code, done.output
        shown.extend([done.output.encode(), done.stderr.encode(), *told_by(done.exception)])
        count = len(list(tmp_path.glob("output-*")))
        (tmp_path / f"output-{count}.txt").write_text(done.output)

    with running(monkeypatch) as oracle:
        uri = oracle.uri
        for pair in (tiny_pair, resaved_pair):
            oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
        run("preflight", "models:/clip/1", "--probe")
        for form in (["--dry-run"], ["--dry-run", "--json"], ["--sql"]):
            run("promote", "models:/clip/1", *form)
        run("promote", "models:/clip/1")
        target = oracle.target()
        planned = dry_run("models:/clip/2", target)
        shown.append(f"{planned!r} {planned.to_json()} {target.script(planned)}".encode())
        done = promote("models:/clip/2", target)
        shown.append(f"{done!r} {target!r} {vars(target)}".encode() + pickle.dumps(done))
        run("rollback", "CLIP", "--json")
        run("verify", "clip", "--json", "--html", str(tmp_path / "report.html"))
        for verb in ("models", "history"):
            run(verb)
            run(verb, "--json")
        oracle.database.faults.refuse_login = OraError(1017, f"refused {PASSWORD}")
        run("models", exit_code=1)
        shown.append(failed(lambda: promote("models:/clip/2", oracle.target())))
        oracle.database.faults.refuse_login = None
        monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD[::-1])
        run("models", exit_code=1)
        monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
        shown.append(failed(lambda: oml_mlflow.open_target(f"oracle://vec:{PASSWORD}@h/s")))
        oracle.database.faults.fail_statement = lambda index, text: (
            OraError(4036, "too much") if "RENAME_MODEL" in text else None
        )
        shown.append(failed(lambda: promote("models:/clip/2", target)))
        oracle.database.faults.fail_statement = None
        oml_mlflow.connect("vec", PASSWORD, oracle.server.dsn)
        from oml_mlflow.oml4py import connected_target

        shown.append(f"{connected_target()!r} {vars(connected_target())}".encode())
        shown.append(pickle.dumps(vars(connected_target())["_settings"]))
        oml_mlflow.disconnect()
        with oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection:
            cursor = connection.cursor()
            tables = cursor.execute("SELECT TABLE_NAME FROM USER_TABLES").fetchall()
            assert len(tables) >= 6
            for (table,) in tables:
                for row in cursor.execute(f"SELECT * FROM {table}"):  # noqa: S608
                    shown.extend(
                        part if isinstance(part, bytes) else str(part).encode()
                        for part in (v.read() if isinstance(v, oracledb.LOB) else v for v in row)
                    )
            models = cursor.execute("SELECT COMMENTS FROM USER_MINING_MODELS").fetchall()
            shown.append(repr(models).encode())
        shown.append("\n".join(oracle.statements()).encode())
        shown.append(rows_of(mlflow_store / "mlflow.db"))
        oracle.server.wait_until_idle()
        log.close()
        logging.getLogger().removeHandler(log)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        captured = capfd.readouterr()
        shown += [captured.out.encode(), captured.err.encode()]
        # MLflow's database and artifacts, plans, pages, the log, the stand-in's files, the spool
        paths = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(paths) > 30
        assert "loaded CLIP_IMG_S1" in (tmp_path / "debug.log").read_text()
        found = [str(path) for path in paths if any(m in path.read_bytes() for m in MARKS)]
        found += [repr(part[:300]) for part in shown if any(mark in part for mark in MARKS)]
    assert found == []
