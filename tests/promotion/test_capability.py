"""Capability probes: what pairs need, models that ask for it, answers, and the choice."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from clip_folders import write_tiny
from onnx import TensorProto, helper
from small_database import SmallDatabase, as_session

from oml_mlflow.errors import CapabilityMissing, PackageError, PrivilegeError, TargetUnreachable
from oml_mlflow.events import Event
from oml_mlflow.graph.needs import Capability, needs
from oml_mlflow.graph.probe_models import probe_model
from oml_mlflow.graph.profiles import get_profile
from oml_mlflow.graph.rules import check_file
from oml_mlflow.graph.wire import Initializer, write_model
from oml_mlflow.oml4py import ONNXPipeline
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.parity.probes import Probe, unsafe_reason
from oml_mlflow.planning.capabilities import Answer, CapabilityTable
from oml_mlflow.planning.records import LoadedModel, now
from oml_mlflow.promotion.capabilities import SCRATCH_PREFIX, choose_profile, probe_capabilities

DECODE = "com.microsoft.extensions:DecodeImage"
TOKENIZE = "ai.onnx.contrib:CLIPTokenizer"
IMAGE_NEEDS = (
    Capability("input", "uint8", 18, 8),
    Capability("operator", "uint8", 18, 8, DECODE),
    Capability("antialias", "uint8", 18, 8),
)
TEXT_NEEDS = (
    Capability("input", "string", 17, 8),
    Capability("operator", "string", 17, 8, TOKENIZE),
)
ORACLE = (*IMAGE_NEEDS, *TEXT_NEEDS)
EVERY = (
    *ORACLE,
    Capability("integer", "uint8", 18, 8),
    Capability("integer", "string", 17, 8),
    Capability("operator", "string", 17, 8, "ai.onnx.contrib:StringRegexReplace"),
    Capability("operator", "string", 17, 8, "ai.onnx.contrib:HfJsonTokenizer"),
)


def test_needs_are_read_from_the_files(tiny_pair: PipelinePair) -> None:
    assert needs(tiny_pair.img) == IMAGE_NEEDS
    assert needs(tiny_pair.txt) == TEXT_NEEDS


def test_integer_arithmetic_is_a_need(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    config = ONNXPipelineConfig.from_template("multimodal_clip", quantize_model="dynamic")
    pair = ONNXPipeline(str(folder), config).export2file("clip", tmp_path, validate=False)
    assert needs(pair.txt) == (*TEXT_NEEDS, Capability("integer", "string", 17, 8))
    assert Capability("integer", "uint8", 18, 8) in needs(pair.img)


def test_a_file_that_is_no_model_has_no_needs(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(PackageError, match="no ONNX model"):
        needs(path)


def test_weights_are_not_read(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["input", "w"], ["embedding"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", 4096])
        for name in ("input", "embedding")
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    header = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    weight = Initializer(
        "w", (4096, 4096), np.dtype(np.float32), lambda: np.zeros((4096, 4096), np.float32)
    )
    write_model(tmp_path / "x.onnx", header, [weight])
    tracemalloc.start()
    assert needs(tmp_path / "x.onnx") == (Capability("input", "uint8", 17, 8),)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("attributes", "inputs", "has_probe"),
    [({}, ["input"], True), ({"mode": 1}, ["input"], False), ({}, ["input", "input"], False)],
)
def test_an_operator_of_unknown_form_is_not_asked_for(
    tmp_path: Path, attributes: dict[str, int], inputs: list[str], has_probe: bool
) -> None:
    node = helper.make_node("Decode", inputs, ["embedding"], domain="oracle.x", **attributes)
    ends = [
        helper.make_tensor_value_info("input", TensorProto.UINT8, ["n"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8]),
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("oracle.x", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "x.onnx")
    [need] = [n for n in needs(tmp_path / "x.onnx") if n.operator]
    assert (need.operator, need.has_probe) == ("oracle.x:Decode", has_probe)
    assert (probe_model(need) is not None) == has_probe


@pytest.mark.parametrize("capability", EVERY, ids=str)
def test_probe_models_are_small_and_keep_the_rules(capability: Capability, tmp_path: Path) -> None:
    probe = probe_model(capability)
    assert probe is not None
    assert len(probe.data) < 12_000  # the symbols of all bytes are in a vocabulary
    (tmp_path / "probe.onnx").write_bytes(probe.data)
    findings = check_file(tmp_path / "probe.onnx", get_profile("oracle-23.7"), name="OML_PROBE_1")
    if "Json" not in capability.operator and "Regex" not in capability.operator:
        assert findings == []
    onnx.checker.check_model(onnx.load_from_string(probe.data))
    if isinstance(probe.value, bytes) and probe.value.startswith(b"\xff\xd8"):
        assert not unsafe_reason(Probe("x", "img", "x", probe.value))
    # the same question is the same bytes, so that a DBA who looks sees the same model
    again = probe_model(capability)
    assert again is not None
    assert again.data == probe.data


def test_this_runtime_has_every_capability() -> None:
    database, events = SmallDatabase(), list[Event]()
    table = probe_capabilities(as_session(database), EVERY, events.append)
    assert [str(row) for row in table.rows if not row.taken] == []
    assert [row.capability for row in table.rows] == list(EVERY)
    assert database.loaded == {}
    assert database.table == table
    assert (events[-1].done, events[-1].total) == (len(EVERY), len(EVERY))


def test_a_refusal_is_an_answer_and_is_kept() -> None:
    database = SmallDatabase(refused=frozenset({DECODE}))
    table = probe_capabilities(as_session(database), ORACLE)
    [refused] = table.missing(ORACLE)
    assert refused.capability.operator == DECODE
    assert "ORA-54426" in refused.message
    assert str(refused) == f"{DECODE}, opset 18, IR 8, refused with ORA-54426"
    states = [row["state"] for row in table.to_rows()]
    assert states == ["takes", "refuses", "takes", "takes", "takes"]
    assert database.loaded == {}
    assert table.unanswered(ORACLE) == []


def test_wrong_figures_are_a_refusal() -> None:
    table = probe_capabilities(as_session(SmallDatabase(damage=5.0)), ORACLE)
    assert [row.taken for row in table.rows] == [False] * len(ORACLE)
    assert "it runs, but gave 5, 90, 175, 260 instead of 0, 85, 170, 255" in table.rows[0].message


def test_what_is_no_answer_is_not_taken_for_one() -> None:
    database = SmallDatabase(errors={1: PrivilegeError("no: ORA-01031")})
    table = probe_capabilities(as_session(database), ORACLE)
    assert [row.taken for row in table.rows] == [True, None, None, None, None]
    assert table.rows[1].message == "not run: no: ORA-01031"
    assert table.missing(ORACLE) == []
    assert len(table.unanswered(ORACLE)) == 4
    assert database.table == table
    assert database.tried == 2


def test_a_database_that_is_lost_meanwhile_ends_it() -> None:
    database = SmallDatabase(errors={1: TargetUnreachable("gone: DPY-4011")})
    with pytest.raises(TargetUnreachable, match="DPY-4011"):
        probe_capabilities(as_session(database), ORACLE)
    assert database.table is None


def test_leftovers_go_first_and_others_stay() -> None:
    database = SmallDatabase()
    for name in (f"{SCRATCH_PREFIX}1", f"{SCRATCH_PREFIX}7", f"{SCRATCH_PREFIX}X", "CLIP_IMG"):
        database.loaded[name] = LoadedModel(name, "", "", 0, 0, {}, now(), foreign=True)
    probe_capabilities(as_session(database), ORACLE)
    assert database.dropped[:2] == [f"{SCRATCH_PREFIX}1", f"{SCRATCH_PREFIX}7"]
    assert set(database.loaded) == {f"{SCRATCH_PREFIX}X", "CLIP_IMG"}


def test_answers_of_the_same_version_stay() -> None:
    database = SmallDatabase()
    session = as_session(database)
    probe_capabilities(session, IMAGE_NEEDS)
    table = probe_capabilities(session, TEXT_NEEDS)
    assert [row.capability for row in table.rows] == list(ORACLE)
    database.version = "23.27.0.0.0"
    table = probe_capabilities(session, TEXT_NEEDS)
    assert [row.capability for row in table.rows] == list(TEXT_NEEDS)
    assert table.database_version == "23.27.0.0.0"


def test_an_obstacle_does_not_undo_an_answer() -> None:
    database = SmallDatabase()
    probe_capabilities(as_session(database), ORACLE)
    database.tried, database.errors = 0, {0: PrivilegeError("no: ORA-01031")}
    table = probe_capabilities(as_session(database), ORACLE)
    assert [row.taken for row in table.rows] == [True] * len(ORACLE)


def table_of(*refused: Capability) -> CapabilityTable:
    rows = tuple(
        Answer(need, need not in refused, "ORA-54426: no" if need in refused else "")
        for need in EVERY
    )
    return CapabilityTable(rows, now(), "23.26.1.0.0")


def test_a_table_is_read_back_as_it_was() -> None:
    table = table_of(IMAGE_NEEDS[1])
    assert CapabilityTable.from_json(table.to_json()) == table
    assert json.loads(table.to_json())["format_version"] == "1.0"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "less than a minute"),
        (59, "less than a minute"),
        (60, "1 minute"),
        (7300, "2 hours"),
        (86400 * 3, "3 days"),
    ],
)
def test_the_age_is_told(seconds: int, told: str) -> None:
    table = table_of()
    assert table.age(table.probed_at + timedelta(seconds=seconds)) == told


def test_the_best_profile_without_a_refusal_is_chosen() -> None:
    own = replace(IMAGE_NEEDS[1], operator="oracle.images:Decode")
    stored = {"oracle-26ai": ORACLE, "oracle-23.7": (*TEXT_NEEDS, own)}
    ranked = ["oracle-26ai", "oracle-23.7"]
    assert choose_profile(stored, ranked, None) == "oracle-26ai"
    assert choose_profile(stored, ranked, table_of()) == "oracle-26ai"
    assert choose_profile(stored, ranked, table_of(IMAGE_NEEDS[1])) == "oracle-23.7"


@pytest.mark.parametrize(
    ("refused", "told", "next_step"),
    [
        (IMAGE_NEEDS[1], f"oracle-23.7 needs {DECODE}", "--decode-op DOMAIN:NAME"),
        (EVERY[5], "needs MatMulInteger", "--quantize-model"),
        (TEXT_NEEDS[1], f"needs {TOKENIZE}", "--profile"),
        (IMAGE_NEEDS[2], "needs Resize with antialias on uint8, opset 18", "--profile"),
    ],
)
def test_if_none_fits_the_missing_capability_is_named(
    refused: Capability, told: str, next_step: str
) -> None:
    with pytest.raises(CapabilityMissing, match="Nothing was loaded") as err:
        choose_profile({"oracle-23.7": EVERY}, ["oracle-23.7"], table_of(refused))
    assert err.value.code == "capability-missing"
    assert told in err.value.message
    assert "ORA-54426" in err.value.message
    assert next_step in err.value.hint
    assert err.value.details["refused"][0]["profile"] == "oracle-23.7"


RUN = """
import json, sys
import numpy as np, onnxruntime, onnxruntime_extensions
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
for path, value in json.load(open(sys.argv[1])):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = np.array([value], object) if isinstance(value, str) else np.array(value, np.uint8)
    print(json.dumps(session.run(["embedding"], {"input": given})[0][0].tolist()))
"""


@pytest.mark.drill
@pytest.mark.parametrize("extensions", ["0.9.0", "0.12.0"])
def test_probe_models_run_in_the_oldest_runtimes(
    extensions: str, environment: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = [need for need in EVERY if "Json" not in need.operator]
    probes = [probe for need in asked if (probe := probe_model(need))]
    given = []
    for number, probe in enumerate(probes):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(probe.data)
        value = probe.value if isinstance(probe.value, str) else list(probe.value)
        given.append((str(path), value))
    (tmp_path / "given.json").write_text(json.dumps(given))
    command = [str(environment(extensions)), "-c", RUN, str(tmp_path / "given.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    vectors = [np.array(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(vectors) == len(probes) == len(asked)
    wrong = [probe.judge(vector) for probe, vector in zip(probes, vectors, strict=True)]
    assert wrong == [""] * len(probes)
