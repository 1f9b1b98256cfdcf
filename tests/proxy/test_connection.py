"""The connection alone, in front of an origin: what it tells its receiver, and in which order."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme

from cortexd.daemon.resolver import Resolver
from cortexd.proxy.answer import Head, UpstreamFault
from cortexd.proxy.connection import Connection
from cortexd.proxy.pool import Pool, parse_base
from cortexd.proxy.sweeper import Sweeper
from tests.functional.faults import (
    Close,
    Drip,
    HalfClose,
    Origin,
    Peer,
    Read,
    Reset,
    Script,
    Send,
    Stall,
)
from tests.waiting import GUARD, until

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello"


class Told:
    """Records what it is told; `refuses` raises that at the head."""

    def __init__(self, refuses: UpstreamFault | None = None) -> None:
        self.events: list[object] = []
        self._flushed = 0
        self.over = asyncio.Event()
        self.refuses = refuses

    def begun(self) -> None:
        self.events.append("begun")

    def head(self, head: Head) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.events.append(head)

    def body(self, data: bytes) -> None:
        self.events.append(data)

    def flush(self) -> bool:
        before, self._flushed = self._flushed, len(self.events)
        return self._flushed > before

    def end(self) -> None:
        self.events.append("end")
        self.over.set()

    def failed(self, fault: UpstreamFault) -> None:
        self.events.append(fault.what)
        self.over.set()


class Tls:
    """Both ends of https at localhost."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="session")
def tls() -> Tls:
    return Tls()


async def told(
    *scripts: Script, receiver: Told | None = None, tls: Tls | None = None
) -> tuple[list[object], Connection]:
    """What a receiver hears of one exchange, and the connection after it."""
    origin, sweeper = Origin(*scripts, tls=tls and tls.server), Sweeper()
    pool, receiver = Pool(Resolver(), sweeper), receiver or Told()
    async with origin.running():
        where = parse_base(origin.url)[0]
        if tls is None:  # one address: nothing happens between the connection and its use
            where = where._replace(host="127.0.0.1")
        else:
            where = where._replace(trusted=tls.client)
        connection = await pool.connect(where, 5)
        connection.send(REQUEST, b"{}", receiver)
        async with asyncio.timeout(GUARD):
            await receiver.over.wait()
        was_open = connection.is_open
        pool.close()
        sweeper.close()
        connection.close()
        await until(lambda: all(peer.gone.is_set() for peer in origin.peers))
        connection.is_open = was_open
    return receiver.events, connection


async def test_head_body_end_in_this_order_and_the_connection_may_go_on() -> None:
    events, connection = await told([Send(SIZED)], [Stall()])
    fields = [(b"Content-Length", b"5"), (b"X-A", b"1")]
    assert events == [Head(200, b"OK", fields, 5, False), b"hello", "end"]
    assert connection.is_open


