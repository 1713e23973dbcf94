# ruff: noqa: T201 -- what a user sees belongs in the log
"""Three databases, three decisions: what each takes, what is done about it, and what is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracledb
import pytest
from click.testing import CliRunner, Result
from old_runtimes import OLDEST_EXTENSIONS
from oracle_fixtures import PASSWORD, Oracle, running
from oracle_server.engine.database import EXTENSIONS

from oml_mlflow import PipelinePair
from oml_mlflow.cli.main import cli
from oml_mlflow.errors import CapabilityMissing, OmlMlflowError, ParityError
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.parity.probes import golden_probes

DECODE = "com.microsoft.extensions:DecodeImage"
OWN = "com.example.own.decoders:DecodeJpegs"
OWN_PROFILE = "oracle-23.7+com.example.own.decoders.DecodeJpegs"
JPEG = next(p.value for p in golden_probes() if p.category == "jpeg-444")
NON_ASCII = {"accents", "cjk", "emoji"}
ASCII = {"ascii", "digits"}


def run(*arguments: str) -> Result:
    """Run the command line, and show what it shows."""
    done = CliRunner().invoke(cli, arguments)
    print(f"\n$ oml-mlflow {' '.join(arguments)}\n{done.output}", end="")
    if isinstance(done.exception, OmlMlflowError):
        print(f"error[{done.exception.code}]: {done.exception.message}")
        print(f"  Next: {done.exception.hint}\nexit code {done.exception.exit_code}")
    else:
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def logged(mlflow_store: Path, tiny_pair: PipelinePair) -> PipelinePair:
    """`plain` holds a pair with the usual decode operator, `both` one with the database's too."""
    files = (str(tiny_pair.img), str(tiny_pair.txt))
    for name, profiles in (("plain", ["oracle-23.7"]), ("both", ["oracle-23.7", OWN_PROFILE])):
        options = [part for profile in profiles for part in ("--profile", profile)]
        assert run("log", *files, "--register", name, *options).exit_code == 0
    return tiny_pair


def test_accepts_all(logged: PipelinePair, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch) as oracle:
        for name in ("plain", "both"):
            done = run("promote", f"models:/{name}/1", "--target", oracle.uri)
            assert done.exit_code == 0
            assert f"{name.upper()} in {oracle.uri} is now {name} version 1" in done.output
            assert oracle.fingerprints()[f"{name.upper()}_IMG"] == logged.fingerprints["img"]
        assert "oracle-23.7" in run("preflight", "models:/both/1", "--target", oracle.uri).output


def test_refuses_the_decode_operator(
    logged: PipelinePair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {
        "accepted_operators": EXTENSIONS - {DECODE},
        "operator_aliases": {OWN: DECODE},
    }
    own = logged.for_profile(get_profile(OWN_PROFILE), tmp_path / "own").fingerprints
    with running(monkeypatch, **options) as oracle:
        asked = run("preflight", "models:/both/1", "--target", oracle.uri, "--probe")
        assert asked.exit_code == 0
        assert OWN in asked.output
        assert OWN_PROFILE in asked.output

        refused = run("promote", "models:/plain/1", "--target", oracle.uri)
        assert isinstance(refused.exception, CapabilityMissing)
        assert DECODE in refused.exception.message
        assert "oml-mlflow log IMG TXT" in refused.exception.hint
        assert oracle.fingerprints() == {}

        done = run("promote", "models:/both/1", "--target", oracle.uri)
        assert done.exit_code == 0
        assert f"(generation 1, profile {OWN_PROFILE}); 19 ok, 2 warned" in done.output
        assert oracle.fingerprints() == {"BOTH_IMG": own["img"], "BOTH_TXT": own["txt"]}
        assert own["img"] != logged.fingerprints["img"]
        assert run("verify", "both", "--target", oracle.uri).exit_code == 0
        again = run("promote", "models:/both/1", "--target", oracle.uri)
        assert "was already both version 1" in again.output
        with oracle.target().session("a test", create=False) as session:
            assert session.journal.ledger("BOTH")[-1].profile == OWN_PROFILE
        vector = embedded(oracle, "BOTH_IMG", JPEG)
        wanted = logged.embedder().embed_image([JPEG])[0]
        np.testing.assert_allclose(vector, wanted, atol=1e-4)


def embedded(oracle: Oracle, model: str, picture: str | bytes) -> np.ndarray:
    with oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection:
        blob = connection.createlob(oracledb.DB_TYPE_BLOB, picture)
        sql = f"SELECT VECTOR_EMBEDDING({model} USING :v AS data) FROM dual"  # noqa: S608
        [(vector,)] = connection.cursor().execute(sql, v=blob).fetchall()
    return np.asarray(vector, np.float32)


def test_a_profile_of_pixels_is_never_chosen(
    mlflow_store: Path, tiny_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (str(tiny_pair.img), str(tiny_pair.txt))
    assert run("log", *files, "--register", "raw", "--profile", "oracle-23.7+raw").exit_code == 0
    with running(monkeypatch) as oracle:
        done = run("promote", "models:/raw/1", "--target", oracle.uri)
        assert isinstance(done.exception, CapabilityMissing)
        assert "--profile" in done.exception.hint


def test_an_old_tokenizer_is_refused_or_promoted_with_a_warning(
    environment: Callable[[str], Path],
    logged: PipelinePair,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    page, warned = tmp_path / "report.html", tmp_path / "warned.html"
    python = str(environment(OLDEST_EXTENSIONS))
    with running(monkeypatch, worker_python=python) as oracle:
        refused = run("promote", "models:/plain/1", "--target", oracle.uri, "--html", str(page))
        error = refused.exception
        assert isinstance(error, ParityError)
        states = {c.category: c.state for c in error.details["report"].by_class()}
        assert {name for name, state in states.items() if state == "failed"} == NON_ASCII
        assert {states[name] for name in ASCII} == {"ok"}
        assert oracle.fingerprints() == {}
        assert "Failed" in page.read_text("utf-8")
        assert "extensions up to 0.12" in page.read_text("utf-8")

        [settings] = re.findall(r"\?(warn=\S+)\.", error.hint)
        ascii_only = f"{oracle.uri}?{settings}"
        done = run("promote", "models:/plain/1", "--target", ascii_only)
        assert done.exit_code == 0
        for name, count in {"accents": "2 of 3", "cjk": "2 of 2", "emoji": "1 of 1"}.items():
            assert f"; {name} {count} refused (only warns)" in done.output
        told = run("verify", "plain", "--target", ascii_only, "--html", str(warned))
        assert told.exit_code == 0
        assert "Passed, with warnings" in warned.read_text("utf-8")
        assert run("verify", "plain", "--target", oracle.uri).exit_code == 3
