"""Time-outs by phase: to connect, to the first byte of a stream, between bytes; never in total."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest
from aiohttp import web

from cortexd.config.gateway import Loading
from cortexd.config.units import Duration
from cortexd.daemon.resolver import Resolver
from cortexd.proxy.call import Call
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.splice import Splice
from tests.functional.faults import Origin, Pause, Send, Stall, Wait, black_hole
from tests.functional.raw import Heard, connected, post
from tests.gateway.fleet import running_fleet
from tests.proxy.site import open_site
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHAT,
    CHUNKED,
    DEATHS,
    EVENTS,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    SSE_HEAD,
    STREAM,
    ask,
    chunks,
    died_in_words,
    head,
    is_refusal,
    replicas,
    served_by,
    sized,
    staged,
    streamed,
    upstream,
)
from tests.waiting import until

GOOD = [Send(sized())]


def is_timeout(heard: Heard) -> bool:
    return is_refusal(heard, "upstream_timeout", 504)


@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_a_connection_that_is_not_made_in_time_is_a_504(asked: bytes) -> None:
    with black_hole() as nowhere:
        async with replicas(nowhere, config=upstream(connect_timeout=0.1)) as fleet:
            heard = await ask(fleet, asked)
            assert is_timeout(heard)
            assert heard.get("retry-after") == "1"
            assert not fleet.gateway.registry.ledger.in_flight


async def test_a_stream_whose_first_byte_does_not_come_in_time_is_a_504() -> None:
    async with staged([Stall()], GOOD, config=upstream(first_byte_timeout=0.1)) as stage:
        assert is_timeout(await stage.ask(ASKED_STREAM))
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2, "a late answer would be the next one's"
        await stage.origin.peers[0].wait_gone()
        await stage.wait_idle()


async def test_an_answer_in_one_piece_has_no_time_out_before_its_first_byte() -> None:
    """Its first byte is its last. A stream that times out meanwhile stands for the clock."""
    slow = asyncio.Event()
    config = upstream(first_byte_timeout=0.1, idle_timeout=0.1)
    async with staged([Pause(slow), *GOOD], [Stall()], config=config) as stage:
        asking = asyncio.create_task(stage.ask())
        await until(lambda: len(stage.origin.requests) == 1)
        for _ in range(2):
            assert is_timeout(await stage.ask(ASKED_STREAM))
        slow.set()
        assert (await asking).body == ANSWER


async def test_a_lazy_start_may_take_as_long_as_a_load() -> None:
    """A stream on a loaded model that times out meanwhile stands for the clock."""
    woken = asyncio.Event()
    config = msgspec.structs.replace(
        upstream(first_byte_timeout=0.1, idle_timeout=0.1), loading=Loading(Duration(60))
    )
    asleep, silent = Origin([Pause(woken), Send(streamed())]), Origin([Stall()])
    async with (
        asleep.running(),
        silent.running(),
        running_fleet(
            a=served_by(asleep.url, "unloaded"),
            b=served_by(silent.url, model="n"),
            config=config,
        ) as fleet,
    ):
        asking = asyncio.create_task(ask(fleet, ASKED_STREAM))
        await until(lambda: len(asleep.requests) == 1)
        for _ in range(2):
            assert is_timeout(await ask(fleet, ASKED_STREAM.replace(b'"m"', b'"n"')))
        woken.set()
        heard = await asking
        assert (heard.status, heard.complete, heard.body) == (200, True, STREAM)


@pytest.mark.parametrize("begun", [b"H", head(OK, SSE)[:-2]], ids=["a byte", "most of it"])
@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_a_head_that_stops_half_way_is_a_504(asked: bytes, begun: bytes) -> None:
    async with staged([Send(begun), Stall()], config=upstream(idle_timeout=0.1)) as stage:
        assert is_timeout(await stage.ask(asked))
        await stage.origin.peers[0].wait_gone()
        assert len(stage.origin.requests) == 1
        await stage.wait_idle()


@pytest.mark.parametrize("path", DEATHS)
async def test_a_stream_that_falls_silent_dies_in_the_words_of_its_dialect(path: str) -> None:
    script = [Send(SSE_HEAD + chunks(EVENTS[0])), Stall()]
    async with staged(script, config=upstream(idle_timeout=0.1)) as stage:
        assert died_in_words(await stage.ask(ASKED_STREAM, path=path), path, EVENTS[0])
        await stage.origin.peers[0].wait_gone()
        await stage.wait_idle()
        fleet = stage.fleet
        assert await fleet.metric("cortexd_streams_interrupted_total", by="upstream") == 1


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
async def test_an_answer_that_falls_silent_is_aborted(framing: str) -> None:
    begun = {
        "length": sized()[:-10],
        "chunked": head(OK, JSON, CHUNKED) + chunks(ANSWER),
        "eof": head(OK, JSON) + ANSWER,
    }[framing]
    async with staged([Send(begun), Stall()], config=upstream(idle_timeout=0.1)) as stage:
        heard = await stage.ask()
        assert heard.status == 200
        assert not heard.complete
        await stage.origin.peers[0].wait_gone()
        await stage.wait_idle()


async def test_a_stream_may_take_any_time_as_long_as_it_goes_on() -> None:
    gap = [Wait(0.3)]
    script = [Send(SSE_HEAD)]
    for event in EVENTS:
        script += [*gap, Send(chunks(event))]
    config = upstream(idle_timeout=1, first_byte_timeout=1)
    async with staged([*script, *gap, Send(LAST_CHUNK)], config=config) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert (heard.complete, heard.body) == (True, STREAM)


async def test_silence_after_the_head_of_a_stream_still_counts_as_its_first_byte() -> None:
    """Some engines send their head before they have read the prompt."""
    config = upstream(first_byte_timeout=0.1)
    async with staged([Send(SSE_HEAD), Stall()], config=config) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert is_timeout(heard) if heard.status != 200 else died_in_words(heard, CHAT, b"")
        await stage.origin.peers[0].wait_gone()


async def test_an_answer_that_is_whole_is_not_late_any_more() -> None:
    """The clock may strike between its end and the next turn of who waits for it."""
    exchange, origin = Exchange(Resolver()), Origin([Send(sized(b""))])
    results = []

    class Striking(Splice):
        def end(self) -> None:
            super().end()
            for watched in exchange._sweeper._watched:
                asyncio.get_running_loop().call_soon(watched.sweep, math.inf)

    async def carry(request: web.BaseRequest) -> web.StreamResponse:
        splice = Striking(request)
        call = Call(origin.url, "/", b"{}", first_byte_timeout=1)
        results.append(await exchange.carry(splice, request, call))
        splice.release()
        return splice.response()

    async with origin.running(), open_site(carry) as site, connected(site.address) as client:
        assert (await client.ask(post(b"{}"))).complete
        assert (await client.ask(post(b"{}"))).complete
        assert not any(carried.is_interrupted for carried in results)
        await exchange.close()
