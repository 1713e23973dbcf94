from __future__ import annotations

import csv
import threading
from datetime import datetime, timezone
from pathlib import Path

import mlflow
import numpy as np
import pytest

import oml_mlflow
from oml_mlflow import PipelinePair, promote
from oml_mlflow.config.bindings import Binding
from oml_mlflow.errors import ParityError
from oml_mlflow.flavor.package import read_package
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.plot import write_plot
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.parity.report import ParityReport
from oml_mlflow.planning.records import UNVERIFIED, LedgerEntry
from oml_mlflow.publish.description import FAILED, LIVE, SUPERSEDED, Row, parse
from oml_mlflow.publish.publication import Publication, tag_key
from oml_mlflow.publish.version import publish
from oml_mlflow.reconciler.publish import to_publication
from oml_mlflow.reconciler.status import Change, Outcome
from oml_mlflow.targets.embedded.target import EmbeddedTarget

AT = datetime(2026, 11, 23, 21, 0, tzinfo=timezone.utc)
DEV, PROD = "embedded:///database", "oracle://app@db1:1521/FREEPDB1"


WORDS = "A model of ours."


@pytest.fixture
def bare(mlflow_store: Path) -> None:
    """Versions 1 to 3 of `clip`, without files."""
    client = mlflow.MlflowClient()
    client.create_registered_model("clip")
    for _ in range(3):
        client.create_model_version("clip", str(mlflow_store), description=WORDS)


def entry(version: str, generation: int, **changes: object) -> LedgerEntry:
    values = {
        "name": "CLIP",
        "generation": generation,
        "registered_model": "clip",
        "version": version,
        "run_id": "",
        "fingerprints": {"img": f"{version}a" * 32, "txt": f"{version}b" * 32},
        "dims": 16,
        "promoted_at": AT,
        "registry": "1:2",
    }
    return LedgerEntry(**{**values, **changes})  # type: ignore[arg-type]


def report(off: str = "") -> ParityReport:
    """Return a comparison of all golden probes; one class is far off, if named."""
    rng = np.random.default_rng(0)
    drawn = {p.id: rng.normal(size=16).astype(np.float32) for p in golden_probes()}
    wanted = {name: vector / np.linalg.norm(vector) for name, vector in drawn.items()}
    got = {p.id: wanted[p.id] + (0.1 if p.category == off else 1e-7) for p in golden_probes()}
    return compare("Database against references", golden_probes(), got, wanted)


def live(version: str, target: str = "prod", uri: str = PROD, **changes: object) -> Publication:
    values = {"entry": entry(version, int(version)), "report": report(), **changes}
    return Publication(target, uri, "CLIP", "clip", version, **values)  # type: ignore[arg-type]


def failed(version: str, **changes: object) -> Publication:
    found = report("emoji")
    error = ParityError("3 of 24 probes differ.", hint="see the table.", details={"report": found})
    values = {"report": found, "error": error, **changes}
    return Publication("prod", PROD, "CLIP", "clip", version, **values)  # type: ignore[arg-type]


def shown(version: str, model: str = "clip") -> tuple[dict[str, Row], dict[str, str]]:
    """Return rows of the block by target, and our tags."""
    found = mlflow.MlflowClient().get_model_version(model, version)
    block = parse(found.description)
    assert block is None or (block.model, block.version) == (model, version)
    rows = {row.target: row for row in block.rows} if block else {}
    return rows, {k: v for k, v in found.tags.items() if k.startswith("oml.target.")}


def test_a_version_shows_where_it_is_live(bare: None) -> None:
    for publication in (live("1"), live("1", "dev", DEV)):
        [problem] = publish(publication).warnings
        assert "no evidence of clip v1 was logged: it has no run and no logged model" in problem
    rows, tags = shown("1")
    assert tags == {
        "oml.target.dev.v1": "live as CLIP, clip v1, generation 1, verified",
        "oml.target.prod.v1": "live as CLIP, clip v1, generation 1, verified",
    }
    assert rows["prod"] == Row(
        *("prod", "CLIP", LIVE, PROD, 1, "2026-11-23 21:00", "1a1a1a1a1a1a", "1b1b1b1b1b1b"),
        result=f"verified: 24 ok, difference up to {report().max_abs():.1e}; unanchored",
        evidence="oml_mlflow/prod/clip_v1/CLIP",
    )
    assert rows["dev"].uri == DEV
    text = mlflow.MlflowClient().get_model_version("clip", "1").description
    assert text.startswith(f"{WORDS}\n\n<!-- oml_mlflow:begin clip v1 -->")
    changed = mlflow.MlflowClient().get_model_version("clip", "1").last_updated_timestamp
    assert publish(live("1")).ok  # nothing new, so no evidence either
    assert mlflow.MlflowClient().get_model_version("clip", "1").last_updated_timestamp == changed


