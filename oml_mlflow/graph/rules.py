"""The static check: every rule of a profile that can be judged without the database.

Sources: Database Error Messages, ORA-54400 to ORA-54427; Custom ONNX Runtime Operations (OML4SQL
User's Guide); LOAD_ONNX_MODEL Procedure, Usage Notes; and the profile's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
from onnx import TensorProto

from oml_mlflow.errors import PackageError
from oml_mlflow.graph.external import external_tensors
from oml_mlflow.graph.finding import ERROR, WARNING, Finding
from oml_mlflow.graph.metadata import DEFAULT_METADATA, metadata_findings, name_findings
from oml_mlflow.graph.profiles import STANDARD_DOMAINS, Profile
from oml_mlflow.graph.walk import custom_operators, held_tensors
from oml_mlflow.graph.wire import Initializer, read_model

EMBEDDING = "embedding"
_SHOWN_PLACES = 5
# constants up to this size take part in shape inference; weights do not
_SMALL_BYTES = 4096
# onnx can't infer types after a custom operator
_UNTYPED = "expected to have type but instead is null"
_REEXPORT = "export the model with `oml-mlflow export`, or cast inside the graph."


def check_file(
    path: str | Path,
    profile: Profile,
    *,
    embedding_output: str = EMBEDDING,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> list[Finding]:
    """Return what a target would refuse or may not run; empty if nothing. Read-only.

    Any ONNX file is judged, whoever made it. Weights are not read: memory stays small.

    Args:
        path: The file.
        profile: What the target takes.
        embedding_output: Output that holds the embedding, unless `metadata` names one.
        metadata: JSON metadata to load the file with; by default the database's own default.
        name: Name of the in-database model, to be checked too.

    Returns:
        Errors first, then warnings, each in the order of the rules.
    """
    file = Path(path)
    found = [*_size_findings(file, profile), *(name_findings(name) if name else ())]
    try:
        outside = external_tensors(file)
        header, stored = read_model(file)
    except PackageError:
        return [*found, _no_model(file)]
    except Exception as error:  # onnx raises KeyError and more on tensors of unknown types
        return [*found, _no_model(file, f" ({type(error).__name__}: {error})")]
    given = dict(metadata if metadata is not None else DEFAULT_METADATA)
    if metadata is None:
        given["embeddingOutput"] = embedding_output
    found += _version_findings(header, profile)
    found += _operator_findings(header, profile)
    found += _external_findings(outside)
    found += _string_findings(header, stored, outside)
    found += _end_findings(header, stored, profile, given)
    found += _graph_findings(header, stored)
    return sorted(found, key=lambda finding: not finding.is_error)


def _no_model(path: Path, reason: str = "") -> Finding:
    return Finding(
        "not-onnx",
        ERROR,
        path.name,
        f"the file is no ONNX model: its bytes are not the protobuf message ModelProto{reason}.",
        "name an .onnx file; a zip of OML4Py has to be unpacked first.",
    )


def _size_findings(path: Path, profile: Profile) -> Iterator[Finding]:
    size = path.stat().st_size
    if 0 < size <= profile.size_limit_bytes:
        return
    limit = f"{profile.name} takes at most {profile.size_limit_bytes:,}"
    yield Finding(
        "file-size",
        ERROR,
        path.name,
        f"the file has {size:,} bytes; {limit}." if size else "the file is empty.",
        "export it with quantize_model or use_float16, or for a profile with a higher limit.",
        # documented as "invalid BLOB size"; that an oversize one gives it is inferred
        "ORA-54400" if profile.is_oracle else None,
    )


def _version_findings(model: onnx.ModelProto, profile: Profile) -> Iterator[Finding]:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    for function in model.functions:
        versions += [e.version for e in function.opset_import if e.domain in ("", "ai.onnx")]
    if not versions:
        yield Finding(
            "opset",
            ERROR,
            "opset_import",
            "the model names no version of the standard operators.",
            "export it again.",
        )
    elif max(versions) > profile.opset_limit:
        yield Finding(
            "opset",
            ERROR,
            "opset_import",
            f"the model has opset {max(versions)}; {profile.name} takes at most "
            f"{profile.opset_limit}.",
            f"export it with opset 17, or at most {profile.opset_limit}.",
        )
    if model.ir_version > profile.ir_limit:
        yield Finding(
            "ir-version",
            ERROR,
            "ir_version",
            f"the model has IR version {model.ir_version}; {profile.name} takes at most "
            f"{profile.ir_limit}.",
            f"save it with ir_version {profile.ir_limit}.",
        )


def _operator_findings(model: onnx.ModelProto, profile: Profile) -> Iterator[Finding]:
    taken = profile.operators()
    for operator, where in sorted(custom_operators(model).items()):
        if operator.name in taken.get(operator.domain, ()):
            continue
        more = f" and {len(where) - _SHOWN_PLACES} more" if len(where) > _SHOWN_PLACES else ""
        yield Finding(
            "custom-operator",
            ERROR,
            ", ".join(where[:_SHOWN_PLACES]) + more,
            f"operator {operator.name} of domain {operator.domain} is not one that {profile.name} "
            "takes. Models using any other custom operations will fail on import.",
            "export for this profile, or name the target's decode operator with "
            f"--decode-op {operator} if it has this one.",
        )


def _external_findings(outside: list[tuple[str, str]]) -> Iterator[Finding]:
    if not outside:
        return
    leaving = sorted({place for _, place in outside if _leaves(place)})
    note = f" {leaving[0]!r} leaves the file's folder: don't trust it." if leaving else ""
    names = ", ".join(name or "(unnamed)" for name, _ in outside[:_SHOWN_PLACES])
    yield Finding(
        "external-data",
        ERROR,
        names + (" and more" if len(outside) > _SHOWN_PLACES else ""),
        f"{len(outside)} tensors are in other files, such as {outside[0][1]!r}; the model must not "
        f"depend on external initializers.{note}",
        "save it as one file, made smaller with quantize_model or use_float16 where it is too "
        "large.",
    )


def _leaves(location: str) -> bool:
    place = Path(location.replace("\\", "/"))
    return place.is_absolute() or ".." in place.parts


def _string_findings(
    model: onnx.ModelProto, stored: list[Initializer], outside: list[tuple[str, str]]
) -> Iterator[Finding]:
    elsewhere = {name for name, _ in outside}
    names = [s.name for s in stored if s.dtype == object and s.name not in elsewhere]
    names += [
        where
        for where, tensor in held_tensors(model)
        if tensor.data_type == TensorProto.STRING and tensor.raw_data
    ]
    for name in names:
        yield Finding(
            "string-initializer",
            WARNING,
            name,
            "strings as an initializer or as raw bytes: no file that is known to load has them.",
            "make them the output of a Constant node.",
        )


def _end_findings(
    model: onnx.ModelProto,
    stored: list[Initializer],
    profile: Profile,
    metadata: Mapping[str, Any],
) -> Iterator[Finding]:
    inputs, outputs = model_inputs(model, stored), list(model.graph.output)
    if len(inputs) != 1:
        yield Finding(
            "inputs",
            ERROR,
            ", ".join(tensor.name for tensor in inputs) or "(none)",
            f"the model has {len(inputs)} inputs; an embedding model takes exactly one.",
            "export the model with its preparation inside the graph, as `oml-mlflow export` does.",
        )
    for tensor in inputs:
        kind = tensor.type.tensor_type.elem_type
        if kind not in (TensorProto.STRING, TensorProto.UINT8):
            yield Finding(
                "input-type",
                ERROR,
                tensor.name,
                f"input {tensor.name} takes {type_name(kind)}, wanted STRING for texts or UINT8 "
                "for pictures.",
                "export the model with its preparation inside the graph.",
            )
    names = [tensor.name for tensor in outputs]
    if profile.is_oracle:
        shapes = {tensor.name: dims(tensor) for tensor in inputs}
        yield from metadata_findings(metadata, shapes, names)
        for tensor in [*inputs, *outputs]:
            yield from _shape_findings(tensor)
    elif metadata.get("embeddingOutput") not in names:
        yield Finding(
            "embedding-output",
            ERROR,
            str(metadata.get("embeddingOutput")),
            f"the model has no output {metadata.get('embeddingOutput')!r}; it has {names}.",
            "rename the graph's output.",
        )
    chosen = metadata.get("embeddingOutput") or (names[0] if len(names) == 1 else None)
    for tensor in outputs:
        if tensor.name == chosen:
            yield from _embedding_findings(tensor, profile)


def _embedding_findings(tensor: onnx.ValueInfoProto, profile: Profile) -> Iterator[Finding]:
    kind = tensor.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        yield Finding(
            "output-type",
            ERROR,
            tensor.name,
            f"output {tensor.name} gives {type_name(kind)}, wanted FLOAT.",
            _REEXPORT,
        )
    fixed = [dim for dim in dims(tensor) if dim is not None]
    if len(fixed) != 1:
        yield Finding(
            "embedding-dims",
            ERROR,
            tensor.name,
            f"output {tensor.name} has shape {shown_shape(tensor)}: {len(fixed)} dimensions of "
            "fixed size, wanted exactly one.",
            "declare it as (batch, dims) with a fixed number of dims.",
            "ORA-54423" if profile.is_oracle else None,
        )


def _shape_findings(tensor: onnx.ValueInfoProto) -> Iterator[Finding]:
    shape = dims(tensor)
    large = [dim for dim in shape if dim is not None and dim > 1]
    rules = (
        (
            "dim-size",
            any(dim is not None and (dim == 0 or dim < -1) for dim in shape),
            "a dimension is 0 or less than -1",
            "declare the real size, or let it vary.",
            "ORA-54425",
        ),
        (
            "variable-dims",
            shape.count(None) > 1,
            f"{shape.count(None)} dimensions vary, at most one may",
            "fix all but the batch dimension; put tokenizing, decoding and pooling into the graph.",
            "ORA-54426",
        ),
        (
            "large-dims",
            len(large) > 1,
            f"{len(large)} dimensions are greater than one, at most one may be",
            "put tokenizing, decoding and pooling into the graph.",
            "ORA-54427",
        ),
    )
    for rule, broken, what, hint, code in rules:
        if broken:
            message = f"{tensor.name} has shape {shown_shape(tensor)}: {what}."
            yield Finding(rule, ERROR, tensor.name, message, hint, code)


def _graph_findings(model: onnx.ModelProto, stored: list[Initializer]) -> Iterator[Finding]:
    """Yield what onnx's checker and type inference find in the graph without its weights."""
    newest = onnx.defs.onnx_opset_version()
    if any(o.domain in STANDARD_DOMAINS[:2] and o.version > newest for o in model.opset_import):
        return
    rule, severity = "invalid-graph", ERROR
    try:
        skeleton = _skeleton(model, stored)
        onnx.checker.check_model(skeleton)
        # runtimes infer less strictly, and go on where shapes differ
        rule, severity = "type-inference", WARNING
        onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
    except Exception as error:  # the checker's errors share no base class with inference's
        if severity == WARNING and _UNTYPED in str(error):
            return
        yield Finding(
            rule,
            severity,
            model.graph.name or "graph",
            f"onnx {onnx.__version__} finds the graph invalid: {str(error).strip()[:300]}",
            "export it again with the tool that made it.",
        )


