"""The house: which room may import which. Type-only and lazy imports count like any other.

`python tests/test_layers.py` prints the figures.
"""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import oml_mlflow

PACKAGE = Path(oml_mlflow.__file__).parent
# a file imports rooms of its own line or an earlier one, and within a line those before it
LAYERS = [
    "_version errors documents events names files secrets deadline",
    "source graph parity pair",
    "registry flavor",  # to load a version asks the registry what its files are
    "planning promotion targets",
    "publish config reconciler",
    "commands oml4py webhook deploy oml_mlflow cli",
]
RANK = {room: rank for rank, room in enumerate(" ".join(LAYERS).split())}
MOST_TOP_FILES, LONGEST_CHAIN, MOST_LINES = 12, 15, 400


def modules(package: Path) -> dict[str, Path]:
    """Return every file of the package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it and whatever for."""
    named: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
            above = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            named += [f"{source}.{alias.name}" for alias in node.names]
    found = set()
    for module in named:
        while module and module not in known:
            module = module.rpartition(".")[0]
        found.add(module)
    return found - {"", name}


def room(module: str) -> str:
    """Return the file or folder in the package that a module is in, or the package itself."""
    return [*module.split("."), ""][1] or module


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return one circle, or nothing."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def maps(package: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return who imports whom: among files, and among rooms."""
    known = modules(package)
    files = {name: imported(name, path, known) for name, path in known.items()}
    rooms: dict[str, set[str]] = {room(name): set() for name in files}
    for name, others in files.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    return files, rooms


def faults(package: Path) -> list[str]:
    """Return every break of the rule, one text each."""
    files, rooms = maps(package)
    found = [f"{name}: no layer" for name in sorted(rooms.keys() - RANK.keys())]
    for name, others in sorted(files.items()):
        for other in sorted(others):
            if RANK.get(room(other), 0) > RANK.get(room(name), 0):
                found.append(f"{name} imports {other}, which is above it")
    for what, edges in (("files", files), ("rooms", rooms)):
        if ring := circle(edges):
            found.append(f"a circle of {what}: {' -> '.join(ring)}")
    return found


def longest_chain(edges: dict[str, set[str]]) -> int:
    """Return how many stand on each other at most."""
    length: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(edges).static_order():
        length[name] = 1 + max((length[other] for other in edges[name]), default=0)
    return max(length.values())


def figures(package: Path) -> dict[str, int]:
    """Return what the house is measured by."""
    files, rooms = maps(package)
    chained = {name: others for name, others in rooms.items() if name != package.name}
    for others in chained.values():
        others.discard(package.name)  # it offers names of all rooms, and is no floor of its own
    sizes = [len(path.read_text().splitlines()) for path in modules(package).values()]
    return {
        "files": len(files),
        "lines": sum(sizes),
        "top-level files": len(list(package.glob("*.py"))),
        "rooms": len(rooms),
        "longest chain of rooms": longest_chain(chained),
        "lines of the longest file": max(sizes),
    }


def test_every_import_goes_down() -> None:
    assert faults(PACKAGE) == []


def test_the_house_is_small() -> None:
    found = figures(PACKAGE)
    assert found["top-level files"] <= MOST_TOP_FILES
    assert found["longest chain of rooms"] <= LONGEST_CHAIN
    assert found["lines of the longest file"] <= MOST_LINES


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param(
            "if TYPE_CHECKING:\n    from oml_mlflow.planning.plan import Plan",
            "planning.plan",
            id="type-only",
        ),
        pytest.param(
            "def late():\n    from oml_mlflow.planning.plan import Plan", "planning.plan", id="lazy"
        ),
        pytest.param("from oml_mlflow import promote", "oml_mlflow", id="of the package"),
        pytest.param("from oml_mlflow.planning import plan", "planning.plan", id="sub-module"),
    ],
)
def test_one_import_that_goes_up_is_found(line: str, told: str, tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    with (copy / "graph" / "walk.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert any("graph.walk imports" in fault and told in fault for fault in faults(copy))


@pytest.mark.parametrize(
    "line",
    [
        "if TYPE_CHECKING:\n    from oml_mlflow.parity.page import to_html",
        "def late():\n    from oml_mlflow.parity.page import to_html",
        "from oml_mlflow.parity import page",
        "import oml_mlflow.parity.page",
    ],
)
def test_a_circle_within_a_room_is_found(line: str, tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    with (copy / "parity" / "report.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert any(fault.startswith("a circle of files") for fault in faults(copy))


def test_no_room_takes_the_name_of_what_is_exported() -> None:
    assert not {room(name) for name in modules(PACKAGE)} & set(oml_mlflow.__all__)


def test_public_names_are_sorted_and_there() -> None:
    assert oml_mlflow.__all__ == sorted(oml_mlflow.__all__)
    for name in oml_mlflow.__all__:
        assert getattr(oml_mlflow, name) is not None
    assert set(oml_mlflow.__all__) <= set(dir(oml_mlflow))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = oml_mlflow.nothing


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, oml_mlflow\n"
        "heavy = {'mlflow', 'torch', 'transformers', 'onnxruntime', 'oracledb', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, folder / PACKAGE.name))


if __name__ == "__main__":
    print(", ".join(f"{count} {what}" for what, count in figures(PACKAGE).items()))  # noqa: T201
    print("\n".join(faults(PACKAGE)) or "no import goes up, no circle")  # noqa: T201
