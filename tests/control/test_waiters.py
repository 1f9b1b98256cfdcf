"""Those who wait for a model: how many may, in which order they go on, and that each wait ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.gateway import Loading
from cortexd.config.units import Duration
from cortexd.control import coldload
from cortexd.gateway import reads
from tests.control.cold import asking, codes, fleet_with, held, is_empty, waiting
from tests.fakes import FakeNeuron
from tests.functional.raw import connected
from tests.gateway.dialects import CHAT
from tests.gateway.fleet import until
from tests.waiting import GUARD


@pytest.fixture(autouse=True)
def deadlines_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldload, "TICK", 0.02)


async def test_a_thousand_waiters_are_one_load() -> None:
    neuron = held()
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 1000)
        await waiting(fleet, 1000)
        assert await fleet.metric("cortexd_load_waiting", model="m") == 1000
        assert await fleet.metric("cortexd_oldest_waiter_seconds") > 0
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 1000}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_more_than_may_wait_are_refused_and_the_one_that_started_counts() -> None:
    neuron = held()
    async with fleet_with(Loading(max_waiting=3), a=neuron) as fleet:
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        refused = await fleet.ask()
        assert (refused.status, refused.headers["x-cortex-code"]) == (503, "load_queue_full")
        assert refused.headers["Retry-After"] == "5"
        assert (await fleet.ask(path="/v1/messages")).status == 529
        # One that leaves makes room.
        requests.pop().cancel()
        await waiting(fleet, 2)
        requests.append(asyncio.create_task(fleet.ask()))
        await waiting(fleet, 3)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 3}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_one_may_wait_where_one_may_wait() -> None:
    async with fleet_with(Loading(max_waiting=1), a=FakeNeuron()) as fleet:
        assert (await fleet.ask()).status == 200


class Slots:
    """An engine with so many places, which notes who came when and serves one at a time."""

    def __init__(self, neuron: FakeNeuron) -> None:
        self.order: list[str] = []
        self.now = self.most = 0
        self.next = asyncio.Semaphore(0)
        self._answer = neuron.infer
        neuron.infer = self.infer

    async def infer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.order.append(body["user"])
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.next.acquire()
            return await self._answer(request, body)
        finally:
            self.now -= 1


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"max_in_flight": 1, "max_queue_depth": 0}, 1),
        ({"max_in_flight": 2, "max_queue_depth": 1}, 3),
    ],
)
async def test_no_more_are_released_than_the_node_takes_and_in_the_order_of_arrival(
    limits: dict[str, int], most: int
) -> None:
    neuron = held()
    neuron.health = {"models": [{"id": "m"} | limits]}
    slots = Slots(neuron)
    async with fleet_with(a=neuron) as fleet:
        requests = []
        for name in map(str, range(12)):
            requests.append(asyncio.create_task(fleet.ask(user=name)))
            await waiting(fleet, len(requests))
        neuron.release.set()
        await until(lambda: slots.now == most)
        # Who comes while others still wait stands behind them.
        requests.append(asyncio.create_task(fleet.ask(user="12")))
        await waiting(fleet, 13 - most)
        for served in range(13):
            await until(lambda served=served: len(slots.order) == min(13, served + most))  # type: ignore[misc]
            slots.next.release()
        assert codes(await asyncio.gather(*requests)) == {"200": 13}
        assert slots.most <= most
        # Those of the first moment may overtake each other on their connections.
        order = [int(name) for name in slots.order]
        assert sorted(order[:most]) + order[most:] == list(range(13))
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_those_who_leave_the_line_make_way_for_the_others() -> None:
    neuron = held()
    neuron.health = {"models": [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]}
    slots = Slots(neuron)
    async with fleet_with(a=neuron) as fleet:
        requests = []
        for name in map(str, range(6)):
            requests.append(asyncio.create_task(fleet.ask(user=name)))
            await waiting(fleet, len(requests))
        neuron.release.set()
        await until(lambda: slots.order == ["0"])
        for gone in (0, 2, 3):  # the one that is served, and two in the line
            requests[gone].cancel()
        await waiting(fleet, 2)
        for _ in range(3):
            slots.next.release()
        stayed = [request for request in requests if not request.cancelling()]
        assert codes(await asyncio.gather(*stayed)) == {"200": 3}
        assert slots.order == ["0", "1", "4", "5"]
        await is_empty(fleet)


async def test_a_wait_in_line_ends_at_its_bound() -> None:
    neuron = held()
    neuron.health = {"models": [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]}
    slots = Slots(neuron)
    async with fleet_with(Loading(timeout=Duration(2)), a=neuron) as fleet:
        requests = [asyncio.create_task(fleet.ask(user=str(number))) for number in range(4)]
        await waiting(fleet, 4)
        neuron.release.set()
        await until(lambda: sum(request.done() for request in requests) == 3)
        done = [request for request in requests if request.done()]
        assert codes([request.result() for request in done]) == {"model_loading": 3}
        slots.next.release()
        assert codes(await asyncio.gather(*requests)) == {"model_loading": 3, "200": 1}
        await is_empty(fleet)


# Somebody waits for longer than anybody should.


async def test_a_wait_past_its_bound_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if nobody looked at deadlines any more."""
    monkeypatch.setattr(coldload, "TICK", 3600.0)
    monkeypatch.setattr(reads, "PATIENCE", 0.1)
    neuron = held()
    async with fleet_with(Loading(timeout=Duration(0.2)), a=neuron) as fleet:
        assert (await fleet.get("/health")).json["status"] == "ok"
        request = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)

        async with asyncio.timeout(GUARD):
            while (health := (await fleet.get("/health")).json)["status"] == "ok":
                await asyncio.sleep(0.01)
        assert health["status"] == "impaired"
        assert "has waited for a model" in health["reasons"][0]
        assert await fleet.metric("cortexd_oldest_waiter_seconds") > 0.3
        neuron.release.set()
        assert (await request).status == 200
        assert (await fleet.get("/health")).json == {"status": "ok", "reasons": []}
        await is_empty(fleet)


# The end.


async def test_who_comes_during_a_shutdown_is_told_at_once_and_starts_nothing() -> None:
    neuron = held()
    async with (
        fleet_with(a=neuron) as fleet,
        connected(fleet.gateway.address) as client,
    ):
        request = CHAT.request(stream=False)
        await client.send(request[:-10])
        await until(lambda: fleet.gateway._relay._bodies.held > 0)
        closing = asyncio.create_task(fleet.gateway.close())
        await until(lambda: not fleet.gateway._ready)
        await asyncio.sleep(0)
        await client.send(request[-10:])
        heard = await client.read_answer()
        assert (heard.status, heard.code) == (503, "shutting_down")
        await closing
        assert not fleet.loads("a")
