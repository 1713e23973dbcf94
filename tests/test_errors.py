from __future__ import annotations

import pickle

import pytest

from oml_mlflow import errors


@pytest.mark.parametrize("code", sorted(errors.ERRORS_BY_CODE))
def test_errors_survive_pickling(code: str) -> None:
    error = errors.ERRORS_BY_CODE[code]("it failed", hint="try again.", details={"a": 1})
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert str(copy) == "it failed. Next: try again."
    assert (copy.code, copy.hint, copy.details) == (code, "try again.", {"a": 1})


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for code, kind in errors.ERRORS_BY_CODE.items():
        line = next(line for line in drawn.splitlines() if f"- {kind.__name__} " in line)
        assert line.split()[-2:] == [str(kind.exit_code), code]
