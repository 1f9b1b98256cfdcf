from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cortexd.gateway import steps
from cortexd.gateway.steps import in_steps


async def test_loop_has_its_turn_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEP", 0.0)
    seen: list[int] = []
    made = 0

    async def look() -> None:
        while True:
            seen.append(made)
            await asyncio.sleep(0)

    def pieces() -> Iterator[bytes]:
        nonlocal made
        for number in range(5):
            made = number + 1
            yield b"%d" % number

    looking = asyncio.create_task(look())
    assert await in_steps(pieces()) == b"01234"
    looking.cancel()
    assert seen[-5:] == [1, 2, 3, 4, 5]


async def test_small_answer_is_made_in_one_step() -> None:
    assert await in_steps([]) == b""
    assert await in_steps([b"a", b"b"]) == b"ab"
