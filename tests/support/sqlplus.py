"""Runs a script as SQL*Plus does: statements end in a semicolon, blocks in a slash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# what SQL*Plus keeps to itself
_OWN = re.compile(r"(WHENEVER|SET|PROMPT|SPOOL)\b", re.IGNORECASE)
_BLOCK = re.compile(r"(DECLARE|BEGIN)\b", re.IGNORECASE)
LONGEST_LINE = 2499


def statements(script: str) -> Iterator[str]:
    """Yield what SQL*Plus would send."""
    lines: list[str] = []
    for line in script.splitlines():
        assert len(line) <= LONGEST_LINE
        if not lines and (not line.strip() or line.startswith("--") or _OWN.match(line)):
            continue
        is_block = bool(_BLOCK.match(lines[0] if lines else line))
        if is_block and line == "/":
            yield "\n".join(lines)
            lines = []
            continue
        lines.append(line)
        code = line.partition(" --")[0].rstrip()
        if not is_block and code.endswith(";"):
            text = "\n".join(lines).rstrip()
            yield text[: text.rindex(";")]
            lines = []
    assert not lines, lines


def run(connection: Any, script: str) -> None:
    """Run a script; what fails ends it, and is rolled back."""
    with connection.cursor() as cursor:
        for text in statements(script):
            try:
                cursor.execute(text)
            except BaseException:
                connection.rollback()
                raise
    connection.commit()
