"""Nothing that a database or a graph does can make a call last for good."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import oracledb
import pytest
from endless_versions import log_endless
from fleets import NAME, live_versions, move, reconcile, two_targets
from onnx import helper
from oracle_fixtures import PASSWORD, Oracle
from oracle_server.wallet import write_wallet
from receiving import wait_for
from registry_copies import Registry

from oml_mlflow import PipelinePair, open_target
from oml_mlflow.config.bindings import Binding
from oml_mlflow.errors import ModelTooSlow, TargetUnreachable
from oml_mlflow.graph.runtime import open_session, run
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.targets.embedded import folder as embedded_folder
from oml_mlflow.targets.oracle import models as oracle_models
from oml_mlflow.targets.oracle.target import OracleTarget

LIMIT_S, EMBED_S = 0.5, 3.0
RESEND = bytes([0, 8, 0, 0, 11, 0, 0, 0])
Serve = Callable[[socket.socket], object]


def until_it_leaves(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def dribble(connection: socket.socket) -> None:
    while True:
        connection.send(b"\0")
        time.sleep(0.02)


def ask_again(connection: socket.socket) -> None:
    while connection.recv(65_536):
        connection.send(RESEND)


@contextlib.contextmanager
def listener(serve: Serve) -> Iterator[tuple[int, list[str]]]:
    """Serve every connection in a way; give the port, and which of them their clients left."""
    left: list[str] = []

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)
        left.append("")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=handle, args=[taken.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        threading.Thread(target=accept, daemon=True).start()
        yield taken.getsockname()[1], left
        taken.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["silent", "dribbling", "asking again", "before TLS", "after TLS"])
def stalling(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Serve]:
    """Settings of a target, and what its listener does."""
    if "TLS" not in request.param:
        ways = {"silent": until_it_leaves, "dribbling": dribble, "asking again": ask_again}
        return "", ways[request.param]
    context = write_wallet(tmp_path)
    settings = f"&protocol=tcps&wallet_location={tmp_path}"
    if request.param == "before TLS":
        return settings, until_it_leaves

    def after(connection: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):
            until_it_leaves(context.wrap_socket(connection, server_side=True))

    return settings, after


def test_a_listener_that_does_not_let_in(
    stalling: tuple[str, Serve], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", "never sent")
    settings, serve = stalling
    before = threading.active_count()
    with listener(serve) as (port, left):
        target = open_target(f"oracle://vec@localhost:{port}/X?connect_timeout={LIMIT_S}{settings}")
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(TargetUnreachable, match=r"localhost.*longer than 0\.5 s") as late:
                target.survey()
            assert LIMIT_S <= time.monotonic() - begun < LIMIT_S + 2
        assert (late.value.code, late.value.exit_code) == ("target-unreachable", 75)
        # neither connections nor threads pile up
        wait_for(lambda: len(left) == 3 and threading.active_count() <= before + 1, 10)


def test_a_log_in_that_ends_too_late_leaves_no_session(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, let_in = [], threading.Event()
    open_now = oracle.database.open_session

    def open_late(user: str) -> object:
        let_in.wait(30)
        opened.append(user)
        return open_now(user)

    monkeypatch.setattr(oracle.database, "open_session", open_late)
    with pytest.raises(TargetUnreachable, match="longer than"):
        oracle.target(connect_timeout=LIMIT_S).survey()
    let_in.set()
    oracle.server.wait_until_idle()
    assert opened == ["VEC"]
    assert oracle.target(connect_timeout=10).survey().version


IN_A_FRESH_PROCESS = """
import socket, sys, time
from concurrent.futures import ThreadPoolExecutor
from oml_mlflow.targets import open_target

def hanging(host, *given, look_up=socket.getaddrinfo, **options):
    return time.sleep(3600) if host == "away.invalid" else look_up(host, *given, **options)

def look(uri):
    try:
        return f"version {open_target(uri).survey().version}"
    except Exception as error:
        return error.code

socket.getaddrinfo = hanging
begun = time.monotonic()
with ThreadPoolExecutor(3) as pool:
    found = [pool.submit(look, sys.argv[1]), pool.submit(look, sys.argv[2])]
    time.sleep(0.5)  # theirs is this process's first connection
    print(look(sys.argv[3]), time.monotonic() - begun < 4)
    print(*(one.result() for one in found), time.monotonic() - begun < 8)