async def test_informational_heads_are_not_the_answer() -> None:
    events, _ = await told([Send(b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" * 8 + SIZED)])
    head = events[0]
    assert isinstance(head, Head)
    assert (head.status, events[1:]) == (200, [b"hello", "end"])


async def test_trailers_are_dropped() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-B: 2\r\n\r\n"
    )
    events, _ = await told([Send(answer)])
    assert events[1:] == [b"hello", "end"]
    assert b"X-B" not in repr(events).encode()


@pytest.mark.parametrize(
    "answer",
    [
        SIZED + b"HTTP/1.1 200 OK\r\n\r\n",
        SIZED.replace(b"1.1", b"1.0"),
        SIZED.replace(b"X-A: 1", b"Connection: close"),
    ],
)
async def test_a_connection_that_may_not_go_on_is_closed_after_the_answer(answer: bytes) -> None:
    events, connection = await told([Send(answer), Stall()])
    assert events[-2:] == [b"hello", "end"]
    assert not connection.is_open


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    events, connection = await told([Send(b"HTTP/1.1 200 OK\r\n\r\nhello"), Close()])
    assert events[-2:] == [b"hello", "end"]
    assert not connection.is_open


async def test_a_head_without_fields_is_one_too() -> None:
    answer = Drip(b"HTTP/1.1 200 OK\r\n\r\nhello", (19, 2, 3))
    events, _ = await told([answer, Close()])
    assert events[1:] == [b"he", b"llo", "end"]


@pytest.mark.parametrize("size", [1 << 20, 1000])
async def test_a_head_may_be_as_large_as_it_may_however_it_is_cut(size: int) -> None:
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(60))
    events, _ = await told([Drip(SIZED.replace(b"X-A: 1\r\n", fields), (size,))])
    assert events[-1] == "end"


async def test_the_framing_of_an_endless_stream_is_no_head_that_grows() -> None:
    """Each size and each line's end in a read of its own: 5 bytes a chunk that are no body."""
    chunk, count = b"5\r\nhello\r\n", 14_000
    script = [
        Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Drip(chunk * count, (3, 5, 2)),
        Send(b"0\r\n\r\n"),
    ]
    events, _ = await told(script)
    assert events[1:] == [b"hello"] * count + ["end"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([Close()], ["reset"]),
        ([Reset()], ["reset"]),
        ([Read(1), Close()], ["reset"]),
        ([Send(b"HTTP/1.1 2"), Close()], ["begun", "invalid"]),
        ([Send(b"HTTP/1.1 200 OK\r\n\r\nhel"), Reset()], ["hel", "invalid"]),
        ([Send(SIZED[:-1]), Close()], ["hell", "invalid"]),
        ([Send(b"RTSP/1.0 200 OK\r\n\r\n"), Stall()], ["invalid"]),
        ([Send(b"nonsense"), Stall()], ["invalid"]),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_fault_that_says_how_far_it_came(
    script: Script, expected: list[str]
) -> None:
    events, connection = await told(script)
    words = [each.decode() if isinstance(each, bytes) else each for each in events]
    assert [word for word in words if isinstance(word, str)] == expected
    assert not connection.is_open


async def test_a_receiver_that_does_not_want_the_answer_stops_it_at_its_head() -> None:
    receiver = Told(refuses=UpstreamFault("declined", "no"))
    events, connection = await told([Send(SIZED), Stall()], receiver=receiver)
    assert events == ["declined"]
    assert not connection.is_open


async def test_over_tls_a_connection_may_go_on_too(tls: Tls) -> None:
    answers = [Send(SIZED), Drip(SIZED, (10, 50)), Drip(SIZED, (50,)), Drip(SIZED)]
    for answer in answers:
        events, connection = await told([answer], tls=tls)
        assert events[-1] == "end"
        assert connection.is_open, answer


async def test_over_tls_only_a_word_ends_a_body_without_a_length(tls: Tls) -> None:
    """Anybody on the way can end a connection; RFC 9112, section 9.8."""

    class Cut:
        async def run(self, peer: Peer) -> None:
            peer.transport.abort()

    answer = Send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    events, _ = await told([answer, Close()], tls=tls)
    assert events[-2:] == [b"hello", "end"]
    events, _ = await told([answer, Cut()], tls=tls)  # type: ignore[list-item]
    assert events[-1] == "invalid"


async def test_a_request_that_nobody_reads_does_not_outlive_its_answer() -> None:
    origin, sweeper = Origin([Read(1), HalfClose(), Stall()], receive_buffer=65536), Sweeper()
    async with origin.running():
        connection = await Pool(Resolver(), sweeper).connect(parse_base(origin.url)[0], 5)
        receiver = Told()
        connection.send(REQUEST, bytes(40_000_000), receiver)
        await receiver.over.wait()
        assert receiver.events == ["reset"]
        await until(lambda: "closed=True" in repr(connection.transport))
        sweeper.close()


async def test_no_parser_outlives_its_answer() -> None:
    origin, sweeper = Origin([Send(SIZED)]), Sweeper()
    pool = Pool(Resolver(), sweeper)
    async with origin.running():
        connection = await pool.connect(parse_base(origin.url)[0], 5)
        for _ in range(3):
            receiver = Told()
            connection.send(REQUEST, b"{}", receiver)
            async with asyncio.timeout(GUARD):
                await receiver.over.wait()
            assert receiver.events[-2:] == [b"hello", "end"]
            assert pool.take(connection.origin) is connection  # type: ignore[arg-type]
        assert connection.uses == 3
        connection.close()
        sweeper.close()
        await until(lambda: all(peer.gone.is_set() for peer in origin.peers))
