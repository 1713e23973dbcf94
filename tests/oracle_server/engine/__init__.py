"""What a small Oracle Database does for a client that promotes models, without transport.

Ordinary SQL runs in SQLite; what is Oracle's own (PL/SQL, packages, mining models, catalogue views,
DDL that commits by itself) is done here. Written from the documentation, never compared with a real
database: what is a guess says so.
"""

from oracle_server.engine.database import Database
from oracle_server.engine.privileges import User
from oracle_server.engine.session import EngineSession

__all__ = ["Database", "EngineSession", "User"]
