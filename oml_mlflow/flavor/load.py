"""Load a logged pair, to run it in this process or behind MLflow's pyfunc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mlflow.tracking.artifact_utils import _download_artifact_from_uri

from oml_mlflow.errors import PackageError
from oml_mlflow.flavor.manifest import check_manifest
from oml_mlflow.flavor.package import PackagedPair, read_package
from oml_mlflow.flavor.scoring import PyfuncPair
from oml_mlflow.flavor.serving import is_serving, worker_threads
from oml_mlflow.graph.precision import read_precisions, runtime_limit
from oml_mlflow.graph.runtime import CPU, PROVIDERS_VARIABLE
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.parity.compare import compare
from oml_mlflow.parity.probes import embed_probes
from oml_mlflow.registry.answering import fetching
from oml_mlflow.registry.versions import MANIFEST_TAG, locate


def load_model(
    model_uri: str, dst_path: str | None = None, *, providers: Sequence[str] | None = None
) -> PairEmbedder:
    """Load a pair to run in this process.

    Where anything but the CPU runs its encoders, their vectors of the version's probes are first
    compared with those that were logged.

    Args:
        model_uri: Such as ``models:/clip@prod``, ``runs:/<id>/clip`` or a folder.
        dst_path: Where to download to; a temporary folder by default.
        providers: ONNX Runtime's execution providers for the encoders; see `choose_providers`.

    Returns:
        An object with ``embed_image(pictures)`` and ``embed_text(texts)``, each giving
        ``(n, dims)`` float32; see `PairEmbedder` for what they take.

    Raises:
        RegistryError: If it can't be fetched; see `oml_mlflow.registry.answering`.
        PackageError: If it is no pair, or its files, code included, are not those that the registry
            says were logged, or a provider gives other vectors. Of a folder, and of a model of an
            early release, only the ONNX files are compared, with the MLmodel file.
        ConfigError: If the installed onnxruntime lacks a provider.
    """
    uri, tags = locate(model_uri)
    with fetching(uri):
        folder = _download_artifact_from_uri(artifact_uri=uri, output_path=dst_path)
    return _open(folder, tags, providers)


def _load_pyfunc(path: str) -> PyfuncPair:
    """Return the pair as MLflow's pyfunc and scoring server call it.

    MLflow names a folder, and not which version it is: its ONNX files are compared with its own
    MLmodel file only. This code itself may come from that folder. A server's workers share the
    cores, and load both graphs before the first request.
    """
    embedder = _open(path, {}, threads=worker_threads() if is_serving() else None)
    scored = PyfuncPair(embedder)
    if is_serving():
        embedder.embed_image(np.zeros((8, 8, 3), np.uint8))
        embedder.embed_text("a")
    return scored


def _open(
    path: str,
    tags: Mapping[str, str],
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> PairEmbedder:
    package = read_package(path)
    known = check_manifest(package.folder, tags[MANIFEST_TAG]) if MANIFEST_TAG in tags else {}
    package.check_fingerprints(known)
    embedder = package.embedder(tokenizer=package.tokenizer, providers=providers, threads=threads)
    if embedder.providers[0] != CPU:
        _demand_parity(package, embedder)
    return embedder


def _demand_parity(package: PackagedPair, embedder: PairEmbedder) -> None:
    """Raise PackageError if a provider's vectors are not those that were logged."""
    probes, precisions = package.probes(), read_precisions(package.metadata)
    report = compare(
        f"{package.img.name} by {embedder.providers[0]}",
        probes,
        embed_probes(embedder, probes),
        package.references().vectors,
        {probe.id: runtime_limit(precisions[probe.side], package.dims) for probe in probes},
    )
    if not report.ok:
        raise PackageError(
            f"{embedder.providers[0]} gives other vectors than were logged ({report.summary}). "
            "Nothing was loaded.",
            hint=f"set providers or {PROVIDERS_VARIABLE} to {CPU}.",
        )
