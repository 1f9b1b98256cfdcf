from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cortexd.control.events import Events
from cortexd.control.line import Line
from cortexd.control.registry import Lease, Registry
from cortexd.control.turns import Turns, now, still_loading
from cortexd.errors import Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Discovery, Health, Model, ModelLoad

KEY = ("a", "m")


class Scene:
    """One node with one model, which says what it takes at once, and a line before it."""

    def __init__(self, **limits: Any) -> None:
        self.registry = Registry([Node("a", "http://a")], Catalogue(), Events(), unhealthy_after=1)
        self.turns = Turns(self.registry)
        self.limits = limits
        self.says("loaded")

    def says(self, status: str | None) -> None:
        """What a poll of the node finds."""
        at = now()
        self.registry.observe(
            "a",
            Observation(
                at,
                at,
                models=[Model("m", status)] if status else [],
                health=Health(models=[ModelLoad("m", **self.limits)]),
                discovery=Discovery([]),
            ),
        )

    @property
    def in_flight(self) -> int:
        return self.registry.ledger.in_flight.get(KEY, 0)

    def assert_empty(self) -> None:
        assert len(self.turns) == 0
        assert not self.registry.ledger.turns


async def standing(line: Line, count: int) -> list[asyncio.Task[Lease | None]]:
    tasks = [asyncio.create_task(line.wait()) for _ in range(count)]
    while len(line) < count:
        await asyncio.sleep(0)
    return tasks


async def settled() -> None:
    """Whatever is due has happened."""
    for _ in range(10):
        await asyncio.sleep(0)


def gone_on(tasks: list[asyncio.Task[Lease | None]]) -> list[bool]:
    return [task.done() for task in tasks]


async def test_all_go_on_at_once_when_the_node_says_nothing_of_itself() -> None:
    scene, line = Scene(), Line()
    tasks = await standing(line, 100)
    scene.turns.begin(*KEY, line)
    assert scene.in_flight == 100
    scene.assert_empty()
    for lease in await asyncio.gather(*tasks):
        assert lease is not None
        lease.release()
    assert scene.in_flight == 0


async def test_a_limit_of_0_is_unknown() -> None:
    scene, line = Scene(max_in_flight=0, max_queue_depth=0), Line()
    tasks = await standing(line, 5)
    scene.turns.begin(*KEY, line)
    await asyncio.gather(*tasks)
    assert scene.in_flight == 5


@pytest.mark.parametrize(
    ("limits", "most"),
    [({"max_in_flight": 2}, 2), ({"max_in_flight": 2, "max_queue_depth": 1}, 3)],
)
async def test_no_more_go_on_than_the_node_takes_and_each_end_lets_the_next_go(
    limits: dict[str, int], most: int
) -> None:
    scene, line = Scene(**limits), Line()
    tasks = await standing(line, 8)
    scene.turns.begin(*KEY, line)
    await settled()
    assert gone_on(tasks) == [True] * most + [False] * (8 - most)
    for ended in range(8):
        assert scene.in_flight == min(most, 8 - ended)
        lease = tasks[ended].result()
        assert lease is not None
        lease.release()
        await settled()
    assert gone_on(tasks) == [True] * 8
    assert scene.in_flight == 0
    scene.assert_empty()


async def test_requests_of_before_count() -> None:
    scene, line = Scene(max_in_flight=2), Line()
    running = scene.registry.lease(*KEY)
    tasks = await standing(line, 2)
    scene.turns.begin(*KEY, line)
    await settled()
    assert gone_on(tasks) == [True, False]
    running.release()
    await settled()
    assert gone_on(tasks) == [True, True]
    scene.assert_empty()


async def test_one_that_leaves_with_its_claim_lets_the_next_go() -> None:
    scene, line = Scene(max_in_flight=1), Line()
    first, second = await standing(line, 2)
    scene.turns.begin(*KEY, line)
    first.cancel()
    lease = await second
    assert lease is not None
    assert scene.in_flight == 1
    lease.release()
    scene.assert_empty()


async def test_who_comes_late_stands_behind() -> None:
    scene, line = Scene(max_in_flight=1), Line()
    tasks = await standing(line, 2)
    scene.turns.begin(*KEY, line)
    replica = scene.registry.replica(*KEY)
    assert replica is not None
    assert scene.turns.line_of(replica) is line
    await settled()
    late = asyncio.create_task(line.wait())
    await settled()
    for task in (*tasks, late):
        assert not late.done() or task is late
        lease = await task
        assert lease is not None
        lease.release()
    scene.assert_empty()


async def test_time_lets_the_next_go_where_no_request_of_ours_runs() -> None:
    scene = Scene()
    replica = scene.registry.replica(*KEY)
    assert replica is not None
    line = scene.turns.line_of(replica)
    tasks = await standing(line, 3)
    for gone in range(1, 4):
        scene.turns.look(now(), 60)
        await settled()
        assert sum(gone_on(tasks)) == gone
    scene.assert_empty()


async def test_a_wait_past_its_bound_ends() -> None:
    scene, line = Scene(max_in_flight=1), Line()
    tasks = await standing(line, 3)
    scene.turns.begin(*KEY, line)
    scene.turns.look(now() + 59, 60)
    await settled()
    assert gone_on(tasks) == [True, False, False]
    scene.turns.look(now() + 61, 60)
    for task in tasks[1:]:
        with pytest.raises(Refusal, match="still loading on a") as raised:
            await task
        assert raised.value.kind.code == "model_loading"
    scene.assert_empty()


@pytest.mark.parametrize("end", [None, "failed", "recovering"])
async def test_a_model_that_is_gone_has_everybody_decide_again(end: str | None) -> None:
    scene, line = Scene(max_in_flight=1), Line()
    tasks = await standing(line, 3)
    scene.turns.begin(*KEY, line)
    await settled()
    scene.says(end)
    scene.turns.look(now(), 60)
    assert await asyncio.gather(*tasks[1:]) == [None, None]
    scene.assert_empty()
    running = tasks[0].result()
    assert running is not None
    running.release()


async def test_a_second_load_of_a_model_strands_nobody_who_waits_since_the_first() -> None:
    scene, first, second = Scene(max_in_flight=1), Line(), Line()
    early = await standing(first, 3)
    scene.turns.begin(*KEY, first)
    late = await standing(second, 3)
    scene.turns.begin(*KEY, second)
    await settled()
    for _ in range(20):  # everybody whose turn has come is served at once
        for task in (*early, *late):
            if task.done() and (lease := task.result()) is not None:
                lease.release()
        scene.turns.look(now(), 60)
        await settled()
    assert gone_on([*early, *late]) == [True] * 6
    assert scene.in_flight == 0
    scene.assert_empty()


async def test_every_line_is_told_with_its_model_and_closing_forgets_them() -> None:
    scene, line = Scene(max_in_flight=1), Line()
    tasks = await standing(line, 3)
    scene.turns.begin(*KEY, line)
    assert scene.turns.lines() == [("m", line)]
    assert len(scene.turns) == 1
    scene.turns.close()
    scene.assert_empty()
    line.dissolve()
    await asyncio.gather(*tasks)


def test_the_refusal_says_where() -> None:
    assert "'m' is still loading on a." in still_loading("m", "a").message
    assert "'m' is still loading." in still_loading("m", None).message
