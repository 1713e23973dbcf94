"""What the package exports stays callable, whatever of it was imported before."""

from __future__ import annotations

import inspect
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
