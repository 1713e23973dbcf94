"""The environment to serve a logged pair in: pinned packages, and MLflow's files about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _mlflow_conda_env,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
)
from mlflow.utils.file_utils import write_to
from packaging.requirements import InvalidRequirement, Requirement

from oml_mlflow._version import __version__
from oml_mlflow.errors import ConfigError
from oml_mlflow.graph.runtime import onnxruntime_version

_INDEX = "--extra-index-url "
_REQUIRED = ("onnxruntime-extensions", "numpy", "pandas", "pillow", "pyyaml", "tokenizers")


def get_default_pip_requirements() -> list[str]:
    """Return the packages that serving a pair needs, pinned to the versions installed here.

    Not torch and transformers; nor oml_mlflow, which travels inside the model as code: it is on no
    public index, where anybody could register its name. onnxruntime is the CPU's, by whatever
    build of it the pair was logged.
    """
    others = [f"{name}=={version(name)}" for name in _REQUIRED]
    return [f"onnxruntime=={onnxruntime_version()}", *others]


def get_default_conda_env() -> dict[str, Any]:
    """Return the default conda environment of a logged pair."""
    env: dict[str, Any] = _mlflow_conda_env(additional_pip_deps=get_default_pip_requirements())
    return env


def index_requirements(package_index: str | None) -> list[str]:
    """Return the requirements of this package from an index; none without an index."""
    if package_index is None:
        return []
    parts = urlsplit(package_index)
    if parts.scheme not in ("https", "http", "file") or parts.username or parts.password:
        raise ConfigError(
            "package_index is no plain URL: wanted https://host/simple without credentials, which "
            "would be stored with the model. Nothing was saved.",
            hint="keep credentials in pip's configuration or keyring.",
        )
    return [f"{_INDEX}{package_index}", f"oml-mlflow=={__version__}"]


def write_environment(
    root: Path,
    conda_env: dict[str, Any] | str | None,
    pip_requirements: list[str] | str | None,
    extra_pip_requirements: list[str] | str | None,
    index_lines: Sequence[str],
) -> None:
    """Write the environment files of a model folder; arguments as in every flavor's save_model."""
    if conda_env is None:
        default = None if pip_requirements is not None else get_default_pip_requirements()
        if default is not None and isinstance(extra_pip_requirements, list):
            default = _without(default, extra_pip_requirements)
        env, requirements, constraints = _process_pip_requirements(
            default, pip_requirements, extra_pip_requirements
        )
    else:
        env, requirements, constraints = _process_conda_env(conda_env)
    if index_lines:
        requirements = [*index_lines, *requirements]
        for dependency in env["dependencies"]:
            if isinstance(dependency, dict) and "pip" in dependency:
                dependency["pip"] = [*index_lines, *dependency["pip"]]
    conda_file = root / _CONDA_ENV_FILE_NAME
    conda_file.write_text(yaml.safe_dump(env, default_flow_style=False), encoding="utf-8")
    if constraints:
        write_to(str(root / _CONSTRAINTS_FILE_NAME), "\n".join(constraints))
    write_to(str(root / _REQUIREMENTS_FILE_NAME), "\n".join(requirements))
    _PythonEnv.current().to_yaml(str(root / _PYTHON_ENV_FILE_NAME))


def read_requirements(folder: Path) -> tuple[str | None, list[str]]:
    """Return what a model folder requires besides the default.

    Returns:
        The package index that our code comes from, if any, and further requirements and
        constraints, a line each.
    """
    lines = (folder / _REQUIREMENTS_FILE_NAME).read_text(encoding="utf-8").splitlines()
    index = next((line.removeprefix(_INDEX) for line in lines if line.startswith(_INDEX)), None)
    named = [line for line in lines if line and not line.startswith("-")]
    constraints = [f"-c {folder / line[3:].strip()}" for line in lines if line.startswith("-c ")]
    return index, [*_without(named, [*_REQUIRED, "mlflow", "oml-mlflow"]), *constraints]


def _without(requirements: list[str], others: Iterable[str]) -> list[str]:
    """Drop requirements that `others` name too: MLflow would ask the network which to take."""
    named = set()
    for other in others:
        try:
            named.add(Requirement(other).name.lower())
        except InvalidRequirement:
            continue
    return [line for line in requirements if Requirement(line).name.lower() not in named]
