"""Connections to upstreams are used again, but never one that could carry anything but the next
answer."""

from __future__ import annotations

import asyncio

import pytest

from tests.functional.faults import Close, Origin, Pause, Reset, Script, Send, Stall
from tests.functional.raw import post
from tests.gateway.fleet import running_fleet
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    EVENTS,
    JSON,
    LAST_CHUNK,
    OK,
    SSE_HEAD,
    STREAM,
    ask,
    chunks,
    head,
    served_by,
    sized,
    staged,
    streamed,
)
from tests.waiting import until

GOOD = [Send(sized())]
KEPT = {
    "length": (ANSWER, sized()),
    "chunked": (ANSWER, head(OK, JSON, CHUNKED) + chunks(ANSWER) + LAST_CHUNK),
    "stream": (STREAM, streamed()),
    "empty": (b"", sized(b"")),
    "error": (ANSWER, sized(status="HTTP/1.1 400 Bad Request")),
    "server error": (ANSWER, sized(status="HTTP/1.1 500 Internal Server Error")),
}
SPENT: dict[str, Script] = {
    "Connection: close": [Send(sized(ANSWER, "Connection: close"))],
    "Connection: x, Close": [Send(sized(ANSWER, "Connection: x, Close"))],
    "HTTP/1.0": [Send(sized(status="HTTP/1.0 200 OK"))],
    "until the end": [Send(head(OK, JSON) + ANSWER), Close()],
    "closed by the upstream": [Send(sized()), Close()],
    "reset by the upstream": [Send(sized()), Reset()],
}


@pytest.mark.parametrize("kind", KEPT)
async def test_requests_one_after_the_other_share_a_connection(kind: str) -> None:
    body, answer = KEPT[kind]
    async with staged([Send(answer)]) as stage:
        for _ in range(5):
            heard = await stage.ask(ASKED_STREAM if kind == "stream" else ASKED)
            assert (heard.complete, heard.body) == (True, body)
        assert len(stage.origin.requests) == 5
        assert len(stage.origin.peers) == 1


async def test_a_clients_close_is_not_the_upstreams() -> None:
    async with staged(GOOD) as stage:
        for version in ("1.1", "1.0"):
            await stage.ask(ASKED, "Connection: close", version=version)
        assert len(stage.origin.peers) == 1
        for request in stage.origin.requests:
            assert not any("close" in value.lower() for value in request.all("connection"))
            assert request.raw.split(b"\r\n")[0].endswith(b"HTTP/1.1")


@pytest.mark.parametrize("why", SPENT)
async def test_a_connection_that_is_spent_is_not_used_again(why: str) -> None:
    async with staged(SPENT[why], GOOD) as stage:
        for _ in range(2):
            heard = await stage.ask()
            assert (heard.status, heard.complete, heard.body) == (200, True, ANSWER)
        assert len(stage.origin.peers) == 2
        await stage.origin.peers[0].wait_gone()


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    all_here = asyncio.Event()
    async with staged([Pause(all_here), *GOOD]) as stage:
        asking = [asyncio.create_task(stage.ask()) for _ in range(5)]
        await until(lambda: len(stage.origin.requests) == 5)
        assert len(stage.origin.peers) == 5
        all_here.set()
        assert {heard.body for heard in await asyncio.gather(*asking)} == {ANSWER}
        await asyncio.gather(*(stage.ask() for _ in range(5)))
        assert len(stage.origin.peers) == 5, "they are used again"


async def test_each_upstream_has_its_own_connections() -> None:
    one, two = Origin([Send(sized(b"1"))]), Origin([Send(sized(b"2"))])
    async with (
        one.running(),
        two.running(),
        running_fleet(a=served_by(one.url), b=served_by(two.url, model="n")) as fleet,
    ):
        for _ in range(3):
            assert (await ask(fleet)).body == b"1"
            assert (await ask(fleet, ASKED.replace(b'"m"', b'"n"'))).body == b"2"
        assert [len(origin.peers) for origin in (one, two)] == [1, 1]


async def test_a_connection_whose_client_left_is_not_used_again() -> None:
    async with staged([Send(SSE_HEAD + chunks(EVENTS[0])), Stall()], GOOD) as stage:
        async with stage.client() as client:
            await client.send(post(ASKED_STREAM))
            await client.read_until(EVENTS[0])
        await stage.origin.peers[0].wait_gone()
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2


async def test_an_idle_connection_is_closed_before_the_upstream_closes_it() -> None:
    """After 4 s, which this test waits for: several engines close theirs after 5 s."""
    async with staged(GOOD) as stage:
        await stage.ask()
        (peer,) = stage.origin.peers
        await peer.wait_gone()
        assert peer.ending == "fin"
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2


async def test_idle_connections_end_with_the_gateway() -> None:
    origin = Origin(GOOD)
    async with origin.running():
        async with running_fleet(a=served_by(origin.url)) as fleet:
            await ask(fleet)
        await origin.peers[0].wait_gone()


@pytest.mark.parametrize("method", ["HEAD", "GET", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH"])
async def test_no_method_but_post_reaches_an_upstream(method: str) -> None:
    async with staged(GOOD) as stage, stage.client() as client:
        heard = await client.ask(post(ASKED, method=method))
        assert heard.status in ({204} if method == "OPTIONS" else {400, 405})
        assert not stage.origin.peers
