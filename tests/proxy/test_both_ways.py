"""What crosses the gateway: the request's bytes up, the headers in both directions."""

from __future__ import annotations

import asyncio

import pytest

from tests.functional.faults import Close, Request, Send
from tests.functional.raw import post
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    JSON,
    LAST_CHUNK,
    OK,
    SSE_HEAD,
    STREAM,
    chunks,
    head,
    sized,
    staged,
    streamed,
)

GOOD = [Send(sized())]

ODD_BODIES = {
    "white space": b' \r\n\t{"model" :\t"m" ,\n\n "messages":[ ] }\r\n\r\n',
    "unicode": '{"model": "m", "prompt": "é 🎉 \u202e \\ud83c\\udf89 \\u00e9 ﷽"}'.encode(),
    "numbers": b'{"model": "m", "a": 1.50, "b": 1e5, "c": 100000000000000000000000, "d": -0.0}',
    "doubled keys": b'{"model": "x", "a": 1, "a": 2, "model": "m"}',
    "5 MB": b'{"model": "m", "prompt": "' + b"0123456789" * 500_000 + b'"}',
}


@pytest.mark.parametrize("name", ODD_BODIES)
async def test_a_body_goes_up_byte_for_byte(name: str) -> None:
    body = ODD_BODIES[name]
    async with staged(GOOD) as stage:
        assert (await stage.ask(body)).body == ANSWER
        (request,) = stage.origin.requests
        assert request.body == body
        assert request.all("content-length") == [str(len(body))]
        assert request.all("transfer-encoding") == []


async def test_a_body_in_chunks_goes_up_with_its_length() -> None:
    body = ODD_BODIES["5 MB"]
    pieces = [body[at : at + 70_001] for at in range(0, len(body), 70_001)]
    async with staged(GOOD) as stage, stage.client() as client:
        start = head("POST /v1/completions HTTP/1.1", "Host: gateway", CHUNKED, "Trailer: X-T")
        heard = await client.ask(start + chunks(*pieces) + b"0\r\nX-T: 1\r\n\r\n")
        assert heard.body == ANSWER
        (request,) = stage.origin.requests
        assert request.body == body
        assert request.all("content-length") == [str(len(body))]
        assert request.all("transfer-encoding") == request.all("trailer") == []
        assert request.all("x-t") == []


async def test_an_alias_changes_the_model_and_nothing_else() -> None:
    body = b'{"a":1.50,"model":"small","z":{"k":[1e5,"\\u00e9"]},"model_":"small"}'
    async with staged(GOOD, model="team/m", aliases={"small": "team/m"}) as stage:
        heard = await stage.ask(body)
        assert (heard.body, heard.get("x-cortex-model")) == (ANSWER, "team/m")
        (request,) = stage.origin.requests
        assert request.body == body.replace(b'"model":"small"', b'"model":"team/m"')
        assert request.all("content-length") == [str(len(request.body))]


@pytest.mark.parametrize(
    "target", ["/v1/messages?beta=true&x=%2F+%C3%A9&empty=&y", "/v1/completions", "/v1/rerank?"]
)
async def test_path_and_query_go_up_as_they_came(target: str) -> None:
    async with staged(GOOD) as stage:
        assert (await stage.ask(path=target)).status == 200
        (request,) = stage.origin.requests
        assert request.target.rstrip("?") == target.rstrip("?")
        assert request.method == "POST"


async def upward(*headers: str) -> Request:
    """The request that reaches the upstream when a client sends these."""
    async with staged(GOOD) as stage:
        heard = await stage.ask(ASKED, *headers)
        assert (heard.status, heard.body) == (200, ANSWER)
        (request,) = stage.origin.requests
        return request


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer canary",
        "authorization: Basic canary",
        "X-Api-Key: canary",
        "Cookie: canary=1",
        "x-cortex-node: canary",
        "X-Cortex-Anything: canary",
        "Proxy-Authorization: canary",
        "Proxy-Authenticate: canary",
        "Proxy-Connection: canary",
        "Keep-Alive: timeout=5, canary",
        "TE: trailers, canary",
        "Trailer: canary",
        "Upgrade: canary",
        "X_Api_Key: canary",
        "X_Anything: canary",
    ],
)
async def test_a_header_that_is_not_the_upstreams_business_does_not_go_up(header: str) -> None:
    request = await upward(header)
    assert b"canary" not in request.raw


@pytest.mark.parametrize(
    "connection", ["X-Hop", "close, X-Hop", "keep-alive,x-hop ,X-Other", " , X-HOP,,"]
)
async def test_what_the_connection_header_names_does_not_go_up(connection: str) -> None:
    request = await upward(f"Connection: {connection}", "X-Hop: canary", "X-Kept: 1")
    assert b"canary" not in request.raw
    assert request.all("x-kept") == ["1"]
    assert not any("x-hop" in value.lower() for value in request.all("connection"))


