"""A full-size ViT-B/32 in the Oracle stand-in, in one call."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import oracledb
import pytest
from oracle_fixtures import PASSWORD, running

import oml_mlflow
from oml_mlflow import ONNXPipeline, PipelinePair
from oml_mlflow.parity.probes import golden_probes
from oml_mlflow.targets.oracle.target import OracleTarget


def test_export2db_of_a_full_size_model(
    full_folder: Path, full_pair: PipelinePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running(monkeypatch) as oracle,
        oracledb.connect(user="vec", password=PASSWORD, dsn=oracle.server.dsn) as connection,
    ):
        oml_mlflow.connect(target=OracleTarget(connection=connection))
        try:
            done = ONNXPipeline(str(full_folder)).export2db("clip", validate=False)
        finally:
            oml_mlflow.disconnect()
        assert done.report.ok
        received = oracle.database.models("VEC")
        for side in ("img", "txt"):
            sha256, size_bytes, path = received[f"CLIP_{side.upper()}"]
            exported = full_pair.path(side).read_bytes()
            assert sha256 == hashlib.sha256(exported).hexdigest() == done.entry.fingerprints[side]
            assert size_bytes == len(exported)
            assert Path(path).read_bytes() == exported
        embedder = full_pair.embedder()
        for probe in golden_probes():
            if isinstance(probe.value, bytes):
                if probe.category not in ("jpeg-444", "grey"):
                    continue
                data = connection.createlob(oracledb.DB_TYPE_BLOB, probe.value)
                [wanted] = embedder.embed_image([probe.value])
            else:
                data = probe.value
                [wanted] = embedder.embed_text([probe.value])
            model = f"CLIP_{probe.side.upper()}"
            sql = f"SELECT VECTOR_EMBEDDING({model} USING :d AS data) FROM dual"  # noqa: S608
            [(vector,)] = connection.cursor().execute(sql, d=data).fetchall()
            np.testing.assert_allclose(np.asarray(vector), wanted, atol=1e-4, err_msg=probe.id)
