from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from oml_mlflow.config.bindings import Acceptance, Binding
from oml_mlflow.config.file import Config, TargetConfig, WebhookConfig, load_config
from oml_mlflow.errors import ConfigError

WHOLE = """
target = "dev"
poll_s = 5
[targets.dev]
uri = "embedded:///database"
accept = [{ model = "clip*", alias = "dev", name = "CLIP" }]
[targets.prod-1]
uri = "oracle://app@${DB_HOST}:1521/FREEPDB1"
accept = [{ model = "clip*", alias = "prod" }]
allow_tag_bindings = true
after = ["dev"]
drift = "heal"
timeout_s = 5
[[bindings]]
model = "clip"
alias = "prod"
targets = ["dev", "prod-1"]
[[bindings]]
model = "clip-b32"
alias = "dev"
target = "dev"
name = "b32"
[webhook]
port = 6000
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "oml_mlflow.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    config = load_config(path, environ={"DB_HOST": "db1"})
    assert config.targets == {
        "dev": TargetConfig(
            "dev", f"embedded:///{tmp_path / 'database'}", (Acceptance("clip*", "dev", "CLIP"),)
        ),
        "prod-1": TargetConfig(
            "prod-1",
            "oracle://app@db1:1521/FREEPDB1",
            (Acceptance("clip*", "prod"),),
            allow_tag_bindings=True,
            after=("dev",),
            drift="heal",
            timeout_s=5.0,
        ),
    }
    assert config.bindings == (
        Binding("dev", "CLIP", "clip", "prod"),
        Binding("prod-1", "CLIP", "clip", "prod"),
        Binding("dev", "B32", "clip-b32", "dev"),
    )
    assert (config.target, config.poll_s, config.concurrency) == ("dev", 5.0, 4)
    assert config.webhook == WebhookConfig(port=6000)
    assert config.origins["poll_s"] == f"file {path}"
    assert config.origins["targets.prod-1.uri"] == f"file {path}, with ${{DB_HOST}}"
    assert config.origins["concurrency"] == "default"


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    environ = {"DB_HOST": "db1"}
    key, variable = "targets.dev.paused", "OML_MLFLOW_TARGETS_DEV_PAUSED"
    seen = []
    for text, more, flags in (
        (WHOLE, {}, {}),
        (WHOLE.replace("[targets.prod-1]", "paused = true\n[targets.prod-1]"), {}, {}),
        (WHOLE, {variable: "yes"}, {key: None}),
        (WHOLE, {variable: "yes"}, {key: False}),
    ):
        path.write_text(text)
        config = load_config(path, environ=environ | more, flags=flags)
        seen.append((config.targets["dev"].paused, config.origins[key]))
    assert seen == [
        (False, "default"),
        (True, f"file {path}"),
        (True, f"environment {variable}"),
        (False, "flag"),
    ]


def test_environment_reaches_every_plain_value(tmp_path: Path) -> None:
    environ = {
        "DB_HOST": "db1",
        "OML_MLFLOW_TARGET": "prod-1",
        "OML_MLFLOW_CONCURRENCY": "2",
        "OML_MLFLOW_POLL_S": "0.5",
        "OML_MLFLOW_TARGETS_PROD_1_URI": "oracle://app@other:1521/P",
        "OML_MLFLOW_TARGETS_PROD_1_DRIFT": "report",
        "OML_MLFLOW_TARGETS_DEV_TIMEOUT_S": "",
        "OML_MLFLOW_WEBHOOK_HOST": "0.0.0.0",  # noqa: S104 -- not listened on
        "OML_MLFLOW_WEBHOOK_SECRET": "s3cret",
    }
    config = load_config(write(tmp_path, WHOLE), environ=environ)
    assert (config.target, config.concurrency, config.poll_s) == ("prod-1", 2, 0.5)
    prod = config.targets["prod-1"]
    assert (prod.uri, prod.drift) == ("oracle://app@other:1521/P", "report")
    assert config.targets["dev"].timeout_s == 30.0
    assert config.webhook.host == environ["OML_MLFLOW_WEBHOOK_HOST"]
    assert "s3cret" not in repr(config)


def test_no_file_is_no_error_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(environ={}) == Config(origins=load_config(environ={}).origins)
    with pytest.raises(ConfigError, match=r"other\.toml can't be read"):
        load_config(environ={"OML_MLFLOW_CONFIG": "other.toml"})
    write(tmp_path, 'target = "embedded:///here"')
    (tmp_path / "other.toml").write_text('target = "embedded:///there"')
    assert load_config(environ={}).target == "embedded:///here"
    assert load_config(environ={"OML_MLFLOW_CONFIG": "other.toml"}).target == "embedded:///there"
    named = load_config("oml_mlflow.toml", environ={"OML_MLFLOW_CONFIG": "other.toml"})
    assert named.target == "embedded:///here"


def test_a_verb_takes_a_name_or_a_uri(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, WHOLE), environ={"DB_HOST": "db1"})
    assert config.choose().name == "dev"
    assert config.choose("prod-1").timeout_s == 5.0
    assert config.choose(f"embedded:///{tmp_path / 'database'}").name == "dev"
    assert config.choose("embedded:///else") == TargetConfig("embedded:///else", "embedded:///else")
    with pytest.raises(ConfigError, match="no target 'prod'") as caught:
        config.choose("prod")
    assert "did you mean prod-1?" in caught.value.hint


DEV = '[targets.dev]\nuri = "embedded:///d"\n'
BOUND = '[[bindings]]\nmodel = "clip"\nalias = "prod"\n'


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("concurency = 3", "concurency", "did you mean concurrency?"),
        ("concurrency = 0", "concurrency", "must be a whole number from 1"),
        ("concurrency = true", "concurrency", "it is true or false"),
        ("poll_s = nan", "poll_s", "must be seconds"),
        ('target = "dve"\n' + DEV, "target", "did you mean dev?"),
        ("targets = 1", "targets", "[targets.dev]"),
        ('["targets"."a b"]\nuri = "embedded:///d"', "targets.a b", "letters, digits"),
        ("[targets.dev]", "targets.dev", "OML_MLFLOW_TARGETS_DEV_URI"),
        (DEV + "acept = []", "targets.dev.acept", "did you mean accept?"),
        (DEV + 'accept = ["*"]', "targets.dev.accept[0]", "must be a table"),
        (DEV + "accept = [{}]", "targets.dev.accept[0]", "says nothing"),
        (DEV + "accept = [{model = 1}]", "targets.dev.accept[0].model", "a pattern"),
        (DEV + 'accept = [{version = "1"}]', "targets.dev.accept[0].version", "alias, model, name"),
        (DEV + 'drift = "fix"', "targets.dev.drift", "'report' or 'heal'"),
        (DEV + 'paused = "no"', "targets.dev.paused", "must be true or false"),
        (DEV + "paused = 1979-05-27", "targets.dev.paused", "a time or date"),
        (DEV + "after = [1]", "targets.dev.after", "names of targets"),
        (DEV + 'after = "prod"', "targets.dev.after", "no configured target"),
        (DEV + 'after = "dev"', "targets.dev.after", "in a circle: dev after dev"),
        (DEV + '[targets.b]\nuri = "embedded:///d"', "targets.b.uri", "targets.dev too"),
        ('[targets.dev]\nuri = "mysql://db"', "targets.dev.uri", "embedded:///folder"),
        ('[targets.dev]\nuri = "oracle://db"', "targets.dev.uri", "names no user"),
        ('[targets.dev]\nuri = "embedded:///${NO_SUCH}"', "targets.dev.uri", "export NO_SUCH="),
        (DEV + BOUND, "bindings[0]", "either its target"),
        (DEV + BOUND + 'target = "dve"', "bindings[0].target", "did you mean dev?"),
        (DEV + BOUND + "targets = []", "bindings[0].targets", "names no target"),
        (DEV + BOUND + 'target = "dev"\nname = "1a"', "bindings[0].name", "legal export name"),
        (DEV + BOUND.replace('"clip"', '"a.b"') + 'target = "dev"', "bindings[0].name", "'a_b'"),
        (DEV + BOUND.replace('"prod"', '"a b"') + 'target = "dev"', "bindings[0].alias", "alias"),
        (DEV + '[[bindings]]\nalias = "prod"\ntarget = "dev"', "bindings[0].model", "registered"),
        ("bindings = {}", "bindings", "must be a list"),
        ("[webhook]\nport = 70000", "webhook.port", "65535"),
        ("[webhook]\nwindow = 1", "webhook.window", "did you mean window_s?"),
        ("a = ", "oml_mlflow.toml", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(
    tmp_path: Path, text: str, key: str, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert key in caught.value.message
    assert str(path) in caught.value.message
    assert said in str(caught.value)
    assert caught.value.hint


def test_a_longer_circle_is_shown(tmp_path: Path) -> None:
    text = "".join(
        f'[targets.{a}]\nuri = "embedded:///{a}"\nafter = ["{b}"]\n'
        for a, b in (("test", "dev"), ("prod", "test"), ("dev", "prod"))
    )
    with pytest.raises(ConfigError, match="test after dev after prod after test"):
        load_config(write(tmp_path, text), environ={})


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("OML_MLFLOW_TARGETS_DVE_URI", "did you mean OML_MLFLOW_TARGETS_DEV_URI?"),
        ("OML_MLFLOW_TARGETS_DEV_ACCEPT", "fits no configured target"),
        ("OML_MLFLOW_TARGETS_A_B_URI", "fits two targets"),
        ("OML_MLFLOW_POLL_S", "must be seconds"),
    ],
)
def test_variables_that_fit_nothing(tmp_path: Path, variable: str, said: str) -> None:
    more = "".join(f'[targets.{n}]\nuri = "embedded:///{n}"\n' for n in ("a-b", "a_b"))
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, DEV + more), environ={variable: "x"})
    assert said in str(caught.value)
    assert variable in caught.value.message


APP = "oracle://app@db1:1521/FREEPDB1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("embedded:///d", "embedded:///./d"),
        ("embedded:///d", "embedded:///x/../d/"),
        ("embedded:///d", "embedded:///%64"),
        ("embedded:///d", "embedded:///link"),
        ("embedded:///d", "embedded:///{folder}/d"),
        (APP, "oracle://APP@DB1:1521/freepdb1"),
        (APP, "oracle://app@db1/FREEPDB1"),
        (APP, "oracle://app@//db1/FREEPDB1?keep=3"),
        (APP, "oracle://%22APP%22@db1/FREEPDB1?call_timeout=5&protocol=tcps"),
        (APP, "oracle://proxy[app]@db1/FREEPDB1"),
        (APP, "oracle://app@main?config_dir={folder}"),
        ("oracle://app@prod", "oracle://app@PROD?connect_timeout=5"),
    ],
)
def test_one_database_in_two_spellings_is_refused(
    one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("d")
    place = "(ADDRESS=(PROTOCOL=TCP)(PORT=1521)(HOST=DB1))(CONNECT_DATA=(SERVICE_NAME=FREEPDB1))"
    (tmp_path / "tnsnames.ora").write_text(f"MAIN = (DESCRIPTION={place})")
    other = other.format(folder=tmp_path)
    text = f'[targets.a]\nuri = "{one}"\n[targets.b]\nuri = "embedded:///z"\n'
    path = write(tmp_path, text)
    assert load_config(path, environ={}).choose(other).name == "a"
    path.write_text(f'{text}[targets.c]\nuri = "{other}"\n')
    with pytest.raises(ConfigError, match=r"targets\.c\.uri .* of targets\.a too.*Nothing was"):
        load_config(path, environ={})
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"targets\.b\.uri \(environment .* of targets\.a too"):
        load_config(path, environ={"OML_MLFLOW_TARGETS_B_URI": other})


@pytest.mark.parametrize(
    "other",
    [
        "oracle://other@db1:1521/FREEPDB1",
        "oracle://%22app%22@db1:1521/FREEPDB1",
        "oracle://app[other]@db1:1521/FREEPDB1",
        "oracle://app@db1:1522/FREEPDB1",
        "oracle://app@db2:1521/FREEPDB1",
        "oracle://app@db1:1521/OTHER",
        "oracle://app@db1",
        "embedded:///db1",
    ],
)
def test_other_databases_and_other_schemas_are_other_targets(other: str, tmp_path: Path) -> None:
    text = f'[targets.a]\nuri = "{APP}"\n[targets.b]\nuri = "{other}"\n'
    assert len(load_config(write(tmp_path, text), environ={}).targets) == 2


KUBERNETES = {
    "{}_SERVICE_HOST": "10.0.0.1",
    "{}_SERVICE_PORT": "80",
    "{}_SERVICE_PORT_HTTP": "80",
    "{}_PORT": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP": "tcp://10.0.0.1:80",
    "{}_PORT_80_TCP_PROTO": "tcp",
    "{}_PORT_80_TCP_PORT": "80",
    "{}_PORT_80_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("service", ["WEBHOOK", "TARGETS_PROD_1", "TARGETS", "TARGETS_NEW"])
def test_what_kubernetes_sets_beside_a_service_is_no_setting(service: str, tmp_path: Path) -> None:
    environ = {key.format(f"OML_MLFLOW_{service}"): text for key, text in KUBERNETES.items()}
    path = write(tmp_path, WHOLE)
    config = load_config(path, environ={"DB_HOST": "db1"} | environ)
    assert config.webhook.port == 6000
    origin = config.origins["webhook.port"]
    if service == "WEBHOOK":
        assert origin.startswith(f"file {path}; OML_MLFLOW_WEBHOOK_PORT is ignored")
        assert "Kubernetes" in origin
    else:
        assert origin == f"file {path}"


@pytest.mark.parametrize("text", ["tcp://", "tcp://10.0.0.1", "http://10.0.0.1:80", "70000", "x"])
def test_another_port_that_is_none_stays_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"OML_MLFLOW_WEBHOOK_PORT\) must be a port"):
        load_config(environ={"OML_MLFLOW_WEBHOOK_PORT": text})


MARKED = "hunter2-marked"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f'[targets.a]\nuri = "oracle://app:{MARKED}@db/P"', {}),
        (f'[targets.a]\nuri = "oracle://app@db/P?password={MARKED}"', {}),
        (f'[targets.a]\nuri = "postgres://app:{MARKED}@db/P"', {}),
        (f'target = "oracle://app:{MARKED}@db/P"', {}),
        ('[targets.a]\nuri = "oracle://app@${URI}"', {"URI": f"x:{MARKED}@db/P"}),
        ('[targets.a]\nuri = "oracle://app@${DB_PASSWORD}/P"', {"DB_PASSWORD": MARKED}),
        ('[targets.a]\nuri = "embedded:///a"\ndrift = "${MY_TOKEN}"', {"MY_TOKEN": MARKED}),
        (f'[targets.a]\nuri = "embedded:///a"\npassword = "{MARKED}"', {}),
        (f'[targets.a]\nuri = "embedded:///a"\ndrift = "{MARKED}"', {}),
        (f'[webhook]\nsecret = "{MARKED}"', {}),
        ("", {"OML_MLFLOW_TARGET": f"oracle://app:{MARKED}@db/P"}),
        ("", {"OML_MLFLOW_CONCURRENCY": MARKED}),
        (f"a = '{MARKED}", {}),
    ],
)
def test_secrets_are_refused_and_never_shown(
    tmp_path: Path, text: str, environ: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), environ=environ)
    assert MARKED not in str(caught.value) + repr(caught.value.details)
    assert MARKED not in repr(caught.value.__cause__)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "oml_mlflow.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is no TOML"):
        load_config(path, environ={})
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(os.fspath(tmp_path), environ={})


def test_a_relative_folder_counts_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "oml_mlflow.toml"
    file.write_text('[targets.dev]\nuri = "embedded:///vectors"\n')
    monkeypatch.chdir(tmp_path)
    assert load_config().targets["dev"].uri == "embedded:///vectors"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(file).targets["dev"].uri == f"embedded:///{tmp_path / 'vectors'}"
    monkeypatch.setenv("OML_MLFLOW_TARGETS_DEV_URI", "embedded:///here")
    assert load_config(file).targets["dev"].uri == "embedded:///here"
