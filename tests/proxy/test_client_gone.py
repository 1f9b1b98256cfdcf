"""A client that leaves takes its upstream request along: an engine must not work for nobody."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from cortexd.daemon.access import AccessLog
from tests.functional.faults import GUARD, Origin, Read, Send, Stall, Step, black_hole
from tests.functional.raw import Client, connected, post
from tests.gateway.fleet import Fleet
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    EVENTS,
    JSON,
    OK,
    SSE_HEAD,
    chunks,
    head,
    replicas,
    sized,
    staged,
    upstream,
)
from tests.waiting import until

# What of the answer has come when the client leaves.
BEGUN: dict[str, list[Step]] = {
    "waiting": [],
    "a stream": [Send(SSE_HEAD + chunks(EVENTS[0]))],
    "an answer with a length": [Send(sized()[:-10])],
    "an answer in chunks": [Send(head(OK, JSON, CHUNKED) + chunks(ANSWER[:10]))],
    "an answer to the end of the connection": [Send(head(OK, JSON) + ANSWER[:10])],
}


async def leave(client: Client, how: str) -> None:
    if how == "fin":
        client.leave()
    else:
        client.reset()


async def is_accounted_for(fleet: Fleet) -> None:
    """Logged and counted as 499, and nothing is left in flight."""
    await until(lambda: not fleet.gateway.registry.ledger.in_flight)
    async with asyncio.timeout(GUARD):
        while await fleet.metric("cortexd_requests_total", status="499") != 1:
            await asyncio.sleep(0.01)
    assert await fleet.metric("cortexd_requests_total", status="200") == 0
    assert await fleet.metric("cortexd_in_flight", model="m", node="a") == 0


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("begun", BEGUN)
async def test_the_upstream_connection_ends_when_the_client_leaves(
    begun: str, asked: bytes, how: str
) -> None:
    log = io.StringIO()
    script = [*BEGUN[begun], Stall()]
    async with staged(script, [Send(sized())], access=AccessLog(log)) as stage:
        async with stage.client() as client:
            await client.send(post(asked))
            peer = await stage.origin.wait_asked()
            if begun != "waiting":
                await client.read_until(EVENTS[0] if begun == "a stream" else b'{"id":"c1"')
            await leave(client, how)
            await peer.wait_gone()
        await is_accounted_for(stage.fleet)
        gone = await stage.fleet.metric("cortexd_streams_interrupted_total", by="client")
        assert gone == (begun != "waiting")
        assert [json.loads(line)["status"] for line in log.getvalue().splitlines()] == [499]
        assert await stage.fleet.metric("cortexd_streams_interrupted_total", by="upstream") == 0
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2, "what it left is not pooled"


async def test_a_client_that_leaves_while_the_upstream_is_being_reached_is_let_go() -> None:
    with black_hole() as nowhere:
        async with replicas(nowhere, config=upstream(connect_timeout=60)) as fleet:
            async with connected(fleet.gateway.address) as client:
                await client.send(post(ASKED))
                await until(lambda: bool(fleet.gateway.registry.ledger.in_flight))
            await is_accounted_for(fleet)


async def test_a_client_that_leaves_while_its_request_goes_up_is_let_go() -> None:
    """The upstream takes nothing any more, and the request does not fit into the buffers."""
    origin = Origin([Read(1), Stall()], receive_buffer=65536)
    async with staged(origin=origin) as stage:
        body = b'{"model": "m", "filler": "' + b"x" * 40_000_000 + b'"}'
        async with stage.client() as client:
            await client.send(post(body))
            await until(lambda: bool(origin.peers))
        await is_accounted_for(stage.fleet)
        origin.peers[0].transport.resume_reading()
        await origin.peers[0].wait_gone()


async def test_a_client_that_leaves_disturbs_no_other() -> None:
    async with (
        staged([Send(SSE_HEAD + chunks(EVENTS[0])), Stall()]) as stage,
        stage.client() as staying,
        stage.client() as leaving,
    ):
        await staying.send(post(ASKED_STREAM))
        await staying.read_until(EVENTS[0])
        stays = stage.origin.peers[0]
        await leaving.send(post(ASKED_STREAM))
        await leaving.read_until(EVENTS[0])
        leaving.reset()
        await stage.origin.peers[1].wait_gone()
        await stays.send(chunks(EVENTS[1]))
        await staying.read_until(EVENTS[1])
        assert not stays.gone.is_set()
