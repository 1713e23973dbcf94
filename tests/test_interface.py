"""OML4Py's interface: its scripts with other import lines, and what each call takes and refuses."""

from __future__ import annotations

import ast
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clip_folders
import numpy as np
import pytest
import torch
from oracle_server.engine import Database, User
from oracle_server.server import OracleServer
from transformers import CLIPModel

import oml_mlflow
from oml_mlflow import (
    EmbeddingModel,
    EmbeddingModelConfig,
    MiningFunction,
    ONNXPipeline,
    ONNXPipelineConfig,
    PipelinePair,
)
from oml_mlflow.errors import ConfigError, InvalidName, ParityError, SourceError
from oml_mlflow.errors import UnsupportedSource as Unsupported
from oml_mlflow.source.model import open_source
from oml_mlflow.source.presets import PRESETS
from oml_mlflow.targets.embedded.target import EmbeddedTarget

HERE = Path(__file__).parent
SCRIPTS = HERE / "oml4py_scripts"
B32, L14 = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"
# what a user changes: import lines, and in example 2 the connection, for want of an Oracle target
IMPORTS = {
    "from oml.utils import ": "from oml_mlflow import ",
    "import oml\n": "import oml_mlflow as oml\n",
}
CONNECT = 'oml.connect("pyquser", "pyquser", dsn="pydsn")'


def write_published(folder: Path, dims: int, patch_px: int) -> Path:
    """Write a model with the published outer sizes and two narrow layers in each tower."""
    config = clip_folders.tiny_config(image_px=224)
    config.projection_dim = dims
    config.vision_config.patch_size = patch_px
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    clip_folders.write_companions(folder)
    return folder


def put_in_hub(hub: Path, name: str, folder: Path) -> Path:
    """Copy a model into a cache of the hub, as a download leaves it; return the snapshot."""
    model, revision = hub / f"models--{name.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    return model / "snapshots" / revision


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders that agree with what is published about them, by hub id."""
    root = tmp_path_factory.mktemp("published")
    return {
        B32: write_published(root / "b32", 512, 32),
        L14: write_published(root / "l14", 768, 14),
    }


@pytest.fixture
def hub(published: dict[str, Path], tmp_path: Path) -> Path:
    """A cache of the hub that holds the published models."""
    for name, folder in published.items():
        put_in_hub(tmp_path / "hub", name, folder)
    return tmp_path / "hub"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[EmbeddedTarget]:
    """A connected embedded database."""
    database = EmbeddedTarget(tmp_path / "database")
    oml_mlflow.connect(target=database)
    yield database
    oml_mlflow.disconnect()


def with_our_imports(script: str) -> str:
    """Return a script of OML4Py with other import lines."""
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    changed = text
    for theirs, ours in IMPORTS.items():
        changed = changed.replace(theirs, ours)
    pairs = zip(text.splitlines(), changed.splitlines(), strict=True)
    assert all("import" in before for before, after in pairs if before != after)
    assert changed != text
    return changed


# runs each folder's script.py as a program, with what it prints beside it
DRIVER = """
import contextlib, os, runpy, sys, traceback
for folder in sys.argv[1:]:
    os.chdir(folder)
    with open("stderr.txt", "w") as file, contextlib.redirect_stderr(file):
        try:
            runpy.run_path("script.py", run_name="__main__")
        except Exception:
            traceback.print_exc()
