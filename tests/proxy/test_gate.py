"""What may come in, and what is never taken for another request, as bytes on a real socket."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import Any

import h11
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.proxy.gate import MAX_FIELDS, MAX_HEAD, MAX_TARGET, Gate
from tests.functional.raw import answered, answers, connected
from tests.proxy.site import Site, held, open_site
from tests.waiting import until

CANARY = b"GET /canary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HOST = b"Host: x\r\n"


def get(*fields: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"GET " + target + b" " + version + b"\r\n" + HOST + lines + b"\r\n"


def post(*fields: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST / " + version + b"\r\n" + HOST + lines + b"\r\n" + body


CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"
BAD = {
    "both-lengths": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=CHUNKED),
    "both-lengths-turned": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=CHUNKED),
    "two-lengths": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "two-different-lengths": post(b"Content-Length: 3", b"Content-Length: 0", body=b"abc"),
    "list-of-lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "signed-length": post(b"Content-Length: +3", body=b"abc"),
    "negative-length": post(b"Content-Length: -3", body=b"abc"),
    "hexadecimal-length": post(b"Content-Length: 0x3", body=b"abc"),
    "underscored-length": post(b"Content-Length: 3_0", body=b"abc"),
    "no-length": post(b"Content-Length:", body=b"abc"),
    "length-over-64-bits": post(b"Content-Length: 18446744073709551616", body=b"abc"),
    "length-of-64-bits": post(b"Content-Length: 18446744073709551615", body=b"abc"),
    "length-over-63-bits": post(b"Content-Length: 9223372036854775808", body=b"abc"),
    "length-of-many-zeros": post(b"Content-Length: " + b"0" * 5000 + b"3", body=b"abc"),
    "gzip-chunked": post(b"Transfer-Encoding: gzip, chunked", body=CHUNKED),
    "identity-chunked": post(b"Transfer-Encoding: identity, chunked", body=CHUNKED),
    "chunked-identity": post(b"Transfer-Encoding: chunked, identity", body=CHUNKED),
    "chunked-chunked": post(b"Transfer-Encoding: chunked, chunked", body=CHUNKED),
    "two-codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKED),
    "identity": post(b"Transfer-Encoding: identity", body=b"abc"),
    "no-coding": post(b"Transfer-Encoding:", body=b"abc"),
    "no-coding-but-a-length": post(b"Transfer-Encoding:", b"Content-Length: 3", body=b"abc"),
    "unknown-coding": post(b"Transfer-Encoding: xchunked", body=CHUNKED),
    "coding-with-a-parameter": post(b"Transfer-Encoding: chunked;q=1", body=CHUNKED),
    "coding-behind-a-tab": post(b"Transfer-Encoding: \x0bchunked", body=CHUNKED),
    "coding-on-1.0": post(b"Transfer-Encoding: chunked", body=CHUNKED, version=b"HTTP/1.0"),
    "folded-field": get(b"X: a", b" b"),
    "field-before-fields": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "bare-lf": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare-lf-in-the-fields": get(b"X: a\nTransfer-Encoding: chunked"),
    "bare-cr-in-a-value": get(b"X: a\rTransfer-Encoding: chunked"),
    "nul-in-a-value": get(b"X: a\x00b"),
    "nul-in-a-name": get(b"X\x00: a"),
    "nul-in-the-target": get(target=b"/\x00"),
    "escape-in-a-value": get(b"X: \x1b[2J"),
    "space-before-the-colon": get(b"Content-Length : 3"),
    "tab-before-the-colon": get(b"Content-Length\t: 3"),
    "no-name": get(b": a"),
    "no-colon": get(b"X"),
    "two-hosts": get(HOST.strip()),
    "no-host": b"GET / HTTP/1.1\r\n\r\n",
    "http-0.9": b"GET /\r\n\r\n",
    "http-0.9-spelt": get(version=b"HTTP/0.9"),
    "http-1.2": get(version=b"HTTP/1.2"),
    "http-2.0": get(version=b"HTTP/2.0"),
    "http-11": get(version=b"HTTP/11"),
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no-http": get(version=b"FTP/1.1"),
    "rtsp": get(version=b"RTSP/1.0"),
    "rtsp-1.1": get(version=b"RTSP/1.1"),
    "rtsp-method": b"DESCRIBE / RTSP/1.0\r\n" + HOST + b"\r\n",
    "rtsp-behind-an-empty-line": b"\r\n" + get(version=b"RTSP/1.0"),
    "ice": b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n",
    "bare-lf-before": b"\n" + get(),
    "bare-cr-before": b"\r" + get(),
    "bare-lf-behind-an-empty-line": b"\r\n\n" + get(),
    "lf-cr-before": b"\n\r" + get(),
    "two-cr-before": b"\r\r\n" + get(),
    "connect": b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect-with-a-body": b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    "connect-to-nowhere": b"CONNECT \r\n" + HOST + b"\r\n",
    "connect-to-nowhere-1.1": b"CONNECT  HTTP/1.1\r\n" + HOST + b"\r\n",
    "no-target": b"GET \r\n" + HOST + b"\r\n",
    "no-target-1.1": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "trace": b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n",
    "small-letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "space-in-the-target": get(target=b"/a b"),
    "no-slash": get(target=b"canary"),
    "absolute-without-a-host": get(target=b"http:///v1/models"),
    "absolute-with-a-bad-coding": b"POST http://y/ HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: gzip, chunked\r\n\r\n"
    + CHUNKED,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "noise": bytes(range(256)),
}
NOT_400 = {
    "long-target": (get(target=b"/" + b"a" * 8192), "uri_too_long", 414),
    "long-absolute-target": (get(target=b"http://x/" + b"a" * 8192), "uri_too_long", 414),
    "fields": (get(*(b"X: y" for _ in range(100))), "head_too_large", 431),
    "long-field": (get(b"X: " + b"a" * (33 << 10)), "head_too_large", 431),
    "long-name": (get(b"a" * (33 << 10) + b": x"), "head_too_large", 431),
    "long-head": (get(*(b"X: " + b"a" * 8000 for _ in range(5))), "head_too_large", 431),
}
REFUSED = {name: (raw, "bad_request", 400) for name, raw in BAD.items()} | NOT_400


def assert_refused(site: Site, received: bytes, code: str, status: int) -> None:
    (answer,) = answers(received, "GET")
    assert answer.status == status
    assert answer.get("x-code") == code
    assert answer.get("connection") == "close"
    assert site.refused == [code]
    assert site.handled == []


@pytest.mark.parametrize(("raw", "code", "status"), REFUSED.values(), ids=list(REFUSED))
async def test_it_is_refused_and_what_follows_at_once_is_never_answered(
    raw: bytes, code: str, status: int
) -> None:
    async with open_site() as site:
        assert_refused(site, await answered(site.address, raw + CANARY), code, status)


@pytest.mark.parametrize(("raw", "code", "status"), REFUSED.values(), ids=list(REFUSED))
async def test_it_is_refused_and_what_follows_later_is_never_answered(
    raw: bytes, code: str, status: int
) -> None:
    async with open_site() as site, connected(site.address) as client:
        await client.send(raw)
        await client.read_rest()
        await client.send(CANARY)
        await client.send(CANARY * 1000)
        client.leave()
        await until(lambda: not site.server.doors)
        assert_refused(site, client.received, code, status)


@pytest.mark.parametrize(
    "raw", [REFUSED[name][0] for name in ("gzip-chunked", "long-head", "two-hosts", "http-0.9")]
)
async def test_it_is_refused_however_slowly_it_comes(raw: bytes) -> None:
    async with open_site() as site, connected(site.address) as client:
        for start in range(0, len(raw), 97):
            await client.send(raw[start : start + 97])
            await asyncio.sleep(0)
        await client.send(CANARY)
        await client.read_rest()
        assert len(answers(client.received, "GET")) == len(site.refused) == 1
        assert site.handled == []


async def test_a_head_that_never_ends_is_refused_as_soon_as_it_is_too_large() -> None:
    async with open_site() as site, connected(site.address) as client:
        await client.send(get(*(b"X: " + b"a" * 8000 for _ in range(5)))[:-2])
        assert_refused(site, await client.read_rest(), "head_too_large", 431)


async def test_a_good_request_before_a_bad_one_is_answered_first() -> None:
    hold, is_let_go = held(b"good")
    async with open_site(hold) as site, connected(site.address) as client:
        await client.send(get(target=b"/good"))
        await until(lambda: bool(site.handled))
        await client.send(BAD["gzip-chunked"] + CANARY)
        await client.send(CANARY)
        is_let_go.set()
        first, second = answers(await client.read_rest(), "GET", "POST")
        assert (first.status, first.body) == (200, b"good")
        assert second.status == 400
        assert [target for _, target, _ in site.handled] == ["/good"]


async def test_a_good_request_in_one_piece_with_a_bad_one_is_answered_first() -> None:
    async with open_site() as site:
        received = await answered(site.address, get(target=b"/good") + BAD["trace"] + CANARY)
        assert [each.status for each in answers(received, "GET", "GET")] == [200, 400]
        assert [target for _, target, _ in site.handled] == ["/good"]


@pytest.mark.parametrize(
    "broken",
    [b"zz\r\n", b"-3\r\nabc", b"0x3\r\nabc", b"3\nabc\r\n", b"3\r\nabcd\r\n", b"f" * 17 + b"\r\n"],
)
async def test_a_body_whose_chunks_break_off_is_never_taken_for_whole(broken: bytes) -> None:
    failure: list[BaseException] = []

    async def read(request: web.BaseRequest) -> web.Response:
        try:
            await request.read()
        except Exception as error:
            failure.append(error)
            raise
        return web.Response(body=b"whole")

    async with open_site(read) as site, connected(site.address) as client:
        await client.send(post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"))
        await until(lambda: bool(site.handled))
        await client.send(broken + b"0\r\n\r\n" + CANARY)
        await client.send(CANARY)
        assert b"whole" not in await client.read_rest()
        assert len(site.handled) == 1
        assert repr(failure[0]).startswith("<Refusal 400 bad_request")


async def test_a_broken_rest_of_a_body_that_nobody_reads_only_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def ignore(request: web.BaseRequest) -> web.Response:
        return web.Response(body=b"seen")

    async with open_site(ignore) as site, connected(site.address) as client:
        await client.send(post(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"))
        await client.read_until(b"seen")
        await client.send(b"zz\r\n" + CANARY)
        await client.read_rest()
        (answer,) = answers(client.received, "POST")
        assert answer.status == 200
        assert caplog.text == ""


GOOD = {
    "plain": get(),
    "1.0": get(version=b"HTTP/1.0"),
    "chunked": post(b"Transfer-Encoding: chunked", body=CHUNKED),
    "chunked-in-capitals": post(b"Transfer-Encoding: Chunked", body=CHUNKED),
    "extensions-and-trailers": post(
        b"Transfer-Encoding: chunked", body=b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"
    ),
    "empty-lines-first": b"\r\n\r\n" + get(),
    "target-of-8-kib": get(target=b"/" + b"a" * 8191),
    "100-fields": get(*(b"X: y" for _ in range(99))),
    "head-of-32-kib": get(*(b"X: " + b"a" * 8000 for _ in range(4))),
    "upgrade-that-is-ignored": get(b"Connection: Upgrade", b"Upgrade: websocket"),
    "bytes-that-are-no-ascii": get(b"X: \xff\xe4"),
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=list(GOOD))
@pytest.mark.parametrize("step", [1 << 20, 5])
async def test_what_is_allowed_is_served_in_whatever_pieces_it_comes(raw: bytes, step: int) -> None:
    async with open_site() as site, connected(site.address) as client:
        for start in range(0, len(raw), step):
            await client.send(raw[start : start + step])
            await asyncio.sleep(0)
        if b"HTTP/1.0" not in raw:
            await client.send(CANARY)  # now just the next request
        await client.read_rest()
        assert site.refused == []
        assert len(site.handled) == client.received.count(b" 200 OK\r\n")
        assert len(site.handled) == (1 if b"HTTP/1.0" in raw else 2)


def test_empty_lines_and_pipelined_heads_are_served_wherever_the_pieces_end() -> None:
    raw = b"\r\n\r\n" + get() + post(b"Content-Length: 3", body=b"abc") + get() + b"\r\n" + get()
    expected = [("GET", b""), ("POST", b"abc"), ("GET", b""), ("GET", b"")]
    for first in range(len(raw)):
        for second in (first + 1, first + 2, len(raw)):
            assert seen_by_us(raw, [first, min(second, len(raw))]) == expected, (first, second)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in BAD if "rtsp" in name or "-before" in name])
async def test_a_bad_first_line_is_refused_in_whatever_pieces_it_comes(
    name: str, step: int
) -> None:
    async with open_site() as site, connected(site.address) as client:
        for start in range(0, len(BAD[name]), step):
            with suppress(ConnectionError):
                await client.send(BAD[name][start : start + step])
            await asyncio.sleep(0)
        assert_refused(site, await client.read_rest(), "bad_request", 400)


@pytest.mark.parametrize("bad", [b"\n" + get(), b"\r" + get(), get(version=b"RTSP/1.0")])
async def test_a_bad_first_line_of_a_later_request_is_refused(bad: bytes) -> None:
    async with open_site() as site, connected(site.address) as client:
        assert (await client.ask(get())).status == 200
        await client.send(bad)
        assert (await client.read_answer("GET")).status == 400
        assert site.refused == ["bad_request"]


async def test_a_head_is_weighed_even_when_it_came_along_with_an_earlier_request() -> None:
    head = get(*(b"X: " + b"a" * 8000 for _ in range(5)), target=b"/large")
    async with open_site() as site:
        received = await answered(site.address, get() + head[:-2], head[-2:], CANARY)
        assert [each.status for each in answers(received, "GET", "GET")] == [200, 431]
        assert [target for _, target, _ in site.handled] == ["/"]


async def test_names_with_underscores_are_dropped() -> None:
    seen: list[tuple[str, str]] = []
    raw: list[tuple[bytes, bytes]] = []

    async def look(request: web.BaseRequest) -> web.Response:
        seen.extend(request.headers.items())
        raw.extend(request._message.raw_headers)
        return web.Response()

    async with open_site(look) as site:
        fields = (b"X_Real_Ip: 1", b"X-Kept: a_b", b"Content_Length: 3", b"X-Odd: \xff")
        await answered(site.address, get(*fields, b"Connection: close"))
    assert [name for name, _ in seen] == ["Host", "X-Kept", "X-Odd", "Connection"]
    assert [name for name, _ in raw] == [b"Host", b"X-Kept", b"X-Odd", b"Connection"]
    assert dict(seen)["X-Kept"] == "a_b"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://evil.example:99/v1/models?x=1", "/v1/models?x=1"),
        (b"https://u:p@evil.example/%2e%2e/a", "/%2e%2e/a"),
        (b"http://evil.example", "/"),
        (b"http://evil.example?x", "/?x"),
    ],
)
async def test_of_an_absolute_target_only_the_path_counts(target: bytes, path: str) -> None:
    seen: list[tuple[str, str, str]] = []

    async def look(request: web.BaseRequest) -> web.Response:
        seen.append((request.raw_path, str(request.rel_url), request.host))
        return web.Response()

    async with open_site(look) as site:
        await answered(site.address, get(b"Connection: close", target=target))
    assert seen == [(path, path, "x")]


async def test_the_refusal_knows_the_path_where_there_is_one() -> None:
    raw = BAD["gzip-chunked"].replace(b"POST /", b"POST /v1/messages")
    async with open_site() as site:
        (answer,) = answers(await answered(site.address, raw), "POST")
        assert answer.body == b"bad_request /v1/messages"


async def test_nothing_of_what_the_client_sent_is_echoed_or_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    async with open_site() as site:
        for raw in (get(b"X: s3cret\x00"), get(target=b"/s3cret" * 2000), b"s3cret\x00\r\n\r\n"):
            assert b"s3cret" not in await answered(site.address, raw)
    assert "s3cret" not in caplog.text
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


FIELDS = [
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: +3",
    b"Content-Length: 3, 3",
    b"Content-Length:3 ",
    b"Content-Length : 3",
    b"Content_Length: 3",
    b"Content-Length: 18446744073709551615",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding:",
    b"Transfer-Encoding\x0b: chunked",
    b"X: a\r\n\tb",
    b"X: a\rTransfer-Encoding: chunked",
    b"X: a\nContent-Length: 3",
    b"X: \x00",
    b"X: \xff",
    b"Host: y",
    b"Connection: close",
    b"Expect: 100-continue",
    b": x",
    b"X",
]
BODIES = [
    b"",
    b"abc",
    CHUNKED,
    b"03;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"fffffffff\r\nabc",
    b"3\r\nabcd\r\n0\r\n\r\n",
]
requests = st.tuples(
    st.sampled_from([b"GET", b"POST", b"CONNECT", b"TRACE", b"get", b"G T"]),
    st.sampled_from([b"/", b"/a?b", b"http://y/", b"*", b"", b"/\xe4"]),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b" HTTP/0.9", b""]),
    st.lists(st.sampled_from(FIELDS), max_size=3),
    st.sampled_from(BODIES),
).map(
    lambda it: (
        it[0]
        + b" "
        + it[1]
        + it[2]
        + b"\r\n"
        + b"\r\n".join([b"Host: x", *it[3]])
        + b"\r\n\r\n"
        + it[4]
    )
)


def seen_by_us(raw: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    loop = asyncio.new_event_loop()
    try:
        protocol = BaseProtocol(loop)
        parser: Any = HttpRequestParser(
            protocol, loop, 1 << 15, max_line_size=MAX_TARGET, max_field_size=MAX_HEAD,
            max_headers=MAX_FIELDS, auto_decompress=False,
        )  # fmt: skip
        gate: Any = Gate(parser, protocol, loop, lambda payload, refusal: None)
        protocol._parser = gate
        fed: list[Any] = []
        for start, end in itertools.pairwise([0, *sorted(cuts), len(raw)]):
            fed += gate.feed_data(raw[start:end])[0]
        return [
            (message.method, payload.read_nowait(-1))
            for message, payload in fed
            if payload.is_eof() and payload.exception() is None
        ]
    finally:
        loop.close()


def seen_by_h11(raw: bytes) -> list[tuple[str, bytes]]:
    peer, found, body = h11.Connection(h11.SERVER), [], b""
    peer.receive_data(raw)
    try:
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method.decode(), b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, body))
                peer.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
                peer.send(h11.EndOfMessage())
                if peer.our_state is not h11.DONE:
                    return found
                peer.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return found


@given(st.lists(requests, min_size=1, max_size=3).map(b"".join), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_taken_for_a_request_is_one_to_another_parser_too(
    raw: bytes, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4))
    ours = seen_by_us(raw, cuts)
    assert ours == seen_by_h11(raw)[: len(ours)]
