"""Oracle's functions of text, as far as the product's own expressions use them."""

from __future__ import annotations

import re

from oracle_server.statement import OraError

_CODE_UNIT = re.compile(r"\\([0-9A-Fa-f]{4})")
_CLASSES = {"[:alnum:]": r"\w", "[:space:]": r"\s", "[:digit:]": r"\d", "[:alpha:]": r"^\W\d_"}


def unistr(text: str | None) -> str | None:
    """UNISTR: UTF-16 code units, four hexadecimal digits behind a backslash."""
    if text is None:
        return None
    units = _CODE_UNIT.sub(lambda found: chr(int(found[1], 16)), text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16")


def replace(text: str | None, old: str | None, new: str | None = None) -> str | None:
    """REPLACE; without a third argument, what is found is removed."""
    if text is None or old is None:
        return text
    return text.replace(old, new or "") or None


def regexp_replace(
    text: str | None,
    pattern: str,
    new: str | None = None,
    position: int = 1,
    occurrence: int = 0,
    match: str | None = "c",
) -> str | None:
    """REGEXP_REPLACE of every occurrence, from the first character on."""
    if position != 1 or occurrence != 0 or match not in ("c", "i"):
        raise OraError(3001, "unimplemented feature: REGEXP_REPLACE with these arguments")
    if text is None:
        return None
    for name, ours in _CLASSES.items():
        pattern = pattern.replace(name, ours)
    return re.sub(pattern, new or "", text, flags=re.I if match == "i" else 0) or None


def chr_(number: int) -> str:
    """CHR of a code point below 128."""
    if not 0 <= number < 128:
        raise OraError(3001, "unimplemented feature: CHR of a number over 127")
    return chr(number)


TEXT = {
    "unistr": (1, unistr),
    "replace": (-1, replace),
    "regexp_replace": (-1, regexp_replace),
    "chr": (1, chr_),
}