def test_the_replaced_version_says_by_what_and_where_it_is_kept(bare: None) -> None:
    publish(live("1"))
    publish(live("2", before=entry("1", 1)))
    rows, tags = shown("1")
    assert (rows["prod"].state, rows["prod"].generation) == (SUPERSEDED, 1)
    assert tags == {"oml.target.prod.v1": "superseded by v2, kept as generation 1"}
    assert shown("2")[1] == {"oml.target.prod.v2": "live as CLIP, clip v2, generation 2, verified"}

    again = entry("1", 3)
    publish(live("1", entry=again, before=entry("2", 2), is_kept=False))
    assert shown("1")[1] == {"oml.target.prod.v1": "live as CLIP, clip v1, generation 3, verified"}
    assert shown("2")[1] == {"oml.target.prod.v2": "superseded by v1"}


def test_version_of_another_registry_is_none_of_ours(bare: None) -> None:
    publish(live("1"))
    for registry in ("9:2", "1:9"):
        publish(live("2", before=entry("1", 1, registry=registry)))
        assert shown("1")[0]["prod"].state == LIVE


def test_failure_shows_reason_next_step_and_evidence(bare: None) -> None:
    publish(live("1"))
    publish(failed("2", before=entry("1", 1)))
    rows, tags = shown("2")
    assert tags == {"oml.target.prod.v2": "failed: parity-failed, live: clip v1"}
    assert (rows["prod"].state, rows["prod"].generation) == (FAILED, 0)
    assert rows["prod"].reason == "3 of 24 probes differ."
    assert rows["prod"].next_step == "see the table."
    assert shown("1")[0]["prod"].state == LIVE
    changed = mlflow.MlflowClient().get_model_version("clip", "2").last_updated_timestamp
    publish(failed("2", before=entry("1", 1)))
    assert mlflow.MlflowClient().get_model_version("clip", "2").last_updated_timestamp == changed


