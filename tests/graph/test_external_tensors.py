# ruff: noqa: T201 -- the figures belong in the log
"""No graph gets at another file, whoever wrote its bytes and however."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlflow
import mutated_graphs
import numpy as np
import onnx
import pytest
import yaml
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from mutated_graphs import BYTES, DATA_LOCATION, EXTERNAL_DATA, VARINT, Mutations, Node, varint
from old_runtimes import _install
from oracle_fixtures import Oracle

import oml_mlflow
from oml_mlflow import PipelinePair, dry_run, promote
from oml_mlflow.errors import PackageError
from oml_mlflow.files import fingerprint_file
from oml_mlflow.graph import runtime
from oml_mlflow.graph.external import external_tensors
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.graph.runtime import open_session
from oml_mlflow.graph.wire import read_model
from oml_mlflow.targets.embedded.target import EmbeddedTarget

FLAG = DATA_LOCATION << 3 | VARINT
# ways to write that a tensor is external: the tags of data_location and external_data, its value
Written = tuple[bytes, bytes, bytes]
PLAIN: Written = (varint(FLAG), varint(EXTERNAL_DATA << 3 | BYTES), b"\1")
WAYS: dict[str, Written] = {
    "plain": PLAIN,
    "tag above 2^32": (varint(FLAG | 1 << 32), varint(EXTERNAL_DATA << 3 | BYTES | 1 << 32), b"\1"),
    "highest tag of five bytes": (
        varint(FLAG | 7 << 32),
        varint(EXTERNAL_DATA << 3 | BYTES | 7 << 32),
        b"\1",
    ),
    "tag of five bytes": (varint(FLAG, 5), varint(EXTERNAL_DATA << 3 | BYTES, 5), b"\1"),
    "value above 2^32": (varint(FLAG), PLAIN[1], varint(2**32 + 1)),
    "value of ten bytes": (varint(FLAG), PLAIN[1], varint(1, 10)),
}


def external(path: Path, out: Path, way: Written, location: str) -> int:
    """Write a model with one of its weights in another file; return the weight's bytes."""
    nodes = mutated_graphs.tree(onnx.load(path))
    [graph] = [node for node in nodes if node.kind == "GraphProto"]
    weights = [n for n in graph.children or [] if n.kind == "TensorProto" and n.number == 5]
    weight = max(weights, key=lambda node: len(node.encode()))
    tensor = onnx.TensorProto.FromString(weight.encode()[len(weight.encode()) - _size(weight) :])
    raw = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    moved = onnx.TensorProto()
    moved.external_data.add(key="location", value=location)
    [entry] = mutated_graphs.tree(moved)
    entry.tag = way[1]
    weight.children = [
        *mutated_graphs.tree(tensor),
        entry,
        Node(DATA_LOCATION, VARINT, "", way[2], tag=way[0]),
    ]
    out.write_bytes(mutated_graphs.encode(nodes))
    return raw


def _size(node: Node) -> int:
    return len(mutated_graphs.encode(node.children or []))


def look(path: Path) -> str:
    """Return what we say of a file; two readers must not raise anything but our error."""
    try:
        found = external_tensors(path)
    except PackageError:
        return "refused"
    return "external" if found else "inside"


def agrees(path: Path) -> bool:
    """Return whether our reader gives the model that onnx's own gives, if it gives one."""
    try:
        header, stored = read_model(path)
    except PackageError:
        return False
    model = onnx.ModelProto.FromString(path.read_bytes())
    wanted = [(tensor.name, tuple(tensor.dims)) for tensor in model.graph.initializer]
    model.graph.ClearField("initializer")
    assert [(item.name, item.shape) for item in stored] == wanted
    assert header.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
    return True


