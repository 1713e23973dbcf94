"""Load a logged pair, to run it in this process or behind MLflow's pyfunc."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.tracking.artifact_utils import _download_artifact_from_uri

from oml_mlflow.flavor.manifest import check_manifest
from oml_mlflow.flavor.package import read_package
from oml_mlflow.flavor.scoring import PyfuncPair
from oml_mlflow.pair.embedder import PairEmbedder
from oml_mlflow.registry.answering import fetching
from oml_mlflow.registry.versions import MANIFEST_TAG, locate


def load_model(model_uri: str, dst_path: str | None = None) -> PairEmbedder:
    """Load a pair to run in this process.

    Args:
        model_uri: Such as ``models:/clip@prod``, ``runs:/<id>/clip`` or a folder.
        dst_path: Where to download to; a temporary folder by default.

    Returns:
        An object with ``embed_image(pictures)`` and ``embed_text(texts)``, each giving
        ``(n, dims)`` float32; see `PairEmbedder` for what they take.

    Raises:
        RegistryError: If it can't be fetched; see `oml_mlflow.registry.answering`.
        PackageError: If it is no pair, or its files, code included, are not those that the registry
            says were logged. Of a folder, and of a model of an early release, only the ONNX files
            are compared, with the MLmodel file.
    """
    uri, tags = locate(model_uri)
    with fetching(uri):
        folder = _download_artifact_from_uri(artifact_uri=uri, output_path=dst_path)
    return _open(folder, tags)


def _load_pyfunc(path: str) -> PyfuncPair:
    """Return the pair as MLflow's pyfunc and scoring server call it.

    MLflow names a folder, and not which version it is: its ONNX files are compared with its own
    MLmodel file only. This code itself may come from that folder.
    """
    return PyfuncPair(_open(path, {}))


def _open(path: str, tags: Mapping[str, str]) -> PairEmbedder:
    package = read_package(path)
    known = check_manifest(package.folder, tags[MANIFEST_TAG]) if MANIFEST_TAG in tags else {}
    package.check_fingerprints(known)
    return package.embedder()
