"""Hints for names that TOML does not take as one key: put them in quotes."""

from __future__ import annotations

import re
from typing import Final

from cortexd.config.decode import quoted

_NAME: Final = re.compile(r"""\s*([^"'#=\[\]{},\n]*?[^"'#=\[\]{},\s])\s*=""")
_DOTTED: Final = re.compile(r"[A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*")


def syntax_hint(text: str, line: int) -> str:
    """Return a hint on the line (from 1) at which a TOML parser gave up; "": none."""
    lines = text.split("\n")
    found = _NAME.match(lines[line - 1]) if line <= len(lines) else None
    if found is None:
        return ""
    name = found[1]
    if not _DOTTED.fullmatch(name) or "." in name:
        return f"; put the name in quotes: {quoted(name)}"
    for number, other in enumerate(lines[: line - 1], 1):  # `gpt-4.1 = …` before `gpt-4 = …`
        dotted = _NAME.match(other)
        if dotted is not None and dotted[1].startswith(f"{name}."):
            return f"; put the name in line {number} in quotes: {quoted(dotted[1])}"
    return ""
