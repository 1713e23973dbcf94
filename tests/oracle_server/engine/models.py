"""Mining models: loaded, checked, renamed, dropped, granted, run."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oracle_server.engine.functions import sysdate
from oracle_server.engine.onnx_file import FLOAT, STRING, NotOnnx, OnnxFile, Tensor, read_onnx
from oracle_server.engine.privileges import quota_exceeded
from oracle_server.engine.vectors import is_vector, pack_vector
from oracle_server.statement import ConnectionDropped, OraError

if TYPE_CHECKING:
    from oracle_server.engine.session import EngineSession

# Source: LOAD_ONNX_MODEL Procedure, 26ai.
DEFAULT_METADATA = {
    "function": "embedding",
    "embeddingOutput": "embedding",
    "input": {"input": ["DATA"]},
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_$#]{0,122}")
_RESERVED = (
    "ACCESS ADD ALL ALTER AND ANY AS ASC BETWEEN BY CHAR CHECK COLUMN COMMENT CREATE DATE DEFAULT "
    "DELETE DESC DISTINCT DROP ELSE EXISTS FOR FROM GRANT GROUP HAVING IN INDEX INSERT INTO IS "
    "LEVEL LIKE LONG MODE NOT NULL NUMBER OF ON OPTION OR ORDER RAW RENAME ROW ROWS SELECT "
    "SESSION SET SIZE TABLE THEN TO TRIGGER UNION UNIQUE UPDATE USER VALUES VARCHAR2 VIEW WHERE "
    "WITH"
)
_CHUNK_BYTES = 2**20
# Guesses: that a model fails on import is documented for other custom operations, and follows for
# a runtime that can't load it, for bytes that are no model and for bad metadata; with which code,
# is not. 54400 is documented as "invalid BLOB size" only.
NOT_A_MODEL = REFUSED_OPERATOR = RUNTIME_REFUSED = 54400
BAD_METADATA = 40102


@dataclass(frozen=True)
class Model:
    """A row of the dictionary."""

    id: int
    owner: str
    name: str
    fingerprint: str
    path: str
    input: str
    output: str
    attribute: str
    is_text: int


class Models:
    """Mining models, as one session sees them."""

    def __init__(self, session: EngineSession) -> None:
        self.session = session

    def find(self, owner: str, name: str) -> Model | None:
        """Return a model by its owner and name."""
        rows = self.session.query(
            "SELECT id, owner, name, fingerprint, path, input, output, attribute, is_text "
            "FROM sys.models WHERE owner = ? AND name = ?",
            [owner, name.upper()],
        )
        return Model(*rows[0]) if rows else None

    def find_for_scoring(self, owner: str, name: str) -> Model:
        """Return a model that the user may apply.

        Raises:
            OraError: ORA-40284 if there is none, or SELECT on it was not granted.
        """
        model = self.find(owner, name)
        user = self.session.user
        if model is not None and owner != user:
            granted = self.session.query(
                "SELECT 1 FROM sys.privs WHERE model_id = ? AND privilege = 'SELECT' "
                "AND grantee IN (?, 'PUBLIC')",
                [model.id, user],
            )
            model = model if granted else None
        if model is None:
            raise OraError(40284, f"model {owner}.{name} does not exist")
        return model

    def embed(self, owner: str, name: str, value: Any) -> bytes | None:
        """Return the embedding of one value, as SQLite stores vectors; None for NULL."""
        model = self.find_for_scoring(owner, name)
        if value is None:
            return None
        if model.is_text and isinstance(value, (int, float)):
            value = str(value)
        if isinstance(value, bytes) == bool(model.is_text) or is_vector(value):
            wanted = "CHAR" if model.is_text else "BLOB"
            raise OraError(932, f"inconsistent datatypes: expected {wanted} for {name}")
        database = self.session.database
        vector = database.worker.embed(
            model.fingerprint, runnable(Path(model.path)), (model.input, model.output), value
        )
        if database.faults.wrong_vectors is not None:
            vector = np.asarray(database.faults.wrong_vectors(vector.copy()), np.float32)
        return pack_vector(array("f", vector.tolist()))

    def load(self, name: str, data: Any, metadata: Mapping[str, Any] | None) -> None:
        """Load a model as DBMS_VECTOR.LOAD_ONNX_MODEL does.

        Args:
            name: Its name, perhaps behind the user's own.
            data: A LOB, bytes, or a file.
            metadata: JSON metadata; the documented default if there is none.
        """
        session = self.session
        user = session.database.users[session.user]
        user.require("CREATE MINING MODEL")
        name = self._own_name(name)
        path = session.database.folder / f"{uuid.uuid4().hex}.onnx"
        try:
            # nobody has to wait while a gigabyte is received
            session.end_transaction()
            self._check_free(name)
            size, fingerprint = self._receive(data, path)
            if session.database.faults.quota_exceeded:
                raise quota_exceeded()
            user.check_space(session.used_bytes(), size)
            row = self._examine(path, fingerprint, metadata)
            with session.ddl():
                self._check_free(name)
                session.query(
                    "INSERT INTO sys.models (owner, name, size_bytes, fingerprint, path, created, "
                    "metadata, input, output, attribute, dims, is_text) "
                    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                    [session.user, name, size, fingerprint, str(path), sysdate(), *row],
                )
        except BaseException:
            _remove(path)
            raise

    def load_file(self, directory: str, file: str, name: str, metadata: Any) -> None:
        """Load a model from a file of a DIRECTORY object."""
        folder = self.session.database.directories.get(directory.upper())
        path = folder / file if folder is not None and "/" not in file else None
        if path is None or not path.is_file():
            raise OraError(29532, f"file {file} not found in directory {directory}")
        self.load(name, path, metadata)

    def drop(self, name: str, *, is_forced: bool = False) -> None:
        """Drop a model; `is_forced` drops an invalid one too, but not one that is not there."""
        name = self._own_name(name)
        with self.session.ddl():
            model = self._existing(name)
            self.session.query("DELETE FROM sys.privs WHERE model_id = ?", [model.id])
            self.session.query("DELETE FROM sys.models WHERE id = ?", [model.id])
        _remove(Path(model.path))

    def rename(self, name: str, new: str, versioned: str | None) -> None:
        """Rename a model, and before it the one that has the new name, if a third is given."""
        name, new = self._own_name(name), self._own_name(new)
        kept = self._own_name(versioned) if versioned else None
        session = self.session
        with session.ddl():
            model, displaced = self._existing(name), self.find(session.user, new)
            if displaced is not None:
                if kept is None:
                    raise OraError(40204, f"model {new} already exists")
                self._check_free(kept)
                self._move(displaced, kept)
                if session.database.faults.crash_in_rename:
                    session.database.faults.crash_in_rename = False
                    session.end_transaction()
                    raise ConnectionDropped("crash between the two renames")
            self._check_free(new)
            self._move(model, new)

    def comment(self, name: str, text: str | None) -> None:
        """Set the comment of a model: COMMENT ON MINING MODEL."""
        if text is not None and len(text.encode()) > 4000:
            raise OraError(1704, "string literal too long")
        with self.session.ddl():
            model = self._existing(name)
            self.session.query("UPDATE sys.models SET comments = ? WHERE id = ?", [text, model.id])

    def _move(self, model: Model, name: str) -> None:
        database, query = self.session.database, self.session.query
        query("UPDATE sys.models SET name = ? WHERE id = ?", [name, model.id])
        if not database.grants_follow_rename:
            query("DELETE FROM sys.privs WHERE model_id = ?", [model.id])
        if not database.comments_follow_rename:
            query("UPDATE sys.models SET comments = NULL WHERE id = ?", [model.id])

    def _existing(self, name: str) -> Model:
        model = self.find(self.session.user, name)
        if model is None:
            raise OraError(40203, f"model {name} does not exist")
        return model

    def _own_name(self, name: str | None) -> str:
        """Return a legal name without the user's own before it, upper-case."""
        owner, dot, bare = (name or "").rpartition(".")
        if dot and owner.upper() != self.session.user:
            raise OraError(1031, "insufficient privileges")
        if not _NAME.fullmatch(bare) or bare.upper() in _RESERVED.split():
            raise OraError(40281, "invalid model name")
        return bare.upper()

    def _check_free(self, name: str) -> None:
        user = self.session.user
        if self.find(user, name) is not None:
            raise OraError(40204, f"model {name} already exists")
        if self.session.query(
            "SELECT 1 FROM sys.tabs WHERE owner = ?1 AND name = ?2 UNION ALL "
            "SELECT 1 FROM sys.views WHERE owner = ?1 AND name = ?2",
            [user, name],
        ):
            raise OraError(955, "name is already used by an existing object")

    def _receive(self, data: Any, path: Path) -> tuple[int, str]:
        """Copy the bytes of a model into a file, in chunks; return size and sha256."""
        limit = self.session.database.max_model_bytes
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for chunk in _chunks(data):
                self.session.check_cancelled()
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
                if size > limit:
                    break
        if not 0 < size <= limit:
            raise OraError(54400, f"invalid BLOB size {size}")
        return size, digest.hexdigest()

    def _examine(
        self, path: Path, fingerprint: str, given: Mapping[str, Any] | None
    ) -> tuple[str, str, str, str, int, int]:
        """Return metadata, input, output, attribute, dims, and whether it takes text."""
        metadata = dict(DEFAULT_METADATA if given is None else given)
        try:
            found = read_onnx(path)
        except NotOnnx as error:
            raise OraError(NOT_A_MODEL, f"invalid ONNX model: {error}") from error
        self._check_operators(found)
        tensor, attribute = _input(found, metadata)
        output, dims = _output(found, metadata)
        _write_runnable(path, found.operators, self.session.database.operator_aliases)
        message = self.session.database.worker.open(fingerprint, runnable(path))
        if message:
            raise OraError(RUNTIME_REFUSED, f"ONNX Runtime can't load the model: {message}")
        is_text = int(tensor.type == STRING)
        return json.dumps(metadata), tensor.name, output, attribute, dims, is_text

    def _check_operators(self, found: OnnxFile) -> None:
        database = self.session.database
        refused = database.faults.refused_operators
        for operator in sorted(found.operators):
            domain = operator.rpartition(":")[0]
            is_custom = domain not in ("", "ai.onnx.ml")
            if operator in refused or (is_custom and operator not in database.accepted_operators):
                raise OraError(REFUSED_OPERATOR, f"operator {operator} is not supported")
        opset = found.opsets.get("", 0)
        if opset > database.max_opset:
            raise OraError(
                RUNTIME_REFUSED, f"opset {opset} is not supported, only up to {database.max_opset}"
            )
        if found.is_external:
            raise OraError(NOT_A_MODEL, "the model depends on external initializers")


