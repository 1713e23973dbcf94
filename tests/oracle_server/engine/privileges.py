"""Users of the stand-in and what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oracle_server.statement import OraError

TABLESPACE = "USERS"
DEFAULT_PRIVILEGES = frozenset(
    {"CREATE SESSION", "CREATE TABLE", "CREATE VIEW", "CREATE MINING MODEL", "UNLIMITED TABLESPACE"}
)


@dataclass
class User:
    """A database user.

    Attributes:
        password: For the wire layer.
        privileges: System privileges granted directly: in USER_SYS_PRIVS and SESSION_PRIVS.
        role_privileges: Those that come through a role: in SESSION_PRIVS only.
        quota_bytes: Quota on the tablespace; None if there is none, and then UNLIMITED TABLESPACE
            decides.
    """

    password: str = field(repr=False)
    privileges: frozenset[str] | set[str] = DEFAULT_PRIVILEGES
    role_privileges: frozenset[str] | set[str] = frozenset()
    quota_bytes: int | None = None

    def require(self, privilege: str) -> None:
        """Raise ORA-01031 unless the user has a system privilege."""
        if privilege not in self.privileges and privilege not in self.role_privileges:
            raise OraError(1031, "insufficient privileges")

    def check_space(self, used_bytes: int, more_bytes: int = 0) -> None:
        """Raise ORA-01536 or ORA-01950 unless something fits.

        UNLIMITED TABLESPACE overrides a quota. Source: Database Security Guide, 2.
        """
        if "UNLIMITED TABLESPACE" in {*self.privileges, *self.role_privileges}:
            return
        if not self.quota_bytes:
            raise OraError(1950, f"no privileges on tablespace '{TABLESPACE}'")
        if used_bytes + more_bytes > self.quota_bytes:
            raise quota_exceeded()


def quota_exceeded() -> OraError:
    """Return the error for a full tablespace."""
    return OraError(1536, f"space quota exceeded for tablespace '{TABLESPACE}'")


def as_users(given: Mapping[str, str | User]) -> dict[str, User]:
    """Return users by upper-case name, from passwords or User objects."""
    return {
        name.upper(): User(user) if isinstance(user, str) else user for name, user in given.items()
    }
