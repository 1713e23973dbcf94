"""ONNX Runtime sessions that know the operators our graphs use."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from oml_mlflow.deadline import within
from oml_mlflow.errors import ConfigError, GraphError, PackageError
from oml_mlflow.graph.cut import WEIGHTS, read_part
from oml_mlflow.graph.external import external_tensors
from oml_mlflow.graph.protobuf import mapped

if TYPE_CHECKING:
    from oml_mlflow.graph.walk import Operator

_log = logging.getLogger(__name__)
# the first release that refuses files outside the model's folder itself (measured)
_GUARDED = "1.24.4"
_TAKES_FILES = "add_external_initializers_from_files_in_memory"
CPU = "CPUExecutionProvider"
PROVIDERS_VARIABLE = "OML_MLFLOW_PROVIDERS"
# what is taken where the installed onnxruntime has it; others, which may compute in float16, only
# if they are named. TF32 rounds factors to 10 bits: vectors were 1.2e-4 off with it, and 1.4e-7
# without (H200, onnxruntime 1.31.1)
_ACCELERATORS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
# a model of one Neg, as onnx.helper writes it: where pairs are served there is no onnx
_NEGATION = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n'
    b"\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
# comes after the operator in question, so that no kernel is ever made from a foreign node
_NO_OPERATOR = ("oml_mlflow.none", "Nothing")


@dataclass(frozen=True)
class Ends:
    """Names of a pipeline's input and output.

    Attributes:
        input: The input tensor.
        output: The output tensor with the embeddings.
    """

    input: str = "input"
    output: str = "embedding"


def can_cut() -> bool:
    """Return whether this runtime takes a part's weights from a file: 1.24 does, 1.22 does not."""
    import onnxruntime

    return hasattr(onnxruntime.SessionOptions, _TAKES_FILES)


