"""The client's side of an answer, over a real connection: framing, order, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from cortexd.proxy.splice import Splice
from tests.functional.raw import connected, post
from tests.proxy.site import Handler, open_site
from tests.waiting import until

SSE = b"Content-Type: text/event-stream\r\n"
PIECES = (b"one", b"", b"two" * 10_000, b"\r\n0\r\n\r\n", b"three")
BODY = b"".join(PIECES)
LAST_CHUNK = b"0\r\n\r\n"


def spliced(play: Callable[[Splice], Awaitable[None]]) -> Handler:
    """A handler whose answer is what `play` does with the splice."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        splice = Splice(request)
        try:
            await play(splice)
            return splice.response()
        finally:
            splice.release()

    return handle


class Counted:
    """A transport, and the writes to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._transport.write(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.writes.append(b"".join(pieces))
        self._transport.writelines(pieces)


async def whole(splice: Splice, length: int | None = None) -> None:
    splice.start(200, b"OK", b"X-A: b\r\n", length, is_sse=False)
    for piece in PIECES:
        splice.write(piece)
        splice.flush()
    splice.end()


# the request's version and fields, the body's length → the answer's framing, whether it is the last
FRAMINGS = [
    ("1.1", [], len(BODY), (str(len(BODY)), None), False),
    ("1.1", [], None, (None, "chunked"), False),
    ("1.1", ["Connection: close"], len(BODY), (str(len(BODY)), None), True),
    ("1.1", ["Connection: close"], None, (None, "chunked"), True),
    ("1.0", [], len(BODY), (str(len(BODY)), None), True),
    ("1.0", [], None, (None, None), True),
    ("1.0", ["Connection: keep-alive"], None, (None, None), True),
]


@pytest.mark.parametrize(("version", "fields", "length", "framing", "ends"), FRAMINGS)
async def test_an_answer_is_whole_in_the_framing_that_its_client_understands(
    version: str,
    fields: list[str],
    length: int | None,
    framing: tuple[str | None, str | None],
    ends: bool,
) -> None:
    async with (
        open_site(spliced(lambda splice: whole(splice, length))) as site,
        connected(site.address) as client,
    ):
        asked = post(b"", *fields, version=version)
        heard = await client.ask(asked)
        assert (heard.status, heard.reason, heard.get("x-a")) == (200, "OK", "b")
        assert (heard.get("content-length"), heard.get("transfer-encoding")) == framing
        assert (heard.complete, heard.body) == (True, BODY)
        assert heard.get("connection") == ("close" if ends else "keep-alive")
        assert heard.get("keep-alive") == (None if ends else "timeout=75")
        if ends:
            assert await client.read_rest() == b""
            assert client.ended == "eof"
        else:
            assert (await client.ask(asked)).body == BODY


@pytest.mark.parametrize(("status", "length"), [(200, "0"), (204, None), (304, None)])
async def test_an_answer_without_a_body_says_so_only_where_one_could_be(
    status: int, length: str | None
) -> None:
    async def play(splice: Splice) -> None:
        splice.start(status, b"", b"", 0, is_sse=False)
        splice.end()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        for _ in range(2):
            heard = await client.ask(post(b""))
            assert (heard.status, heard.complete, heard.body) == (status, True, b"")
            assert heard.get("content-length") == length


async def test_own_words_and_the_body_go_out_in_the_order_in_which_they_came() -> None:
    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", SSE, None, is_sse=True)
        splice.say(b": own\n\n")
        splice.write(b"data: 1\n\n")
        splice.write(b"data: 2\n\n")
        splice.say(b": own again\n\n")
        splice.write(b"data: 3\n\n")
        splice.end()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        heard = await client.ask(post(b""))
        assert heard.complete
        assert heard.body == b": own\n\ndata: 1\n\ndata: 2\n\n: own again\n\ndata: 3\n\n"


async def test_own_words_are_no_part_of_the_body_and_its_time() -> None:
    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", SSE, None, is_sse=True)
        splice.say(b": own\n\n")
        assert (splice.first_at, splice.tail, splice.was_moved) == (None, b"", False)
        splice.write(b"data: 1\n\n")
        splice.say(b": own\n\n")
        assert splice.first_at is not None
        assert (splice.tail, splice.was_moved) == (b"data: 1\n\n", True)
        splice.end()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        assert (await client.ask(post(b""))).complete


async def test_head_body_and_end_of_one_read_are_one_write() -> None:
    counted: list[Counted] = []

    async def play(splice: Splice) -> None:
        counted.append(Counted(splice._transport))
        splice._transport = counted[0]  # type: ignore[assignment]
        splice.start(200, b"OK", b"", None, is_sse=False)
        for piece in PIECES:
            splice.write(piece)
        splice.end()
        assert not splice.flush()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        heard = await client.ask(post(b""))
        assert heard.body == BODY
        assert counted[0].writes == [heard.raw]


@pytest.mark.parametrize("nothing", ["write", "say"])
async def test_writing_nothing_never_ends_the_body(nothing: str) -> None:
    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", SSE, None, is_sse=True)
        getattr(splice, nothing)(b"")
        splice.flush()
        assert (splice.first_at, splice.was_moved) == (None, False)
        splice.write(b"data: 1\n\n")
        splice.end()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        heard = await client.ask(post(b""))
        assert (heard.complete, heard.body) == (True, b"data: 1\n\n")
        assert heard.raw.count(LAST_CHUNK) == 1


@pytest.mark.parametrize("length", [None, 100])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_that_is_aborted_ends_in_a_reset(version: str, length: int | None) -> None:
    is_read = asyncio.Event()

    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", b"", length, is_sse=False)
        splice.write(b"begun")
        splice.flush()
        await is_read.wait()
        splice.abort()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        await client.send(post(b"", version=version))
        await client.read_until(b"begun")
        is_read.set()
        assert await client.read_rest() in (b"", b"\r\n")  # the end of the chunk
        assert client.ended == "reset"


async def test_an_answer_that_is_cut_ends_after_its_last_words_but_not_as_a_whole_one() -> None:
    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", SSE, None, is_sse=True)
        splice.write(b"data: 1\n\n")
        splice.say(b"data: broken\n\n")
        splice.cut()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        await client.send(post(b"") * 2)
        heard = await client.read_answer()
        assert heard.body == b"data: 1\n\ndata: broken\n\n"
        assert (heard.complete, heard.ended) == (False, "eof")
        assert not heard.raw.endswith(LAST_CHUNK)
        assert len(site.handled) == 1


async def test_a_handler_that_fails_after_the_head_adds_nothing_to_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", b"", None, is_sse=False)
        splice.write(b"begun")
        splice.flush()
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        heard = await client.ask(post(b""))
        assert not heard.complete
        assert heard.body in (b"", b"begun")
        assert b" 500 " not in heard.raw
        assert site.refused == []
    assert "ZeroDivisionError" in caplog.text


class Told:
    """A source that notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def pause(self) -> None:
        self._told.append("pause")

    def resume(self) -> None:
        self._told.append("resume")

    def lost(self) -> None:
        self._told.append("lost")


