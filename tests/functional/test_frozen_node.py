"""A node whose process is stopped while requests run there: no connection ever reports a fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling, Upstream
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.functional.separate_node import EVENT, SeparateNode, separate_node
from tests.gateway.fleet import Fleet, running_fleet
from tests.proxy.stage import CHAT, DEATHS, events_of
from tests.waiting import until

QUICK = Config(
    polling=Polling(interval=Duration(0.05), timeout=Duration(1), unhealthy_after=2),
    upstream=Upstream(dead_node_grace=Duration(0.2)),
)


def standing_in(node: SeparateNode) -> FakeNeuron:
    """Return a configured neuron for that process; nothing of it runs in this one."""

    class Elsewhere(FakeNeuron):
        @property
        def url(self) -> str:
            return node.url

    return Elsewhere()


async def wait_sent(fleet: Fleet) -> None:
    """Wait until a request was sent to a node."""
    await until(lambda: any(fleet.gateway._exchange.in_progress()))


async def begun(fleet: Fleet, path: str) -> aiohttp.ClientResponse:
    """Start a stream, and return it after its first event."""
    body = {"model": "m", "stream": True}
    response = await fleet.client.post(fleet.url + path, json=body)
    assert await response.content.readexactly(len(EVENT)) == EVENT
    return response


async def read_until_cut(response: aiohttp.ClientResponse) -> bytes:
    """Read the rest of a body that has no end, unless its last event says that it failed."""
    rest = bytearray()
    async with response:
        with suppress(aiohttp.ClientPayloadError):
            while chunk := await response.content.readany():
                rest += chunk
            assert b"event: response.failed" in rest, "the body has an end"
    return bytes(rest)


async def test_request_without_byte_ends_with_504_and_releases_lease() -> None:
    async with separate_node() as node, running_fleet(config=QUICK, a=standing_in(node)) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await wait_sent(fleet)
        node.stop()
        answer = await asking
        assert (answer.status, answer.headers["x-cortex-code"]) == (504, "upstream_timeout")
        assert "The node a is unhealthy: it stopped responding" in answer.json["error"]["message"]
        assert fleet.gateway.registry.is_idle("a")


async def test_streams_in_progress_end_as_interrupted_in_their_dialects() -> None:
    async with separate_node() as node, running_fleet(config=QUICK, a=standing_in(node)) as fleet:
        # Read from now on: what is left in a connection that broke off is lost with it.
        rests = {
            path: asyncio.create_task(read_until_cut(await begun(fleet, path))) for path in DEATHS
        }
        node.stop()
        for path, rest in rests.items():
            ((name, data),) = events_of(await rest)
            assert name == DEATHS[path]
            assert "broke off: the node a is unhealthy" in str(data)
        await until(lambda: fleet.gateway.registry.is_idle("a"))


async def test_request_without_byte_is_tried_on_another_node() -> None:
    other = FakeNeuron({"m": "loaded"})
    async with (
        separate_node() as node,
        running_fleet(config=QUICK, a=standing_in(node), b=other) as fleet,
    ):
        fleet.gateway.registry.drain("b")
        asking = asyncio.create_task(fleet.ask())
        await wait_sent(fleet)
        fleet.gateway.registry.undrain("b")
        node.stop()
        answer = await asking
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
        assert fleet.gateway.registry.is_idle("a")
        assert await fleet.metric("cortexd_upstream_retries_total", reason="dead") == 1


async def test_request_without_byte_may_go_where_the_model_is_loaded_first() -> None:
    async with (
        separate_node() as node,
        running_fleet(Profile("m"), config=QUICK, a=standing_in(node), b=FakeNeuron()) as fleet,
    ):
        asking = asyncio.create_task(fleet.ask())
        await wait_sent(fleet)
        node.stop()
        answer = await asking
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
        assert len(fleet.loads("b")) == 1


async def test_node_that_continues_serves_again() -> None:
    async with separate_node() as node, running_fleet(config=QUICK, a=standing_in(node)) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await wait_sent(fleet)
        node.stop()
        assert (await asking).status == 504
        node.resume()
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].healthy)
        (await begun(fleet, CHAT)).close()