async def test_the_connection_header_can_be_given_twice() -> None:
    request = await upward(
        "Connection: keep-alive", "X-One: canary", "Connection: x-one, x-two", "X-Two: canary"
    )
    assert b"canary" not in request.raw


async def test_other_headers_go_up_in_their_order_with_their_doubles() -> None:
    sent = [
        "User-Agent: curl/8",
        "X-Multi: one",
        "Accept: text/event-stream",
        "X-Multi: two, three",
        "anthropic-beta: tools",
        "anthropic-beta: more",
        "X-Empty:",
        "X-Latin: caf\xe9",
        "OpenAI-Organization:  spaced \t",
    ]
    request = await upward(*sent)
    kept = [
        (name, value)
        for name, value in request.headers
        if name in {line.partition(":")[0].lower() for line in sent}
    ]
    assert kept == [
        (name.lower(), value.strip(" \t")) for name, _, value in (s.partition(":") for s in sent)
    ]


async def test_what_goes_up_states_its_own_host_length_and_encoding_once() -> None:
    async with staged(GOOD) as stage:
        await stage.ask(ASKED, "Accept-Encoding: gzip, br", "Accept-Encoding: zstd", "Expect:")
        (request,) = stage.origin.requests
        (host,) = request.all("host")
        assert host.rpartition(":")[2] == str(stage.origin.port)
        assert request.all("accept-encoding") == ["identity"]
        assert request.all("content-length") == [str(len(ASKED))]
        assert request.all("expect") == []
        assert len(request.all("x-request-id")) == 1


async def test_the_request_id_is_the_same_on_both_sides() -> None:
    async with staged(GOOD) as stage:
        heard = await stage.ask(ASKED, "X-Request-Id: mine.1")
        assert heard.get("x-request-id") == "mine.1"
        assert stage.origin.requests[0].all("x-request-id") == ["mine.1"]


