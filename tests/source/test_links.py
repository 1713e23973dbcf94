"""A model folder's links: none brings a file of ours into a pair, a package or a message."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import clip_folders
import pytest

import oml_mlflow
from oml_mlflow.errors import SourceError
from oml_mlflow.oml4py import ONNXPipeline

CONTENT = "s3cr3t of a docker config"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Somebody's files, and `inner`, a folder of them."""
    folder = tmp_path / "home"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "config.json", folder / "inner" / "config.json"):
        path.write_text(json.dumps({"auths": CONTENT}))
    return folder


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    return clip_folders.copy_folder(tiny_folder, tmp_path / "model")


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    """Return what replaces a file by a link; `~` is somebody's home."""

    def change(folder: Path, home: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("~", str(home)))

    return change


def chain(folder: Path, home: Path) -> None:
    (folder / "one").symlink_to(home)
    (folder / "two").symlink_to("one")
    link("special_tokens_map.json", "two/config.json")(folder, home)


def shard(name: str, target: str = "") -> Callable[[Path, Path], None]:
    """Return what makes the weights one shard of a name, perhaps a link to weights elsewhere."""

    def change(folder: Path, home: Path) -> None:
        (folder / "model.safetensors").rename(home / "model.safetensors")
        if target:
            link(name, target)(folder, home)
        index = {"weight_map": {"logit_scale": name}}
        clip_folders.write_json(folder / "model.safetensors.index.json", index)

    return change


def special(make: Callable[[str], object]) -> Callable[[Path, Path], None]:
    def change(folder: Path, home: Path) -> None:
        (folder / "vocab.json").unlink()
        before = Path.cwd()
        os.chdir(folder)  # an address of a socket is short
        make("vocab.json")
        os.chdir(before)

    return change


def listen(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name)


