from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.deployments.cli import commands
from mlflow.exceptions import MlflowException
from oracle_fixtures import PASSWORD, Oracle
from PIL import Image

from oml_mlflow import deploy, load_model
from oml_mlflow.errors import NotAccepted
from oml_mlflow.pair.pipeline_pair import PipelinePair

Run = Callable[..., str]

FILE = """
[targets.dev]
uri = "embedded:///database"
accept = [{{ model = "clip", alias = "prod", name = "CLIP" }}]
[targets.prod]
uri = "{uri}"
accept = [{{ model = "clip", alias = "prod" }}]
"""


@pytest.fixture
def two(versions: tuple[PipelinePair, ...], oracle: Oracle) -> Iterator[Path]:
    """Three versions of `clip`, the first with the alias prod, and two targets; give the file."""
    path = Path("oml_mlflow.toml")
    path.write_text(FILE.format(uri=oracle.uri))
    point("1")
    yield path
    assert not [p for p in Path().rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]


def point(version: str) -> None:
    mlflow.MlflowClient().set_registered_model_alias("clip", "prod", version)


def run(*arguments: str) -> str:
    """Run `mlflow deployments` in this process, which spares its imports."""
    done = CliRunner().invoke(commands, arguments)
    assert PASSWORD not in done.output
    if done.exception is not None:
        raise done.exception
    return done.output


def shown(target: str) -> dict[str, str]:
    lines = run("get", "-t", target, "--name", "CLIP").strip().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


@pytest.mark.parametrize("target", ["oml:/dev", "oml:/prod"])
def test_every_verb(two: Path, target: str) -> None:
    named = ("-t", target, "--name", "CLIP")
    assert "oml_mlflow deployment CLIP is created" in run(
        "create", *named, "-m", "models:/clip@prod"
    )
    run("create", *named, "-m", "models:/clip@prod")
    found = shown(target)
    assert (found["state"], found["live"]) == ("in sync", "clip 1")
    assert (found["follows"], found["generation"]) == ("models:/clip@prod", "1")
    assert "CLIP_TXT" in found["sql"]
    assert "'name': 'CLIP'" in run("list", "-t", target)

    Path("rows.json").write_text(json.dumps([{"text": "a cat"}, {"text": "two dogs"}]))
    answer = json.loads(run("predict", *named, "-I", "rows.json"))
    texts = np.array([row["embedding"] for row in answer["predictions"]])
    expected = load_model("models:/clip/1").embed_text(["a cat", "two dogs"])
    np.testing.assert_allclose(texts, expected, atol=1e-4)

    point("2")
    assert shown(target)["state"] == "out of sync"
    with pytest.raises(MlflowException, match="follows clip@prod already"):
        run("create", *named, "-m", "models:/clip/3")
    with pytest.raises(MlflowException, match="geometry-changed"):
        run("update", *named, "-m", "models:/clip/3")
    assert shown(target)["live"] == "clip 1"
    other = ("-C", "accept_new_geometry=true")
    assert "updated (with flavor oml_mlflow)" in run(
        "update", *named, "-m", "models:/clip/3", *other
    )
    found = shown(target)
    assert (found["state"], found["live"]) == ("pinned", "clip 3")
    run("update", *named, "-m", "models:/clip@prod", *other)
    assert shown(target)["live"] == "clip 2"

    for _ in range(2):
        assert "Deployment CLIP is deleted" in run("delete", *named)
    found = shown(target)
    assert (found["state"], found["live"], found["follows"]) == ("unbound", "clip 2", "")
    for _ in range(2):
        run("delete", *named, "-C", "drop=true")
    with pytest.raises(MlflowException, match="no deployment 'CLIP'"):
        shown(target)
    with pytest.raises(MlflowException, match="no deployment 'CLIP'"):
        run("update", *named, "-m", "models:/clip/3")


