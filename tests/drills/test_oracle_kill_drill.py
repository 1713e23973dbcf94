"""Killed or crashed at every statement in an Oracle stand-in, as `test_kill_drill` embedded.

The stand-in calls a hook before and after each statement, those inside a PL/SQL block too. There,
the client is killed, and a block that it sent runs on; or the instance crashes, and what was not
committed is undone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import killed
import numpy as np
import oracledb
import pytest
from drilled import Drill, drawn, environment, heal, judge, judge_healed, look
from oracle_fixtures import PASSWORD, Oracle, running
from oracle_server.statement import ConnectionDropped

from oml_mlflow import PipelinePair, promote
from oml_mlflow.errors import TargetUnreachable
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.targets.oracle.target import OracleTarget

VALUES = {
    "img": next(p.value for p in golden_probes() if p.category == "jpeg-444"),
    "txt": "a photo of a cat",
}
APP, PATIENCE_S, SAMPLES = "app", 60.0, 6
Act = Callable[[], None]


@dataclass(frozen=True)
class Step:
    """A statement of a run that nothing happened to.

    Attributes:
        index: Counted from 0.
        text: The statement.
        is_inside: Whether it is part of a PL/SQL block.
    """

    index: int
    text: str
    is_inside: bool


@dataclass
class Stage:
    """A stand-in that is put back to where it was before each attempt.

    Attributes:
        oracle: The stand-in.
        job: What is interrupted.
        pairs: Pairs by fingerprints.
        old: Fingerprints that are live before it; empty if none are.
        snapshot: Copy of the stand-in's files.
        steps: Statements of the job.
        ended: Indexes of those that the database carried out; what fails has no moment after it.
        wanted: Models by name once it is done.
        grants: Grants on the live models once it is done.
        lob_bytes: LOB data that the job sends.
        child: Process that does the job.
        started: Set once it is known.
    """

    oracle: Oracle
    job: killed.Job
    pairs: tuple[PipelinePair, ...]
    old: dict[str, str]
    snapshot: Path
    steps: list[Step] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    wanted: dict[str, str] = field(default_factory=dict)
    grants: list[tuple[str, ...]] = field(default_factory=list)
    lob_bytes: int = 0
    child: ForkServerProcess | None = None
    started: threading.Event = field(default_factory=threading.Event)

    @property
    def target(self) -> OracleTarget:
        return OracleTarget.from_uri(self.job.target)

    @property
    def new(self) -> dict[str, str]:
        return {side: self.wanted[f"CLIP_{side.upper()}"] for side in ("img", "txt")}

    def rehearse(self) -> None:
        """Run the job undisturbed, and note its statements and its result."""
        self.oracle.save(self.snapshot)
        faults, depth = self.oracle.database.faults, 0
        first, sent = faults.statements, self.oracle.server.received_lob_bytes

        def is_block(text: str) -> bool:
            # what is no block encloses nothing, and may fail: then nothing is left
            return text.lstrip().upper().startswith(("BEGIN", "DECLARE"))

        def enter(index: int, text: str, session: object) -> None:
            nonlocal depth
            self.steps.append(Step(index - first, text, depth > 0))
            depth += is_block(text)

        def leave(index: int, text: str, session: object) -> None:
            nonlocal depth
            self.ended.add(index - first)
            depth -= is_block(text)

        faults.before_statement, faults.after_statement = enter, leave
        child = killed.start(killed.run, self.job)
        child.join(PATIENCE_S)
        assert (child.exitcode, depth) == (0, 0)
        self._disarm()
        self.oracle.server.wait_until_idle()
        self.wanted = self.oracle.fingerprints()
        self.grants = granted(self.oracle)
        self.lob_bytes = self.oracle.server.received_lob_bytes - sent

    def kill(self, step: Step, before: bool) -> None:
        """Kill the client at a statement.

        Before a statement of its own, that does not arrive any more. Within a block, it runs on.
        """

        def act() -> None:
            self._kill_child()
            if before and not step.is_inside:
                raise ConnectionDropped

        self._arm(step, before, act)
        self._run_killed()

    def kill_in_lob(self, lob_bytes: int) -> None:
        """Kill the client once so much LOB data has come in."""
        self.oracle.restore(self.snapshot)
        limit = self.oracle.server.received_lob_bytes + lob_bytes

        def count(total: int) -> None:
            if total >= limit:
                self._disarm()
                self._kill_child()

        self.oracle.database.faults.on_lob_bytes = count
        self._run_killed()

    def crash(self, step: Step, before: bool) -> None:
        """Crash the instance before or after a statement inside a block."""

        def act() -> None:
            self._disarm()
            raise ConnectionDropped

        self._arm(step, before, act)
        self._run_crashed()

    def crash_in_rename(self, step: Step) -> None:
        """Crash the instance between the two renames of one call of RENAME_MODEL."""

        def act() -> None:
            self.oracle.database.faults.crash_in_rename = True

        self._arm(step, True, act)
        self._run_crashed()

    def _arm(self, step: Step, before: bool, act: Act) -> None:
        self.oracle.restore(self.snapshot)
        faults = self.oracle.database.faults
        first = faults.statements

        def reached(index: int, text: str, session: object) -> None:
            if index - first == step.index:
                act()

        setattr(faults, "before_statement" if before else "after_statement", reached)

    def _kill_child(self) -> None:
        assert self.started.wait(PATIENCE_S)
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGKILL)

    def _run_killed(self) -> None:
        self.started.clear()
        self.child = killed.start(killed.run, self.job)
        self.started.set()
        self.child.join(PATIENCE_S)
        assert self.child.exitcode == -signal.SIGKILL, self.child.exitcode
        self._disarm()
        self.oracle.server.wait_until_idle()

    def _run_crashed(self) -> None:
        with pytest.raises(TargetUnreachable, match=r"DPY-(4011|1001)") as err:
            killed.run(self.job)
        assert err.value.exit_code == 75
        self._disarm()
        self.oracle.server.wait_until_idle()

    def _disarm(self) -> None:
        faults = self.oracle.database.faults
        faults.before_statement = faults.after_statement = faults.on_lob_bytes = None


def granted(oracle: Oracle) -> list[tuple[str, ...]]:
    sql = (
        "SELECT TABLE_NAME, GRANTEE, PRIVILEGE FROM USER_TAB_PRIVS_MADE "
        "WHERE TABLE_NAME IN ('CLIP_IMG', 'CLIP_TXT') ORDER BY TABLE_NAME, GRANTEE, PRIVILEGE"
    )
    return query(oracle, sql)


def query(oracle: Oracle, statement: str) -> list[tuple[str, ...]]:
    with oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection:
        return list(connection.cursor().execute(statement).fetchall())


def run_sql(oracle: Oracle, *statements: str) -> None:
    with oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection:
        for statement in statements:
            connection.cursor().execute(statement)


def embedded(stage: Stage) -> dict[str, np.ndarray | None]:
    """Return what the live models give those who may use them, by side; None without a model."""
    user, password = (APP, APP) if stage.grants else ("vec", PASSWORD)
    found: dict[str, np.ndarray | None] = {}
    with oracledb.connect(user=user, password=password, dsn=stage.oracle.server.dsn) as connection:
        for side, value in VALUES.items():
            blob = connection.createlob(oracledb.DB_TYPE_BLOB, value) if side == "img" else value
            model = f"VEC.CLIP_{side.upper()}"
            sql = f"SELECT VECTOR_EMBEDDING({model} USING :v AS data) FROM dual"  # noqa: S608
            try:
                [(vector,)] = connection.cursor().execute(sql, v=blob).fetchall()
            except oracledb.DatabaseError as error:
                assert "ORA-40284" in str(error)  # noqa: PT017 -- any other error goes on
                vector = None
            found[side] = None if vector is None else np.asarray(vector)
    return found


def are_of(stage: Stage, vectors: dict[str, np.ndarray | None], wanted: dict[str, str]) -> bool:
    """Return whether vectors are those of one pair; no vectors, if none is wanted."""
    if not wanted:
        return all(vector is None for vector in vectors.values())
    [pair] = [pair for pair in stage.pairs if pair.fingerprints == wanted]
    return all(
        vector is not None and np.allclose(vector, reference(pair, side), atol=1e-4)
        for side, vector in vectors.items()
    )


_references: dict[tuple[str, str], np.ndarray] = {}


def reference(pair: PipelinePair, side: str) -> np.ndarray:
    key = (pair.fingerprints[side], side)
    if key not in _references:
        embedder = pair.embedder()
        embed = embedder.embed_image if side == "img" else embedder.embed_text
        _references[key] = embed([VALUES[side]])[0]
    return _references[key]


def inspect(stage: Stage, drill: Drill, where: str) -> None:
    """Look at what is left, run once more, and look again."""
    target, new = stage.target, stage.new
    if judge(drill, where, look(target), stage.old, new):
        seen = embedded(stage)
        if not are_of(stage, seen, stage.old) and not are_of(stage, seen, new):
            drill.blame(where, f"the live names embed as neither pair: {seen}")
    has_run = heal(stage.job, target, new)
    stage.oracle.server.wait_until_idle()
    judge_healed(drill, where, look(target), new)
    left: dict[str, tuple[object, object]] = {
        "models": (stage.oracle.fingerprints(), stage.wanted),
        "vectors are new": (are_of(stage, embedded(stage), new), True),
        "grants": (granted(stage.oracle), stage.grants),
        "files": (len(list(stage.oracle.database.folder.glob("*.onnx"))), len(stage.wanted)),
    }
    if has_run:
        # that of capability probes stays until somebody asks again, who takes it over
        locks = query(stage.oracle, "SELECT HOLDER FROM OML_MLFLOW_LOCK WHERE NAME = 'CLIP'")
        left["locks"] = (locks, [])
    for what, (found, wanted) in left.items():
        if found != wanted:
            drill.blame(where, f"{what} after healing: {found}, wanted {wanted}")


def drill_all(stage: Stage, name: str, samples: int | None) -> Drill:
    """Interrupt a job at every step, or at some, in every way."""
    stage.rehearse()
    drill = Drill(name, steps=len(stage.steps))
    inside = [step for step in stage.steps if step.is_inside]
    kills, crashes = moments(stage, stage.steps), moments(stage, inside)
    renames = [s for s in inside if "RENAME_MODEL" in s.text and "versioned" in s.text]
    # the first byte, the last one, and some between
    lobs = [1 + stage.lob_bytes * part // 8 for part in range(8)] if loads(stage) else []
    if samples is not None:
        kills, crashes = drawn(kills, samples), drawn(crashes, samples // 2)
        lobs = drawn(lobs, 1)
    for step, before in kills:
        stage.kill(step, before)
        drill.killed += 1
        inspect(stage, drill, f"killed {moment(step, before)}")
    for lob_bytes in lobs:
        stage.kill_in_lob(lob_bytes)
        drill.killed += 1
        inspect(stage, drill, f"killed after {lob_bytes} bytes of LOBs")
    for step, before in crashes:
        stage.crash(step, before)
        drill.crashed += 1
        inspect(stage, drill, f"crashed {moment(step, before)}")
    for step in renames:
        stage.crash_in_rename(step)
        drill.crashed += 1
        inspect(stage, drill, f"crashed within {step.text[:80]}")
    drill.show()
    assert drill.violations == 0
    return drill


def moments(stage: Stage, steps: Sequence[Step]) -> list[tuple[Step, bool]]:
    """Return the moments before and after statements, as `Stage.kill` takes them."""
    both = (True, False)
    return [(step, b) for step in steps for b in both if b or step.index in stage.ended]


def loads(stage: Stage) -> bool:
    return any("LOAD_ONNX_MODEL" in step.text for step in stage.steps)


def moment(step: Step, before: bool) -> str:
    text = " ".join(step.text.split())
    return f"{'before' if before else 'after'} statement {step.index}, {text[:80]}"


def stage_first(oracle: Oracle, pairs: tuple[PipelinePair, ...], folder: Path) -> Stage:
    """Return the first promotion into an empty schema: tables, probes of capabilities, a pair."""
    job = killed.Job("promote", oracle.uri, "models:/clip/3", "clip", environment())
    return Stage(oracle, job, pairs, {}, folder / "snapshot")


def stage_promotion(oracle: Oracle, pairs: tuple[PipelinePair, ...], folder: Path) -> Stage:
    """Return a promotion that loads, swaps, grants and drops the oldest generation."""
    uri = f"{oracle.uri}?keep=1"
    for version in (1, 2):
        promote(f"models:/clip/{version}", uri)
    run_sql(oracle, *GRANTS)
    job = killed.Job("promote", uri, "models:/clip/3", "clip", environment())
    return Stage(oracle, job, pairs, pairs[1].fingerprints, folder / "snapshot")


def stage_rollback(oracle: Oracle, pairs: tuple[PipelinePair, ...], folder: Path) -> Stage:
    """Return a rollback that swaps, revokes, grants and drops the oldest generation."""
    for version in (1, 2):
        promote(f"models:/clip/{version}", oracle.uri)
    run_sql(oracle, *GRANTS, "GRANT ALTER ON MINING MODEL CLIP_IMG TO OPS")
    promote("models:/clip/3", oracle.uri, accept_new_geometry=True)
    run_sql(oracle, "REVOKE ALTER ON MINING MODEL CLIP_IMG FROM OPS")
    job = killed.Job("rollback", f"{oracle.uri}?keep=1", "", "clip", environment())
    return Stage(oracle, job, pairs, pairs[2].fingerprints, folder / "snapshot")


GRANTS = (
    "GRANT SELECT ON MINING MODEL CLIP_IMG TO APP",
    "GRANT SELECT ON MINING MODEL CLIP_TXT TO APP",
)
STAGES = {
    "first promotion": (stage_first, False),
    "promotion": (stage_promotion, False),
    "rollback": (stage_rollback, True),
}


@pytest.mark.parametrize("name", STAGES)
def test_interrupted_at_some_statements(
    versions: tuple[PipelinePair, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    prepare, follow = STAGES[name]
    with running(monkeypatch, grants_follow_rename=follow) as oracle:
        drill = drill_all(prepare(oracle, versions, tmp_path), f"{name}, Oracle", SAMPLES)
    assert drill.killed >= SAMPLES


@pytest.mark.drill
@pytest.mark.parametrize("name", STAGES)
def test_interrupted_at_every_statement(
    versions: tuple[PipelinePair, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    prepare, follow = STAGES[name]
    with running(monkeypatch, grants_follow_rename=follow) as oracle:
        stage = prepare(oracle, versions, tmp_path)
        drill = drill_all(stage, f"{name}, Oracle", None)
    # only looks at tables that are not there yet fail, and so have no moment after them
    failed = [step.text for step in stage.steps if step.index not in stage.ended]
    assert all(text.lstrip().upper().startswith("SELECT") for text in failed), failed
    assert drill.killed >= 2 * drill.steps - len(failed)
