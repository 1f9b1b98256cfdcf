"""What an upstream may do wrong: the right refusal, or an end that nobody takes for a whole answer;
never a false success, and nothing of it is pooled."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from cortexd.daemon.resolver import Resolver
from cortexd.proxy.call import Call
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.splice import Splice
from tests.fakes import FakeNeuron
from tests.functional.faults import (
    Close,
    Drip,
    Origin,
    Pause,
    Read,
    Reset,
    Script,
    Send,
    Stall,
    refusing,
)
from tests.functional.raw import connected, post
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
    chunks,
    died_in_words,
    head,
    is_refusal,
    sized,
    staged,
    streamed,
)
from tests.waiting import until

GOOD = [Send(sized())]

# What a TLS server says to a plain request: an alert.
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
CLOSED = [Close()]


# Answers that are no answer, each sent whole before anything could go to the client.
HOSTILE = {
    "a head of over 64 KiB": head(OK, JSON, "X-Long: " + "x" * 66_000, "Content-Length: 2") + b"{}",
    "a head of over 64 KiB in many fields": head(
        OK, JSON, *(f"X-{number}: {'x' * 500}" for number in range(140)), "Content-Length: 2"
    )
    + b"{}",
    "a reason of over 64 KiB": head(OK + "x" * 66_000, "Content-Length: 2") + b"{}",
    "garbage": b"\x00\xff\xfenonsense\r\n\r\n" * 10,
    "one line of text": b"hello\n",
    "an HTTP/0.9 body": b"<html>It works!</html>",
    "a TLS alert": TLS_ALERT,
    "a TLS server hello": b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(range(120)),
    "an HTTP/2 preface of settings": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
    "HTTP/2.0": sized(status="HTTP/2.0 200 OK"),
    "HTTP/3.0": sized(status="HTTP/3.0 200 OK"),
    "HTTP/1.10": sized(status="HTTP/1.10 200 OK"),
    "HTTP/0.9": sized(status="HTTP/0.9 200 OK"),
    "RTSP": sized(status="RTSP/1.0 200 OK"),
    "ICY": sized(status="ICY 200 OK"),
    "a request": post(ANSWER),
    "status 000": sized(status="HTTP/1.1 000 OK"),
    "status 099": sized(status="HTTP/1.1 099 OK"),
    "status 999": sized(status="HTTP/1.1 999 OK"),
    "status 600": sized(status="HTTP/1.1 600 OK"),
    "status 20": sized(status="HTTP/1.1 20 OK"),
    "status 2000": sized(status="HTTP/1.1 2000 OK"),
    "status +200": sized(status="HTTP/1.1 +200 OK"),
    "status 0x1": sized(status="HTTP/1.1 0x1 OK"),
    "101": head("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"),
    "nine 1xx heads": head("HTTP/1.1 103 Early Hints", "Link: </a>") * 9 + sized(),
    "ninety 1xx heads": head("HTTP/1.1 102 Processing") * 90 + sized(),
    "length and chunks": head(OK, JSON, "Content-Length: 5", CHUNKED)
    + chunks(b"hello")
    + LAST_CHUNK,
    "chunks and length": head(OK, JSON, CHUNKED, "Content-Length: 5")
    + chunks(b"hello")
    + LAST_CHUNK,
    "two lengths": head(OK, JSON, "Content-Length: 5", "Content-Length: 6") + b"hello!",
    "a list of two lengths": head(OK, JSON, "Content-Length: 5, 6") + b"hello!",
    "a negative length": head(OK, JSON, "Content-Length: -5") + b"hello",
    "a signed length": head(OK, JSON, "Content-Length: +5") + b"hello",
    "a length in words": head(OK, JSON, "Content-Length: five") + b"hello",
    "a length of 2**64": head(OK, JSON, f"Content-Length: {2**64 + 5}") + b"hello",
    "an empty length": head(OK, JSON, "Content-Length: ") + b"hello",
    "gzip, chunked": head(OK, JSON, "Transfer-Encoding: gzip, chunked")
    + chunks(b"hello")
    + LAST_CHUNK,
    "chunked twice": head(OK, JSON, CHUNKED, CHUNKED) + chunks(b"hello") + LAST_CHUNK,
    "chunked, not last": head(OK, JSON, "Transfer-Encoding: chunked, identity") + b"hello",
    "an unknown coding": head(OK, JSON, "Transfer-Encoding: xchunked") + b"hello",
    "chunks on HTTP/1.0": head("HTTP/1.0 200 OK", JSON, CHUNKED) + chunks(b"hello") + LAST_CHUNK,
    "NUL in a header": head(OK, JSON, "X-Bad: a\x00b", "Content-Length: 5") + b"hello",
    "a bare CR in a header": head(OK, JSON, "X-Bad: a\rSet-Cookie: b", "Content-Length: 5")
    + b"hello",
    "a header without a name": head(OK, JSON, ": x", "Content-Length: 5") + b"hello",
    "a header without a colon": head(OK, JSON, "nonsense", "Content-Length: 5") + b"hello",
}


@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_head_is_a_502_and_never_a_success(name: str, asked: bytes) -> None:
    # It stays open, so that nothing is learned from its end.
    async with staged([Send(HOSTILE[name]), Stall()], GOOD) as stage:
        assert is_refusal(await stage.ask(asked))
        assert len(stage.origin.requests) == 1, "an answer has begun: not to be tried again"
        assert (await stage.ask(asked)).body == ANSWER
        assert len(stage.origin.peers) == 2, "nothing of it is pooled"
        await stage.origin.peers[0].wait_gone()
        await stage.wait_idle()


@pytest.mark.parametrize("size", [1, 9, 12, 16, 40, 60_000])
@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_an_unfinished_head_is_a_502(size: int, end: Close | Reset) -> None:
    whole = head(OK, JSON, "X-Long: " + "x" * 61_000, "Content-Length: 2")
    async with staged([Send(whole[:size]), end], GOOD) as stage:
        assert is_refusal(await stage.ask())
        assert len(stage.origin.requests) == 1, "an answer has begun: not to be tried again"


async def test_a_head_that_grows_for_ever_is_cut_at_64_kib() -> None:
    endless = [Send(head(OK)[:-2])] + [Send(b"X-More: " + b"x" * 1000 + b"\r\n")] * 4000
    async with staged(endless, GOOD) as stage:
        assert is_refusal(await stage.ask())
        (peer,) = stage.origin.peers
        await peer.wait_gone()
        assert peer.sent < 4_000_000, "it was cut while it was still growing"


BODIES: dict[str, bytes] = {
    "length": sized(),
    "chunked": head(OK, JSON, CHUNKED) + chunks(*(bytes([c]) for c in ANSWER[:60])) + LAST_CHUNK,
    "eof": head(OK, JSON) + ANSWER,
    "sse-length": sized(STREAM, kind=SSE),
    "sse-chunked": streamed(),
    "sse-eof": head(OK, SSE) + STREAM,
}
POINTS = 20


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("framing", BODIES)
async def test_a_truncated_answer_is_never_a_clean_end(framing: str, end: str) -> None:
    whole = BODIES[framing]
    points = [1 + at * (len(whole) - 2) // (POINTS - 1) for at in range(POINTS)]
    head_size = whole.index(b"\r\n\r\n") + 4
    if framing.endswith("eof") and end == "fin":
        # The close is the end of such a body: that it came early can't be known.
        points = [point for point in points if point < head_size]
    scripts: list[Script] = [
        [Send(whole[:point]), Close() if end == "fin" else Reset()] for point in points
    ]
    async with staged(*scripts) as stage:
        for point in points:
            heard = await stage.ask(ASKED_STREAM if "sse" in framing else ASKED)
            if point < head_size or heard.status != 200:
                assert is_refusal(heard)
            else:
                assert not heard.complete, f"cut at {point} of {len(whole)}: {heard.raw!r}"
                assert not heard.raw.endswith(LAST_CHUNK)
        assert len(stage.origin.peers) == len(points), "nothing of it is pooled"
        await stage.wait_idle()


@pytest.mark.parametrize(
    "broken",
    [
        b"zz\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"5\r\nhelloworld\r\n",
        b"5\r\nhello",
        b"fffffffffffffffff\r\nhello",
        b"\r\n\r\n",
        b"5" * 70_000,
        b"5;" + b"x" * 70_000,
    ],
    ids=lambda broken: repr(broken[:20]),
)
async def test_broken_chunks_in_the_middle_of_a_body_abort_it(broken: bytes) -> None:
    script = [Send(head(OK, JSON, CHUNKED) + chunks(b"hello") + broken), Close()]
    async with staged(script, GOOD) as stage:
        heard = await stage.ask()
        assert not heard.complete or is_refusal(heard)
        assert b"HTTP/1.1 500" not in heard.raw
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2


@pytest.mark.parametrize("trailer", [b"Content-Length: 3", b"Transfer-Encoding: x", b"X Bad: 1"])
async def test_trailers_that_would_frame_the_body_are_dropped_or_abort_it(trailer: bytes) -> None:
    answer = head(OK, JSON, CHUNKED) + chunks(ANSWER)
    script = [Send(answer), Drip(b"0\r\n" + trailer + b"\r\n\r\n", (3, 100)), Stall()]
    async with staged(script) as stage:
        heard = await stage.ask()
        assert (heard.status, heard.body) == (200, ANSWER)
        assert heard.all("content-length") == heard.trailers == []


async def test_trailers_without_end_abort_the_answer() -> None:
    script = [
        Send(head(OK, JSON, CHUNKED) + chunks(b"hello") + b"0\r\n"),
        *[Send(b"X-More: " + b"x" * 1000 + b"\r\n")] * 4000,
    ]
    async with staged(script) as stage:
        heard = await stage.ask()
        assert not heard.complete
        (peer,) = stage.origin.peers
        await peer.wait_gone()
        assert peer.sent < 4_000_000, "it was cut while it was still growing"


@pytest.mark.parametrize(
    "extra",
    [sized(b'{"evil": true}'), b"\r\n", b"x", LAST_CHUNK],
    ids=["a second answer", "a line", "a byte", "a chunk"],
)
@pytest.mark.parametrize("framing", ["length", "sse-chunked"])
async def test_bytes_after_the_answer_spoil_the_connection_but_not_the_answer(
    framing: str, extra: bytes
) -> None:
    expected = STREAM if "sse" in framing else ANSWER
    async with staged([Send(BODIES[framing] + extra), Stall()], GOOD) as stage:
        heard = await stage.ask()
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        heard = await stage.ask()
        assert (heard.status, heard.body) == (200, ANSWER)
        assert len(stage.origin.peers) == 2, "at once, not when it has been idle for long"
        await stage.origin.peers[0].wait_gone()


async def test_bytes_that_come_later_on_an_idle_connection_are_nobodys_answer() -> None:
    later = asyncio.Event()
    async with staged(
        [Send(sized()), Pause(later), Send(sized(b'{"evil": true}')), Stall()], GOOD
    ) as stage:
        assert (await stage.ask()).body == ANSWER
        later.set()
        await stage.origin.peers[0].wait_gone()
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.peers) == 2


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/1.1 204 No Content"],
        ["HTTP/1.1 204 No Content", SSE],
        ["HTTP/1.1 304 Not Modified", "Content-Length: 5"],
        ["HTTP/1.1 304 Not Modified", SSE, CHUNKED],
    ],
    ids=["204", "204 of events", "304", "304 of events"],
)
async def test_an_answer_without_a_body_has_none_whatever_follows(lines: list[str]) -> None:
    async with staged([Send(head(*lines) + b"hello"), Stall()], GOOD) as stage:
        async with stage.client() as client:
            heard = await client.ask(post(ASKED))
            assert (str(heard.status), heard.complete, heard.body) == (lines[0][9:12], True, b"")
            assert heard.all("transfer-encoding") == []
            assert (await client.ask(post(ASKED))).body == ANSWER
        assert len(stage.origin.peers) == 2, "nothing of it is pooled"


async def test_a_space_before_a_colon_is_taken_out_or_refused() -> None:
    """RFC 9112, section 5.1: a proxy must not pass it on."""
    async with staged([Send(head(OK, JSON, "Content-Length : 5") + b"hello"), Close()]) as stage:
        heard = await stage.ask()
        assert (heard.status, heard.body) == (200, b"hello") or is_refusal(heard)


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("cut", ["after an event", "in an event", "in a line's end"])
@pytest.mark.parametrize("path", DEATHS)
async def test_a_stream_that_dies_says_so_in_the_words_of_its_dialect(
    path: str, cut: str, end: Close | Reset
) -> None:
    before = {
        "after an event": EVENTS[0],
        "in an event": EVENTS[0] + EVENTS[1][:30],
        "in a line's end": EVENTS[0] + EVENTS[1][:-1],
    }[cut]
    async with staged([Send(SSE_HEAD + chunks(before)), end]) as stage:
        heard = await stage.ask(ASKED_STREAM, path=path)
        assert died_in_words(heard, path, before)
        await stage.wait_idle()
        fleet = stage.fleet
        assert await fleet.metric("cortexd_streams_interrupted_total", by="upstream") == 1
        assert await fleet.metric("cortexd_streams_interrupted_total", by="client") == 0
        assert len(stage.origin.requests) == 1, "not to be tried again"


@pytest.mark.parametrize("path", DEATHS)
@pytest.mark.parametrize("framing", ["length", "eof"])
async def test_a_stream_that_dies_in_another_framing_says_so_too(path: str, framing: str) -> None:
    start = head(OK, SSE, *([f"Content-Length: {len(STREAM)}"] if framing == "length" else []))
    async with staged([Send(start + EVENTS[0]), Reset()]) as stage:
        assert died_in_words(await stage.ask(ASKED_STREAM, path=path), path, EVENTS[0])


async def test_a_stream_that_dies_before_its_first_event_says_so_or_is_a_502() -> None:
    async with staged([Send(SSE_HEAD), Close()]) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert is_refusal(heard) if heard.status != 200 else died_in_words(heard, CHAT, b"")
        assert len(stage.origin.requests) == 1, "an answer has begun: not to be tried again"


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
async def test_an_answer_that_is_no_stream_is_aborted_without_a_word(framing: str) -> None:
    whole = BODIES[framing]
    cut = whole.index(b"\r\n\r\n") + 14
    async with staged([Send(whole[:cut]), Reset()]) as stage, stage.client() as client:
        heard = await client.ask(post(ASKED))
        assert not heard.complete
        assert ANSWER.startswith(heard.body)
        await stage.wait_idle()
        fleet = stage.fleet
        assert await fleet.metric("cortexd_streams_interrupted_total", by="upstream") == 1


async def test_an_aborted_answer_to_an_http_1_0_client_ends_in_a_reset() -> None:
    async with staged([Send(head(OK, JSON, CHUNKED) + chunks(b"hello")), Close()]) as stage:
        heard = await stage.ask(version="1.0")
        assert heard.ended == "reset" or is_refusal(heard), "its only sign of a broken body"


@pytest.mark.parametrize(("version", "ended"), [("1.1", "eof"), ("1.0", "reset")])
async def test_a_stream_that_dies_without_a_word_of_ours_is_not_whole_either(
    version: str, ended: str
) -> None:
    """As behind a neuron, which knows no dialects. Chunks tell it; else only a reset can."""
    exchange = Exchange(Resolver())
    origin = Origin([Send(SSE_HEAD + chunks(EVENTS[0])), Close()])

    async def carry(request: web.BaseRequest) -> web.StreamResponse:
        splice = Splice(request)
        await exchange.carry(splice, request, Call(origin.url, "/", b"{}"))
        splice.release()
        return splice.response()

    async with origin.running(), open_site(carry) as site, connected(site.address) as client:
        heard = await client.ask(post(b"{}", version=version))
        await client.read_rest()
        assert client.ended == ended
        assert not (heard.complete and ended == "eof")
        await exchange.close()


async def test_a_refused_connection_is_a_502_that_names_the_node() -> None:
    with refusing() as url:
        neuron = FakeNeuron({"m": "loaded"})
        neuron.endpoint_answer = lambda _: web.json_response({"url": url})
        async with running_fleet(a=neuron) as fleet:
            answer = await fleet.ask()
            assert answer.status == 502
            assert answer.headers["x-cortex-code"] == "upstream_failed"
            assert answer.headers["Retry-After"] == "1"
            assert "a" in answer.json["error"]["message"]
            await until(lambda: not fleet.gateway.registry.ledger.in_flight)


@pytest.mark.parametrize(
    "script",
    [
        [Read(0), Reset()],
        [Read(0), Close()],
        [Read(100), Reset()],
        [Read(100), Close()],
    ],
    ids=["reset at connect", "closed at connect", "reset", "closed"],
)
async def test_a_connection_that_fails_before_it_took_the_request_is_a_502(script: Script) -> None:
    """The request does not fit into any kernel's buffers: it can't have been sent whole."""
    body = json.dumps({"model": "m", "filler": "x" * 40_000_000}).encode()
    async with staged(origin=Origin(script, receive_buffer=65536)) as stage:
        assert is_refusal(await stage.ask(body))
        await stage.wait_idle()


async def test_an_early_answer_to_a_long_request_is_passed_and_the_connection_not_reused() -> None:
    """A 413 before the body was read is the upstream's right."""
    body = json.dumps({"model": "m", "filler": "x" * 40_000_000}).encode()
    early = sized(b'{"error": "too long"}', status="HTTP/1.1 413 Content Too Large")
    origin = Origin([Read(100), Send(early), Stall()], GOOD, receive_buffer=65536)
    async with staged(origin=origin) as stage:
        heard = await stage.ask(body)
        assert (heard.status, heard.complete, heard.body) == (413, True, b'{"error": "too long"}')
        assert (await stage.ask()).body == ANSWER
        assert len(origin.peers) == 2


async def test_the_client_connection_lives_on_after_a_refusal() -> None:
    async with staged([Send(TLS_ALERT), Stall()], GOOD) as stage, stage.client() as client:
        assert is_refusal(await client.ask(post(ASKED)))
        assert (await client.ask(post(ASKED))).body == ANSWER


async def test_the_anthropic_face_refuses_in_its_own_words() -> None:
    async with staged([Send(TLS_ALERT), Stall()]) as stage:
        heard = await stage.ask(path="/v1/messages")
        assert (heard.status, heard.code) == (502, "upstream_failed")
        assert heard.json["error"]["type"] == "api_error"  # type: ignore[index]
        assert heard.json["request_id"] == heard.get("request-id")  # type: ignore[index]