"""


@dataclass(frozen=True)
class Ran:
    """What a script left."""

    folder: Path
    stderr: str

    def files(self) -> set[str]:
        names = {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*")}
        return {n for n in names if (self.folder / n).is_file()} - {"script.py", "stderr.txt"}


def run_scripts(
    scripts: dict[str, str], root: Path, hub: Path, **environment: str
) -> dict[str, Ran]:
    """Run scripts in a process of their own, without a network, each in its own folder."""
    for name, text in scripts.items():
        (root / name).mkdir()
        (root / name / "script.py").write_text(text, encoding="utf-8")
    (root / "temporary").mkdir(exist_ok=True)
    environment |= os.environ | {
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(HERE.parent),
        "TMPDIR": str(root / "temporary"),
    }
    folders = {name: root / name for name in scripts}
    subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, folders.values())],
        env=environment,
        check=True,
        capture_output=True,
    )
    return {name: Ran(f, (f / "stderr.txt").read_text()) for name, f in folders.items()}


def our_scripts(hub: Path) -> dict[str, str]:
    """Return OML4Py's scripts as a user would change them, and example 2 for Oracle."""
    scripts = {path.stem: with_our_imports(path.name) for path in sorted(SCRIPTS.glob("*.py"))}
    assert scripts["clip_example_2"].count(CONNECT) == 1
    scripts["clip_example_2_on_oracle"] = scripts["clip_example_2"]
    scripts["clip_example_2"] = scripts["clip_example_2"].replace(
        CONNECT, 'oml.connect(target="embedded:///database")'
    )
    # a cache that is already filled, for want of a network
    scripts["properties_and_settings"] = scripts["properties_and_settings"].replace(
        '"downloads"', repr(str(hub))
    )
    return scripts


