"""Everything a user can get wrong about an export is named, with a next step and nothing left."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_folders
import pytest

from oml_mlflow.errors import (
    ConfigError,
    ExportError,
    InvalidName,
    NameTaken,
    OmlMlflowError,
    SourceError,
    UnsupportedSource,
)
from oml_mlflow.names import check_export_name
from oml_mlflow.oml4py import MiningFunction, ONNXPipeline
from oml_mlflow.pair.template import ONNXPipelineConfig


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    return clip_folders.copy_folder(tiny_folder, tmp_path / "model")


def refused(
    model_name: str | Path,
    out: Path,
    error: type[OmlMlflowError],
    message: str,
    hint: str,
    export_name: str = "tiny",
) -> None:
    """Check that an export is refused with this error and leaves nothing in `out`."""
    with pytest.raises(error, match=message) as err:
        ONNXPipeline(str(model_name)).export2file(export_name, out, validate=False)
    assert err.value.code == error.code
    assert hint in err.value.hint
    assert not out.is_dir() or not list(out.iterdir())


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def cut_short(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def change(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: clip_folders.change_json(folder / name, **values)


def widen_vocabulary(folder: Path) -> None:
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    clip_folders.change_json(folder / "vocab.json", extra=len(ids))


def rename_end_token(folder: Path) -> None:
    path = folder / "vocab.json"
    text = path.read_text(encoding="utf-8").replace(clip_folders.END, "<end>")
    path.write_text(text, encoding="utf-8")


def drop_projection(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors")


def only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


Damage = tuple[Callable[[Path], None], type[OmlMlflowError], str, str]
PREPROCESSOR = "preprocessor_config.json"
DAMAGES: dict[str, Damage] = {
    "not CLIP": (
        change("config.json", model_type="siglip"),
        UnsupportedSource,
        "not a CLIP model: .*'siglip'",
        "CLIPModel",
    ),
    "no configuration": (
        remove("config.json"),
        SourceError,
        "holds no config.json",
        "Hugging Face layout",
    ),
    "damaged configuration": (
        cut_short("config.json", 0.5),
        SourceError,
        r"config.json .* can't be read",
        "fetch or save",
    ),
    "configuration is a list": (
        write("config.json", "[1]"),
        SourceError,
        "config.json .*no JSON object",
        "fetch or save",
    ),
    "number is null": (
        change("config.json", projection_dim=None),
        SourceError,
        "config.json",
        "config.json",
    ),
    "number is a word": (
        change("config.json", projection_dim="many"),
        SourceError,
        "config.json",
        "config.json",
    ),
    "configuration of another model": (
        change("config.json", projection_dim=64),
        SourceError,
        "has shape .* asks for",
        "config.json that belongs",
    ),
    "no tokenizer": (
        remove("vocab.json", "merges.txt"),
        SourceError,
        "holds no tokenizer",
        "CLIPTokenizer",
    ),
    "half a tokenizer": (
        remove("merges.txt"),
        SourceError,
        "holds no tokenizer",
        "CLIPTokenizer",
    ),
    "damaged vocabulary": (
        cut_short("vocab.json", 0.5),
        SourceError,
        "vocab.json .* can't be read",
        "fetch or save",
    ),
    "merges are no text": (
        lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe a\n") and None,
        SourceError,
        "merges.txt",
        "fetch or save",
    ),
    "tokenizer of another model": (
        rename_end_token,
        UnsupportedSource,
        r"lacks <\|startoftext\|> or <\|endoftext\|>",
        "tokenizer of a CLIPModel",
    ),
    "ids beyond the embedding table": (
        widen_vocabulary,
        SourceError,
        "ids up to 49408, and the model knows 49408 tokens",
        "tokenizer that belongs",
    ),
    "no processor": (
        remove(PREPROCESSOR),
        SourceError,
        f"holds no {PREPROCESSOR}",
        "Hugging Face layout",
    ),
    "damaged processor": (
        cut_short(PREPROCESSOR, 0.5),
        SourceError,
        f"{PREPROCESSOR} .* can't be read",
        "fetch or save",
    ),
    "another processor": (
        change(PREPROCESSOR, image_processor_type="SiglipImageProcessor"),
        UnsupportedSource,
        "image processor SiglipImageProcessor",
        "CLIPImageProcessor",
    ),
    "Lanczos": (
        change(PREPROCESSOR, resample=1),
        UnsupportedSource,
        "resample 1 is not supported",
        "3 (bicubic)",
    ),
    "crop without height": (
        change(PREPROCESSOR, crop_size={"width": 32}),
        UnsupportedSource,
        f"{PREPROCESSOR}: crop_size {{'width': 32}}",
        "give height and width",
    ),
    "longest edge": (
        change(PREPROCESSOR, size={"longest_edge": 32}),
        UnsupportedSource,
        "longest_edge",
        "shortest_edge",
    ),
    "pictures of another size": (
        change(PREPROCESSOR, crop_size=48),
        UnsupportedSource,
        r"\(48, 48\), and the encoder takes \(32, 32\)",
        "image_size",
    ),
    "no weights": (
        remove("model.safetensors"),
        SourceError,
        "holds no weights: model.safetensors",
        "save_pretrained",
    ),
    "only pickled weights": (
        only_pickled_weights,
        SourceError,
        "there is pytorch_model.bin, which is not read",
        "save_pretrained",
    ),
    "truncated weights": (
        cut_short("model.safetensors", 0.6),
        SourceError,
        "model.safetensors is cut short or damaged",
        "fetch or save",
    ),
    "weights without a head": (
        cut_short("model.safetensors", 0.0),
        SourceError,
        "model.safetensors is cut short or damaged",
        "fetch or save",
    ),
    "no projection": (
        drop_projection,
        SourceError,
        "no tensor 'text_projection.weight'",
        "save_pretrained",
    ),
    "unknown activation": (
        change("config.json", text_config={"hidden_act": "swish"}),
        UnsupportedSource,
        "activation 'swish'",
        "quick_gelu",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_models_are_refused(name: str, model: Path, tmp_path: Path) -> None:
    damage, error, message, hint = DAMAGES[name]
    damage(model)
    refused(model, tmp_path / "out", error, message, hint)


@pytest.mark.parametrize(
    ("model_name", "message", "hint"),
    [
        ("no/such/folder", "there is no folder no/such/folder", "hub id"),
        ("/no/such", "there is no folder /no/such", "hub id"),
        ("nosuch", "there is no folder nosuch", "hub id"),
        ("nobody/no-such-model", "could not be fetched from the hub", "network"),
    ],
)
def test_missing_models_are_refused(
    model_name: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    refused(model_name, tmp_path / "out", SourceError, message, hint)


def test_a_file_is_no_model(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    refused(path, tmp_path / "out", SourceError, "is a file, not a model folder", "config.json")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("", "clip"),
        ("1clip", "clip"),
        ("_clip", "clip"),
        ("clip-b32", "clip_b32"),
        ("clip b32", "clip_b32"),
        ("clip.onnx", "clip"),
        ("c" * 112, "c" * 111),
        ("größe", "gr_e"),
        ("猫", "clip"),
        ("models/clip", "models_clip"),
        ("../clip", "clip"),
        ("a\\b", "a_b"),
        ("clip\n", "clip"),
        ("clip;drop", "clip_drop"),
    ],
)
def test_illegal_names_are_refused(
    name: str, nearest: str, tiny_folder: Path, tmp_path: Path
) -> None:
    refused(tiny_folder, tmp_path / "out", InvalidName, "no legal export name", repr(nearest), name)
    assert check_export_name(nearest) == nearest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["c", "clip_b32", "Clip$1#", "c" * 111])
def test_legal_names_are_kept(name: str) -> None:
    assert check_export_name(name) == name


def test_a_folder_below_a_file_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    # tests may run as root, who may write everywhere that can be written at all
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "out"):
        refused(tiny_folder, out, ExportError, f"{out} can't be written", "output_dir")
    assert file.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("out", ["/proc/self", "/proc/nowhere"])
def test_a_folder_that_nobody_can_write_is_refused(out: str, tiny_folder: Path) -> None:
    with pytest.raises(ExportError, match=f"{out} can't be written") as err:
        ONNXPipeline(str(tiny_folder)).export2file("tiny", out, validate=False)
    assert err.value.code == "export-failed"
    assert "output_dir" in err.value.hint


@pytest.mark.parametrize("side", ["img", "txt"])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_taken_names_are_not_touched(
    side: str, kind: str, tiny_folder: Path, tmp_path: Path
) -> None:
    taken = tmp_path / f"tiny_{side}.onnx"
    if kind == "file":
        taken.write_bytes(b"mine")
    elif kind == "folder":
        taken.mkdir()
    else:
        taken.symlink_to("nowhere")
    with pytest.raises(NameTaken, match=f"tiny_{side}.onnx is already there") as err:
        ONNXPipeline(str(tiny_folder)).export2file("tiny", tmp_path, validate=False)
    assert err.value.code == "name-taken"
    assert "another export name" in err.value.hint
    assert list(tmp_path.iterdir()) == [taken]
    assert kind != "file" or taken.read_bytes() == b"mine"
    assert kind != "dangling link" or os.readlink(taken) == "nowhere"


@pytest.mark.parametrize("side", ["img", "txt"])
def test_a_name_taken_during_the_export_is_not_touched(
    side: str, tiny_folder: Path, tmp_path: Path
) -> None:
    taken = tmp_path / f"tiny_{side}.onnx"
    with pytest.raises(NameTaken, match=f"tiny_{side}.onnx is already there"):
        ONNXPipeline(str(tiny_folder)).export2file(
            "tiny", tmp_path, validate=False, on_event=lambda _: taken.write_bytes(b"mine") and None
        )
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_bytes() == b"mine"


def test_unknown_template() -> None:
    with pytest.raises(UnsupportedSource, match="no template 'text'") as err:
        ONNXPipelineConfig.from_template("text")
    assert err.value.code == "source-unsupported"
    assert "multimodal_clip" in err.value.hint


@pytest.mark.parametrize(
    ("properties", "message", "hint"),
    [
        ({"max_len": 3, "colour": 1}, "colour, max_len: no such property", "max_seq_length"),
        ({"post_processors": []}, "post_processors", "Normalize"),
        ({"do_lower_case": False}, "do_lower_case=False", "True"),
        ({"max_seq_length": 2}, "max_seq_length 2", "leave it out"),
        ({"max_seq_length": "77"}, "max_seq_length '77'", "leave it out"),
        ({"distance_metrics": ["COSINE", "NEAR"]}, "NEAR is unknown", "EUCLIDEAN"),
    ],
)
def test_unusable_properties(properties: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as err:
        ONNXPipelineConfig.from_template("multimodal_clip", **properties)
    assert err.value.code == "config-invalid"
    assert hint in err.value.hint


def test_a_property_set_later_is_checked_too(tiny_folder: Path, tmp_path: Path) -> None:
    config = ONNXPipelineConfig.from_template("multimodal_clip")
    config.do_lower_case = False
    with pytest.raises(ConfigError, match="do_lower_case=False") as err:
        ONNXPipeline(str(tiny_folder), config).export2file("tiny", tmp_path)
    assert err.value.code == "config-invalid"
    assert list(tmp_path.iterdir()) == []


def test_unknown_setting() -> None:
    with pytest.raises(ConfigError, match="settings cachedir: unknown") as err:
        ONNXPipeline("m", settings={"cachedir": "/tmp", "cache_dir": "/tmp"})  # noqa: S108
    assert err.value.code == "config-invalid"
    assert "cache_dir" in err.value.hint


@pytest.mark.parametrize("function", [MiningFunction.REGRESSION, "CLUSTERING"])
def test_unsupported_function(function: MiningFunction | str) -> None:
    with pytest.raises(UnsupportedSource, match="is not supported") as err:
        ONNXPipeline("m", function=function)
    assert err.value.code == "source-unsupported"
    assert "EMBEDDING" in err.value.hint


# Every case is forked from one process that has imported what an export needs, which takes
# seconds. A case's child sends itself a signal at an event, or right before or after the calls of
# os.link that publish the files, and is waited for.
INTERRUPTED = textwrap.dedent(
    """
    import json, os, signal, sys
    import onnxruntime, onnxruntime_extensions
    from oml_mlflow.oml4py import ONNXPipeline
    from oml_mlflow.pair.reference import import_reference
    from oml_mlflow.source.model import open_source

    folder, root, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    open_source(folder)  # the tokenizer is kept, and read once for all
    import_reference()

    def export(out, number, item, point):
        seen = 0

        def strike(event):
            nonlocal seen
            if event.item != item:
                return
            seen += 1
            now = {"first": seen == 1, "middle": 2 * event.done >= event.total}
            if now.get(point, event.done == event.total):
                os.kill(os.getpid(), number)

        def watch(frame, event, called):
            nonlocal seen
            if called is not os.link or event not in ("c_call", "c_return"):
                return
            seen += event == "c_call"
            if [event, seen] == point:
                os.kill(os.getpid(), number)

        if item == "os.link":
            sys.setprofile(watch)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            ONNXPipeline(folder).export2file(
                "tiny", out, on_event=strike, validate=item != "os.link"
            )
        except KeyboardInterrupt:
            return 130
        return 0

    for case, number, item, point in cases:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = export(os.path.join(root, case), number, item, point)
            finally:
                os._exit(code)
        print(case, os.waitpid(child, 0)[1], flush=True)
    """
)
SIGNALS = {"interrupted": signal.SIGINT, "killed": signal.SIGKILL}
POINTS = [
    (item, point)
    for item in ("tiny_img.onnx", "tiny_txt.onnx", "pair, img", "pair, txt", "model references")
    for point in ("first", "middle", "last")
]
LINKS = [("os.link", (event, call)) for call in (1, 2) for event in ("c_call", "c_return")]
CASES = {
    f"{how}-{item}-{i % (3 if item != 'os.link' else 4)}".replace(" ", "_"): (number, item, point)
    for how, number in SIGNALS.items()
    for i, (item, point) in enumerate([*POINTS, *LINKS])
}


@pytest.fixture(scope="module")
def stopped(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stop an export at every point; give the root of the folders and how each child ended."""
    root = tmp_path_factory.mktemp("stopped")
    cases = json.dumps([[name, *case] for name, case in CASES.items()])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tiny_folder), str(root), cases],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    ends = dict(line.split() for line in done.stdout.splitlines())
    return {"root": root, "ends": {name: int(status) for name, status in ends.items()}}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_export_leaves_no_half_pair(
    name: str, stopped: dict[str, Any], tiny_folder: Path
) -> None:
    number, _, point = CASES[name]
    folder, status = stopped["root"] / name, stopped["ends"][name]
    if number == signal.SIGINT:
        assert os.waitstatus_to_exitcode(status) == 130
        assert list(folder.iterdir()) == []
    else:
        assert os.WTERMSIG(status) == signal.SIGKILL
        # nobody can take back what a process had published when it was killed; the next export does
        before = {("c_return", 1): 1, ("c_call", 2): 1, ("c_return", 2): 2}
        assert len(list(folder.glob("*.onnx"))) == before.get(point, 0)
    pipeline = ONNXPipeline(str(tiny_folder))
    if number == signal.SIGKILL and point == ("c_return", 2):
        # the pair was whole: it is somebody's result by now
        whole = {path: path.read_bytes() for path in folder.glob("*.onnx")}
        with pytest.raises(NameTaken, match="already there"):
            pipeline.export2file("tiny", folder, validate=False)
        assert {path: path.read_bytes() for path in folder.iterdir()} == whole
        return
    pair = pipeline.export2file("tiny", folder, validate=False)
    assert sorted(folder.iterdir()) == [pair.img, pair.txt]


def test_a_running_export_of_the_same_name_is_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    host = "".join(c for c in platform.node() if c.isalnum())
    aside = tmp_path / f".tiny.export-{host}-{os.getpid()}-abc"
    aside.mkdir()
    ONNXPipeline(str(tiny_folder)).export2file("tiny", tmp_path, validate=False)
    assert aside.is_dir()