@pytest.mark.parametrize(
    "header",
    [
        "Server: canary",
        "Set-Cookie: canary=1",
        "set-cookie: canary=2; HttpOnly",
        "x-cortex-node: canary",
        "X-Cortex-Anything: canary",
        "x-request-id: canary",
        "Keep-Alive: timeout=5, canary",
        "Proxy-Authenticate: canary",
        "Proxy-Connection: canary",
        "Trailer: canary",
        "Upgrade: canary",
        "TE: canary",
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_header_that_is_not_the_clients_business_does_not_come_back(
    header: str, stream: bool
) -> None:
    answer = streamed().replace(SSE_HEAD, SSE_HEAD[:-2] + f"{header}\r\n\r\n".encode())
    async with staged([Send(answer if stream else sized(ANSWER, header))]) as stage:
        heard = await stage.ask(ASKED_STREAM if stream else ASKED)
        assert (heard.complete, heard.body) == (True, STREAM if stream else ANSWER)
        assert b"canary" not in heard.raw
        assert heard.get("server") == "cortexd"
        assert heard.get("x-cortex-node") == "a"


async def test_what_the_upstreams_connection_header_names_does_not_come_back() -> None:
    answer = sized(ANSWER, "Connection: close, X-Hop", "X-Hop: canary", "X-Kept: 1")
    async with staged([Send(answer)]) as stage, stage.client() as client:
        for _ in range(2):  # nor is the upstream's close the client's
            heard = await client.ask(post(ASKED))
            assert (heard.body, heard.ended) == (ANSWER, None)
            assert b"canary" not in heard.raw
            assert heard.get("x-kept") == "1"


async def test_other_headers_come_back_in_their_order_with_their_doubles() -> None:
    sent = [
        "X-Multi: one",
        "Vary: Origin",
        "X-Multi: two, three",
        "Vary: Accept",
        "X-Empty:",
        "X-Latin: caf\xe9 \xc3\xa9",
        "openai-processing-ms:  12 \t",
        'ETag: W/"1"',
    ]
    async with staged([Send(sized(ANSWER, *sent))]) as stage:
        heard = await stage.ask()
        names = {line.partition(":")[0].lower() for line in sent}
        # `Vary: Origin` is the gateway's own, and comes with its own fields.
        expected = [line for line in sent if line != "Vary: Origin"] + ["Vary: Origin"]
        assert [pair for pair in heard.headers if pair[0] in names] == [
            (name.lower(), value.strip(" \t"))
            for name, _, value in (line.partition(":") for line in expected)
        ]


async def test_each_of_our_own_headers_stands_once() -> None:
    said = ["Date: Thu, 01 Jan 1970 00:00:00 GMT", "request-id: theirs", "Server: x"]
    async with staged([Send(sized(ANSWER, *said))]) as stage:
        heard = await stage.ask(path="/v1/messages")
        for name in ("date", "content-type", "server", "x-request-id", "request-id"):
            assert len(heard.all(name)) == 1, name
        assert heard.get("request-id") == heard.get("x-request-id") != "theirs"


@pytest.mark.parametrize(
    "kind", ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream"]
)
async def test_a_stream_is_marked_so_that_nothing_in_front_holds_tokens_back(kind: str) -> None:
    answer = head(
        OK, f"Content-Type: {kind}", CHUNKED, "Cache-Control: max-age=60", "X-Accel-Buffering: yes"
    )
    async with staged([Send(answer + chunks(STREAM) + LAST_CHUNK)]) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert heard.get("cache-control") == "no-cache"
        assert heard.get("x-accel-buffering") == "no"
        assert heard.get("content-type") == kind


async def test_an_answer_that_is_no_stream_keeps_its_cache_control() -> None:
    async with staged([Send(sized(ANSWER, "Cache-Control: max-age=60"))]) as stage:
        heard = await stage.ask()
        assert heard.get("cache-control") == "max-age=60"
        assert heard.get("x-accel-buffering") is None


async def test_an_encoding_that_nobody_asked_for_passes_with_its_name() -> None:
    packed = bytes.fromhex("1f8b08000000000002ffcb48cdc9c907008610366c05000000")
    async with staged([Send(sized(packed, "Content-Encoding: gzip"))]) as stage:
        heard = await stage.ask()
        assert (heard.body, heard.get("content-encoding")) == (packed, "gzip")


ODD_HEADS = {
    "no reason": head("HTTP/1.1 200 ", JSON, "Content-Length: 5") + b"hello",
    "a long reason": head("HTTP/1.1 200 " + "very " * 50 + "OK", "Content-Length: 5") + b"hello",
    "a reason that is not ASCII": head("HTTP/1.1 200 caf\xe9", "Content-Length: 5") + b"hello",
    "lower case": head(OK, "content-length:5", "content-type:application/json") + b"hello",
    "white space around values": head(OK, "Content-Length: \t 5 \t ") + b"hello",
    "Chunked": head(OK, "transfer-encoding: Chunked") + chunks(b"hello") + LAST_CHUNK,
    "HTTP/1.0": head("HTTP/1.0 200 OK", "Content-Length: 5") + b"hello",
    "an early hint before": head("HTTP/1.1 103 Early Hints", "Link: </x>")
    + head(OK, "Content-Length: 5")
    + b"hello",
    "100 before": head("HTTP/1.1 100 Continue") + head(OK, "Content-Length: 5") + b"hello",
    "a head of 60 KiB": head(OK, "X-Long: " + "x" * 60_000, "Content-Length: 5") + b"hello",
    "no type": head(OK, "Content-Length: 5") + b"hello",
    "no fields": head(OK) + b"hello",
}


@pytest.mark.parametrize("name", ODD_HEADS)
async def test_a_head_of_an_odd_but_legal_shape_is_understood(name: str) -> None:
    async with staged([Send(ODD_HEADS[name]), Close()]) as stage:
        heard = await stage.ask()
        assert (heard.status, heard.fault, heard.complete) == (200, None, True)
        assert heard.body == b"hello"
        assert heard.all("link") == []


async def test_a_folded_header_is_unfolded_or_refused() -> None:
    """RFC 9112, section 5.2: a proxy must not pass it on as it is."""
    answer = head(OK, "X-Long: one\r\n two", "Content-Length: 5") + b"hello"
    async with staged([Send(answer), Close()]) as stage:
        heard = await stage.ask()
        if heard.code != "upstream_failed":
            assert (heard.status, heard.body) == (200, b"hello")
            assert (heard.get("x-long") or "").split() == ["one", "two"]
        assert b"\r\n two" not in heard.raw


@pytest.mark.parametrize("status", [201, 206, 301, 307, 400, 403, 404, 418, 451, 500, 599])
async def test_a_status_passes_as_it_is_and_a_redirect_is_not_followed(status: int) -> None:
    answer = sized(ANSWER, "Location: http://127.0.0.1:1/", status=f"HTTP/1.1 {status} Odd Words")
    async with staged([Send(answer)]) as stage:
        heard = await stage.ask()
        assert (heard.status, heard.body) == (status, ANSWER)
        assert len(stage.origin.requests) == 1


async def test_concurrent_requests_keep_their_bodies_apart() -> None:
    async with staged(GOOD) as stage:
        asked = [ASKED[:-1] + b', "n": %d}' % number for number in range(40)]
        await asyncio.gather(*(stage.ask(body) for body in asked))
        assert sorted(request.body for request in stage.origin.requests) == sorted(asked)
