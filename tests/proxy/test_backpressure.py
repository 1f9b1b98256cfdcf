"""A client that stops reading stops its upstream: what is not read stays where it was made.

Kernels hold a good deal on the way. What the gateway itself holds is what the upstream has sent,
less what lies in the four sockets' queues and what the client has read.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from functools import cache

import pytest

from tests.functional.faults import Close, Origin, Peer, Script, Send, Stall, queued
from tests.functional.raw import Client, post
from tests.gateway.fleet import until
from tests.proxy.stage import (
    ASKED,
    ASKED_STREAM,
    CHAT,
    CHUNKED,
    EVENTS,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    SSE_HEAD,
    Stage,
    chunks,
    died_in_words,
    head,
    sized,
    staged,
    upstream,
)

SIZE = 24 << 20  # bytes; far more than all kernels' buffers on the way
MOST_HELD = 384 << 10  # bytes that the gateway may hold for one stream
SMALL = 16 << 10  # bytes; kernel buffers of the peers, so that they don't hide the stall


@cache
def body() -> bytes:
    return random.Random(7).randbytes(SIZE)  # not compressible, not periodic


@cache
def script(framing: str) -> Script:
    pieces = [body()[at : at + 50_000] for at in range(0, SIZE, 50_000)]
    return {
        "sse": [Send(SSE_HEAD + chunks(*pieces) + LAST_CHUNK)],
        "chunked": [Send(head(OK, JSON, CHUNKED) + chunks(*pieces) + LAST_CHUNK)],
        "length": [Send(head(OK, JSON, f"Content-Length: {SIZE}") + body())],
        "eof": [Send(head(OK, SSE) + body()), Close()],
    }[framing]


def held(peer: Peer, client: Client, read: int) -> int:
    """Bytes of one stream that the gateway holds."""
    here, there = client.ends()
    kernels = (
        queued(*peer.ends)[0]
        + queued(*reversed(peer.ends))[1]  # type: ignore[arg-type]
        + queued(there, here)[0]
        + queued(here, there)[1]
    )
    return peer.sent - kernels - read


async def stalled(stage: Stage, client: Client, request: bytes) -> tuple[bytes, Peer]:
    """Send a request and read no more than its answer's head, while a second request of the same
    kind is carried whole: the gateway has had all the time it could want."""
    await client.send(request)
    answer = await client.read_until(b"\r\n\r\n")
    heard = await stage.ask(request[request.index(b"\r\n\r\n") + 4 :])
    assert heard.complete
    return answer, stage.origin.peers[0]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("framing", ["sse", "chunked", "length", "eof"])
async def test_a_stalled_client_stops_its_upstream_and_loses_nothing(
    framing: str, version: str
) -> None:
    origin = Origin(script(framing), send_buffer=SMALL)
    async with staged(origin=origin) as stage, stage.client(receive_buffer=SMALL) as client:
        asked = ASKED_STREAM if framing == "sse" else ASKED
        answer, peer = await stalled(stage, client, post(asked, version=version))
        assert held(peer, client, len(answer) + client.unread) <= MOST_HELD
        assert peer.sent < SIZE
        heard = await client.read_answer(so_far=answer)
        assert heard.complete
        assert heard.body == body()


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["sse", "length"])
async def test_a_stalled_client_that_leaves_takes_its_upstream_along(
    framing: str, how: str
) -> None:
    origin = Origin(script(framing), send_buffer=SMALL)
    async with staged(origin=origin) as stage, stage.client(receive_buffer=SMALL) as client:
        _, peer = await stalled(stage, client, post(ASKED))
        assert not peer.gone.is_set()
        client.leave() if how == "fin" else client.reset()
        await peer.wait_gone()
        await stage.wait_idle()
        assert await stage.fleet.metric("cortexd_requests_total", status="499") == 1
        assert await stage.fleet.metric("cortexd_streams_interrupted_total", by="client") == 1


async def test_an_upstream_that_is_not_read_is_not_idle() -> None:
    """Two other streams that run into the time-out meanwhile stand for the clock."""
    silent = [Send(SSE_HEAD + chunks(EVENTS[0])), Stall()]
    origin = Origin(script("sse"), silent, send_buffer=SMALL)
    async with (
        staged(origin=origin, config=upstream(idle_timeout=0.2)) as stage,
        stage.client(receive_buffer=SMALL) as client,
    ):
        await client.send(post(ASKED_STREAM))
        answer = await client.read_until(b"\r\n\r\n")
        for _ in range(2):
            assert not (await stage.ask(ASKED_STREAM)).complete
        heard = await client.read_answer(so_far=answer)
        assert heard.complete
        assert heard.body == body()


async def test_a_stalled_client_reads_all_that_came_before_the_upstream_died() -> None:
    came = EVENTS[0] * 100_000
    script = [Send(SSE_HEAD + chunks(*[EVENTS[0] * 500] * 200)), Close()]
    whole = [Send(SSE_HEAD + chunks(*[EVENTS[0] * 500] * 200) + LAST_CHUNK)]
    origin = Origin(script, whole, send_buffer=SMALL)
    async with staged(origin=origin) as stage, stage.client(receive_buffer=SMALL) as client:
        answer, _ = await stalled(stage, client, post(ASKED_STREAM))
        heard = await client.read_answer(so_far=answer)
        assert died_in_words(heard, CHAT, came)


async def test_an_answer_that_stalls_its_client_at_its_very_end_stops_nobody_else() -> None:
    """Its connection is in the pool by then, and must be read for whoever comes next."""
    body, origin = bytes(20_000), Origin([Send(sized(bytes(20_000)))])
    async with staged(origin=origin) as stage, stage.client(receive_buffer=SMALL) as client:
        while not any(door.writing_paused for door in stage.doors):
            asked = len(origin.requests)
            await client.send(post(ASKED))
            await until(lambda asked=asked: len(origin.requests) > asked)
            await stage.wait_idle()
        assert (await stage.ask()).body == body


async def test_answers_behind_one_that_stalled_its_client_wait_where_they_were_made() -> None:
    body, count = bytes(20_000), 100
    async with staged([Send(sized(body))]) as stage, stage.client(receive_buffer=SMALL) as client:
        await client.send(post(ASKED) * count)
        for _ in range(count):  # it has all the time that as many other requests need
            assert (await stage.ask()).body == body
        assert (len(stage.origin.requests) - count) * len(body) <= MOST_HELD
        for _ in range(count):
            assert (await client.read_answer()).body == body


async def test_many_stalled_clients_stop_many_upstreams_and_nobody_else() -> None:
    origin = Origin(script("sse"), send_buffer=SMALL)
    async with staged(origin=origin) as stage, AsyncExitStack() as stack:
        streams = []
        for _ in range(8):
            client = await stack.enter_async_context(stage.client(receive_buffer=SMALL))
            await client.send(post(ASKED_STREAM))
            answer = await client.read_until(b"\r\n\r\n")
            streams.append((origin.peers[-1], client, len(answer) + client.unread))
        assert (await stage.ask(ASKED_STREAM)).body == body()
        assert max(held(*stream) for stream in streams) <= MOST_HELD
        for peer, client, _ in streams:
            client.reset()
            await peer.wait_gone()
