"""CLIP models as ONNX pipeline pairs: built, versioned in MLflow, promoted into databases."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from oml_mlflow._version import __version__ as __version__

if TYPE_CHECKING:
    from oml_mlflow.commands.build import relog
    from oml_mlflow.commands.operate import apply, history, plan, status, verify
    from oml_mlflow.commands.promote import drop, dry_run, pin, preflight, promote, unpin
    from oml_mlflow.commands.rollback import rollback
    from oml_mlflow.errors import OmlMlflowError
    from oml_mlflow.flavor.environment import get_default_conda_env, get_default_pip_requirements
    from oml_mlflow.flavor.load import _load_pyfunc, load_model
    from oml_mlflow.flavor.save import log_model, save_model
    from oml_mlflow.oml4py import (
        EmbeddingModel,
        MiningFunction,
        ONNXPipeline,
        connect,
        disconnect,
        isconnected,
    )
    from oml_mlflow.pair.pipeline_pair import PipelinePair
    from oml_mlflow.pair.template import EmbeddingModelConfig, ONNXPipelineConfig
    from oml_mlflow.promotion.options import Options
    from oml_mlflow.targets import open_target

__all__ = [
    "EmbeddingModel",
    "EmbeddingModelConfig",
    "MiningFunction",
    "ONNXPipeline",
    "ONNXPipelineConfig",
    "OmlMlflowError",
    "Options",
    "PipelinePair",
    "_load_pyfunc",
    "apply",
    "connect",
    "disconnect",
    "drop",
    "dry_run",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "history",
    "isconnected",
    "load_model",
    "log_model",
    "open_target",
    "pin",
    "plan",
    "preflight",
    "promote",
    "relog",
    "rollback",
    "save_model",
    "status",
    "unpin",
    "verify",
]

_HOMES = {
    "commands.build": ("relog",),
    "commands.operate": ("apply", "history", "plan", "status", "verify"),
    "commands.promote": ("drop", "dry_run", "pin", "preflight", "promote", "unpin"),
    "commands.rollback": ("rollback",),
    "errors": ("OmlMlflowError",),
    "flavor.environment": ("get_default_conda_env", "get_default_pip_requirements"),
    "flavor.load": ("_load_pyfunc", "load_model"),
    "flavor.save": ("log_model", "save_model"),
    "oml4py": (
        "EmbeddingModel",
        "MiningFunction",
        "ONNXPipeline",
        "connect",
        "disconnect",
        "isconnected",
    ),
    "promotion.options": ("Options",),
    "pair.pipeline_pair": ("PipelinePair",),
    "pair.template": ("EmbeddingModelConfig", "ONNXPipelineConfig"),
    "targets": ("open_target",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # lazy, because the flavor needs MLflow, whose import takes seconds
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
