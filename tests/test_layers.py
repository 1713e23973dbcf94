from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import oml_mlflow

PACKAGE = Path(oml_mlflow.__file__).parent
ORACLE = [
    part.stem.removeprefix("oracle") for part in sorted((PACKAGE / "targets").glob("oracle*.py"))
]
# each module may import from its own line and those above
LAYERS = [
    {"errors", "events", "files", "limits", "spool"},
    {"fingerprint", "graph.protobuf", "ledger", "names", "profiles"},
    {"precision"},
    {"graph.encoder", "graph.image", "graph.ops", "graph.retarget", "graph.text", "graph.wire"},
    {
        "graph.external",
        "graph.finding",
        "graph.metadata",
        "graph.reach",
        "graph.rules",
        "graph.walk",
    },
    {"graph.head", "graph.shrink"},
    {"links", "pictures", "presets", "runtime", "source", "template", "texts", "weights"},
    {"policy", "settings"},
    {"bindings", "terms"},
    {"config", "config_values"},
    {"embedder", "graph.interface", "parity", "parity_page", "parity_plot", "probes"},
    {"geometry", "package", "pair", "reference"},
    {"candidate", "evidence", "export", "manifest", "scoring"},
    {"environment", "flavor", "model_card", "registry"},
    {"observed"},
    {"survey"},
    {"plan"},
    {"capability", "graph.capability_models", "preflight"},
    {"connection", "targets", "targets.base", "targets.embedded", "targets.embedded_schema"}
    | {"targets.embedded_catalog", "targets.embedded_files"}
    | {"targets.embedded_session", "targets.embedded_survey"}
    | {f"targets.oracle{part}" for part in ORACLE},
    {"choice", "geometry_guard", "hooks", "verification"},
    {"apply"},
    {"proposal"},
    {"examination", "promotion", "restore"},
    {"custody", "pipeline"},
    {"desired"},
    {"standing"},
    {"fleet_plan"},
    {"parity_evidence", "state_block", "writeback"},
    {"relogging"},
    {"fleet"},
    {"remarks"},
    {"showing"},
    {"reconciler"},
    {"pins"},
    {"ways_in"},
    {"webhook_metrics", "webhook_protocol", "webhook_queue", "webhook_signature"},
    {"webhook_worker"},
    {"deploy", "webhook_receiver", "webhook_setup"},
    {
        *[
            "cli",
            "cli_config",
            "cli_database",
            "cli_fleet",
            "cli_model",
            "cli_promotion",
            "cli_standing",
        ],
        *["cli_standing", "cli_webhook", "console", "fleet_text", "plan_file"],
    },
]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name not in ("__init__", "graph")}


def imported(path: Path) -> set[str]:
    """Return modules of this package that a file imports when it runs, not only for types."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # ast.walk looks ahead: a body must be cleared before it is walked
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oml_mlflow."):
            names.add((node.module or "").removeprefix("oml_mlflow."))
    return names


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


def test_modules_are_small() -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert max(sizes.values()) <= 500, sizes