def fuzz(seed: int, count: int, folder: Path) -> None:
    mutations, path = Mutations(seed), folder / "mutated.onnx"
    tally: Counter[str] = Counter()
    for number in range(count):
        data = mutations.next()
        path.write_bytes(data)
        said, ours = mutated_graphs.is_external(data), look(path)
        tally[ours] += 1
        tally["parsed by onnx"] += bool(said)
        tally["external to onnx"] += any(said.values())
        tally["external to C++ alone"] += bool(said.get("C++")) and not said.get("python")
        tally["hidden from us"] += ours == "inside" and any(said.values())
        if ours == "inside":
            tally["read alike"] += agrees(path)
        assert not tally["hidden from us"], (seed, number, said)
    print(f"{count} mutated files, seed {seed}: {dict(tally)}; {mutations.used}")
    assert tally["parsed by onnx"] > count / 2
    assert tally["external to onnx"] > count / 5
    assert tally["external to C++ alone"] > count / 40
    assert tally["read alike"] > count / 20


def test_no_mutated_file_hides_an_external_tensor(tmp_path: Path) -> None:
    fuzz(1, 600, tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(2, 7))
def test_no_mutated_file_hides_an_external_tensor_drill(seed: int, tmp_path: Path) -> None:
    fuzz(seed, 4_100, tmp_path)


def test_every_place_of_a_tensor_is_looked_into(tmp_path: Path) -> None:
    """What onnx's descriptors allow is in the model that is mutated, and found there."""
    model, path = mutated_graphs.model(), tmp_path / "one.onnx"
    assert _places(model) == _allowed(onnx.ModelProto.DESCRIPTOR)
    path.write_bytes(model.SerializeToString())
    assert external_tensors(path) == []
    for tensor in mutated_graphs.tensors(model):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="elsewhere")
        path.write_bytes(model.SerializeToString())
        assert external_tensors(path) == [(tensor.name, "elsewhere")]
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


Place = tuple[str, str]


def _places(message: Message) -> set[Place]:
    found = set()
    for kind, value in message.ListFields():
        if kind.message_type is not None:
            inner = list(value) if kind.is_repeated else [value]
            below = set().union(*map(_places, inner))
            if below or kind.message_type.name == "TensorProto":
                found |= {(message.DESCRIPTOR.name, kind.name), *below}
    return found


def _allowed(kind: Descriptor) -> set[Place]:
    """Return every field from which a tensor can be reached."""
    edges: dict[Place, Descriptor] = {}
    waiting = [kind]
    while waiting:
        message = waiting.pop()
        for field in message.fields:
            place = (message.name, field.name)
            if field.message_type is not None and place not in edges:
                edges[place] = field.message_type
                waiting.append(field.message_type)
    reached, size = {"TensorProto"}, 0
    while len(reached) > size:
        size = len(reached)
        reached |= {message for (message, _), inner in edges.items() if inner.name in reached}
    return {place for place, inner in edges.items() if inner.name in reached}


@pytest.fixture
def secret() -> bytes:
    """What must come out nowhere."""
    return b"s3cr3t-of-an0th3r-us3r!!"