def test_evidence_is_with_the_run_or_else_with_the_logged_model(
    versions: tuple[PipelinePair, ...], tiny_pair: PipelinePair, tmp_path: Path
) -> None:
    done = publish(live("1"))
    model_id = mlflow.MlflowClient().get_model_version("clip", "1").source.removeprefix("models:/")
    assert done.evidence == f"models:/{model_id}/oml_mlflow/prod/clip_v1/CLIP"
    files = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(tmp_path / "a"))
    folder = Path(files) / "oml_mlflow" / "prod" / "clip_v1" / "CLIP"
    assert {path.name for path in folder.iterdir()} == {"parity.csv", "parity.html", "parity.png"}
    with (folder / "parity.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["probe"] for row in rows] == [probe.id for probe in golden_probes()]
    assert "clip v1 as CLIP in prod" in (folder / "parity.html").read_text(encoding="utf-8")
    assert (folder / "parity.png").read_bytes().startswith(b"\x89PNG")
    # the model's own files are what they were
    read_package(files).check_fingerprints()

    with mlflow.start_run() as run:
        oml_mlflow.log_model(tiny_pair, name="clip", registered_model_name="clip")
    assert publish(live("4")).evidence == f"runs:/{run.info.run_id}/oml_mlflow/prod/clip_v4/CLIP"
    mlflow.MlflowClient().delete_run(run.info.run_id)
    home = publish(live("4", entry=entry("4", 5))).evidence
    assert home.startswith("models:/m-")


def test_copied_version_shows_its_own_state_only(versions: tuple[PipelinePair, ...]) -> None:
    client = mlflow.MlflowClient()
    publish(live("1"))
    publish(live("1", "dev", DEV))
    client.copy_model_version("models:/clip/1", "clip_prod")
    copied = client.get_model_version("clip_prod", "1")
    assert "begin clip v1" in copied.description
    assert tag_key("dev", "1") in copied.tags

    own = Publication("prod", PROD, "CLIP", "clip_prod", "1", entry("1", 2), report())
    done = publish(own)
    assert done.ok
    assert done.evidence.startswith("models:/m-")
    rows, tags = shown("1", "clip_prod")
    assert set(rows) == {"prod"}
    assert tags == {"oml.target.prod.v1": "live as CLIP, clip_prod v1, generation 2, verified"}
    assert set(shown("1")[0]) == {"prod", "dev"}


def test_two_names_of_one_target_share_its_tag(bare: None) -> None:
    publish(live("1"))
    other = entry("1", 1, name="PICS", verification=UNVERIFIED)
    publish(Publication("prod", PROD, "PICS", "clip", "1", other, ParityReport("nothing")))
    assert shown("1")[1] == {
        "oml.target.prod.v1": "live as CLIP, clip v1, generation 1, verified; "
        "live as PICS, clip v1, generation 1, unverified"
    }


def test_changed_markers_are_left_alone_and_the_tag_is_set(
    bare: None, caplog: pytest.LogCaptureFixture
) -> None:
    client = mlflow.MlflowClient()
    publish(live("1"))
    text = client.get_model_version("clip", "1").description.replace("oml_mlflow:end", "end")
    client.update_model_version("clip", "1", text)
    done = publish(live("1", entry=entry("1", 7)))
    assert "the markers around our part were changed" in done.warnings[0]
    assert done.warnings[0] in caplog.text
    assert client.get_model_version("clip", "1").description == text
    assert "generation 7" in client.get_model_version("clip", "1").tags["oml.target.prod.v1"]


def test_targets_that_publish_at_once_are_all_there(bare: None) -> None:
    tasks = [
        threading.Thread(target=publish, args=[live("1", f"db{i}", f"oracle://a@db{i}/P")])
        for i in range(6)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    rows, tags = shown("1")
    assert len(rows) == len(tags) == 6


def test_what_another_writer_undid_is_written_once_more(
    bare: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, undone = mlflow.MlflowClient.update_model_version, []

    def undo_afterwards(client: mlflow.MlflowClient, name: str, version: str, text: str) -> None:
        write(client, name, version, text)
        if len(undone) < allowed:
            undone.append(text)
            write(client, name, version, "Words of somebody else.")

    monkeypatch.setattr(mlflow.MlflowClient, "update_model_version", undo_afterwards)
    for allowed, version in ((1, "1"), (3, "2")):
        done = publish(live(version, report=None))
        description = mlflow.MlflowClient().get_model_version("clip", version).description
        assert description.startswith("Words of somebody else.")
        assert done.ok == (allowed == 1) == ("oml_mlflow:begin" in description)
    assert "is being changed by others" in done.warnings[0]


def test_what_is_shown_later_without_a_report_keeps_what_is_there(bare: None) -> None:
    publish(live("1"))
    rows, _ = shown("1")
    publish(live("1", report=None))
    assert shown("1")[0] == rows
    publish(live("2", report=None, entry=entry("2", 2, parity={"max_abs": 1.5e-6})))
    assert shown("2")[0]["prod"].result == "verified: difference up to 1.5e-06; unanchored"
    publish(live("3", before=entry("1", 1)))
    assert shown("1")[0]["prod"].evidence == "oml_mlflow/prod/clip_v1/CLIP"


def test_outcome_of_a_real_promotion(versions: tuple[PipelinePair, ...], tmp_path: Path) -> None:
    target = EmbeddedTarget(tmp_path / "database", timeout_s=5)
    done = promote("models:/clip/1", target)
    change = Change(Binding("dev", "CLIP", "clip", "prod"), "1", "", 0, "")
    assert publish(to_publication(Outcome(change, done), target.uri, None)).ok
    rows, tags = shown("1")
    assert tags == {"oml.target.dev.v1": "live as CLIP, clip v1, generation 1, verified"}
    assert rows["dev"].img == versions[0].fingerprints["img"][:12]
    description = mlflow.MlflowClient().get_model_version("clip", "1").description
    call = next(line for line in description.splitlines() if line.startswith("SELECT"))
    [(vector,)] = target.sql(call.partition(";")[0])
    assert len(vector) == 16
    # evidence beside its files does not change what a version is
    assert not promote("models:/clip/1", target).changed


def test_a_plot_is_made_where_no_vector_could_be_compared(tmp_path: Path) -> None:
    nothing = compare("Nothing $ _", golden_probes(), {}, {})
    write_plot(nothing, tmp_path / "a.png", "clip $ v1 _ as CLIP")
    write_plot(ParityReport("no rows"), tmp_path / "b.png", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_version_that_is_gone_is_only_a_warning(bare: None) -> None:
    mlflow.MlflowClient().delete_model_version("clip", "3")
    done = publish(live("3", before=entry("1", 1)))
    assert not done.ok
    assert "clip v3 can't be shown in the MLflow UI" in done.warnings[0]
    assert done.evidence == ""
