"""Where others' bytes and values come in: mutated inputs end in our errors, and in nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edges
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oml_mlflow
from oml_mlflow.config.file import load_config
from oml_mlflow.errors import OmlMlflowError
from oml_mlflow.pair.pipeline_pair import PipelinePair
from oml_mlflow.planning.capabilities import CapabilityTable
from oml_mlflow.planning.records import Work
from oml_mlflow.reconciler.plan_file import read_plan

SHORT, LONG = 12, 250
FILES = (
    *("MLmodel", "probes.json", "pair-oracle-23.7.npz", "references' runtime", "plan"),
    "configuration",
)
RECORDS = (
    *("journal", "capabilities", "embedded ledger", "embedded model", "embedded note"),
    *("Oracle's ledger", "Oracle's comment", "Oracle's note", "description", "geometry"),
    *("metadata", "webhook"),
)
DATABASE = ("catalog", "log")


@pytest.fixture(scope="module")
def known(tiny_pair: PipelinePair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every edge by its name."""
    folder = tmp_path_factory.mktemp("edges")
    oml_mlflow.save_model(tiny_pair, folder / "saved")
    (folder / "database").mkdir()
    made = edges.make_database(folder)
    return {
        **edges.of_files(folder, folder / "saved"),
        **edges.of_records(),
        **edges.of_database(folder / "database", made),
    }


def drive(edge: tuple[Callable[[Any], object], st.SearchStrategy[Any]], count: int) -> None:
    """Give an edge so many inputs; whatever it raises is ours."""
    read, strategy = edge
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=count == SHORT,
        database=None,
        suppress_health_check=checks,
    )
    @given(strategy)
    def one(value: Any) -> None:
        with contextlib.suppress(OmlMlflowError):
            read(value)

    one()


def test_every_edge_is_driven(known: dict[str, Any]) -> None:
    assert set(known) == {*FILES, *RECORDS, *DATABASE}


@pytest.mark.parametrize("name", [*FILES, *RECORDS, *DATABASE])
def test_mutated_inputs_end_in_our_errors(known: dict[str, Any], name: str) -> None:
    drive(known[name], SHORT)


@pytest.mark.drill
@pytest.mark.parametrize("name", [*FILES, *RECORDS, *DATABASE])
def test_many_mutated_inputs_end_in_our_errors(known: dict[str, Any], name: str) -> None:
    drive(known[name], LONG)


def test_sound_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert Work.from_json(edges.WORK.to_json()) == edges.WORK
    assert CapabilityTable.from_json(edges.TABLE.to_json()) == edges.TABLE
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "plan").write_text(json.dumps(edges.PLAN), encoding)
        assert read_plan(tmp_path / "plan").changes == (edges.CHANGE,)


def test_a_byte_order_mark_is_no_damage(known: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "oml_mlflow.toml"
    file.write_text(edges.CONFIG, encoding="utf-8-sig")
    assert list(load_config(file, environ={}).targets) == ["dev"]
