from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import foreign_graphs as foreign
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import oml_mlflow
from oml_mlflow import PipelinePair
from oml_mlflow.errors import GraphError
from oml_mlflow.graph.finding import Finding
from oml_mlflow.graph.profiles import PROFILES, Profile, get_profile
from oml_mlflow.graph.protobuf import tag
from oml_mlflow.graph.rules import check_file
from oml_mlflow.graph.wire import Initializer
from oml_mlflow.pair.export import export_pair
from oml_mlflow.pair.template import ONNXPipelineConfig
from oml_mlflow.source.model import open_source

ORACLE = PROFILES["oracle-23.7"]
ORACLE_PROFILES = [name for name in PROFILES if name.startswith("oracle-")]
PROGRAM = [sys.executable, "-c", "from oml_mlflow.cli.main import main; main()"]
# every code of Oracle Database that our collected facts hold
DOCUMENTED = {
    *(
        54400,
        54408,
        54420,
        54423,
        54425,
        54426,
        54427,
        54460,
        54462,
        54468,
        54469,
        54472,
        54473,
        54475,
    ),
    *(40150, 40203, 40204, 40215, 40281, 40284, 40290, 40341, 40361),
    *(942, 1031, 13606, 20000, 20047, 20401, 29532),
    # what any statement may meet: login, connection, quota ("Database Error Messages")
    *(1017, 1536, 1653, 1950, 3113, 3114, 3135, 28000),
    # of our own statements: no such column, types that differ in a UNION (same source)
    *(904, 1790),
}


def check(
    found: onnx.ModelProto, folder: Path, profile: Profile = ORACLE, **settings: object
) -> list[Finding]:
    return check_file(foreign.save(found, folder / "model.onnx"), profile, **settings)


def told(findings: list[Finding]) -> set[tuple[str, str, str | None]]:
    """Return (rule, where, code) of the errors."""
    return {(f.rule, f.where, f.code) for f in findings if f.is_error}


def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, "check", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_our_pairs_pass_for_their_profile(
    profile: Profile, tiny_folder: Path, tmp_path: Path
) -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    pair = export_pair(
        open_source(str(tiny_folder)), config, "clip", tmp_path, profile=profile, validate=False
    )
    assert check_file(pair.img, profile, name="CLIP_IMG") == []
    assert check_file(pair.txt, profile, name="CLIP_TXT") == []


@pytest.mark.parametrize("name", ORACLE_PROFILES)
def test_the_default_pair_passes_for_every_oracle_profile(
    name: str, tiny_pair: PipelinePair
) -> None:
    for side in ("img", "txt"):
        run(tiny_pair.path(side), "--profile", name)


def test_a_pair_for_onnxruntime_is_refused_by_oracle(tiny_folder: Path, tmp_path: Path) -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    profile = PROFILES["onnxruntime"]
    pair = export_pair(
        open_source(str(tiny_folder)), config, "clip", tmp_path, profile=profile, validate=False
    )
    found = [f for f in check_file(pair.txt, ORACLE) if f.is_error]
    assert {f.rule for f in found} == {"custom-operator"}
    assert any("HfJsonTokenizer of domain ai.onnx.contrib" in f.message for f in found)


def test_a_raw_export_of_optimum(tmp_path: Path) -> None:
    _assert_optimum(check(foreign.optimum_model(), tmp_path))


def _assert_optimum(findings: list[Finding]) -> None:
    found = told(findings)
    for tensor in ("input_ids", "pixel_values", "attention_mask", "logits_per_image"):
        assert ("variable-dims", tensor, "ORA-54426") in found
    assert ("metadata-input", "input", "ORA-54408") in found
    assert ("embedding-output", "embedding", None) in found
    assert ("inputs", "input_ids, pixel_values, attention_mask", None) in found
    assert {w for rule, w, _ in found if rule == "input-type"} == {
        "input_ids",
        "pixel_values",
        "attention_mask",
    }
    assert "invalid-graph" not in {rule for rule, _, _ in found}