def runnable(path: Path) -> Path:
    """Return what ONNX Runtime runs for a model: the bytes received, or a copy with aliases."""
    copy = path.with_suffix(".run.onnx")
    return copy if copy.exists() else path


def _write_runnable(path: Path, operators: set[str], aliases: Mapping[str, str]) -> None:
    """Write a copy with the operators of ONNX Runtime in it, if a model has any of the database's.

    Names of one length are replaced in place: every length in the file stays right.
    """
    used = operators & aliases.keys()
    if not used:
        return
    data = path.read_bytes()
    for operator in used:
        own, other = operator.split(":"), aliases[operator].split(":")
        assert list(map(len, own)) == list(map(len, other)), (own, other)
        for mine, theirs in zip(own, other, strict=True):
            data = data.replace(mine.encode(), theirs.encode())
    path.with_suffix(".run.onnx").write_bytes(data)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".run.onnx").unlink(missing_ok=True)


def _chunks(data: Any) -> Any:
    if isinstance(data, Path):
        with data.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    elif hasattr(data, "read_at"):
        for at in range(0, data.size, _CHUNK_BYTES):
            yield data.read_at(at, min(_CHUNK_BYTES, data.size - at))
    elif data:
        yield bytes(data)


def _input(found: OnnxFile, metadata: Mapping[str, Any]) -> tuple[Tensor, str]:
    """Return the input that VECTOR_EMBEDDING feeds, and the attribute it is given by."""
    if metadata.get("function") != "embedding":
        raise OraError(BAD_METADATA, 'invalid input "function" for data mining operation')
    mapping = metadata.get("input", {tensor.name: [tensor.name] for tensor in found.inputs})
    if not isinstance(mapping, dict):
        raise OraError(BAD_METADATA, 'invalid input "input" for data mining operation')
    known = {tensor.name: tensor for tensor in found.inputs}
    for name in mapping:
        if name not in known:
            raise OraError(54408, f'input "{name}" of the metadata is not an input of the model')
    if len(mapping) != 1 or len(known) != 1:
        raise OraError(BAD_METADATA, "an embedding model takes exactly one input attribute")
    ((name, attributes),) = mapping.items()
    if not isinstance(attributes, list) or len(attributes) != 1:
        raise OraError(54420, f'wrong number of elements in the array of input "{name}"')
    tensor = known[name]
    _check_dims(tensor)
    return tensor, str(attributes[0]).upper()