def test_the_program_itself(two: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "deployments", "create", "-t", "oml:/dev"]
    done = subprocess.run(
        [*command, "--name", "CLIP", "-m", "models:/clip@prod"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "oml_mlflow deployment CLIP is created" in done.stdout
    assert shown("oml:/dev")["live"] == "clip 1"


def test_pictures_are_embedded_by_the_database(two: Path) -> None:
    client = get_deploy_client("oml:/dev")
    client.create_deployment("clip", "models:/clip@prod")
    file = io.BytesIO()
    Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB").save(file, "JPEG")
    picture = file.getvalue()
    frame = pd.DataFrame({"image": [base64.b64encode(picture).decode(), None], "text": [None, "a"]})
    found = client.predict("clip", frame).get_predictions()["embedding"]
    pair = load_model("models:/clip/1")
    np.testing.assert_allclose(found[0], pair.embed_image([picture])[0], atol=1e-4)
    np.testing.assert_allclose(found[1], pair.embed_text(["a"])[0], atol=1e-4)
    with pytest.raises(MlflowException, match="neither a column 'image'"):
        client.predict("clip", pd.DataFrame({"words": ["a"]}))


def test_only_what_the_target_accepts(two: Path) -> None:
    client = get_deploy_client("oml:/dev")
    for name, uri in (("OTHER", "models:/clip@prod"), ("OTHER", "models:/clip/1")):
        with pytest.raises(MlflowException, match="does not accept") as caught:
            client.create_deployment(name, uri)
        assert isinstance(caught.value.__cause__, NotAccepted)
        assert caught.value.error_code == "PERMISSION_DENIED"
    assert not Path("database").exists()
    binding = '[[bindings]]\nmodel = "clip"\nalias = "prod"\ntarget = "dev"\n'
    two.write_text(two.read_text() + binding)
    client = get_deploy_client("oml:/dev")
    client.create_deployment("CLIP", "models:/clip@prod")
    with pytest.raises(MlflowException, match="would be loaded again"):
        client.delete_deployment("CLIP", config={"drop": "true"})


def test_what_makes_no_sense_is_refused(two: Path) -> None:
    wanted = ("-m", "models:/clip/1")
    for arguments, said in (
        (("create", "-m", "models:/clip@none"), "registry-lookup-failed"),
        (("create", *wanted, "-C", f"password={PASSWORD}"), "-C password"),
        (("create", *wanted, "-C", f"adopt={PASSWORD}"), "neither true nor false"),
        (("create", *wanted, "-f", "onnx"), "only flavor oml_mlflow"),
        (("create", *wanted, "--endpoint", "e"), "no endpoints"),
        (("update",), "without a model URI"),
        (("delete", "-C", "adopt=true"), "there are drop"),
        (("get",), "no deployment 'CLIP'"),
    ):
        verb, *more = arguments
        with pytest.raises(MlflowException) as caught:
            run(verb, "-t", "oml:/dev", "--name", "CLIP", *more)
        assert said in str(caught.value)
        assert PASSWORD not in str(caught.value)
    assert not Path("database").exists()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("oml:/nowhere", "'nowhere'"),
        ("oml", "the name of a target"),
        (f"oml:/app:{PASSWORD}@db", "no target URI of oml"),
        (f"oml://app:{PASSWORD}@db/dev", "no target URI of oml"),
    ],
)
def test_target_uris(mlflow_store: Path, uri: str, said: str) -> None:
    Path("oml_mlflow.toml").write_text('[targets.dev]\nuri = "embedded:///dev"')
    with pytest.raises(MlflowException) as caught:
        get_deploy_client(uri)
    assert said in str(caught.value)
    assert PASSWORD not in str(caught.value)
    Path("oml_mlflow.toml").write_text('target = "d"\n[targets.d]\nuri = "embedded:///database"')
    assert isinstance(get_deploy_client("oml"), deploy.OmlDeploymentClient)


def test_the_module_is_what_mlflow_takes_for_a_plugin() -> None:
    clients = [
        found
        for found in vars(deploy).values()
        if isinstance(found, type)
        and issubclass(found, BaseDeploymentClient)
        and found is not BaseDeploymentClient
    ]
    assert clients == [deploy.OmlDeploymentClient]
    told = run("help", "-t", "oml")
    for key in ("accept_new_geometry", "adopt", "retry", "take_over", "unverified", "drop"):
        assert key in told


def test_run_local_fills_the_embedded_database(two: Path) -> None:
    run("run-local", "-t", "oml", "--name", "mine", "-m", "models:/clip/1")
    assert Path("database").is_dir()
