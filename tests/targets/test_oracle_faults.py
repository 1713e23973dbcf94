# ruff: noqa: T201 -- the table of cases belongs in the log
"""Each fault, through the command line: its error, its exit code, its next step, what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from drilled import live_pair, look
from oracle_fixtures import PASSWORD, Oracle
from oracle_server.engine import User
from oracle_server.engine.privileges import DEFAULT_PRIVILEGES
from oracle_server.faults import Faults
from oracle_server.statement import ConnectionDropped, OraError

from oml_mlflow import PipelinePair, promote
from oml_mlflow.cli.main import main
from oml_mlflow.planning.records import WHOLE
from oml_mlflow.promotion.preflight import examine

Arrange = Callable[[Oracle, pytest.MonkeyPatch, ExitStack], None]
# what is left: everything as it was; something for the next run; nothing that can be told
BEFORE, PENDING, DONE = "as before", "pending", "done"
EMPTY, LIVE = "empty", "live"
# neither is documented of these statements; the driver takes the second for a lost session
MEMORY = OraError(4036, "PGA memory used by the instance exceeds PGA_AGGREGATE_LIMIT")
INTERNAL = OraError(600, "internal error code, arguments: [drill]")
FULL = OraError(1536, "space quota exceeded for tablespace 'USERS'")


@dataclass(frozen=True)
class Case:
    """A fault and what is to come of it.

    Attributes:
        name: The fault.
        code: Of the error.
        exit_code: Of the program.
        next_step: Pattern of what is to be done next.
        arrange: Brings the fault about.
        message: Pattern of the message.
        schema: What is there before: nothing, or versions 1 and 2.
        left: What is left.
        arguments: Of ``promote``, besides the version.
        place: What to put instead of the stand-in's ``host:port/service``.
        query: Settings in the URI.
    """

    name: str
    code: str
    exit_code: int
    next_step: str
    arrange: Arrange = lambda *_: None
    message: str = ""
    schema: str = LIVE
    left: str = BEFORE
    arguments: tuple[str, ...] = ()
    place: str = ""
    query: str = ""


def with_faults(**faults: object) -> Arrange:
    def arrange(oracle: Oracle, *_: object) -> None:
        for name, value in faults.items():
            setattr(oracle.database.faults, name, value)

    return arrange


def failing(word: str, nth: int = 1, error: OraError = MEMORY) -> Arrange:
    """Fail the n-th statement with a word in it, those inside of blocks counted alone."""
    seen: list[str] = []

    def fail(index: int, text: str) -> OraError | None:
        if word in text and not text.startswith("BEGIN"):
            seen.append(text)
            return error if len(seen) == nth else None
        return None

    def arrange(oracle: Oracle, *_: object) -> None:
        seen.clear()
        oracle.database.faults.fail_statement = fail

    return arrange


def stalling(word: str, nth: int = 1) -> Arrange:
    seen: list[str] = []

    def stall(index: int, text: str) -> float | None:
        if word in text and not text.startswith("BEGIN"):
            seen.append(text)
        return 60.0 if word in text and len(seen) == nth else None

    def arrange(oracle: Oracle, *_: object) -> None:
        seen.clear()
        oracle.database.faults.stall_statement = stall

    return arrange


def dropping(word: str, nth: int = 1) -> Arrange:
    """Lose the connection before the n-th statement with a word in it."""
    seen: list[str] = []

    def drop(index: int, text: str, session: object) -> None:
        if word in text and not text.startswith("BEGIN"):
            seen.append(text)
            if len(seen) == nth:
                raise ConnectionDropped

    def arrange(oracle: Oracle, *_: object) -> None:
        seen.clear()
        oracle.database.faults.before_statement = drop

    return arrange


def without(*privileges: str, quota_bytes: int | None = None) -> Arrange:
    def arrange(oracle: Oracle, *_: object) -> None:
        left = DEFAULT_PRIVILEGES - set(privileges)
        oracle.database.users["VEC"] = User(PASSWORD, left, quota_bytes=quota_bytes)

    return arrange


def wrong_password(oracle: Oracle, patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    patch.setenv("OML_MLFLOW_PASSWORD", "wrong")


def no_password(oracle: Oracle, patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    patch.delenv("OML_MLFLOW_PASSWORD")


def too_old(oracle: Oracle, *_: object) -> None:
    oracle.database.version = "19.3.0.0.0"


def held(oracle: Oracle, _patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    session = stack.enter_context(oracle.target().session("the other promoter"))
    stack.enter_context(session.lock("CLIP", "promote models:/clip/1"))


METADATA = {
    "function": "embedding",
    "embeddingOutput": "embedding",
    "input": {"input": ["DATA"]},
}
LOAD, EMBED, RENAME = "DBMS_VECTOR.LOAD_ONNX_MODEL", "VECTOR_EMBEDDING(CLIP", "RENAME_MODEL"
DROP, LEDGER = "DBMS_VECTOR.DROP_ONNX_MODEL", "INSERT INTO OML_MLFLOW_LEDGER"
QUOTA = r"ALTER USER \"?VEC\"? QUOTA \w+ ON USERS;"
AGAIN, LISTENER = "run it again", "check host, port and service"
PATIENCE = "run it again, which finishes or undoes what is pending, with a longer call_timeout="
LOOK_UP, NOT_HERE = "look the code up", "do not use this pair here|in the error's details"
# of which the state says all, or in the way of the next promotion too
UNCHANGED = ("login-refused", "config-invalid", "name-invalid", "model-foreign")
DECODE = frozenset({"com.microsoft.extensions:DecodeImage"})
NO_SPACE = {"UNLIMITED TABLESPACE"}
CASES = [
    Case("wrong password", "login-refused", 1, "check the user", wrong_password, "ORA-01017"),
    Case("no password", "config-invalid", 1, "set OML_MLFLOW_PASSWORD", no_password),
    Case(
        "refused login: locked account",
        "login-refused",
        1,
        "a DBA unlocks",
        with_faults(refuse_login=OraError(28000, "The account is locked.")),
        "ORA-28000",
    ),
    Case(
        "refused login: listener",
        "target-unreachable",
        75,
        LISTENER,
        with_faults(refuse_login=OraError(12514, "no such service")),
    ),
    Case(
        "refused login: closed",
        "target-unreachable",
        75,
        f"{LISTENER}|{AGAIN}",
        with_faults(refuse_login=ConnectionDropped()),
    ),
    Case("unknown service", "target-unreachable", 75, LISTENER, place="{host}/NOSUCH"),
    Case("unknown port", "target-unreachable", 75, LISTENER, place="127.0.0.1:1/FREEPDB1"),
    Case("unknown host", "target-unreachable", 75, LISTENER, place="no.such.host.invalid/FREEPDB1"),
    Case(
        "no CREATE MINING MODEL",
        "privilege-missing",
        1,
        'GRANT CREATE MINING MODEL TO "VEC";',
        without("CREATE MINING MODEL"),
    ),
    Case(
        "no CREATE MINING MODEL, empty schema",
        "privilege-missing",
        1,
        'GRANT CREATE MINING MODEL TO "VEC";',
        without("CREATE MINING MODEL"),
        schema=EMPTY,
    ),
    Case(
        "no CREATE TABLE",
        "privilege-missing",
        1,
        'GRANT CREATE TABLE TO "VEC";',
        without("CREATE TABLE"),
        schema=EMPTY,
    ),
    Case("no quota", "quota-exceeded", 1, QUOTA, without(*NO_SPACE), "ORA-01950"),
    Case(
        "quota too small for the pair",
        "quota-exceeded",
        1,
        QUOTA,
        without(*NO_SPACE, quota_bytes=18_000_000),
        "quota: .* free on USERS",
    ),
    Case(
        "quota exceeded during the load",
        "quota-exceeded",
        1,
        "ALTER USER VEC QUOTA UNLIMITED ON USERS;",
        failing(LOAD, 1, FULL),
        "ORA-01536.*No model CLIP_IMG_S3 was loaded",
    ),
    Case("name of a foreign model", "model-foreign", 1, "--adopt", schema=EMPTY),
    Case("name with a hyphen", "name-invalid", 1, "'my_clip'", arguments=("--name", "my-clip")),
    Case("name with a digit first", "name-invalid", 1, "'clip'", arguments=("--name", "1clip")),
    Case("name of 112 letters", "name-invalid", 1, "use a name", arguments=("--name", "n" * 112)),
    Case("database 19.3", "target-unsupported", 1, "23.7 or newer", too_old, "19.3.0.0.0"),
    Case(
        "database 19.3, empty schema",
        "target-unsupported",
        1,
        "23.7 or newer",
        too_old,
        "19.3.0.0.0",
        schema=EMPTY,
    ),
    Case(
        "refused operator",
        "capability-missing",
        1,
        "--decode-op",
        with_faults(refused_operators=DECODE),
        "com.microsoft.extensions:DecodeImage",
        schema=EMPTY,
    ),
    Case(
        "refused operator, once accepted",
        "model-refused",
        1,
        "preflight --probe",
        with_faults(refused_operators=DECODE),
        "ORA-54",
    ),
    Case(
        "connection lost in a LOB",
        "target-unreachable",
        75,
        AGAIN,
        with_faults(drop_after_lob_bytes=300_000),
        "next run",
        left=PENDING,
    ),
    Case(
        "connection lost in a capability probe",
        "target-unreachable",
        75,
        AGAIN,
        dropping(LOAD, 2),
        schema=EMPTY,
    ),
    Case(
        "connection lost in verification",
        "target-unreachable",
        75,
        AGAIN,
        dropping(EMBED, 3),
        "next run",
        left=PENDING,
    ),
    Case(
        "connection lost between the renames",
        "target-unreachable",
        75,
        AGAIN,
        dropping(RENAME, 2),
        "next run",
        left=PENDING,
    ),
    Case(
        "a load beyond the call timeout",
        "target-unreachable",
        75,
        PATIENCE,
        stalling(LOAD),
        "DPY-4024",
        query="&call_timeout=1",
    ),
    Case(
        "a swap beyond the call timeout",
        "target-unreachable",
        75,
        PATIENCE,
        stalling(RENAME, 2),
        "DPY-4024.*next run",
        left=PENDING,
        query="&call_timeout=1",
    ),
    Case(
        "ORA-00600 in the 2nd rename",
        "target-unreachable",
        75,
        AGAIN,
        failing(RENAME, 2, INTERNAL),
        "DPY-4011.*next run",
        left=PENDING,
    ),
    Case("ORA-04036 in the load", "target-failed", 1, LOOK_UP, failing(LOAD, 2), "ORA-04036"),
    Case("ORA-04036 in one probe", "parity-failed", 3, NOT_HERE, failing(EMBED, 2), "ORA-04036"),
    Case("ORA-04036 in the 1st rename", "target-failed", 1, LOOK_UP, failing(RENAME), "ORA-04036"),
    Case(
        "ORA-04036 in the 2nd rename", "target-failed", 1, LOOK_UP, failing(RENAME, 2), "ORA-04036"
    ),
    Case("ORA-04036 in the ledger", "target-failed", 1, LOOK_UP, failing(LEDGER), "ORA-04036"),
    Case(
        "ORA-04036 in cleaning",
        "target-failed",
        1,
        LOOK_UP,
        failing(DROP),
        "Generation 3 is live; the next run drops",
        left=DONE,
    ),
    Case(
        "wrong vectors",
        "parity-failed",
        3,
        NOT_HERE,
        with_faults(wrong_vectors=lambda vector: vector[::-1].copy()),
        "The live pair is as it was",
    ),
    Case(
        "another promoter",
        "target-locked",
        75,
        "wait for it",
        held,
        r"pid \d+ .*promote models:/clip/1",
    ),
]


@dataclass(frozen=True)
class Done:
    """What the command line did."""

    exit_code: int
    out: str
    err: str


def run_program(
    arguments: list[str], patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Done:
    """Run the command line as its console script does, in this process: imports take seconds."""
    patch.setattr(sys, "argv", ["oml-mlflow", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    shown = capfd.readouterr()
    return Done(int(ended.value.code or 0), shown.out, shown.err)


def uri_of(case: Case, oracle: Oracle) -> str:
    host = f"127.0.0.1:{oracle.server.port}"
    place = case.place.format(host=host) or oracle.server.dsn
    return f"oracle://vec@{place}?keep=1{case.query}"


def complaints(
    case: Case, done: Done, oracle: Oracle, before: Mapping[str, object], wanted: dict[str, str]
) -> Iterator[str]:
    """Yield what is not as it must be after a fault."""
    if done.exit_code != case.exit_code:
        yield f"exit code {done.exit_code}"
    head, _, step = done.err.partition("\n  Next: ")
    if f"error[{case.code}]: " not in head or not re.search(case.message, head, re.DOTALL):
        yield f"error {head!r}"
    if not re.search(case.next_step, step):
        yield f"next step {step!r}"
    if "Traceback" in done.err + done.out or PASSWORD in done.err + done.out:
        yield f"output {done.err!r}"
    after = state_of(oracle)
    if case.left == BEFORE and after != before:
        yield f"left {after}, before {before}"
    if case.left != BEFORE and after["phase"] == WHOLE:
        yield f"nothing is pending: {after}"
    found = look(oracle.target())
    if case.left == DONE and live_pair(found) != wanted:
        yield f"live is {found.live}"


def state_of(oracle: Oracle) -> dict[str, object]:
    found = look(oracle.target())
    return {
        "models": oracle.fingerprints(),
        "ledger": found.ledger,
        "generation": found.state.generation,
        "phase": found.state.phase,
    }


def test_each_fault_has_its_error_and_leaves_nothing_half_done(
    versions: tuple[PipelinePair, ...],
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    snapshots = {schema: tmp_path / schema for schema in (EMPTY, LIVE)}
    oracle.save(snapshots[EMPTY])
    for number in (1, 2):
        promote(f"models:/clip/{number}", oracle.target(keep=1))
    oracle.save(snapshots[LIVE])
    database, new = oracle.database, versions[2].fingerprints
    healthy, version = database.users["VEC"], database.version
    rows, wrong = [], []
    for case in CASES:
        oracle.restore(snapshots[case.schema])
        if case.code == "model-foreign":
            database.load_foreign_model("VEC", "CLIP_IMG", versions[0].img, METADATA)
        before = state_of(oracle)
        with monkeypatch.context() as patch, ExitStack() as stack:
            case.arrange(oracle, patch, stack)
            arguments = ["promote", "models:/clip/3", "--target", uri_of(case, oracle)]
            arguments += ["--accept-new-geometry", *case.arguments]
            done = run_program(arguments, patch, capfd)
        vars(database.faults).update(vars(Faults()))
        database.users["VEC"], database.version = healthy, version
        found = list(complaints(case, done, oracle, before, new))
        if case.code == "capability-missing":
            examine("models:/clip/3", oracle.target(), probe=True)
        if case.code not in UNCHANGED and not case.place:
            promote("models:/clip/3", oracle.target(keep=1), accept_new_geometry=True)
            healed = look(oracle.target())
            models = 2 if case.schema == EMPTY else 4  # the live pair, and the one before
            if live_pair(healed) != new or len(healed.models) != models or not healed.is_whole():
                found.append(f"the next promotion left {healed}")
        rows.append((case.name, case.code, case.exit_code, case.left, "WRONG" if found else "ok"))
        wrong += [f"{case.name}: {what[:600]}" for what in found]
    with capfd.disabled():
        print()
        for row in rows:
            print("{:40} {:20} {:>3}  {:10} {}".format(*row))
    assert not wrong, "\n".join(wrong)


def test_a_lower_case_name_works(
    versions: tuple[PipelinePair, ...],
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["promote", "models:/clip/1", "--target", oracle.uri, "--name", "select"]
    done = run_program(arguments, monkeypatch, capfd)
    assert done.exit_code == 0, done.err
    assert set(oracle.fingerprints()) == {"SELECT_IMG", "SELECT_TXT"}


@pytest.mark.parametrize(
    ("faults", "environment", "exit_code", "code"),
    [
        ({"drop_after_lob_bytes": 300_000}, {}, 75, "target-unreachable"),
        ({}, {"OML_MLFLOW_PASSWORD": "wrong"}, 1, "login-refused"),
    ],
)
def test_a_process_shows_no_traceback(
    versions: tuple[PipelinePair, ...],
    oracle: Oracle,
    faults: dict[str, object],
    environment: dict[str, str],
    exit_code: int,
    code: str,
) -> None:
    promote("models:/clip/1", oracle.target())
    with_faults(**faults)(oracle)
    program = [sys.executable, "-m", "oml_mlflow.cli.main", "promote", "models:/clip/2"]
    done = subprocess.run(
        [*program, "--target", oracle.uri],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code
    assert f"error[{code}]: " in done.stderr
    assert "  Next: " in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert oracle.fingerprints()["CLIP_IMG"] == versions[0].fingerprints["img"]