def _output(found: OnnxFile, metadata: Mapping[str, Any]) -> tuple[str, int]:
    """Return the output with the embeddings and their length."""
    known = {tensor.name: tensor for tensor in found.outputs}
    name = metadata.get("embeddingOutput", found.outputs[0].name if len(known) == 1 else None)
    if name not in known:
        raise OraError(BAD_METADATA, f"embeddingOutput {name} is not an output of the model")
    tensor = known[str(name)]
    _check_dims(tensor)
    fixed = [dim for dim in tensor.dims if dim is not None]
    lengths = fixed[1:] if fixed[:1] == [1] and len(fixed) > 1 else fixed
    if len(lengths) != 1 or tensor.type != FLOAT:
        raise OraError(54423, f'output "{name}" must have exactly one fixed-size dimension')
    return tensor.name, lengths[0]


def _check_dims(tensor: Tensor) -> None:
    if any(dim is not None and dim < 1 for dim in tensor.dims):
        raise OraError(54425, f'tensor "{tensor.name}" has a dimension that is 0 or negative')
    if tensor.dims.count(None) > 1:
        raise OraError(
            54426, f'tensor "{tensor.name}" contains multiple dimensions of arbitrary size'
        )
    if sum(dim is not None and dim > 1 for dim in tensor.dims) > 1:
        raise OraError(54427, f'tensor "{tensor.name}" has more than one dimension greater than 1')