@pytest.mark.drill
def test_a_genuine_raw_export_of_optimum(tiny_folder: Path, tmp_path: Path) -> None:
    """Optimum in an environment of its own: its transformers is older than ours."""
    environment = tmp_path / "optimum"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    constraints = Path(__file__).parents[2] / "projects" / "constraints.txt"
    install = [environment / "bin" / "pip", "install", "-q", "-c", constraints]
    subprocess.run([*install, "optimum-onnx", "onnxruntime"], check=True)
    command = [environment / "bin" / "optimum-cli", "export", "onnx", "--model", tiny_folder]
    subprocess.run(
        [*command, "--task", "zero-shot-image-classification", tmp_path / "out"],
        check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    for name in ORACLE_PROFILES:
        _assert_optimum(check_file(tmp_path / "out" / "model.onnx", PROFILES[name]))


def test_two_free_dimensions(tmp_path: Path) -> None:
    model = foreign.text_model()
    model.graph.input[0].CopyFrom(foreign.info("input", TensorProto.STRING, ["batch", "n"]))
    assert ("variable-dims", "input", "ORA-54426") in told(check(model, tmp_path))


def test_an_output_that_is_not_the_embedding_output(tmp_path: Path) -> None:
    path = foreign.save(foreign.text_model(), tmp_path / "model.onnx")
    other = foreign.rename(path, tmp_path / "other.onnx", embedding="sentence_embedding")
    found = check_file(other, ORACLE)
    assert told(found) == {("embedding-output", "embedding", None)}
    assert "['sentence_embedding']" in found[0].message
    assert check_file(other, ORACLE, embedding_output="sentence_embedding") == []
    one_output = {"function": "embedding", "input": {"input": ["DATA"]}}
    assert check_file(other, ORACLE, metadata=one_output) == []


def test_an_opset_and_ir_version_that_are_too_new(tmp_path: Path) -> None:
    found = check(foreign.text_model(opset=21, ir_version=10), tmp_path)
    assert told(found) == {("opset", "opset_import", None), ("ir-version", "ir_version", None)}
    assert "has opset 21; oracle-23.7 takes at most 18" in found[0].message


def test_a_model_without_an_opset(tmp_path: Path) -> None:
    model = foreign.text_model()
    del model.opset_import[0]
    assert ("opset", "opset_import", None) in told(check(model, tmp_path))


def write_sparse(path: Path, size: int) -> Path:
    """Write a sound text pipeline with an initializer of about `size` bytes, a hole in the file."""
    model = foreign.text_model()
    model.graph.node.append(helper.make_node("Identity", ["hole"], ["unused"], "unused"))
    rows = size // (4 * foreign.DIMS)
    item = Initializer("hole", (rows, foreign.DIMS), np.dtype(np.float32), lambda: np.empty(0))
    tensor = item._prefix()
    graph = model.graph.SerializeToString()
    field = tag(5, len(tensor) + item.size_bytes) + tensor
    model.ClearField("graph")
    whole = len(graph) + len(field) + item.size_bytes
    with path.open("wb") as file:
        file.write(model.SerializeToString() + tag(7, whole) + graph + field)
        file.truncate(file.tell() + item.size_bytes)
    return path


def test_a_file_of_a_gigabyte_in_little_memory(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "large.onnx", 2**30 + 2**20)
    script = (
        "import resource, sys\n"
        "from oml_mlflow.graph.rules import check_file\n"
        "from oml_mlflow.graph.profiles import PROFILES\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name in ('oracle-23.7', 'oracle-26ai'):\n"
        "    print([(f.rule, f.code) for f in check_file(sys.argv[1], PROFILES[name])])\n"
        "assert peak() - before < 50_000, peak() - before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[('file-size', 'ORA-54400')]", "[]"]


def test_a_foreign_operator_is_named_with_its_nodes(tmp_path: Path) -> None:
    [finding] = [f for f in check(foreign.image_model("input"), tmp_path) if f.is_error]
    assert (finding.rule, finding.where, finding.code) == ("custom-operator", "decode", None)
    assert finding.shown_code == "code not documented"
    assert "DecodeJpeg of domain oracle.invented" in finding.message
    assert "Models using any other custom operations will fail on import." in finding.message


def test_the_targets_own_decode_operator_is_taken(tmp_path: Path) -> None:
    profile = get_profile("oracle-23.7", decode_op="oracle.invented:DecodeJpeg")
    model = foreign.image_model("data")
    assert ("metadata-input", "data", None) in told(check(model, tmp_path, profile))
    metadata = {
        "function": "embedding",
        "embeddingOutput": "embedding",
        "input": {"data": ["DATA"]},
    }
    assert check(model, tmp_path, profile, metadata=metadata) == []


def test_an_operator_hidden_in_a_branch(tmp_path: Path) -> None:
    found = told(check(foreign.hidden_operator(), tmp_path))
    assert found == {("custom-operator", "choose/then_branch/secret", None)}


def test_operators_in_functions_are_seen_and_functions_are_none(tmp_path: Path) -> None:
    model = foreign.text_model(domains=("ai.onnx.ml", "mine", "somebody.else"))
    model.graph.node[2].op_type, model.graph.node[2].domain = "Wave", "mine"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebody.else", 1)]
    for node, rules in (
        (helper.make_node("Sin", ["x"], ["y"]), set()),
        (
            helper.make_node("Sine", ["x"], ["y"], "s", domain="somebody.else"),
            {("custom-operator", "function mine:Wave/s", None)},
        ),
    ):
        del model.functions[:]
        function = helper.make_function("mine", "Wave", ["x"], ["y"], [node], opsets)
        model.functions.append(function)
        assert told(check(model, tmp_path)) == rules


def test_many_nodes_of_one_operator_are_one_finding(tmp_path: Path) -> None:
    model = foreign.image_model("input")
    for number in range(9):
        node = helper.make_node("DecodeJpeg", ["input"], [f"o{number}"], domain="oracle.invented")
        model.graph.node.append(node)
    [finding] = [f for f in check(model, tmp_path) if f.is_error]
    assert finding.where.endswith("and 5 more")
    assert "DecodeJpeg number 5" in finding.where


@pytest.mark.parametrize(
    "content",
    [b"", b"just a text\n" * 20, b"PK\x03\x04 a zip", b"\x00" * 100, b"\x08\x08", b"\x3a\xff\xff"],
)
def test_a_file_that_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "not-onnx" in {f.rule for f in check_file(path, ORACLE)}
    done = run(path, "--json", code=1)
    document = json.loads(done.stdout)
    assert (document["format_version"], document["ok"]) == (1, False)
    assert "not-onnx" in {finding["rule"] for finding in document["findings"]}


def test_damaged_files_never_raise(tmp_path: Path) -> None:
    whole = foreign.hidden_operator().SerializeToString()
    path = tmp_path / "model.onnx"
    dice = random.Random(11)  # noqa: S311
    refused = 0
    for _ in range(300):
        data = bytearray(whole[: dice.choice([len(whole), dice.randrange(1, len(whole))])])
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        refused += any(f.is_error for f in check_file(path, ORACLE))
    assert refused > 100


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_external_data(location: str, tmp_path: Path) -> None:
    [finding] = [
        f for f in check(foreign.with_external_data(location), tmp_path) if "external" in f.rule
    ]
    assert (finding.where, finding.is_error) == ("table", True)
    assert ("leaves the file's folder" in finding.message) == (location != "weights.bin")


def test_external_data_in_a_branch(tmp_path: Path) -> None:
    model = foreign.hidden_operator()
    choose = next(node for node in model.graph.node if node.op_type == "If")
    tensor = foreign.weights("inner", 2, 2)
    tensor.external_data.add(key="location", value="w.bin")
    choose.attribute[0].g.initializer.append(tensor)
    assert ("external-data", "inner", None) in told(check(model, tmp_path))


def test_string_initializers_are_a_warning(tmp_path: Path) -> None:
    model = foreign.text_model()
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    [finding] = check(model, tmp_path)
    assert (finding.rule, finding.where, finding.severity) == (
        "string-initializer",
        "words",
        "warning",
    )
    run(tmp_path / "model.onnx")


def _output(
    shape: list[object], kind: int = TensorProto.FLOAT
) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[0].CopyFrom(foreign.info("embedding", kind, shape))

    return change


def _input(
    shape: list[object], kind: int = TensorProto.STRING
) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(foreign.info("input", kind, shape))

    return change


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_output([None, None]), ("embedding-dims", "embedding", "ORA-54423")),
        (_output([2, 128]), ("embedding-dims", "embedding", "ORA-54423")),
        (_output([2, 128]), ("large-dims", "embedding", "ORA-54427")),
        (_output([None, 0]), ("dim-size", "embedding", "ORA-54425")),
        (_output([None, -2]), ("dim-size", "embedding", "ORA-54425")),
        (_output([None, 128], TensorProto.DOUBLE), ("output-type", "embedding", None)),
        (_input([None], TensorProto.INT64), ("input-type", "input", None)),
        (_input([0]), ("dim-size", "input", "ORA-54425")),
        (_input([2, 3]), ("large-dims", "input", "ORA-54427")),
        (_input([None, 3]), ("metadata-elements", "input", "ORA-54420")),
    ],
)
def test_types_and_shapes(
    change: Callable[[onnx.ModelProto], None], wanted: tuple[str, str, str | None], tmp_path: Path
) -> None:
    model = foreign.text_model()
    change(model)
    assert wanted in told(check(model, tmp_path))


