"""An exchange that starts on a stream whose head the gateway has sent already: until the upstream
answers, the stream is the gateway's; then it goes on as the upstream's, or as if it had never been
asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from cortexd.daemon.resolver import Resolver
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.call import Call, Carried, Policy
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.splice import Splice
from cortexd.wire.chunks import FirstChunk
from cortexd.wire.usage import Usage
from tests.functional.faults import Close, Origin, Pause, Reset, Script, Send, Stall, refusing
from tests.functional.raw import Client, Heard, connected, post
from tests.proxy.site import open_site
from tests.proxy.stage import EVENTS, SSE_HEAD, STREAM, chunks, head, sized, streamed
from tests.waiting import until

EARLY = b": keep-alive\n\n"
ERROR = b'data: {"error": {"code": "upstream_failed"}}\n\n'

Carry = Callable[[Call], Awaitable[Carried]]
Play = Callable[[Splice, Carry], Awaitable[None]]


@asynccontextmanager
async def opened(play: Play) -> AsyncIterator[Client]:
    """A client of a handler that opens an event stream, says something in it, and then plays."""
    exchange = Exchange(Resolver())

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        splice = Splice(request)
        try:
            splice.start(200, b"OK", b"Content-Type: text/event-stream\r\n", None, is_sse=True)
            splice.say(EARLY)
            await play(splice, lambda call: exchange.carry(splice, request, call))
            return splice.response()
        finally:
            splice.release()

    async with open_site(handle) as site, connected(site.address) as client:
        yield client
    await exchange.close()


class EndsInError(Policy):
    """Ends a stream that broke off with an event of its own."""

    def __init__(self, *, is_proper: bool = False) -> None:
        self.is_proper = is_proper

    def last_words(self, fault: UpstreamFault) -> bytes:
        return ERROR

    def ends_properly(self) -> bool:
        return self.is_proper


ENDS_IN_ERROR = EndsInError()


def call(url: str, first_byte_timeout: float | None = None) -> Call:
    return Call(
        url,
        "/v1/chat/completions",
        b"{}",
        answer_lines=b"X-Late: 1\r\n",
        first_byte_timeout=first_byte_timeout,
        policy=ENDS_IN_ERROR,
    )


def is_whole(heard: Heard, body: bytes) -> bool:
    """Whether it is the stream that was opened, with that body, and nothing else."""
    assert (heard.status, heard.get("content-type")) == (200, "text/event-stream")
    assert heard.get("x-late") is None
    assert (heard.complete, heard.is_last, heard.body) == (True, False, body)
    assert heard.raw.count(b"HTTP/1.1 ") == 1
    return True


async def test_an_event_stream_goes_on_in_the_stream_that_is_open_and_ends_it() -> None:
    carried: list[Carried] = []
    origin = Origin([Send(streamed())])

    async def play(splice: Splice, carry: Carry) -> None:
        carried.append(await carry(call(origin.url)))

    async with origin.running(), opened(play) as client:
        for _ in range(2):  # the connection goes on
            assert is_whole(await client.ask(post(b"")), EARLY + STREAM)
        assert len(origin.peers) == 1, "and so does the upstream's"
    for each in carried:
        assert (each.status, each.usage, each.is_interrupted) == (200, Usage(7, 2), False)


# How it goes wrong → what the upstream does, and what the fault says of it.
FAULTS: dict[str, tuple[Script, str]] = {
    "error": ([Send(sized(b'{"a": "secret"}', status="HTTP/1.1 500 Oh"))], "answered 500"),
    "busy": ([Send(streamed(b"secret").replace(b"200 OK", b"429 Busy"))], "answered 429"),
    "one piece": ([Send(sized(b'{"secret": 1}'))], "no event stream"),
    "hang-up": ([Close()], "closed the connection"),
    "hang-up after the head": ([Send(SSE_HEAD), Close()], "closed the connection"),
    "a broken chunk": ([Send(SSE_HEAD + b"nonsense\r\n"), Stall()], "not HTTP"),
    "reset": ([Reset()], "reset"),
    "nonsense": ([Send(b"secret\r\n\r\n"), Stall()], "not HTTP"),
    "refused": ([], "Connection refused"),
}


@asynccontextmanager
async def faulty(how: str) -> AsyncIterator[tuple[Origin, str]]:
    """An upstream that goes wrong so, and where it is asked."""
    origin = Origin(FAULTS[how][0])
    async with origin.running():
        with refusing() as nowhere:
            yield origin, nowhere if how == "refused" else origin.url


@pytest.mark.parametrize("how", FAULTS)
async def test_what_fits_in_no_open_stream_is_a_fault_and_the_stream_is_still_the_gateways(
    how: str,
) -> None:
    async def play(splice: Splice, carry: Carry) -> None:
        with pytest.raises(UpstreamFault, match=FAULTS[how][1]):
            await carry(call(url))
        assert not splice.is_ended
        splice.say(ERROR)
        splice.end()

    async with faulty(how) as (_, url), opened(play) as client:
        for _ in range(2):
            assert is_whole(await client.ask(post(b"")), EARLY + ERROR)


@pytest.mark.parametrize("how", FAULTS)
async def test_after_such_a_fault_another_upstream_may_answer(how: str) -> None:
    good = Origin([Send(streamed())])
    carried: list[Carried] = []

    async def play(splice: Splice, carry: Carry) -> None:
        with pytest.raises(UpstreamFault):
            await carry(call(url))
        splice.say(EARLY)
        carried.append(await carry(call(good.url)))

    async with faulty(how) as (_, url), good.running(), opened(play) as client:
        assert is_whole(await client.ask(post(b"")), EARLY * 2 + STREAM)
    assert carried[0].usage == Usage(7, 2)


@pytest.mark.parametrize("is_proper", [False, True])
async def test_an_upstream_that_dies_in_the_open_stream_ends_it_in_the_last_words(
    is_proper: bool,
) -> None:
    carried: list[Carried] = []
    origin = Origin([Send(SSE_HEAD + chunks(EVENTS[0])), Close()])

    async def play(splice: Splice, carry: Carry) -> None:
        asked = msgspec.structs.replace(call(origin.url), policy=EndsInError(is_proper=is_proper))
        carried.append(await carry(asked))

    async with origin.running(), opened(play) as client:
        heard = await client.ask(post(b""))
        assert heard.body == EARLY + EVENTS[0] + ERROR
        assert (heard.complete, heard.ended) == (is_proper, None if is_proper else "eof")
    assert carried[0].is_interrupted
    assert carried[0].first_byte is not None


async def test_half_an_event_that_is_held_back_is_dropped_with_its_answer() -> None:
    bad = Origin([Send(SSE_HEAD + chunks(EVENTS[0][:20])), Close()])
    good = Origin([Send(streamed())])

    async def play(splice: Splice, carry: Carry) -> None:
        splice.opening = FirstChunk("/v1/chat/completions", b"")
        with pytest.raises(UpstreamFault) as raised:
            await carry(call(bad.url))
        assert raised.value.is_taken_back
        await carry(call(good.url))

    async with bad.running(), good.running(), opened(play) as client:
        heard = await client.ask(post(b""))
        assert heard.body.startswith(EARLY + b'data: {"id":"c1"')
        assert heard.body.endswith(b"\n\n" + STREAM)
        assert heard.body.count(b"\n\n") == EARLY.count(b"\n\n") + 1 + STREAM.count(b"\n\n")


async def test_what_the_gateway_says_while_it_waits_is_not_the_answers_first_byte() -> None:
    ready = asyncio.Event()
    origin = Origin([Pause(ready), Send(streamed())])
    carried: list[Carried] = []

    async def play(splice: Splice, carry: Carry) -> None:
        carrying = asyncio.ensure_future(carry(call(origin.url)))
        await until(lambda: bool(origin.requests))
        splice.say(EARLY)
        assert splice.first_at is None
        carried.append(await carrying)

    async with origin.running(), opened(play) as client:
        await client.send(post(b""))
        before = await client.read_until(EARLY + b"\r\n")
        before += await client.read_until(EARLY + b"\r\n")
        released = time.monotonic()
        ready.set()
        assert is_whole(await client.read_answer(so_far=before), EARLY * 2 + STREAM)
    first = carried[0].first_byte
    assert first is not None
    assert first >= released


async def test_what_the_gateway_says_while_it_waits_does_not_put_off_the_time_out() -> None:
    origin = Origin([Stall()])

    async def play(splice: Splice, carry: Carry) -> None:
        carrying = asyncio.ensure_future(carry(call(origin.url, first_byte_timeout=0.1)))
        while not carrying.done():
            splice.say(EARLY)
            await asyncio.sleep(0.01)
        with pytest.raises(UpstreamFault) as fault:
            await carrying
        assert fault.value.what == "timeout"
        splice.say(ERROR)
        splice.end()

    async with origin.running(), opened(play) as client:
        heard = await client.ask(post(b""))
        assert is_whole(heard, EARLY * heard.body.count(EARLY) + ERROR)
        assert heard.body.count(EARLY) > 1


async def test_the_prompts_tokens_are_found_behind_any_number_of_keep_alives() -> None:
    """Anthropic's streams have them in the first event, and the answer's in the last."""
    events = (
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n',
        *[b'data: {"type":"content_block_delta","delta":{"text":"%b"}}\n\n' % (b"x" * 400)] * 50,
        b'data: {"type":"message_delta","usage":{"output_tokens":2}}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    )
    origin = Origin([Send(streamed(*events))])
    carried: list[Carried] = []

    async def play(splice: Splice, carry: Carry) -> None:
        for _ in range(1000):
            splice.say(EARLY)
        carried.append(await carry(call(origin.url)))

    async with origin.running(), opened(play) as client:
        assert is_whole(await client.ask(post(b"")), EARLY * 1001 + b"".join(events))
    assert carried[0].usage == Usage(7, 2)


async def test_a_client_that_leaves_the_open_stream_takes_the_upstream_along() -> None:
    origin = Origin([Stall()])
    ended: list[BaseException] = []

    async def play(splice: Splice, carry: Carry) -> None:
        try:
            await carry(call(origin.url))
        except asyncio.CancelledError as error:
            ended.append(error)
            raise

    async with origin.running(), opened(play) as client:
        await client.send(post(b""))
        peer = await origin.wait_asked()
        await client.read_until(EARLY)
        client.leave()
        await peer.wait_gone()
        await until(lambda: len(ended) == 1)


async def test_an_answer_that_has_no_place_leaves_its_words_behind() -> None:
    async def play(splice: Splice, carry: Carry) -> None:
        with pytest.raises(UpstreamFault) as fault:
            await carry(call(origin.url))
        assert (fault.value.what, fault.value.status) == ("answered", 400)
        assert fault.value.content == b'{"error": "too long"}'
        splice.say(ERROR)
        splice.end()

    status = "HTTP/1.1 400 Bad Request"
    origin = Origin([Send(sized(b'{"error": "too long"}', status=status))])
    async with origin.running(), opened(play) as client:
        assert is_whole(await client.ask(post(b"")), EARLY + ERROR)


async def test_the_words_of_an_endless_answer_are_cut() -> None:
    async def play(splice: Splice, carry: Carry) -> None:
        with pytest.raises(UpstreamFault) as fault:
            await carry(call(origin.url))
        assert len(fault.value.content) < 200_000
        splice.say(ERROR)
        splice.end()

    origin = Origin([Send(head("HTTP/1.1 500 No")), *[Send(b"x" * 60_000)] * 1000, Stall()])
    async with origin.running(), opened(play) as client:
        assert is_whole(await client.ask(post(b"")), EARLY + ERROR)
        await origin.peers[0].wait_gone()