def choose_providers(names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return ONNX Runtime's execution providers for an encoder, the CPU's last.

    Args:
        names: Such as ``CUDAExecutionProvider``; by default what ``OML_MLFLOW_PROVIDERS`` lists,
            with commas, else CUDA's where the installed onnxruntime has it and it starts; where it
            does not, a warning says so, once per process.

    Raises:
        ConfigError: If the installed onnxruntime lacks one, or one does not start.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    listed = os.environ.get(PROVIDERS_VARIABLE, "").split(",")
    named = list(names or [name.strip() for name in listed if name.strip()])
    if missing := [name for name in named if name not in available]:
        raise ConfigError(
            f"onnxruntime {onnxruntime_version()} has no {', '.join(missing)[:200]}; it has "
            f"{', '.join(available)}.",
            hint=f"install the onnxruntime that has it, or change providers or "
            f"{PROVIDERS_VARIABLE}.",
        )
    wanted = [name for name in named or _ACCELERATORS if name in available and name != CPU]
    chosen = [name for name in wanted if _starts(name)]
    if named and chosen != wanted:
        silent = ", ".join(name for name in wanted if name not in chosen)
        raise ConfigError(
            f"onnxruntime {onnxruntime_version()} can't start {silent}; it wrote why to standard "
            "error. Nothing was loaded.",
            hint="install the driver and the libraries that it needs (onnxruntime."
            "preload_dlls() finds those of the package index), or change providers or "
            f"{PROVIDERS_VARIABLE}.",
        )
    return (*chosen, CPU)


@cache
def _starts(provider: str) -> bool:
    """Return whether a provider runs anything: without its libraries, ORT takes the CPU instead."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(_NEGATION, providers=[provider, CPU])
        found = provider in session.get_providers()
    except Exception:  # onnxruntime's errors share no base class
        found = False
    if not found:
        _log.warning("%s does not start here; the CPU runs the encoders.", provider)
    return found


def thread_limit() -> int | None:
    """Return what ``OMP_NUM_THREADS`` allows, if it is set, as by Spark for each of its workers."""
    found = os.environ.get("OMP_NUM_THREADS", "")
    return int(found) if found.isdecimal() and int(found) else None


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # other systems than Linux have no such function
        return os.cpu_count() or 1


def open_session(
    path: Path,
    *,
    part: tuple[str, str] | None = None,
    threads: int | None = None,
    providers: Sequence[str] = (CPU,),
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` for a pipeline, or for a part of it.

    Args:
        path: ONNX file.
        part: First and last tensor of the part; see `oml_mlflow.graph.cut`.
        threads: Threads within an operator; ONNX Runtime's own choice by default.
        providers: Execution providers, the first that can is used.

    Raises:
        PackageError: If this runtime can't load the graph, or the graph names other files.
        GraphError: If it has no such part.
    """
    import onnxruntime

    refuse_external(path)
    _warn_unguarded()
    options = _session_options(log_level=3)
    # whatever the file's name is: it was checked as ONNX, not as ORT's own format
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # threads that wait for the next operator in a loop take the cores from those that prepare
    # pictures, or import: an export took 7 % longer with them, and a single vector no less
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model: str | bytes | None = str(path)
    if part:
        model = read_part(path, *part)
        if model is None:
            raise GraphError(
                f"{path.name} has no part from {part[0]} to {part[1]}: this package did not write "
                "it.",
                hint="export the pair with ONNXPipeline(...).export2file.",
            )
    if threads:
        options.intra_op_num_threads = threads
    try:
        with mapped(path) as data:
            if part and can_cut():
                # it copies what it needs: a file that is changed later changes no vector
                getattr(options, _TAKES_FILES)([WEIGHTS], [data], [len(data)])
            chosen = [(name, _ACCELERATORS.get(name, {})) for name in providers]
            session = onnxruntime.InferenceSession(model, options, providers=chosen)
            # it holds the mapping, too
            del options
        return session
    except Exception as error:  # onnxruntime's errors share no base class
        raise PackageError(
            f"{path.name} can't be loaded by onnxruntime {onnxruntime_version()} with extensions "
            f"{version('onnxruntime-extensions')}: {str(error)[:300]}",
            hint="use a newer onnxruntime, or export the pair again.",
        ) from error


@cache
def _warn_unguarded() -> None:
    """Warn, once per process, that this runtime reads any file that a graph names."""
    if Version(found := onnxruntime_version()) < Version(_GUARDED):
        _log.warning(
            "onnxruntime %s reads any file that a graph names, and can reveal it as vectors; "
            "only oml_mlflow's own check prevents that. Install onnxruntime %s or newer (it needs "
            "Python 3.11).",
            found,
            _GUARDED,
        )


def refuse_external(path: Path) -> None:
    """Raise PackageError if a model keeps tensors in other files, wherever they are."""
    outside = external_tensors(path)
    if outside:
        name, location = outside[0]
        raise PackageError(
            f"{path.name} keeps {len(outside)} tensors in other files, such as {name!r} in "
            f"{location!r}. Nothing was loaded.",
            hint="save the model as one file; where it is too large, with quantize_model or "
            "use_float16.",
        )


def run(
    session: Any, values: np.ndarray, ends: Ends = Ends(), timeout_s: float | None = None
) -> np.ndarray:
    """Return a pipeline's embeddings, ``(n, dims)`` float32.

    Raises:
        TimeoutError: If it takes longer than `timeout_s`. It ends before its next operator; until
            then it keeps a thread busy.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # what fails is raised

    def embed() -> np.ndarray:
        embeddings: np.ndarray = session.run([ends.output], {ends.input: values}, options)[0]
        return np.atleast_2d(embeddings)

    return within(timeout_s, embed, stop=lambda: setattr(options, "terminate", True))


def unknown_operators(operators: Iterable[Operator]) -> tuple[str, ...]:
    """Return operators, as ``domain:Name``, that the installed runtime and extensions lack."""
    import onnxruntime

    options = _session_options(log_level=4)
    unknown = []
    for operator in sorted(operators):
        try:
            onnxruntime.InferenceSession(_question(operator), options, providers=[CPU])
        except Exception as error:  # onnxruntime's errors share no base class
            text = str(error)
            if "is not a registered function/op" in text and f" {operator}(" in text:
                unknown.append(str(operator))
    return tuple(unknown)


def not_run_reason(unknown: Mapping[str, Sequence[str]]) -> str:
    """Return why a pair was not run, by its `unknown_operators`; empty if there are none."""
    names = sorted({name for side in unknown.values() for name in side})
    told = [f"{n.rpartition(':')[2]} of domain {n.rpartition(':')[0]}" for n in names]
    if not told:
        return ""
    if len(told) == 1:
        return f"operator {told[0]} is not in this runtime"
    return f"operators {', '.join(told)} are not in this runtime"


def _session_options(log_level: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_level
    # the arena would keep the memory that the largest picture took
    options.enable_cpu_mem_arena = False
    options.register_custom_ops_library(_operator_library())
    return options


@cache
def _operator_library() -> str:
    """Return the file of onnxruntime-extensions' operators.

    Importing the package would import torch and transformers too, where they are installed: seconds
    in every process that embeds a single text (measured with 0.12.0 to 0.15.2).
    """
    package = find_spec("onnxruntime_extensions")
    for folder in (package and package.submodule_search_locations) or ():
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder, f"_extensions_pydll{suffix}")
            if path.is_file():
                return str(path)
    import onnxruntime_extensions

    found: str = onnxruntime_extensions.get_library_path()
    return found


def _question(operator: Operator) -> bytes:
    """Return a model that fails to load at an operator if it is unknown, else right after it."""
    from onnx import TensorProto, helper

    domain, name = _NO_OPERATOR
    nodes = [
        helper.make_node(operator.name, ["x"], ["y"], domain=operator.domain),
        helper.make_node(name, ["y"], ["z"], domain=domain),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n"]) for n in ("x", "z")]
    graph = helper.make_graph(nodes, "question", ends[:1], ends[1:])
    domains = {"": 17, operator.domain: 1, domain: 1}
    opsets = [helper.make_opsetid(key, number) for key, number in domains.items()]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def onnxruntime_version() -> str:
    """Return the release of onnxruntime, whichever distribution has brought it.

    onnxruntime-gpu, and builds for other accelerators, leave no metadata under the common name.
    """
    import onnxruntime

    return str(onnxruntime.__version__)


def runtime_versions() -> dict[str, str]:
    """Return what the vectors of this process depend on."""
    packages = ("onnxruntime-extensions", "numpy", "pillow")
    return {name: version(name) for name in packages} | {
        "onnxruntime": onnxruntime_version(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
