from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oml_mlflow.errors import ConfigError, ParityError, Vetoed
from oml_mlflow.promotion.hooks import HookContext, Hooks, load_hooks

CONTEXT = HookContext(
    uri="embedded:///database", name="CLIP", registered_model="clip", version="3", target="dev"
)
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make an installed package whose modules hold hooks: source text, and entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(source: str, points: str) -> None:
        (tmp_path / "house_hooks.py").write_text(source)
        info = tmp_path / "house_hooks-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-hooks\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[oml_mlflow.hooks]\n{points}\n")

    yield add
    sys.modules.pop("house_hooks", None)


def test_without_hooks_nothing_is_done() -> None:
    for hooks in (load_hooks(), Hooks()):
        assert hooks.found == ()
        hooks.before_load(CONTEXT)
        hooks.on_failure(CONTEXT)


def test_module_class_and_object_are_hooks_in_order_of_their_names(install: Install) -> None:
    install(
        "told = []\n"
        "def after_swap(context): told.append(('module', context.version))\n"
        "class Both:\n"
        "    def before_load(self, context): told.append(('class', context.name))\n"
        "    def after_swap(self, context): told.append(('class', context.target))\n"
        "made = Both()\n",
        "b = house_hooks:Both\na = house_hooks\nc = house_hooks:made",
    )
    hooks = load_hooks()
    assert [name for name, _ in hooks.found] == ["a", "b", "c"]
    hooks.before_load(CONTEXT)
    hooks.after_verify(CONTEXT)
    hooks.after_swap(CONTEXT)
    import house_hooks  # type: ignore[import-not-found]

    assert house_hooks.told == [
        *[("class", "CLIP"), ("class", "CLIP")],
        *[("module", "3"), ("class", "dev"), ("class", "dev")],
    ]


@pytest.mark.parametrize("stage", ["before_load", "after_verify"])
@pytest.mark.parametrize(
    "raised", ["ValueError('not on Fridays.')", "SystemExit('not on Fridays')"]
)
def test_whatever_a_hook_raises_before_the_swap_is_a_veto(
    install: Install, stage: str, raised: str
) -> None:
    install(f"def {stage}(context): raise {raised}\n", "change-freeze = house_hooks")
    with pytest.raises(Vetoed, match="hook 'change-freeze' stopped clip v3 as CLIP in") as caught:
        getattr(load_hooks(), stage)(CONTEXT)
    assert f"({stage}): not on Fridays. The live pair is as it was." in caught.value.message
    assert type(caught.value.__cause__).__name__ in raised
    assert caught.value.code == "hook-veto"


def test_after_the_fact_a_hook_that_raises_is_logged_and_others_are_told(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        "told = []\n"
        "class Broken:\n"
        "    def after_swap(self, context): raise OSError('no mail server')\n"
        "    on_failure = after_swap\n"
        "class Fine:\n"
        "    def after_swap(self, context): told.append(context.error)\n"
        "    on_failure = after_swap\n",
        "a = house_hooks:Broken\nb = house_hooks:Fine",
    )
    hooks, first = load_hooks(), ParityError("vectors differ")
    with caplog.at_level(logging.WARNING):
        hooks.after_swap(CONTEXT)
        hooks.on_failure(replace(CONTEXT, error=first))
    import house_hooks

    assert house_hooks.told == [None, first]
    assert caplog.text.count("hook 'a' failed after clip v3 as CLIP in") == 2
    assert "no mail server" in caplog.text


@pytest.mark.parametrize(
    ("source", "point", "reason"),
    [
        ("import no_such_module_at_all", "house_hooks", "can't be loaded: No module named"),
        ("x = 1", "house_hooks:missing", "can't be loaded: .*missing"),
        ("class Hook:\n    def __init__(self, x): pass", "house_hooks:Hook", "can't be loaded"),
        ("def befor_load(context): pass", "house_hooks", "has none of before_load, after_verify"),
        ("before_load = 'no'", "house_hooks", "has a before_load that can't be called"),
    ],
)
def test_a_broken_hook_is_an_error_not_passed_over(
    install: Install, source: str, point: str, reason: str
) -> None:
    install(source, f"freeze = {point}")
    with pytest.raises(ConfigError, match=f"hook 'freeze' .*{reason}"):
        load_hooks()
