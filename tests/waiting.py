"""Waiting for what has no event of its own, without ever waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

GUARD = 120.0  # seconds; a test that waits longer hangs. Only a hang may take that long


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the loop has brought it about; fail after the guard.

    A condition that looks something up which is not there yet (LookupError) is not met yet.
    """
    async with asyncio.timeout(GUARD):
        while not _is_met(condition):
            await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask, over the wire for instance, until the answer is yes; fail after the guard."""
    async with asyncio.timeout(GUARD):
        while not await condition():
            await asyncio.sleep(0.01)


def _is_met(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except LookupError:
        return False