@pytest.mark.parametrize(
    ("way", "is_absolute"),
    [
        ("tag above 2^32", True),
        ("tag above 2^32", False),
        ("value above 2^32", True),
        ("highest tag of five bytes", False),
        ("tag of five bytes", False),
    ],
)
def test_no_way_in_takes_a_graph_that_names_another_file(
    way: str,
    is_absolute: bool,
    secret: bytes,
    tiny_pair: PipelinePair,
    mlflow_store: Path,
    oracle: Oracle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, hidden = mlflow_store / "package", mlflow_store / "home" / "secret.bin"
    oml_mlflow.save_model(tiny_pair, folder)
    [txt] = folder.glob("profiles/*/*_txt.onnx")
    location = str(hidden) if is_absolute else "../../../home/secret.bin"
    size = external(tiny_pair.txt, txt, WAYS[way], location)
    hidden.parent.mkdir()
    hidden.write_bytes((secret * size)[:size])
    _agree(folder, txt)
    client = mlflow.MlflowClient()
    client.create_registered_model("clip")
    client.create_model_version("clip", folder.as_uri())
    target = EmbeddedTarget(mlflow_store / "database")

    attempts: dict[str, Callable[[], object]] = {
        "from_files": lambda: PipelinePair.from_files(tiny_pair.img, txt),
        "open_session": lambda: open_session(txt),
        "load_model": lambda: oml_mlflow.load_model(str(folder)),
        "load_model, registered": lambda: oml_mlflow.load_model("models:/clip/1"),
        "pyfunc": lambda: mlflow.pyfunc.load_model(str(folder)),
        "plan": lambda: dry_run("models:/clip/1", target),
        "embedded": lambda: promote("models:/clip/1", target),
        "embedded, unverified": lambda: promote("models:/clip/1", target, unverified=True),
        "oracle": lambda: promote("models:/clip/1", oracle.uri),
    }
    texts = []
    for name, attempt in attempts.items():
        with pytest.raises(PackageError, match=r"in other files|no readable ONNX model") as err:
            attempt()
        assert err.value.code == "package-corrupt", name
        texts += [str(err.value), repr(err.value.__cause__)]
    rules = {f.rule for f in oml_mlflow.graph.rules.check_file(txt, get_profile("oracle-23.7"))}
    assert rules & {"external-data", "not-onnx"}
    written = [path for path in mlflow_store.rglob("*") if path.is_file() and path != hidden]
    texts.append(caplog.text)
    assert not any(secret in path.read_bytes() for path in written)
    assert not any(secret.decode() in text for text in texts)
    assert not [path for path in written if path.suffix == ".onnx" and folder not in path.parents]


def _agree(folder: Path, txt: Path) -> None:
    """Make MLmodel say of the text pipeline what its bytes are now."""
    content = yaml.safe_load((folder / "MLmodel").read_text())
    [sides] = content["flavors"]["oml_mlflow"]["profiles"].values()
    sides["txt"].update(sha256=fingerprint_file(txt), size_bytes=txt.stat().st_size)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def test_a_file_is_read_as_the_format_that_was_checked(
    tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    """ONNX Runtime takes a file called .ort for a format of its own, which nothing here reads."""
    path = tmp_path / "tiny_txt.ort"
    path.write_bytes(tiny_pair.txt.read_bytes())
    assert [given.name for given in open_session(path).get_inputs()] == ["input"]


def test_a_runtime_that_reads_any_file_is_named_once(
    tiny_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for found, told in (("1.23.2", 1), ("1.24.3", 1), ("1.24.4", 0), ("1.32.0", 0)):
        caplog.clear()
        runtime._warn_unguarded.cache_clear()
        monkeypatch.setattr(runtime, "onnxruntime_version", lambda found=found: found)
        open_session(tiny_pair.txt)
        open_session(tiny_pair.img)
        [*records] = [r for r in caplog.records if r.name == "oml_mlflow.graph.runtime"]
        assert [r.levelno for r in records] == [logging.WARNING] * told
        assert all("Install onnxruntime 1.24.4" in r.getMessage() for r in records)
    runtime._warn_unguarded.cache_clear()


READ = """
import json, sys
from pathlib import Path
import onnxruntime
path = sys.argv[1]
from oml_mlflow.errors import PackageError
from oml_mlflow.graph.runtime import open_session
try:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    leaked = session.run(None, {})[0].tobytes().decode()
except Exception as error:
    leaked = ""
try:
    open_session(Path(path))
    refused = ""
except PackageError as error:
    refused = str(error)
print(json.dumps([onnxruntime.__version__, leaked, refused]))
"""


@pytest.mark.drill
@pytest.mark.parametrize("way", WAYS)
def test_a_runtime_that_would_read_it_never_gets_it(
    way: str, secret: bytes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """ONNX Runtime 1.20.1 gives out the file; the same bytes are refused before it sees them."""
    old = tmp_path_factory.getbasetemp() / "onnxruntime-1.20.1"
    if not old.exists():
        _install(sys.executable, "--no-deps", "--target", str(old), "onnxruntime==1.20.1")
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    end = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [6])
    weight = onnx.numpy_helper.from_array(np.zeros(6, np.float32), "w")
    graph = onnx.helper.make_graph([node], "g", [], [end], [weight])
    opsets = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    (tmp_path / "secret.bin").write_bytes(secret)
    external(path, path, WAYS[way], str(tmp_path / "secret.bin"))
    environment = {"PYTHONPATH": str(old), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, env=environment
    )
    found, leaked, refused = json.loads(done.stdout)
    assert (found, leaked) == ("1.20.1", secret.decode())
    assert "in other files" in refused or "no readable ONNX model" in refused
    assert secret.decode() not in refused + done.stderr