def _skeleton(model: onnx.ModelProto, stored: list[Initializer]) -> onnx.ModelProto:
    """Return the model with small constants as they are and weights as inputs of their shape."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    inputs = {tensor.name for tensor in model.graph.input}
    for item in stored:
        kind = TensorProto.STRING
        if item.dtype != object:
            kind = onnx.helper.np_dtype_to_tensor_dtype(item.dtype)
            if item.size_bytes <= _SMALL_BYTES:
                values = onnx.numpy_helper.from_array(item.load(), item.name)
                skeleton.graph.initializer.append(values)
                continue
        if item.name not in inputs:
            info = onnx.helper.make_tensor_value_info(item.name, kind, item.shape)
            skeleton.graph.input.append(info)
    for tensor in [*skeleton.graph.input, *skeleton.graph.output]:
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_value == -1:
                dim.ClearField("dim_value")
    return skeleton


def model_inputs(model: onnx.ModelProto, stored: list[Initializer]) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have to be given: up to IR 3, initializers are listed among them."""
    held = {item.name for item in stored} | {item.name for item in model.graph.initializer}
    return [tensor for tensor in model.graph.input if tensor.name not in held]


def dims(tensor: onnx.ValueInfoProto) -> list[int | None]:
    """Return a tensor's shape; None for a dimension that varies, written as -1 or a name."""
    found = [
        dim.dim_value if dim.HasField("dim_value") else None
        for dim in tensor.type.tensor_type.shape.dim
    ]
    return [None if size == -1 else size for size in found]


def shown_shape(tensor: onnx.ValueInfoProto) -> str:
    """Return a tensor's shape for people, such as ``(batch, 512)``."""
    shown = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.type.tensor_type.shape.dim
    ]
    return f"({', '.join(shown)})"


def type_name(kind: int) -> str:
    """Return the name of an ONNX element type."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
