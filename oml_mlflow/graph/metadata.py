"""Rules for the JSON metadata and the name of an in-database model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oml_mlflow.documents import read_json
from oml_mlflow.errors import ConfigError
from oml_mlflow.graph.finding import ERROR, WARNING, Finding

# Source: LOAD_ONNX_MODEL Procedure, 26ai: the default of its parameter `metadata`.
DEFAULT_METADATA: Mapping[str, Any] = {
    "function": "embedding",
    "embeddingOutput": "embedding",
    "input": {"input": ["DATA"]},
}
# Source: JSON Metadata Parameters for ONNX Models; inputAsVector from the error messages.
_FIELDS = (
    "function input regressionOutput classificationProbOutput clusteringDistanceOutput "
    "clusteringProbOutput classificationLabelOutput labels normalizeProb embeddingOutput "
    "suitableDistanceMetrics normalization maxSequenceLength pooling modelDescription "
    "languages tokenizer embeddingLayer defaultOnNull inputAsVector"
)
# Source: Oracle SQL Reserved Words.
_RESERVED = (
    "ACCESS ADD ALL ALTER AND ANY AS ASC AUDIT BETWEEN BY CHAR CHECK CLUSTER COLUMN COMMENT "
    "COMPRESS CONNECT CREATE CURRENT DATE DECIMAL DEFAULT DELETE DESC DISTINCT DROP ELSE "
    "EXCLUSIVE EXISTS FILE FLOAT FOR FROM GRANT GROUP HAVING IDENTIFIED IMMEDIATE IN "
    "INCREMENT INDEX INITIAL INSERT INTEGER INTERSECT INTO IS LEVEL LIKE LOCK LONG MAXEXTENTS "
    "MINUS MLSLABEL MODE MODIFY NOAUDIT NOCOMPRESS NOT NOWAIT NULL NUMBER OF OFFLINE ON "
    "ONLINE OPTION OR ORDER PCTFREE PRIOR PUBLIC RAW RENAME RESOURCE REVOKE ROW ROWID ROWNUM "
    "ROWS SELECT SESSION SET SHARE SIZE SMALLINT START SUCCESSFUL SYNONYM SYSDATE TABLE THEN "
    "TO TRIGGER UID UNION UNIQUE UPDATE USER VALIDATE VALUES VARCHAR VARCHAR2 VIEW WHENEVER "
    "WHERE WITH"
)
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_$#]*")
# Source: LOAD_ONNX_MODEL Procedure, Usage Notes; a column's name is any 128 bytes.
_MODEL_NAME_LIMIT, _COLUMN_NAME_LIMIT = 123, 128


def parse_metadata(given: str) -> dict[str, Any]:
    """Return JSON metadata from a file's name or from the text itself.

    Raises:
        ConfigError: If it is neither a file nor a JSON object, or the file holds none.
    """
    try:
        loaded = read_json(given if given.lstrip().startswith("{") else Path(given))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"metadata {given[:80]!r} is neither a readable file nor JSON ({error}).",
            hint=f"write it as {json.dumps(DEFAULT_METADATA)}.",
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"metadata {given[:80]!r} is JSON, but no object.",
            hint=f"write it as {json.dumps(DEFAULT_METADATA)}.",
        )
    return loaded


def metadata_findings(
    metadata: Mapping[str, Any], inputs: Mapping[str, list[int | None]], outputs: list[str]
) -> Iterator[Finding]:
    """Yield what a database would refuse in a model's JSON metadata.

    Args:
        metadata: The metadata.
        inputs: Shapes of the model's inputs by name; None for a dim that varies.
        outputs: Names of the model's outputs.
    """
    for field in sorted(set(metadata) - set(_FIELDS.split())):
        yield Finding(
            "metadata-field",
            WARNING,
            field,
            f"metadata field {field!r} is not documented.",
            "fields are case-sensitive; put your own facts into modelDescription.",
        )
    if metadata.get("function") != "embedding":
        yield Finding(
            "metadata-function",
            ERROR,
            "function",
            f"metadata function is {metadata.get('function')!r}, wanted 'embedding'.",
            'add "function": "embedding".',
        )
    if "normalizeProb" in metadata:
        yield Finding(
            "metadata-field",
            ERROR,
            "normalizeProb",
            "normalizeProb is not for embedding models.",
            "leave it out.",
        )
    yield from _output_findings(metadata, outputs)
    yield from _input_findings(metadata, inputs)


def _output_findings(metadata: Mapping[str, Any], outputs: list[str]) -> Iterator[Finding]:
    named = metadata.get("embeddingOutput")
    if named is None and len(outputs) != 1:
        yield Finding(
            "embedding-output",
            ERROR,
            "embeddingOutput",
            f"metadata names no embeddingOutput, and the model has outputs {outputs}.",
            "name one of them.",
        )
    elif named is not None and named not in outputs:
        yield Finding(
            "embedding-output",
            ERROR,
            str(named),
            f"embeddingOutput {named!r} is not an output of the model; it has {outputs}.",
            "name one of them in embeddingOutput, or rename the graph's output.",
        )


def _input_findings(
    metadata: Mapping[str, Any], inputs: Mapping[str, list[int | None]]
) -> Iterator[Finding]:
    mapping = metadata.get("input")
    if mapping is None:
        mapping = {name: [name] for name in inputs}
    if not isinstance(mapping, Mapping):
        yield Finding(
            "metadata-input",
            ERROR,
            "input",
            "metadata input is no object of tensor names and lists of attribute names.",
            'write it as "input": {"input": ["DATA"]}.',
        )
        return
    for name, attributes in mapping.items():
        if name not in inputs:
            yield Finding(
                "metadata-input",
                ERROR,
                str(name),
                f"metadata input {name!r} is not an input of the model; it has {list(inputs)}.",
                f'give metadata with "input": {{"{next(iter(inputs), "input")}": ["DATA"]}}.',
                "ORA-54408",
            )
        listed = attributes if isinstance(attributes, list) else [attributes]
        wanted = _values_per_row(inputs.get(name, []))
        if not isinstance(attributes, list) or len(listed) != wanted:
            yield Finding(
                "metadata-elements",
                ERROR,
                str(name),
                f"metadata input {name!r} has {len(listed)} attributes, wanted a list of {wanted}.",
                f'write it as "{name}": ["DATA"].',
                "ORA-54420",
            )
        for attribute in listed:
            if not isinstance(attribute, str) or not _is_identifier(attribute, _COLUMN_NAME_LIMIT):
                yield Finding(
                    "metadata-attribute",
                    ERROR,
                    str(attribute),
                    f"attribute {attribute!r} can't be the name of a column.",
                    "use a name such as DATA.",
                )
    for name in inputs:
        if name not in mapping:
            yield Finding(
                "metadata-input",
                ERROR,
                name,
                f"the model's input {name!r} is not in metadata input.",
                f'add "{name}": ["DATA"].',
            )


def _values_per_row(shape: list[int | None]) -> int:
    """Return how many values a row has; the bytes of a picture are one."""
    fixed = [dim for dim in shape if dim and dim > 1]
    return fixed[0] if len(fixed) == 1 and shape.count(None) <= 1 else 1


def name_findings(name: str) -> Iterator[Finding]:
    """Yield what is wrong with the name of an in-database model."""
    if not _is_identifier(name, _MODEL_NAME_LIMIT):
        yield Finding(
            "model-name",
            ERROR,
            name,
            f"{name!r} is no legal model name: a letter, then letters, digits, '_', '$' or '#', at "
            f"most {_MODEL_NAME_LIMIT} characters, no reserved word.",
            "choose a name such as CLIP_IMG.",
            "ORA-40281",
        )


def _is_identifier(name: str, limit: int) -> bool:
    legal = _IDENTIFIER.fullmatch(name) is not None and name.upper() not in _RESERVED.split()
    return legal and len(name) <= limit
