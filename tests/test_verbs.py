"""One verb, one place: exported names stay callable, and everybody calls the same ones."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import oml_mlflow

PACKAGE = Path(oml_mlflow.__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _everything_imported() -> None:
    """Import every module: a sub-package is then an attribute of the package too."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        import_module(".".join(parts).removesuffix(".__init__"))


@pytest.mark.parametrize("name", oml_mlflow.__all__)
def test_an_exported_name_is_called_and_answers(name: str) -> None:
    exported = getattr(oml_mlflow, name)
    assert not inspect.ismodule(exported)
    if isinstance(exported, type) and issubclass(exported, Exception):
        assert isinstance(exported("text"), exported)  # it takes any keyword
        return
    # a function says by its own name what it was not made for; a class may do so by its parent's
    said = rf"{name}\(\) got an" if inspect.isfunction(exported) else ""
    with pytest.raises(TypeError, match=rf"{said}.*unexpected keyword argument 'no_such'"):
        exported(no_such=1)


ROOT = PACKAGE.parent
# rooms whose names these only need for types; what they do, they have done by `commands`
BELOW = ("oml_mlflow.promotion", "oml_mlflow.reconciler", "oml_mlflow.targets")
CALLERS = [
    *(PACKAGE / "cli").rglob("*.py"),
    *(PACKAGE / "webhook").rglob("*.py"),
    PACKAGE / "deploy.py",
    *(ROOT / "projects" / "jobs").glob("*.py"),
]


def run_time_imports(path: Path) -> set[str]:
    """Return what a file imports when it is run, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_ways_in_call_commands(path: Path) -> None:
    assert not [name for name in run_time_imports(path) if name.startswith(BELOW)]


def test_only_a_run_and_what_finishes_one_write_the_journal() -> None:
    calls = re.compile(r"\bsession\.(?:journal\.)?(?:begin|swap|end|fill)\(")
    found = {p for p in PACKAGE.rglob("*.py") if calls.search(p.read_text(encoding="utf-8"))}
    names = {path.relative_to(PACKAGE).as_posix() for path in found}
    assert names == {"promotion/finish.py", "promotion/run.py"}


OLD_WORDS = {
    "a verb that is gone": r"oml-mlflow (?:reconcile|drift|fingerprints)\b",
    "a URI where a name goes": r"oml-mlflow (?:plan|verify) models:",
    "an old type": r"\b(?:Held(?!-out)|FleetPlan|WentBack|Terms|Standing|Showing|RollbackResult)\b",
    "an old function": r"\b(?:make_live|drop_pair_at|promote_configured|rollback_configured)\b",
    "an old word": r"\b(?:custody|strangers|ways_in)\b",
}


@pytest.mark.parametrize("kind", OLD_WORDS)
def test_no_old_word_is_left(kind: str) -> None:
    texts = [*PACKAGE.rglob("*.py"), *ROOT.glob("README.md"), ROOT / "MLproject"]
    for ending in ("*.py", "*.md", "MLproject"):
        texts += (ROOT / "projects").rglob(ending)
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(OLD_WORDS[kind], line)
    }
    assert not found