@pytest.fixture(scope="session")
def ran(published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """OML4Py's scripts, run one after the other in one process."""
    root = tmp_path_factory.mktemp("scripts")
    for name, folder in published.items():
        put_in_hub(root / "hub", name, folder)
    (root / "work").mkdir()
    scripts = our_scripts(root / "hub")
    database = Database(users={"PYQUSER": User("pyquser")})
    with database, OracleServer(database) as server:
        address = f"(ADDRESS=(PROTOCOL=TCP)(HOST=127.0.0.1)(PORT={server.port}))"
        alias = f"pydsn=(DESCRIPTION={address}(CONNECT_DATA=(SERVICE_NAME=FREEPDB1)))"
        (root / "tnsnames.ora").write_text(alias)
        found = run_scripts(scripts, root / "work", root / "hub", TNS_ADMIN=str(root))
        loaded = {name: model[1] for name, model in database.models("PYQUSER").items()}
        assert server.errors == []
    (root / "work" / "clip_example_2_on_oracle" / "loaded.json").write_text(json.dumps(loaded))
    return found


WRITTEN = [
    ("clip_example_1", {"clip_img.onnx", "clip_txt.onnx"}, 512, 77),
    ("clip_example_3", {"clip_14_img.onnx", "clip_14_txt.onnx"}, 768, 77),
    (
        "properties_and_settings",
        {"pipelines/with_properties_img.onnx", "pipelines/with_properties_txt.onnx"},
        512,
        64,
    ),
    (
        "deprecated_classes",
        {"your_template_file_name_img.onnx", "your_template_file_name_txt.onnx"},
        512,
        77,
    ),
]


@pytest.mark.parametrize(("script", "written", "dims", "max_length"), WRITTEN)
def test_a_script_of_oml4py_writes_its_files(
    script: str, written: set[str], dims: int, max_length: int, ran: dict[str, Ran]
) -> None:
    check_written(ran[script], written, dims, max_length)


def check_written(ran: Ran, written: set[str], dims: int, max_length: int) -> None:
    assert "Traceback" not in ran.stderr
    assert ran.files() == written
    img, txt = (ran.folder / name for name in sorted(written))
    pair = PipelinePair.from_files(img, txt)
    assert (pair.dims, pair.metadata["max_seq_length"]) == (dims, max_length)
    assert pair.embedder().embed_text(["a photo of a cat"]).shape == (1, dims)


def test_deprecated_classes_warn_at_the_lines_of_the_script(ran: dict[str, Ran]) -> None:
    warned = [
        line for line in ran["deprecated_classes"].stderr.splitlines() if "script.py:" in line
    ]
    assert [line.split("script.py:")[1].split(":")[0] for line in warned] == list("45678")
    assert all("is deprecated" in line for line in warned)


def test_example_2_loads_into_the_connected_database(ran: dict[str, Ran]) -> None:
    check_loaded(ran["clip_example_2"])


def test_example_2_loads_into_oracle_with_only_its_imports_changed(ran: dict[str, Ran]) -> None:
    on_oracle, files = ran["clip_example_2_on_oracle"], ran["clip_example_1"]
    assert "Traceback" not in on_oracle.stderr
    loaded = json.loads((on_oracle.folder / "loaded.json").read_text())
    sizes = {f"CLIP_{s.upper()}": files.folder / f"clip_{s}.onnx" for s in ("img", "txt")}
    assert loaded == {name: path.stat().st_size for name, path in sizes.items()}
    assert on_oracle.files() == {"loaded.json"}


def check_loaded(ran: Ran) -> None:
    assert "Traceback" not in ran.stderr
    assert {name.split("/")[0] for name in ran.files()} == {"database"}
    assert not list((ran.folder.parent / "temporary").rglob("*oml_mlflow*"))
    database = EmbeddedTarget(ran.folder / "database")
    with database.session("a test", create=False) as session:
        assert [model.name for model in session.models.list()] == ["CLIP_IMG", "CLIP_TXT"]
        [entry] = session.journal.ledger("clip")
    assert (entry.registered_model, entry.version, entry.run_id) == ("", "", "")
    assert entry.parity["max_abs"] <= 1e-4
    [(dims,)] = database.sql("SELECT len(CLIP_TXT('a photo of a cat'))")
    assert dims == 512


@pytest.mark.drill
def test_every_script_runs_in_a_process_of_its_own(hub: Path, tmp_path: Path) -> None:
    scripts = our_scripts(hub)
    (tmp_path / "work").mkdir()
    for script, written, dims, max_length in WRITTEN:
        [ran] = run_scripts({script: scripts[script]}, tmp_path / "work", hub).values()
        check_written(ran, written, dims, max_length)
    name = "clip_example_2"
    [ran] = run_scripts({name: scripts[name]}, tmp_path / "work", hub).values()
    check_loaded(ran)


def test_export2db_swaps_keeps_the_old_pair_and_writes_nothing_twice(
    tiny_folder: Path, target: EmbeddedTarget, tmp_path: Path
) -> None:
    first = ONNXPipeline(str(tiny_folder)).export2db("clip", validate=False)
    assert (first.changed, first.entry.generation) == (True, 1)
    again = ONNXPipeline(str(tiny_folder)).export2db("clip", validate=False)
    assert (again.changed, again.entry) == (False, first.entry)
    other = clip_folders.write_tiny(tmp_path / "other", seed=5)
    second = ONNXPipeline(str(other)).export2db("CLIP", validate=False, accept_new_geometry=True)
    assert second.entry.generation == 2
    with target.session("a test") as session:
        loaded = {model.name: model.fingerprint for model in session.models.list()}
    assert set(loaded) == {"CLIP_IMG", "CLIP_TXT", "CLIP_IMG_S1", "CLIP_TXT_S1"}
    assert loaded["CLIP_IMG"] == second.entry.fingerprints["img"]
    assert loaded["CLIP_IMG_S1"] == first.entry.fingerprints["img"]


@pytest.mark.parametrize("stage", ["export", "upload", "verify"])
def test_an_interrupted_export2db_leaves_no_file_and_the_old_pair(
    stage: str,
    tiny_folder: Path,
    target: EmbeddedTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ONNXPipeline(str(tiny_folder)).export2db("clip", validate=False)
    other = clip_folders.write_tiny(tmp_path / "other", seed=5)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def interrupt(event: Any) -> None:
        if event.stage == stage:
            assert list(temporary.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ONNXPipeline(str(other)).export2db(
            "clip", validate=False, accept_new_geometry=True, on_event=interrupt
        )
    assert list(temporary.iterdir()) == []
    with target.session("a test") as session:
        assert len(session.journal.ledger()) == 1
        assert [model.name for model in session.models.list()] == ["CLIP_IMG", "CLIP_TXT"]


def test_export2db_of_a_pair_that_proves_wrong_there(
    tiny_folder: Path, tiny_pair: PipelinePair, target: EmbeddedTarget, tmp_path: Path
) -> None:
    other = clip_folders.write_tiny(tmp_path / "other", seed=5)
    wrong = ONNXPipeline(str(other)).export2file("other", tmp_path / "pair", validate=False)

    def damage(event: Any) -> None:
        # pictures are verified first, so the text pipeline is not yet open
        if event.item == "CLIP_IMG_S1" and event.stage == "verify" and event.done == 1:
            shutil.copyfile(wrong.txt, target.model_path(tiny_pair.fingerprints["txt"]))

    with pytest.raises(ParityError, match=r"the pair of .*: 16 of 24 probes differ") as err:
        ONNXPipeline(str(tiny_folder)).export2db("clip", validate=False, on_event=damage)
    assert len(err.value.details["rows"]) == 24
    with target.session("a test") as session:
        assert session.models.list() == session.journal.ledger() == []


def test_export2db_needs_a_connection_and_a_legal_name(tiny_folder: Path, tmp_path: Path) -> None:
    oml_mlflow.disconnect()
    assert not oml_mlflow.isconnected()
    with pytest.raises(ConfigError, match="there is none") as err:
        ONNXPipeline(str(tiny_folder)).export2db("clip")
    assert "oml_mlflow.connect(" in err.value.hint
    oml_mlflow.connect(target=f"embedded:///{tmp_path / 'database'}")
    assert oml_mlflow.isconnected()
    with pytest.raises(InvalidName):
        ONNXPipeline(str(tiny_folder)).export2db("my clip")
    oml_mlflow.disconnect()
    assert not oml_mlflow.isconnected()
    assert not (tmp_path / "database").exists()


def test_connect_never_repeats_a_password(tmp_path: Path) -> None:
    oml_mlflow.connect(target=f"embedded:///{tmp_path}")
    calls: list[dict[str, Any]] = [
        {"user": "scott", "password": "Tiger#4711", "dsn": "x", "target": "embedded:///database"},
        {"target": "oracle://scott:Tiger#4711@db1/pdb1"},
        {},
    ]
    for call in calls:
        with pytest.raises(ConfigError) as err:
            oml_mlflow.connect(**call)
        assert "Tiger" not in f"{err.value!r} {err.value} {err.value.details}"
        assert oml_mlflow.isconnected()
    oml_mlflow.disconnect()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("post_processors", [{"name": "Pooling", "type": "mean"}], "Pooling belongs to text"),
        ("post_processors", [{"name": "Normalize"}, {"name": "Dense"}], "does not apply to CLIP"),
        ("post_processors", [], "both CLIP pipelines end in Normalize"),
        ("max_seq_length", 2, "no whole number of 3"),
        ("max_seq_length", "77", "no whole number of 3"),
        ("max_seq_length", True, "no whole number of 3"),
        ("do_lower_case", False, "tokenizer lower-cases"),
        ("quantize_model", "yes", "none of False, True"),
        ("use_float16", 1, "none of False, True"),
        ("distance_metrics", ["COSINUS"], "COSINUS is unknown"),
        ("distance_metrics", "COSINE", "no list of strings"),
        ("languages", [1], "no list of strings"),
        ("use_external_data", True, "weights always stay in the ONNX file"),
        ("labels", ["cat"], "belong to classification"),
        ("max_sequence_length", 77, "no such property"),
        ("template", "text", "can't be set"),
    ],
)
def test_a_property_that_cannot_be_honoured(
    name: str, value: Any, message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip")

    def use() -> None:
        setattr(config, name, value)
        ONNXPipeline(str(tiny_folder), config).export2file("tiny", tmp_path)

    with pytest.raises(ConfigError, match=message) as err:
        use()
    assert err.value.hint
    assert files_in(tmp_path) == set()
    with pytest.raises(ConfigError):
        ONNXPipelineConfig.from_template("multimodal_clip", **{name: value})


def test_an_unknown_property_is_refused_when_it_is_set() -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    for name in ("max_sequence_length", "labels"):
        with pytest.raises(ConfigError, match=r"propert|labels"):
            setattr(config, name, 77)
        assert not hasattr(config, name)


def test_properties_have_the_documented_defaults_and_are_checked_again_at_export(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip", quantize_model=True)
    assert config.quantize_model is True
    assert vars(ONNXPipelineConfig.from_template("multimodal_clip")) == {
        "template": "multimodal_clip",
        "post_processors": [{"name": "Normalize"}],
        "max_seq_length": None,
        "do_lower_case": True,
        "quantize_model": False,
        "distance_metrics": [],
        "languages": [],
        "use_float16": False,
        "use_external_data": None,
    }
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    config.post_processors.append({"name": "Dense"})
    with pytest.raises(ConfigError, match="Dense belongs to text models"):
        ONNXPipeline(str(tiny_folder), config).export2file("tiny", tmp_path)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["text", "Image_ViT", "Image_ConvNext", "sound"])
def test_other_templates(name: str) -> None:
    with pytest.raises(Unsupported, match=name) as err:
        ONNXPipelineConfig.from_template(name, max_seq_length=256)
    assert "'multimodal_clip'" in err.value.hint
    assert ONNXPipelineConfig.show_templates() == ["multimodal_clip"]


def test_functions_by_member_and_by_name(tiny_folder: Path) -> None:
    for function in (MiningFunction.EMBEDDING, MiningFunction.EMBEDDING.name):
        ONNXPipeline(str(tiny_folder), function=function)
    for other in (MiningFunction.CLASSIFCATION, "CLASSIFICATION", MiningFunction.REGRESSION.name):
        with pytest.raises(Unsupported, match="not supported here") as err:
            ONNXPipeline(str(tiny_folder), function=other)
        assert "MiningFunction.EMBEDDING" in err.value.hint
    assert MiningFunction.CLASSIFICATION is MiningFunction.CLASSIFCATION
    with pytest.raises(Unsupported, match="function EMBED is not supported"):
        ONNXPipeline(str(tiny_folder), function="EMBED")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cachedir": "."}, "settings cachedir: unknown"),
        ({"force_download": "yes"}, "neither True nor False"),
        ({"ignore_safetensors_error": 1}, "neither True nor False"),
        ({"logging_level": "LOUD"}, "'LOUD' is unknown"),
        ({"logging_level": 10}, "10 is unknown"),
        ({"cache_dir": 7}, "is no path"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as err:
        ONNXPipeline(B32, settings=settings)
    assert err.value.hint


def test_logging_level_is_that_of_this_package_alone() -> None:
    logger, root = logging.getLogger("oml_mlflow"), logging.getLogger()
    before, roots = logger.level, root.level
    try:
        ONNXPipeline(B32, settings={"logging_level": "CRITICAL"})
        assert (logger.level, root.level) == (logging.CRITICAL, roots)
    finally:
        ONNXPipeline(B32, settings={"logging_level": "WARNING"})
        logger.setLevel(before)


def test_deprecated_twins_warn_and_take_both_keywords() -> None:
    with pytest.warns(DeprecationWarning, match="use ONNXPipelineConfig") as warned:
        config = EmbeddingModelConfig.from_template("multimodal_clip", max_seq_length=50)
    assert [Path(w.filename).name for w in warned] == ["test_interface.py"]
    assert isinstance(config, EmbeddingModelConfig)
    for keywords in ({"configuration": config}, {"config": config}):
        with pytest.warns(DeprecationWarning, match="use ONNXPipeline") as warned:
            model = EmbeddingModel(B32, **keywords)
        assert [Path(w.filename).name for w in warned] == ["test_interface.py"]
        assert model.config.max_seq_length == 50
    with (
        pytest.warns(DeprecationWarning, match="use ONNXPipeline"),
        pytest.raises(ConfigError, match="both were given"),
    ):
        EmbeddingModel(B32, config, config=config)
    with pytest.raises(ConfigError, match="config is a dict"):
        ONNXPipeline(B32, {"max_seq_length": 77})  # type: ignore[arg-type]


def test_presets_are_shown_as_documented() -> None:
    assert ONNXPipelineConfig.show_preconfigured() == list(PRESETS)
    assert ONNXPipelineConfig.show_preconfigured(model_name=L14) == list(PRESETS)
    [shown] = ONNXPipelineConfig.show_preconfigured(True, L14)
    properties = shown[L14]
    assert json.loads(json.dumps(properties)) == properties
    assert (properties["dims"], properties["image_size"]) == (768, 224)
    assert properties["distance_metrics"] == ["COSINE"]
    assert all("github.com/" in preset.source for preset in PRESETS.values())
    with pytest.raises(ConfigError, match="not preconfigured"):
        ONNXPipelineConfig.show_preconfigured(True, "google/vit-base-patch16-224")


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def export(name: str, hub: Path, to: Path, config: Any = None, **settings: Any) -> PipelinePair:
    pipeline = ONNXPipeline(name, config, settings={"cache_dir": str(hub), **settings})
    return pipeline.export2file("clip", to, validate=False)


@pytest.mark.parametrize(
    ("file", "changed", "message"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, r"\(0\.5, .*\(0\.48145466"),
        ("config.json", {"vision": {"hidden_act": "gelu"}}, "hidden_act is gelu and quick_gelu"),
        ("tokenizer_config.json", {"model_max_length": 64}, "max_seq_length is 64 .* and 77 is"),
    ],
)
def test_a_preset_is_a_checked_expectation(
    file: str, changed: dict[str, Any], message: str, hub: Path, tmp_path: Path
) -> None:
    [path] = hub.glob(f"*base-patch32/snapshots/*/{file}")
    if "vision" in changed:
        vision = json.loads(path.read_text())["vision_config"] | changed["vision"]
        changed = {"vision_config": vision}
    clip_folders.change_json(path, **changed)
    with pytest.raises(SourceError, match=message) as err:
        export(B32, hub, tmp_path / "out")
    assert "published" in err.value.message
    assert "from_template('multimodal_clip')" in err.value.hint
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    assert export(B32, hub, tmp_path / "out", config).dims == 512


def test_the_first_download_is_recorded_and_a_later_one_compared(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = export(B32, hub, tmp_path / "first")
    assert pair.metadata["distance_metrics"] == ["COSINE"]
    assert "sha256 of this first download of model.safetensors was recorded" in caplog.text
    [record] = hub.glob("*/oml_mlflow.json")
    assert record.parent.name == "models--openai--clip-vit-base-patch32"
    before = record.read_bytes()
    caplog.clear()
    export(B32, hub, tmp_path / "second")
    assert caplog.text == ""

    [weights] = record.parent.glob("snapshots/*/model.safetensors")
    other = bytearray(weights.read_bytes())
    other[-1] ^= 1
    weights.write_bytes(other)
    with pytest.raises(SourceError, match=r"was recorded at its first download") as err:
        export(B32, hub, tmp_path / "third")
    assert "ignore_checksum_error" in err.value.hint
    assert not files_in(tmp_path / "third")
    export(B32, hub, tmp_path / "fourth", ignore_checksum_error=True)
    assert "Ignored, as ignore_checksum_error asks" in caplog.text
    assert record.read_bytes() == before
    record.write_text("{")
    with pytest.raises(SourceError, match="record of first downloads, can't be read"):
        export(B32, hub, tmp_path / "fifth")


def as_pickle(folder: Path, shards: int = 1, *, legacy: bool = False) -> None:
    """Replace a folder's safetensors by pytorch_model.bin, as old releases saved it.

    Args:
        folder: The folder.
        shards: Number of files.
        legacy: Write the format of torch before 1.6, which can't be mapped into memory.
    """
    tensors = CLIPModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    if shards == 1:
        path = folder / "pytorch_model.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
        return
    names = [f"pytorch_model-{k + 1:05}-of-{shards:05}.bin" for k in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        torch.save({k: v for k, v in tensors.items() if where[k] == name}, folder / name)
    clip_folders.write_json(
        folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where}
    )


@pytest.mark.parametrize(("shards", "legacy"), [(1, False), (2, False), (1, True)])
def test_pickled_weights_only_when_asked_for(
    shards: int, legacy: bool, tiny_folder: Path, tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    folder = clip_folders.copy_folder(tiny_folder, tmp_path / "model")
    as_pickle(folder, shards, legacy=legacy)
    with pytest.raises(SourceError, match="does not have a safetensors version") as err:
        ONNXPipeline(str(folder)).export2file("tiny", tmp_path / "out")
    assert "ignore_safetensors_error to True in the settings" in err.value.hint
    settings = {"ignore_safetensors_error": True}
    pair = ONNXPipeline(str(folder), settings=settings).export2file("tiny", tmp_path / "out")
    text = ["a photo of a cat"]
    np.testing.assert_array_equal(
        pair.embedder().embed_text(text), tiny_pair.embedder().embed_text(text)
    )


def test_pickled_weights_from_the_hub(hub: Path, tmp_path: Path) -> None:
    [snapshot] = hub.glob("*base-patch32/snapshots/*")
    as_pickle(snapshot)
    with pytest.raises(SourceError, match=f"Provided model {B32} does not have a safetensors"):
        export(B32, hub, tmp_path / "out")
    assert export(B32, hub, tmp_path / "out", ignore_safetensors_error=True).dims == 512
    [record] = hub.glob("*/oml_mlflow.json")
    assert list(json.loads(record.read_text())["sha256"]) == ["pytorch_model.bin"]


class Touch:
    """Something whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "among tensors", "torchscript", "cut"])
def test_a_pickle_with_code_is_refused_without_running_it(
    form: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = clip_folders.copy_folder(tiny_folder, tmp_path / "model")
    as_pickle(folder)
    path, trap = folder / "pytorch_model.bin", tmp_path / "executed"
    if form == "bare":
        path.write_bytes(pickle.dumps(Touch(trap)))
    elif form == "torchscript":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    elif form == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        tensors = torch.load(path, weights_only=True) if form == "among tensors" else {}
        values = {**tensors, "text_projection.weight": Touch(trap)}
        torch.save(values, path, _use_new_zipfile_serialization=form != "legacy")
    if form not in ("torchscript", "cut"):
        with pytest.raises(SourceError, match="without running anything"):
            open_source(str(folder), pickles=True)
    with pytest.raises(SourceError, match=r"pytorch_model.bin.* Nothing was written"):
        open_source(str(folder), pickles=True)
    assert not trap.exists()


def test_code_of_a_model_is_never_trusted() -> None:
    for path in Path(oml_mlflow.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword):
                if node.arg == "trust_remote_code":  # else transformers would ask
                    assert ast.unparse(node.value) == "False"
                if node.arg in ("weights_only", "allow_pickle"):
                    assert ast.unparse(node.value) == str(node.arg == "weights_only")


def test_the_table_of_the_interface_is_checked(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE.parent / "projects" / "interface" / "table.py")]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    file = tmp_path / "page.md"
    file.write_text(f"# Page\n\n{table}\nMore.\n")
    subprocess.run([*command, "--check", str(file)], check=True, capture_output=True)
    file.write_text(file.read_text().replace("export2db", "export_to_db"))
    done = subprocess.run([*command, "--check", str(file)], check=False, capture_output=True)
    assert done.returncode == 1


def test_the_trap_would_work(tmp_path: Path) -> None:
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Touch(path))).close()  # noqa: S301
    assert path.exists()


@pytest.mark.parametrize("package", ["safetensors", "torch", "transformers"])
def test_a_package_that_only_building_needs_is_named(
    package: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=package) as caught:
        ONNXPipeline(str(tiny_folder)).export2file("clip", tmp_path)
    assert "oml-mlflow[build]" in caught.value.hint
    assert not list(tmp_path.iterdir())
