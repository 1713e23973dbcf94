"""A finding of the static check, and its severity."""

from __future__ import annotations

from dataclasses import asdict, dataclass

ERROR, WARNING = "error", "warning"
NOT_DOCUMENTED = "code not documented"


@dataclass(frozen=True)
class Finding:
    """One breach of a rule.

    Attributes:
        rule: Stable slug.
        severity: ``error``: the target refuses the file; ``warning``: it may, or may not run it.
        where: Node, tensor, operator or metadata field.
        message: What is wrong.
        hint: What to do.
        code: The database's documented code for it, or None.
    """

    rule: str
    severity: str
    where: str
    message: str
    hint: str
    code: str | None = None

    @property
    def is_error(self) -> bool:
        """Whether the target refuses the file."""
        return self.severity == ERROR

    @property
    def shown_code(self) -> str:
        """The code, or that none is documented."""
        return self.code or NOT_DOCUMENTED

    def to_row(self) -> dict[str, str | None]:
        """Return it as a flat dict."""
        return asdict(self)
