"""A registry that is away, refuses, or is broken is that, in every verb and from Python."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from fleets import live_versions, move, reconcile
from guarded_registry import DENIED, LOGIN, Answer, Guard, guarded_registry, is_write
from registry_copies import copy_store, using
from servers import free_port

import oml_mlflow
from oml_mlflow.cli.main import cli
from oml_mlflow.config.file import Config, load_config
from oml_mlflow.errors import (
    OmlMlflowError,
    RegistryError,
    RegistryRefused,
)
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.registry.versions import get_version, register_alias
from oml_mlflow.targets import open_target

FILE = """
[targets.small]
uri = "embedded:///{folder}/small"
accept = [{{ model = "clip", alias = "prod" }}]
[[bindings]]
model = "clip"
alias = "prod"
targets = ["small"]
"""
JSON = "application/json"
AWAY, REFUSED = ("registry-unreachable", 75), ("registry-refused", 1)
FAILURES = {
    "away": (None, AWAY),
    "login": (Answer(401, LOGIN), REFUSED),
    "denied": (Answer(403, DENIED), REFUSED),
    "proxy page": (Answer(401, "<html>\n<b>401 Authorization Required</b>"), REFUSED),
    "proxy json": (Answer(403, '{"message": "Forbidden"}', JSON), REFUSED),
    "mlflow json": (
        Answer(403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', JSON),
        REFUSED,
    ),
    "broken": (Answer(500, "Internal Server Error"), AWAY),
    "bad gateway": (Answer(502, "<html>Bad Gateway</html>"), AWAY),
    "its backend": (Answer(503, '{"message": "no healthy upstream"}', JSON), AWAY),
    "too many": (Answer(429, "slow down"), AWAY),
    "another server": (Answer(404, "<html>Not Found</html>"), AWAY),
    "a log-in page": (Answer(200, "<html>Log in</html>"), AWAY),
}
VERBS = {
    "promote": ("promote", "models:/clip@prod", "--target", "small"),
    "promote uri": ("promote", "models:/clip/1", "--target", "embedded:///other"),
    "verify": ("verify", "clip", "--target", "small"),
    "preflight": ("preflight", "models:/clip/2", "--target", "small"),
    "plan": ("plan",),
    "dry run": ("promote", "models:/clip/1", "--dry-run", "--target", "small"),
    "apply": ("apply", "--yes"),
    "status": ("status",),
    "verify bytes": ("verify", "clip", "--bytes", "--target", "small"),
    "log": ("log", "{img}", "{txt}", "--register", "clip"),
    "log into": ("log", "{img}", "{txt}", "--register", "clip", "--experiment", "e"),
    "relog": ("relog", "models:/clip/2"),
    "install": ("webhook", "install", "--url", "http://127.0.0.1:1/webhook"),
    "test": ("webhook", "test"),
    "remove": ("webhook", "remove"),
}


@pytest.fixture(scope="module")
def guard(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """Three versions of `clip` behind a guard, in a folder with a target that has two of them."""
    folder = tmp_path_factory.mktemp("guarded")
    copy_store(three_versions, folder)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch, guarded_registry(store, folder / "runs") as found:
        patch.chdir(folder)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("OML_MLFLOW_WEBHOOK_SECRET", "c2VjcmV0" * 6)
        Path("oml_mlflow.toml").write_text(FILE.format(folder=folder), encoding="utf-8")
        with using(found.uri):
            for version in (1, 2):
                move(version)
                assert reconcile(load_config()).ok
            yield found


@pytest.fixture
def config(guard: Guard) -> Config:
    return load_config()


@contextlib.contextmanager
def failing(guard: Guard, answer: Answer | None) -> Iterator[None]:
    """Have the registry fail; without an answer it is not there."""
    if answer is not None:
        with guard.answering(answer):
            yield
        return
    with using(f"http://scott:tig@er@127.0.0.1:{free_port()}"):
        yield
    mlflow.set_tracking_uri(guard.uri)
    mlflow.set_registry_uri(guard.uri)
    os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_REGISTRY_URI"] = guard.uri


def run(*arguments: str) -> OmlMlflowError:
    """Run a verb; return our error that it ends with."""
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, OmlMlflowError), (done.output, done.exc_info)
    return done.exception


@pytest.mark.parametrize("failure", FAILURES)
def test_every_verb_says_what_the_registry_is(
    failure: str, guard: Guard, config: Config, tiny_pair: PipelinePair
) -> None:
    answer, wanted = FAILURES[failure]
    found = {}
    with failing(guard, answer):
        for verb, arguments in VERBS.items():
            error = run(*(a.format(img=tiny_pair.img, txt=tiny_pair.txt) for a in arguments))
            found[verb] = error.code, error.exit_code
            assert "is not in the registry" not in str(error)
            assert "tig" not in str(error)
            assert ("MLFLOW_TRACKING_USERNAME" in error.hint) == (wanted == REFUSED), verb
            assert "<" not in error.message.replace("//***@", ""), error.message
    assert found == dict.fromkeys(VERBS, wanted)
    assert live_versions(config) == {"small": "2"}


@pytest.mark.parametrize("failure", ["away", "login", "broken"])
def test_python_says_the_same(
    failure: str, guard: Guard, config: Config, tiny_pair: PipelinePair
) -> None:
    answer, wanted = FAILURES[failure]
    database = open_target(config.targets["small"].uri)
    entries: Sequence[Callable[[], object]] = (
        lambda: oml_mlflow.promote("models:/clip/1", "small"),
        lambda: oml_mlflow.promote("models:/clip@prod", database),
        lambda: oml_mlflow.verify("clip", database),
        lambda: oml_mlflow.preflight("models:/clip/2", database),
        lambda: oml_mlflow.dry_run("models:/clip/1", database),
        lambda: oml_mlflow.apply(),
        lambda: oml_mlflow.status(),
        lambda: oml_mlflow.load_model("models:/clip/2"),
        lambda: oml_mlflow.load_model("models:/m-0123"),
        lambda: oml_mlflow.load_model("runs:/0123/clip"),
        lambda: oml_mlflow.log_model(tiny_pair, name="clip"),
        lambda: oml_mlflow.relog("models:/clip/2"),
    )
    with failing(guard, answer):
        for entry in entries:
            with pytest.raises(OmlMlflowError, match="the registry http") as caught:
                entry()
            assert (caught.value.code, caught.value.exit_code) == wanted
    assert live_versions(config) == {"small": "2"}


def test_what_is_not_there_is_not_there(guard: Guard) -> None:
    for uri in ("models:/no/1", "models:/no@prod", "models:/clip/9", "models:/clip@no"):
        with pytest.raises(RegistryError, match="is not in the registry") as caught:
            get_version(uri)
        assert caught.value.code == "registry-lookup-failed"

    # MLflow's basic-auth refuses to look up an alias or version of a model that is not there
    def is_inner(method: str, path: str) -> bool:
        return not path.endswith(("/registered-models/get", "/experiments/get"))

    with guard.answering(Answer(403, DENIED), is_inner):
        error = run("promote", "models:/no@prod", "--target", "embedded:///other")
    assert (type(error), guard.stopped) == (RegistryError, [])


def test_a_user_who_may_only_read(guard: Guard, config: Config, tiny_pair: PipelinePair) -> None:
    with guard.answering(Answer(403, DENIED), is_write):
        error = run("rollback", "clip", "--target", "small")
        assert (error.code, error.exit_code) == REFUSED
        assert "alias prod of clip was not moved to version 1" in error.message
        assert "--pin" in error.hint
        error = run("log", str(tiny_pair.img), str(tiny_pair.txt), "--register", "clip")
        assert (error.code, error.exit_code) == REFUSED
        assert "no run was started" in error.message
        done = CliRunner().invoke(cli, VERBS["verify"])
        assert done.exit_code == 0, done.output
    assert live_versions(config) == {"small": "2"}
    assert get_version("models:/clip@prod").version == "2"


STEPS = {
    "/logged-models": "the pair was not logged: .* Nothing is left",
    "/tags": "the pair was not logged: .* A logged model without some files is left",
    "/registered-models/create": "was not registered as fresh: .* It is logged",
    "/model-versions/create": "was not registered as fresh: .* It is logged",
    "/model-versions/update": "models:/fresh/1 was not described: .* It is registered",
    "/registered-models/alias": "alias prod of fresh was not moved to version 1: .* as it was",
    "/runs/update": "run .* was not ended: .* What it logged is there",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_log_that_stops_says_what_is_left(
    step: str, guard: Guard, tiny_pair: PipelinePair, request: pytest.FixtureRequest
) -> None:
    def is_step(method: str, path: str) -> bool:
        return is_write(method, path) and path.endswith(step)

    files = str(tiny_pair.img), str(tiny_pair.txt)
    with guard.answering(Answer(403, DENIED), is_step):
        error = run("log", *files, "--register", "fresh", "--alias", "prod")
    assert guard.stopped
    assert isinstance(error, RegistryRefused)
    assert re.search(STEPS[step], error.message), error.message
    client = mlflow.MlflowClient()
    with contextlib.suppress(Exception):
        client.delete_registered_model("fresh")


def test_a_database_that_may_only_be_read(
    versions: tuple[PipelinePair, ...], tmp_path: Path
) -> None:
    uri = f"sqlite:///file:{tmp_path / 'mlflow.db'}?mode=ro&uri=true"
    with using(uri):
        version = get_version("models:/clip/1")
        with pytest.raises(RegistryRefused, match="alias prod of clip was not moved") as caught:
            register_alias(version, "prod")
    assert caught.value.hint == "let this user write there."
