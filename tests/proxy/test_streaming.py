"""Bytes that pass: whatever the upstream's framing and pace, the client gets the same body, at
once, in a framing of the gateway's own."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Sequence

import pytest
import uvloop
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cortexd.daemon.access import AccessLog
from tests.functional.faults import Close, Drip, Origin, Pause, Script, Send
from tests.functional.raw import post
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    EVENTS,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    SSE_HEAD,
    STREAM,
    Stage,
    chunks,
    head,
    sized,
    staged,
    streamed,
)

FRAMINGS: dict[str, tuple[bytes, Script]] = {
    "sse-chunked": (STREAM, [Send(streamed())]),
    "sse-length": (STREAM, [Send(sized(STREAM, kind=SSE))]),
    "sse-eof": (STREAM, [Send(head(OK, SSE) + STREAM), Close()]),
    "json-length": (ANSWER, [Send(sized())]),
    "json-chunked": (ANSWER, [Send(head(OK, JSON, CHUNKED) + chunks(ANSWER) + LAST_CHUNK)]),
    "json-eof": (ANSWER, [Send(head(OK, JSON) + ANSWER), Close()]),
    "empty-length": (b"", [Send(sized(b""))]),
    "empty-chunked": (b"", [Send(head(OK, JSON, CHUNKED) + LAST_CHUNK)]),
    "empty-eof": (b"", [Send(head(OK, JSON)), Close()]),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_a_body_reaches_the_client_unchanged_in_every_framing(
    framing: str, asked: bytes
) -> None:
    expected, script = FRAMINGS[framing]
    async with staged(script) as stage:
        heard = await stage.ask(asked)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_that_drips_byte_by_byte_is_the_same_body(framing: str) -> None:
    expected, script = FRAMINGS[framing]
    dripped = [Drip(step.data) if isinstance(step, Send) else step for step in script]
    async with staged(dripped) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)


class House:
    """One gateway for many examples, on a loop of its own; `ask` runs one of them."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._script: Script = ()
        self._origin = Origin(answer=lambda _: self._script)
        self._staged = staged(origin=self._origin)

    def __enter__(self) -> House:
        self._stage: Stage = self._runner.run(self._staged.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._runner.run(self._staged.__aexit__(None, None, None))
        finally:
            self._runner.close()

    def ask(self, script: Script, asked: bytes = ASKED_STREAM, **options: str):
        self._script = script
        return self._runner.run(self._stage.ask(asked, **options))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as house:
        yield house


bodies = st.sampled_from([STREAM, ANSWER, b"", b"0\r\n\r\n", b"\r\n" * 9]) | st.binary(max_size=600)
sizes = st.lists(st.integers(1, 200), min_size=1, max_size=8)
extensions = st.sampled_from([b"", b";x", b";x=1", b' ;x="a;b"', b";" + b"y" * 40])
trailers = st.lists(
    st.sampled_from([b"X-T: 1", b"Set-Cookie: a=b", b"Server-Timing: a;dur=1"]), max_size=3
)
# An example that hangs takes the whole guard: looking for a smaller one would take minutes.
unshrunk = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def cut(body: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The body in pieces of these sizes, in turn."""
    at = number = 0
    while at < len(body):
        size = sizes[number % len(sizes)]
        yield body[at : at + size]
        at, number = at + size, number + 1


def in_chunks(
    body: bytes, sizes: Sequence[int], extension: bytes, trailers: Sequence[bytes], spelling: str
) -> bytes:
    """The body chunked in every way that RFC 9112 allows."""
    parts = [
        b"%b%b\r\n%b\r\n" % ((spelling % len(piece)).encode(), extension, piece)
        for piece in cut(body, sizes)
    ]
    end = b"".join(trailer + b"\r\n" for trailer in trailers)
    return b"".join([*parts, b"0", extension, b"\r\n", end, b"\r\n"])


@unshrunk
@given(
    body=bodies,
    chunk_sizes=sizes,
    extension=extensions,
    trailers=trailers,
    spelling=st.sampled_from(["%x", "%X", "%04x", "%016X"]),
    tcp_sizes=sizes,
    kind=st.sampled_from([SSE, JSON]),
    version=st.sampled_from(["1.1", "1.0"]),
)
def test_any_chunking_of_a_body_is_the_same_body_to_the_client(
    house: House,
    body: bytes,
    chunk_sizes: list[int],
    extension: bytes,
    trailers: list[bytes],
    spelling: str,
    tcp_sizes: list[int],
    kind: str,
    version: str,
) -> None:
    data = head(OK, kind, CHUNKED) + in_chunks(body, chunk_sizes, extension, trailers, spelling)
    heard = house.ask([Drip(data, tcp_sizes)], version=version)
    assert (heard.fault, heard.complete, heard.body) == (None, True, body)
    assert heard.trailers == []
    assert heard.all("set-cookie") == []
    assert bool(heard.all("transfer-encoding")) == (version == "1.1")


@unshrunk
@given(body=bodies, tcp_sizes=sizes, kind=st.sampled_from([SSE, JSON]), closes=st.booleans())
def test_any_pace_of_an_unchunked_body_is_the_same_body_to_the_client(
    house: House, body: bytes, tcp_sizes: list[int], kind: str, closes: bool
) -> None:
    length = [] if closes else [f"Content-Length: {len(body)}"]
    script = [Drip(head(OK, kind, *length) + body, tcp_sizes), *([Close()] if closes else [])]
    heard = house.ask(script)
    assert (heard.fault, heard.complete, heard.body) == (None, True, body)


@unshrunk
@given(
    body=bodies,
    chunk_sizes=sizes,
    tcp_sizes=sizes,
    kind=st.sampled_from([SSE, JSON]),
    chunked=st.booleans(),
    data=st.data(),
)
def test_a_body_cut_anywhere_is_never_whole_to_the_client(
    house: House,
    body: bytes,
    chunk_sizes: list[int],
    tcp_sizes: list[int],
    kind: str,
    chunked: bool,
    data: st.DataObject,
) -> None:
    sent = body if chunked else body + b"."
    if chunked:
        start, rest = head(OK, kind, CHUNKED), in_chunks(sent, chunk_sizes, b"", (), "%x")
    else:
        start, rest = head(OK, kind, f"Content-Length: {len(sent)}"), sent
    whole = rest[: data.draw(st.integers(0, len(rest) - 1), label="cut at")]
    heard = house.ask([Drip(start + whole, tcp_sizes), Close()])
    assert heard.status in {200, 502}
    assert heard.complete == (heard.status == 502)
    if kind == JSON and heard.status == 200:
        assert sent.startswith(heard.body)


async def test_each_event_arrives_while_the_next_one_is_still_being_thought_of() -> None:
    turns = [asyncio.Event() for _ in EVENTS]
    script = [Send(SSE_HEAD)]
    for event, turn in zip(EVENTS, turns, strict=True):
        script += [Send(chunks(event)), Pause(turn)]
    async with staged([*script, Send(LAST_CHUNK)]) as stage, stage.client() as client:
        await client.send(post(ASKED_STREAM))
        for event, turn in zip(EVENTS, turns, strict=True):
            await client.read_until(event)
            turn.set()
        await client.read_until(LAST_CHUNK)


@pytest.mark.parametrize("framing", ["chunked", "length", "eof"])
async def test_half_an_event_is_not_held_back(framing: str) -> None:
    line = {"chunked": [CHUNKED], "length": [f"Content-Length: {len(EVENTS[0])}"], "eof": []}
    half = EVENTS[0][:20]
    frame = chunks(half) if framing == "chunked" else half
    rest = asyncio.Event()
    script = [Send(head(OK, SSE, *line[framing]) + frame), Pause(rest), Close()]
    async with staged(script) as stage, stage.client() as client:
        await client.send(post(ASKED_STREAM))
        await client.read_until(half)


async def test_a_usage_event_that_nobody_took_out_upstream_is_passed() -> None:
    """Without `ask_usage` nothing is taken out, whether the client asked for it or not."""
    async with staged([Send(streamed())]) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert EVENTS[2] in heard.body
        assert heard.body == STREAM
        assert stage.origin.requests[0].body == ASKED_STREAM


BIG = bytes(range(256)) * (4 << 12)  # 4 MiB


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_of_megabytes_passes_whole(framing: str, version: str) -> None:
    script = {
        "length": [Send(sized(BIG))],
        "chunked": [
            Send(head(OK, JSON, CHUNKED) + chunks(*cut(BIG, [100_000, 1, 7000])) + LAST_CHUNK)
        ],
        "eof": [Send(head(OK, JSON) + BIG), Close()],
    }[framing]
    async with staged(script) as stage:
        heard = await stage.ask(version=version)
        assert heard.complete
        assert heard.body == BIG


async def test_a_length_that_is_known_is_told() -> None:
    async with staged([Send(sized())]) as stage:
        heard = await stage.ask()
        assert heard.get("content-length") == str(len(ANSWER))
        assert heard.all("transfer-encoding") == []


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_an_http_1_0_client_gets_no_chunks_and_a_closed_connection(framing: str) -> None:
    expected, script = FRAMINGS[framing]
    async with staged(script) as stage, stage.client() as client:
        heard = await client.ask(post(ASKED_STREAM, version="1.0"))
        assert (heard.complete, heard.body) == (True, expected)
        assert heard.all("transfer-encoding") == []
        assert (heard.get("connection") or "").lower() == "close"
        assert await client.read_rest() == b""
        assert client.ended == "eof"


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_client_that_wants_its_connection_closed_is_told_that_it_is(framing: str) -> None:
    expected, script = FRAMINGS[framing]
    async with staged(script) as stage, stage.client() as client:
        heard = await client.ask(post(ASKED, "Connection: close"))
        assert (heard.complete, heard.body) == (True, expected)
        assert (heard.get("connection") or "").lower() == "close"
        assert await client.read_rest() == b""
        assert client.ended == "eof"


async def test_one_client_connection_carries_answers_of_every_framing() -> None:
    async with (
        staged(*(script for _, script in FRAMINGS.values())) as stage,
        stage.client() as client,
    ):
        for expected, _ in FRAMINGS.values():
            heard = await client.ask(post(ASKED))
            assert (heard.complete, heard.body, heard.ended) == (True, expected, None)
            assert "close" not in heard.all("connection")


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with (
        staged(*(script for _, script in FRAMINGS.values())) as stage,
        stage.client() as client,
    ):
        asked = [ASKED[:-1] + b', "n": %d}' % number for number in range(len(FRAMINGS))]
        await client.send(b"".join(post(body) for body in asked))
        for expected, _ in FRAMINGS.values():
            heard = await client.read_answer()
            assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        assert [request.body for request in stage.origin.requests] == asked


async def test_a_request_behind_a_stream_that_died_is_not_answered() -> None:
    async with (
        staged([Send(SSE_HEAD + chunks(EVENTS[0])), Close()], [Send(sized())]) as stage,
        stage.client() as client,
    ):
        await client.send(post(ASKED_STREAM) + post(ASKED))
        heard = await client.read_answer()
        assert (heard.status, heard.complete, heard.ended is not None) == (200, False, True)
        assert ANSWER not in heard.raw


async def test_the_first_byte_is_never_before_its_request() -> None:
    """Not even by the fraction of a millisecond that a loop's clock leaves out."""
    log = io.StringIO()
    script = [Send(sized())]
    async with staged(script, access=AccessLog(log)) as stage, stage.client() as client:
        for _ in range(50):
            assert (await client.ask(post(ASKED))).complete
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert all(0 <= line["first_byte_s"] <= line["duration_s"] for line in lines), lines
    assert len(lines) == 50


async def test_an_answer_that_begins_when_the_gateway_leaves_says_that_it_is_the_last() -> None:
    """Its request was there before."""
    thought = asyncio.Event()
    async with staged([Pause(thought), Send(sized())]) as stage, stage.client() as client:
        await client.send(post(ASKED))
        await stage.origin.wait_asked()
        closing = asyncio.create_task(stage.fleet.gateway.close())
        await asyncio.sleep(0)
        thought.set()
        heard = await client.read_answer()
        assert (heard.complete, heard.body) == (True, ANSWER)
        assert heard.get("connection") == "close"
        await closing