async def test_a_client_that_does_not_keep_up_pauses_the_source_until_it_does() -> None:
    told: list[str] = []
    size = 0

    async def play(splice: Splice) -> None:
        nonlocal size
        splice.source = Told(told)
        splice.start(200, b"OK", b"", None, is_sse=False)
        while not splice.is_paused:
            splice.write(bytes(50_000))
            splice.flush()
            size += 50_000
            await asyncio.sleep(0)
        await until(lambda: not splice.is_paused)
        splice.end()

    async with (
        open_site(spliced(play)) as site,
        connected(site.address, receive_buffer=4096) as client,
    ):
        await client.send(post(b""))
        await until(lambda: bool(told))
        assert told == ["pause"]
        heard = await client.read_answer()
        assert (heard.complete, len(heard.body)) == (True, size)
        assert told == ["pause", "resume"]


async def test_a_client_that_has_left_is_told_of_once_and_written_to_no_more() -> None:
    told: list[str] = []
    splices: list[Splice] = []

    async def play(splice: Splice) -> None:
        splices.append(splice)
        splice.source = Told(told)
        splice.start(200, b"OK", SSE, None, is_sse=True)
        splice.say(b": own\n\n")
        await asyncio.Event().wait()

    async with open_site(spliced(play)) as site:
        async with connected(site.address) as client:
            await client.send(post(b""))
            await client.read_until(b": own")
        await until(site.cancelled.is_set)
        (splice,) = splices
        assert (told, splice.is_gone) == (["lost"], True)
        counted: Any = Counted(splice._transport)
        splice._transport = counted
        splice.write(b"data: 1\n\n")
        splice.end()
        assert counted.writes == []


async def test_of_a_long_body_the_two_ends_are_kept_and_of_a_short_one_all() -> None:
    long = b"".join(b"%6d" % number for number in range(20_000))

    async def play(splice: Splice) -> None:
        splice.start(200, b"OK", b"", None, is_sse=False)
        splice.write(b"short")
        assert (splice.first, splice.tail) == (b"", b"short")
        for at in range(0, len(long), 700):
            splice.write(long[at : at + 700])
        assert (b"short" + long).startswith(splice.first)
        assert long.endswith(splice.tail)
        assert 4096 <= len(splice.first) <= 8192
        assert 4096 <= len(splice.tail) <= 8192
        splice.end()

    async with open_site(spliced(play)) as site, connected(site.address) as client:
        heard = await client.ask(post(b""))
        assert (heard.complete, heard.body) == (True, b"short" + long)
