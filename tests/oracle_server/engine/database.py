"""The stand-in's database: what its sessions share."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oracle_server.engine import catalogue
from oracle_server.engine.packages import ROUTINES
from oracle_server.engine.privileges import User, as_users
from oracle_server.engine.session import EngineSession
from oracle_server.engine.vectors import shared_worker
from oracle_server.faults import Faults
from oracle_server.statement import ConnectionDropped, OraError

# what a pair of this package uses; whether Oracle takes these two is not known
EXTENSIONS = frozenset({"ai.onnx.contrib:CLIPTokenizer", "com.microsoft.extensions:DecodeImage"})
_GIB = 2**30


class Database:
    """A small Oracle Database. Close it, or use it as a context manager.

    Args:
        users: Passwords or users by name.
        version: Its version, as in PRODUCT_COMPONENT_VERSION.
        faults: Faults that tests switch on.
        accepted_operators: ``domain:Name`` of custom operators that models may have; any other
            outside of ONNX's own domains is refused on load.
        operator_aliases: Operators of the database's own, ``domain:Name``, by what ONNX Runtime has
            instead; both domains and both names have to be of one length. They are accepted too.
        max_opset: Highest opset that a model may have. ONNX Runtime 1.15.1 knows up to 19.
        max_model_bytes: Largest model; 1 GB in 23.7, 2 GB in 26ai, by the documentation.
        worker_python: Python executable with the ONNX Runtime that models run in. Databases of one
            process share what runs them.
        directories: Folders by DIRECTORY name.
        grants_follow_rename: Whether RENAME_MODEL leaves privileges on the model as they are.
            Oracle's behaviour is not documented.
        comments_follow_rename: Likewise for the comment.
        lock_wait_s: How long a session waits for another one's transaction.
    """

    def __init__(
        self,
        users: Mapping[str, str | User],
        *,
        version: str = "23.26.1.0.0",
        faults: Faults | None = None,
        accepted_operators: Iterable[str] = EXTENSIONS,
        operator_aliases: Mapping[str, str] | None = None,
        max_opset: int = 19,
        max_model_bytes: int = 2 * _GIB,
        worker_python: str = sys.executable,
        directories: Mapping[str, Path] | None = None,
        grants_follow_rename: bool = True,
        comments_follow_rename: bool = True,
        lock_wait_s: float = 10.0,
    ) -> None:
        self.users = as_users(users)
        self.version = version
        self.faults = faults or Faults()
        self.operator_aliases = dict(operator_aliases or {})
        self.accepted_operators = frozenset(accepted_operators) | self.operator_aliases.keys()
        self.max_opset, self.max_model_bytes = max_opset, max_model_bytes
        self.directories = dict(directories or {})
        self.grants_follow_rename = grants_follow_rename
        self.comments_follow_rename = comments_follow_rename
        self.lock_wait_s = lock_wait_s
        self.worker = shared_worker(worker_python)
        self.statements: list[tuple[str, str]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="oracle-stand-in-"))
        self.alive: set[str] = set()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._create()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all models, and remove all files."""
        with contextlib.suppress(ConnectionDropped):
            self.worker.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open_session(self, user: str) -> EngineSession:
        """Return a session of a user, whose password was checked.

        Raises:
            OraError: ORA-01017 if there is no such user, ORA-01045 without CREATE SESSION.
        """
        name = user.upper()
        if name not in self.users:
            raise OraError(1017, "invalid credential or not authorized; logon denied")
        granted = self.users[name]
        if "CREATE SESSION" not in {*granted.privileges, *granted.role_privileges}:
            raise OraError(
                1045, f"Login denied. User {name} does not have CREATE SESSION privilege."
            )
        with self._lock:
            number = next(self._numbers)
        return EngineSession(self, name, number)

    def log(self, session: str, text: str) -> None:
        """Note a statement that is about to run."""
        with self._lock:
            self.statements.append((session, text))

    def schema_file(self, user: str) -> Path:
        """Return the SQLite file of a user's schema."""
        return self.folder / f"{user}.db"

    def models(self, user: str) -> dict[str, tuple[str, int, Path]]:
        """Return sha256, size and file of each model of a user, by name."""
        query = "SELECT name, fingerprint, size_bytes, path FROM models WHERE owner = ?"
        with self._dictionary() as connection:
            found = connection.execute(query, [user.upper()]).fetchall()
        connection.close()
        return {name: (sha, size, Path(path)) for name, sha, size, path in found}

    def load_foreign_model(
        self, user: str, name: str, path: Path, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Load a model as some other tool would have, without a comment; not counted."""
        session = self.open_session(user)
        try:
            session.models.load(name, path, dict(metadata) if metadata else None)
        finally:
            session.close()

    def _dictionary(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "sys.db", timeout=self.lock_wait_s)

    def _create(self) -> None:
        for name in self.users:
            connection = sqlite3.connect(self.schema_file(name))
            connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
        connection = self._dictionary()
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(catalogue.TABLES)
        connection.execute("CREATE TABLE users (name TEXT)")
        connection.executemany("INSERT INTO users VALUES (?)", [(name,) for name in self.users])
        known = [("SYS", *name.split(".")) for name in ROUTINES]
        connection.executemany("INSERT INTO procedures VALUES (?, ?, ?)", known)
        connection.commit()
        connection.close()
