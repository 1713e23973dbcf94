"""A stand-in database for tests, and a target that connects to it with the real driver."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from oracle_server.engine import Database, User
from oracle_server.server import OracleServer

from oml_mlflow.targets.oracle.target import OracleTarget

PASSWORD = "pw-Zx81-marked"  # noqa: S105 -- searched for in everything that is written


@dataclass
class Oracle:
    """A running stand-in."""

    database: Database
    server: OracleServer

    @property
    def uri(self) -> str:
        return f"oracle://vec@{self.server.dsn}"

    def target(self, **query: Any) -> OracleTarget:
        """Return a target of its own; its password comes from the environment."""
        settings = "&".join(f"{key}={value}" for key, value in query.items())
        return OracleTarget.from_uri(self.uri + (f"?{settings}" if settings else ""))

    def fingerprints(self) -> dict[str, str]:
        """Return sha256 of the bytes that the database holds, by model."""
        return {name: model[0] for name, model in self.database.models("VEC").items()}

    def save(self, folder: Path) -> None:
        """Copy everything that the database holds into a folder."""
        self.server.wait_until_idle()
        shutil.copytree(self.database.folder, folder)

    def restore(self, folder: Path) -> None:
        """Put back what `save` copied."""
        self.server.wait_until_idle()
        for path in self.database.folder.iterdir():
            path.unlink()
        shutil.copytree(folder, self.database.folder, dirs_exist_ok=True)

    def statements(self) -> list[str]:
        """Return what was executed."""
        return [text for _session, text in self.database.statements]


@contextlib.contextmanager
def running(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Oracle]:
    """Run a stand-in whose user VEC has the marked password."""
    monkeypatch.setenv("OML_MLFLOW_PASSWORD", PASSWORD)
    users = options.pop("users", {"VEC": User(PASSWORD), "APP": User("app"), "OPS": User("ops")})
    with Database(users=users, **options) as database, OracleServer(database) as server:
        yield Oracle(database, server)
        assert server.errors == []