def test_minus_one_is_a_dimension_that_varies(tmp_path: Path) -> None:
    model = foreign.text_model()
    _output([-1, 128])(model)
    assert check(model, tmp_path) == []


def test_an_invalid_graph(tmp_path: Path) -> None:
    model = foreign.text_model()
    model.graph.node[1].input[0] = "nowhere"
    [finding] = check(model, tmp_path)
    assert finding.rule == "invalid-graph"
    assert "nowhere" in finding.message


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({}, {("metadata-function", "function", None)}),
        ({"function": "regression"}, {("metadata-function", "function", None)}),
        ({"function": "embedding", "embeddingOutput": "x"}, {("embedding-output", "x", None)}),
        (
            {"function": "embedding", "input": {"data": ["DATA"]}},
            {("metadata-input", "data", "ORA-54408"), ("metadata-input", "input", None)},
        ),
        (
            {"function": "embedding", "input": {"input": ["A", "B"]}},
            {("metadata-elements", "input", "ORA-54420")},
        ),
        (
            {"function": "embedding", "input": {"input": "DATA"}},
            {("metadata-elements", "input", "ORA-54420")},
        ),
        ({"function": "embedding", "input": ["DATA"]}, {("metadata-input", "input", None)}),
        (
            {"function": "embedding", "input": {"input": ["TABLE"]}},
            {("metadata-attribute", "TABLE", None)},
        ),
        (
            {"function": "embedding", "normalizeProb": True},
            {("metadata-field", "normalizeProb", None)},
        ),
        ({"function": "embedding"}, set()),
    ],
)
def test_metadata(metadata: dict[str, object], wanted: set[object], tmp_path: Path) -> None:
    assert told(check(foreign.text_model(), tmp_path, metadata=metadata)) == wanted
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(metadata))
    for given in (path, json.dumps(metadata)):
        found = json.loads(
            run(
                tmp_path / "model.onnx", "--metadata", given, "--json", code=int(bool(wanted))
            ).stdout
        )
        assert {(f["rule"], f["where"], f["code"]) for f in found["findings"]} == wanted


