from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from cortexd import errors
from cortexd.control.line import BATCH, Line
from cortexd.control.registry import Lease
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import Ledger

FULL = Refusal(errors.MODEL_LOADING, "still at it", retry_after=3)


class Scene:
    """A line, those who stand in it, and the ledger that their claims are entered in."""

    def __init__(self) -> None:
        self.line = Line()
        self.ledger = Ledger()
        self.went: list[str] = []
        self.leases: list[Lease] = []

    def claim(self) -> Lease:
        return Lease(self.ledger, "a", "m")

    @property
    def claims(self) -> int:
        return self.ledger.in_flight.get(("a", "m"), 0)

    async def stands(self, name: str, since: float | None = None) -> asyncio.Task[Lease | None]:
        """Somebody joins; returns when they stand there."""

        async def stand() -> Lease | None:
            lease = await self.line.wait(since)
            self.went.append(name)
            if lease is not None:
                self.leases.append(lease)
            return lease

        task, before = asyncio.create_task(stand(), name=name), len(self.line)
        while len(self.line) == before and not task.done():
            await asyncio.sleep(0)
        return task

    async def stand(self, names: Iterable[str]) -> list[asyncio.Task[Lease | None]]:
        return [await self.stands(name) for name in names]


async def turns(count: int = 3) -> None:
    """Of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    scene = Scene()
    tasks = await scene.stand("abcd")
    scene.line.grant(2, scene.claim)
    await asyncio.gather(*tasks[:2])
    assert scene.went == ["a", "b"]
    assert len(scene.line) == 2
    scene.line.grant(9, scene.claim)
    await asyncio.gather(*tasks)
    assert scene.went == ["a", "b", "c", "d"]
    assert len(scene.line) == 0
    assert scene.claims == 4


async def test_claims_are_made_at_once_and_before_anybody_wakes() -> None:
    scene = Scene()
    tasks = await scene.stand("abc")
    scene.line.grant(3, scene.claim)
    assert scene.claims == 3
    assert scene.went == []
    assert all(lease is not None for lease in await asyncio.gather(*tasks))


@pytest.mark.parametrize("count", [0, -1])
async def test_where_there_is_no_room_nobody_goes_on(count: int) -> None:
    scene = Scene()
    [task] = await scene.stand("a")
    scene.line.grant(count, scene.claim)
    await turns()
    assert len(scene.line) == 1
    assert scene.claims == 0
    scene.line.dissolve()
    assert await task is None


async def test_so_many_go_on_in_one_turn_of_the_loop_and_others_have_theirs() -> None:
    scene = Scene()
    tasks = await scene.stand(map(str, range(3 * BATCH)))
    seen: list[int] = []

    def others() -> None:
        seen.append(sum(task.done() for task in tasks))
        if seen[-1] < len(tasks):
            asyncio.get_running_loop().call_soon(others)

    scene.line.grant(len(tasks), scene.claim)
    asyncio.get_running_loop().call_soon(others)
    await asyncio.gather(*tasks)
    await turns()
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= BATCH
    assert scene.went == [task.get_name() for task in tasks]


async def test_dissolved_they_all_decide_again() -> None:
    scene = Scene()
    tasks = await scene.stand("abc")
    scene.line.dissolve()
    assert await asyncio.gather(*tasks) == [None, None, None]
    assert scene.claims == 0


async def test_who_leaves_before_its_turn_is_passed_over() -> None:
    scene = Scene()
    a, b, c = await scene.stand("abc")
    b.cancel()
    await asyncio.gather(b, return_exceptions=True)
    assert len(scene.line) == 2
    scene.line.grant(2, scene.claim)
    await asyncio.gather(a, c)
    assert scene.went == ["a", "c"]
    assert scene.claims == 2


async def test_who_leaves_between_its_claim_and_its_waking_gives_the_claim_back() -> None:
    scene = Scene()
    a, b = await scene.stand("ab")
    scene.line.grant(2, scene.claim)
    a.cancel()
    await asyncio.gather(a, return_exceptions=True)
    await b
    assert a.cancelled()
    assert scene.claims == 1


async def test_who_leaves_in_the_moment_of_its_turn_gives_the_claim_back() -> None:
    scene = Scene()
    a, b = await scene.stand("ab")
    scene.line.grant(2, scene.claim)
    # After it was woken and before it runs: its answer is there, and it is gone.
    asyncio.get_running_loop().call_soon(a.cancel)
    await asyncio.gather(a, return_exceptions=True)
    await b
    assert a.cancelled()
    assert scene.went == ["b"]
    assert scene.claims == 1


async def test_who_is_refused_in_the_moment_of_leaving_leaves_no_trace() -> None:
    scene = Scene()
    [a] = await scene.stand("a")
    scene.line.refuse(FULL)
    a.cancel()
    with pytest.raises(asyncio.CancelledError):
        await a


async def test_everybody_is_refused_with_an_exception_of_their_own() -> None:
    scene = Scene()
    tasks = await scene.stand("abc")
    scene.line.refuse(FULL)
    assert len(scene.line) == 0
    said = await asyncio.gather(*tasks, return_exceptions=True)
    assert len({id(refusal) for refusal in said}) == 3
    for refusal in said:
        assert isinstance(refusal, Refusal)
        assert refusal is not FULL
        assert (refusal.kind, refusal.message, refusal.retry_after) == (FULL.kind, "still at it", 3)


async def test_only_those_who_have_waited_for_too_long_are_refused() -> None:
    scene = Scene()
    now = asyncio.get_running_loop().time()
    old = [await scene.stands(name, now - age) for name, age in (("y", 10), ("x", 20))]
    young = await scene.stands("z")
    assert scene.line.oldest == now - 20
    scene.line.refuse(FULL, older_than=now - 5)
    said = await asyncio.gather(*old, return_exceptions=True)
    assert all(isinstance(refusal, Refusal) for refusal in said)
    assert len(scene.line) == 1
    scene.line.dissolve()
    assert await young is None


async def test_who_comes_back_stands_before_those_who_came_later() -> None:
    scene = Scene()
    now = asyncio.get_running_loop().time()
    tasks = await scene.stand("cd")
    # In whatever order they come back.
    tasks += [await scene.stands("a", now - 2), await scene.stands("b", now - 1)]
    assert scene.line.oldest == now - 2
    scene.line.grant(4, scene.claim)
    await asyncio.gather(*tasks)
    assert scene.went == ["a", "b", "c", "d"]


async def test_a_line_knows_since_when_its_first_one_waits() -> None:
    scene = Scene()
    assert scene.line.oldest is None
    before = asyncio.get_running_loop().time()
    a, b = await scene.stand("ab")
    assert scene.line.oldest is not None
    assert before <= scene.line.oldest <= asyncio.get_running_loop().time()
    scene.line.grant(2, lambda: None)
    assert scene.line.oldest is None
    await asyncio.gather(a, b)
