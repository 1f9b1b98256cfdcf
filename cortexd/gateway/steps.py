"""Builds a large answer in steps, so that requests are served in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

STEP: Final = 0.002  # seconds of work at a time


async def in_steps(pieces: Iterable[bytes]) -> bytes:
    """Join pieces, each of which is made as it is taken; let the loop run after every `STEP`."""
    made, until = [], time.monotonic() + STEP
    for piece in pieces:
        made.append(piece)
        if time.monotonic() >= until:
            await asyncio.sleep(0)
            until = time.monotonic() + STEP
    return b"".join(made)
