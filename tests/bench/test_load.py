"""The load generator counts an answer as whole only when it is: a benchmark that did not would
praise a gateway for what it loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench import answers
from bench.load import Generator
from bench.upstream import Conversation, Options, Upstream

PLAIN = answers.plain()
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN)
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def answering(*said: bytes, then_close: bool = False) -> AsyncIterator[int]:
    """A server that answers each request of a connection with the next of `said`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in said:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(answer)
            if not then_close:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def upstream(options: Options) -> AsyncIterator[int]:
    shared = Upstream(options)
    server = await asyncio.get_running_loop().create_server(
        lambda: Conversation(shared), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def generator(port: int, connections: int = 1) -> AsyncIterator[Generator]:
    it = Generator()
    await it.open(port, connections)
    try:
        yield it
    finally:
        await it.close()


async def test_whole_answers_of_the_upstream_are_counted_each_once() -> None:
    async with upstream(Options(events=5, pace=0.001)) as port, generator(port, 10) as it:
        streams = await it.ask(each=3, events=5, limit=30)
        plain = await it.ask(each=4, limit=30, rate=10_000)
    assert (streams["whole"], streams["wrong"], len(streams["first_bytes"])) == (30, 0, 30)
    assert (plain["whole"], plain["wrong"]) == (40, 0)


async def test_a_stream_shorter_than_asked_for_is_wrong() -> None:
    async with upstream(Options(events=4, pace=0.001)) as port, generator(port) as it:
        tally = await it.ask(each=2, events=5, limit=30)
    assert (tally["whole"], tally["wrong"]) == (0, 2)


@pytest.mark.parametrize(
    ("said", "events"),
    [
        (STREAM + chunk(answers.stream(2)), 2),
        (STREAM + chunk(answers.stream(2).removesuffix(answers.DONE)) + b"0\r\n\r\n", 2),
        (STREAM + chunk(answers.stream(1)) + b"0\r\n\r\n", 2),
        (GOOD[:-1], None),
        (GOOD.replace(b"200 OK", b"502 Bad Gateway"), None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + PLAIN, None),
        (b"garbage", None),
        (b"", None),
    ],
    ids=[
        "no last chunk",
        "no done",
        "an event short",
        "cut",
        "502",
        "no end",
        "garbage",
        "nothing",
    ],
)
async def test_an_answer_that_is_not_whole_is_wrong(said: bytes, events: int | None) -> None:
    async with answering(said, then_close=True) as port, generator(port) as it:
        tally = await it.ask(each=1, events=events, limit=30)
    assert (tally["whole"], tally["wrong"], len(tally["reasons"])) == (0, 1, 1)


async def test_what_a_closed_connection_can_no_longer_ask_is_wrong() -> None:
    async with answering(GOOD, then_close=True) as port, generator(port) as it:
        tally = await it.ask(each=5, limit=30)
    assert (tally["whole"], tally["wrong"]) == (1, 4)


async def test_what_is_never_answered_is_wrong_when_the_time_is_over() -> None:
    async with answering(GOOD, b"") as port, generator(port, 3) as it:
        tally = await it.ask(each=2, limit=0.2)
    assert (tally["whole"], tally["wrong"]) == (3, 3)


async def test_alternating_asks_each_in_turn_and_keeps_their_answers_apart() -> None:
    async with (
        upstream(Options(events=2, pace=0.001)) as good,
        upstream(Options(events=1, pace=0.001)) as bad,
    ):
        tallies = await Generator().alternate(
            ports=[good, bad], times=3, events=2, limit=30, exact=[True, True]
        )
    assert [(tally["whole"], tally["wrong"]) for tally in tallies] == [(3, 0), (0, 3)]


async def test_a_burst_is_timed_from_the_connection_on() -> None:
    async with upstream(Options()) as port:
        tally = await Generator().burst(port, 5, 10.0)
    assert (tally["whole"], tally["wrong"]) == (5, 0)
    assert len(tally["first_bytes"]) == 5