CASES = {
    "companion": (link("special_tokens_map.json", "~/config.json"), "special_tokens_map.json"),
    "new companion": (link("added_tokens.json", "~/config.json"), "added_tokens.json"),
    "relative": (link("tokenizer_config.json", "../home/config.json"), "tokenizer_config.json"),
    "configuration": (link("config.json", "~/config.json"), "config.json"),
    "image processor": (
        link("preprocessor_config.json", "~/config.json"),
        "preprocessor_config.json",
    ),
    "merges": (link("merges.txt", "~/config.json"), "merges.txt"),
    "weights": (link("model.safetensors", "~/config.json"), "model.safetensors"),
    "pickle": (link("pytorch_model.bin", "~/config.json"), "pytorch_model.bin"),
    "what only transformers reads": (link("chat_template.jinja", "~/config.json"), "chat_template"),
    "chain": (chain, "one"),
    "folder": (link("additional_chat_templates", "~/inner"), "additional_chat_templates"),
    "shard": (shard("a.safetensors", "~/model.safetensors"), "a.safetensors"),
    "hidden shard": (shard(".a.safetensors", "~/model.safetensors"), ".a.safetensors"),
    "shard's path": (shard("../home/model.safetensors"), "model.safetensors.index.json"),
    "shard above": (shard(".."), "model.safetensors.index.json"),
    "no shard's name": (shard("a\0"), "model.safetensors.index.json"),
    "proc": (link("vocab.json", "/proc/self/environ"), "vocab.json"),
    "device": (link("vocab.json", "/dev/zero"), "vocab.json"),
    "dangling": (link("special_tokens_map.json", "~/gone"), "special_tokens_map.json"),
    "dangling inside": (link("special_tokens_map.json", "gone"), "special_tokens_map.json"),
    "loop": (link("vocab.json", "vocab.json"), "vocab.json"),
    "pipe": (special(os.mkfifo), "vocab.json"),
    "socket": (special(listen), "vocab.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_link_out_of_a_model_folder_is_refused(
    case: str, model: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, name = CASES[case]
    change(model, home)
    settings = {"ignore_safetensors_error": True}
    with pytest.raises(SourceError) as err:
        ONNXPipeline(str(model), settings=settings).export2file("tiny", tmp_path / "out")
    assert err.value.code == "source-unavailable"
    assert str(model / name) in err.value.message
    assert not list((tmp_path / "out").iterdir())
    assert CONTENT not in f"{err.value} {err.value.__cause__!r} {caplog.text}"


@pytest.fixture
def snapshot(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model in a cache of the hub, as a download leaves it, with a blob that models share."""
    hub = tmp_path / "some" / "cache"
    model, revision = hub / "models--owner--tiny", "a" * 40
    blobs, folder = model / "blobs", model / "snapshots" / revision
    for made in (blobs, folder, model / "refs"):
        made.mkdir(parents=True)
    (model / "refs" / "main").write_text(revision)
    for number, path in enumerate(sorted(tiny_folder.iterdir())):
        blob = blobs / f"{number:064x}"
        shutil.copyfile(path, blob)
        if path.name == "model.safetensors":
            shared = hub / "blobs" / "ab" / ("ab" * 32)
            shared.parent.mkdir(parents=True)
            blob.rename(shared)
            blob.symlink_to(f"../../blobs/ab/{shared.name}")
        (folder / path.name).symlink_to(f"../../blobs/{blob.name}")
    return folder


@pytest.mark.parametrize("by_id", [True, False])
def test_links_of_the_hub_s_cache_go_on_working(
    by_id: bool, snapshot: Path, mlflow_store: Path
) -> None:
    name = "owner/tiny" if by_id else str(snapshot)
    settings = {"cache_dir": str(snapshot.parents[2])} if by_id else {}
    pair = ONNXPipeline(name, settings=settings).export2file("tiny", "out")
    oml_mlflow.save_model(pair, "package")
    stored = {path.name: path for path in Path("package/source").iterdir()}
    assert {"vocab.json", "merges.txt", "config.json"} <= stored.keys()
    assert not any(path.is_symlink() for path in stored.values())


def test_a_folder_s_own_links_and_hard_links_go_on_working(model: Path, tmp_path: Path) -> None:
    (model / "kept").mkdir()
    (model / "vocab.json").rename(model / "kept" / "words")
    (model / "vocab.json").symlink_to("kept/words")
    os.link(model / "merges.txt", tmp_path / "merges.txt")
    (tmp_path / "other name").symlink_to(model, target_is_directory=True)
    pair = ONNXPipeline(str(tmp_path / "other name")).export2file("tiny", tmp_path / "out")
    assert pair.dims == 16


@pytest.mark.parametrize("leaving", ["snapshot", "blob", "blobs", "neighbour", "shared"])
def test_a_snapshot_s_links_lead_only_to_its_own_blobs(
    leaving: str, snapshot: Path, home: Path, tmp_path: Path
) -> None:
    blobs, companion = snapshot.parents[1] / "blobs", snapshot / "special_tokens_map.json"
    hub = snapshot.parents[2]
    companion.unlink(missing_ok=True)
    target: Path | str = home / "config.json"
    if leaving == "blob":
        (blobs / "evil").symlink_to(target)
        target = "../../blobs/evil"
    elif leaving == "blobs":
        for path in blobs.iterdir():
            shutil.move(path, home)
        blobs.rmdir()
        blobs.symlink_to(home)
        target = "../../blobs/config.json"
    elif leaving == "neighbour":
        (hub / "models--owner--other" / "blobs").mkdir(parents=True)
        target = shutil.copy(home / "config.json", hub / "models--owner--other" / "blobs" / "a")
    elif leaving == "shared":
        target = shutil.copy(home / "config.json", hub / "blobs" / "config.json")
    companion.symlink_to(target)
    with pytest.raises(SourceError, match=r"link .* outside the model's folder") as err:
        ONNXPipeline(str(snapshot)).export2file("tiny", tmp_path / "out")
    assert CONTENT not in str(err.value)


def test_what_a_pair_s_user_names_is_the_user_s_choice(
    tiny_pair: oml_mlflow.PipelinePair, home: Path, mlflow_store: Path
) -> None:
    Path("notes.json").symlink_to(home / "config.json")
    pair = oml_mlflow.PipelinePair.from_files(
        tiny_pair.img, tiny_pair.txt, companions=["notes.json"]
    )
    oml_mlflow.save_model(pair, "package")
    assert CONTENT in Path("package/source/notes.json").read_text()


def test_logging_a_pair_does_not_follow_its_source_s_links(
    tiny_pair: oml_mlflow.PipelinePair,
    model: Path,
    home: Path,
    mlflow_store: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pair of files is compared with the model that it says it was made from."""
    link("special_tokens_map.json", "~/config.json")(model, home)
    pair = oml_mlflow.PipelinePair.from_files(tiny_pair.img, tiny_pair.txt, source=str(model))
    oml_mlflow.log_model(pair, name="clip", registered_model_name="clip")
    written = [p for p in mlflow_store.rglob("*") if p.is_file() and home not in p.parents]
    texts = [p.read_bytes() for p in written if not (p.is_symlink() and model in p.parents)]
    assert not any(CONTENT.encode() in text for text in texts)
    assert CONTENT not in caplog.text
