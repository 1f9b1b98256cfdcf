"""Finds the known name that was probably meant by an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(found: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the one that was found, whatever their case.

    None: none is like it.
    """
    by_folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(found.casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None