def test_an_unknown_metadata_field_is_a_warning(tmp_path: Path) -> None:
    metadata = {"function": "embedding", "Input": {}}
    [finding] = check(foreign.text_model(), tmp_path, metadata=metadata)
    assert (finding.rule, finding.where, finding.is_error) == ("metadata-field", "Input", False)


@pytest.mark.parametrize(
    ("name", "is_legal"),
    [
        ("CLIP_IMG", True),
        ("c$#_1", True),
        ("A" * 123, True),
        ("A" * 124, False),
        ("_clip", False),
        ("1clip", False),
        ("clip-1", False),
        ("order", False),
    ],
)
def test_model_names(name: str, is_legal: bool, tmp_path: Path) -> None:
    found = told(check(foreign.text_model(), tmp_path, name=name))
    assert found == (set() if is_legal else {("model-name", name, "ORA-40281")})


def test_the_raw_variant_is_for_runtimes_not_for_oracle(tiny_folder: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_folder))
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    raw = get_profile("oracle-23.7", decode_op="raw")
    with pytest.raises(GraphError, match=r"2 dimensions vary.*ORA-54426.*No file was left") as err:
        export_pair(source, config, "clip", tmp_path, profile=raw, validate=False)
    assert err.value.details["findings"][0]["rule"] == "variable-dims"
    assert list(tmp_path.iterdir()) == []
    profile = get_profile("onnxruntime", decode_op="raw")
    pair = export_pair(source, config, "clip", tmp_path, profile=profile, validate=False)
    assert check_file(pair.img, profile) == []


def test_an_oversize_tower_is_refused_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    small = replace(ORACLE, size_limit_bytes=10**6)
    events = []
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    with pytest.raises(GraphError, match=r"clip_txt.onnx would have .* at most 1,000,000") as err:
        export_pair(
            open_source(str(tiny_folder)),
            config,
            "clip",
            tmp_path,
            profile=small,
            on_event=events.append,
        )
    assert all(way in err.value.hint for way in ("quantize_model", "use_float16", "profile"))
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_the_verb_shows_a_table_and_what_to_do(tmp_path: Path) -> None:
    path = foreign.save(foreign.optimum_model(), tmp_path / "model.onnx")
    done = run(path, code=1)
    assert "ORA-54426" in done.stdout
    assert "code not documented" in done.stdout
    assert "what to do" in done.stdout
    assert "errors, 0 warnings for oracle-23.7" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "mysql"), "there is no profile 'mysql'"),
        (("--metadata", "nowhere.json"), "neither a readable file nor JSON"),
        (("--metadata", "{"), "neither a readable file nor JSON"),
        (("--decode-op", "no domain"), "neither 'raw' nor domain:Name"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = foreign.save(foreign.text_model(), tmp_path / "model.onnx")
    done = run(path, *arguments, code=1)
    assert message in done.stderr
    assert "Next: " in done.stderr


def test_only_documented_codes_are_used() -> None:
    package = Path(oml_mlflow.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    codes = {int(code) for text in sources for code in re.findall(r"ORA-(\d{5})", text)}
    assert codes
    assert codes <= DOCUMENTED