"""


def test_one_that_hangs_holds_up_neither_others_nor_the_end(oracle: Oracle) -> None:
    with listener(until_it_leaves) as (port, _left):
        away, silent = (
            f"oracle://vec@{host}/X?connect_timeout=5"
            for host in ("away.invalid:1521", f"127.0.0.1:{port}")
        )
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS, away, silent, oracle.uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
    expected = f"version {oracle.database.version} True\n"
    assert done.stdout == f"{expected}target-unreachable target-unreachable True\n"


def test_the_shortest_call_timeout_is_one(oracle: Oracle) -> None:
    target = oracle.target(call_timeout=0.0001)
    oracle.database.faults.stall_statement = lambda _index, _text: 30.0
    begun = time.monotonic()
    with pytest.raises(TargetUnreachable, match="DPY-"):
        target.survey()
    assert time.monotonic() - begun < 5


@pytest.fixture
def registry(
    four_versions: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    with four_versions.copied(tmp_path) as uri:
        yield uri


def test_a_connection_of_others_that_is_lost_is_an_error(oracle: Oracle) -> None:
    """Its settings are not put back: python-oracledb would crash."""
    options = {"user": "vec", "password": PASSWORD, "dsn": oracle.server.dsn}
    with oracledb.connect(**options) as connection:
        target = OracleTarget(connection=connection)

        def lose() -> None:
            with target.session("a test", create=False) as session:
                oracle.server.drop_connections()
                session.models.list()

        with pytest.raises(TargetUnreachable, match=r"DPY-|reset|pipe"):
            lose()


def never(text: str, until: threading.Event) -> None:
    if "VECTOR_EMBEDDING(CLIP_" in text:
        until.wait(60)


@pytest.mark.parametrize(
    "where",
    ["small", "big", pytest.param("big, deaf to a break", marks=pytest.mark.drill)],
)
def test_an_endless_graph_is_a_failure_that_is_noted(
    where: str,
    registry: str,
    oracle: Oracle,
    tiny_pair: PipelinePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, _, is_deaf = where.partition(", ")
    config = two_targets(tmp_path, oracle)
    targets = {target: config.targets[target]}
    second = Binding(target, "SECOND", "clip", "second")
    config = replace(config, targets=targets, bindings=(Binding(target, NAME, "clip", "prod"),))
    move(1)
    assert reconcile(config).ok
    # now, with all imports done
    for module in (embedded_folder, oracle_models):
        monkeypatch.setattr(module, "EMBED_TIMEOUT_S", EMBED_S)

    config, faults = replace(config, bindings=(*config.bindings, second)), oracle.database.faults
    until = threading.Event()
    if target == "small":
        move(log_endless(tiny_pair, tmp_path / "endless"))
    else:
        move(2)
        if is_deaf:
            faults.before_statement = lambda _index, text, _session: never(text, until)
        else:
            faults.stall_statement = lambda _index, text: (
                30.0 if "VECTOR_EMBEDDING(CLIP_" in text else None
            )
    move(2, "second")
    begun = time.monotonic()
    # where the connection was lost, a second pass undoes what was left, and tries once more
    for _ in range(2 if is_deaf else 1):
        until.clear()
        found = reconcile(config)
        until.set()
        oracle.server.wait_until_idle()
        [failed] = [o.error for o in found.outcomes if o.error]
        assert (failed.code, failed.retryable) == ("model-too-slow", False)
    assert time.monotonic() - begun < 60
    assert live_versions(config, "SECOND") == {target: "2"}
    assert live_versions(config) == {target: "1"}

    again = reconcile(config)
    assert again.outcomes == ()
    [status] = [s for s in again.statuses if s.name == NAME]
    assert (status.state, "--retry" in status.hint) == ("degraded", True)
    faults.before_statement = faults.stall_statement = None
    move(1)
    assert reconcile(config).ok
    assert live_versions(config) == {target: "1"}


def test_one_operator_that_takes_hours(tiny_pair: PipelinePair, tmp_path: Path) -> None:
    """ONNX Runtime can't be stopped within an operator: its thread is left behind."""
    big = helper.make_tensor_value_info
    shape = onnx.numpy_helper.from_array(np.array([9000, 9000], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["input", "shape"], ["wide"]),
            helper.make_node("MatMul", ["wide", "wide"], ["embedding"]),
        ],
        "hours",
        [big("input", onnx.TensorProto.FLOAT, [1, 1])],
        [big("embedding", onnx.TensorProto.FLOAT, None)],
        [shape],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    session, one = open_session(tmp_path / "m.onnx", threads=1), np.ones((1, 1), np.float32)
    with pytest.raises(TimeoutError, match=r"longer than 0\.5 s"):
        run(session, one, timeout_s=0.5)
    assert ModelTooSlow.exit_code == 1
    embedder = PairEmbedder(tiny_pair.img, tiny_pair.txt, tiny_pair.dims)
    embedder.timeout_s = 1e-9
    with pytest.raises(TimeoutError):
        embedder.open("img")
