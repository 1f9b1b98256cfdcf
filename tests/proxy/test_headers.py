from __future__ import annotations

import pytest

from cortexd.proxy.headers import client_lines, lines, upstream_lines


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Proxy-Authorization",
        "Authorization",
        "X-API-Key",
        "API-Key",
        "Api-Key",
        "x-goog-api-key",
        "X-LiteLLM-API-Key",
        "ApiKey",
        "X-Auth-Token",
        "X-Auth-Key",
        "Ocp-Apim-Subscription-Key",
        "CF-Access-Client-Secret",
        "CF-Access-Jwt-Assertion",
        "X-Amz-Security-Token",
        "X-Amzn-Oidc-Accesstoken",
        "X-Forwarded-Access-Token",
        "X-Forwarded-Authorization",
        "Helicone-Auth",
        "Private-Token",
        "Cookie",
        "Host",
        "Content-Length",
        "Expect",
        "Accept-Encoding",
        "X-Cortex-Anything",
        "X-Request-Id",
    ],
)
def test_what_is_the_gateways_business_does_not_go_upstream(name: str) -> None:
    fields = [(name.encode(), b"close"), (b"Content-Type", b"application/json")]
    assert upstream_lines(fields) == b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    "name",
    [
        "Idempotency-Key",
        "Session-Id",
        "X-Session-Id",
        "Anthropic-Version",
        "Anthropic-Beta",
        "OpenAI-Organization",
        "X-Stainless-Retry-Count",
        "X-Max-Tokens",
        "Traceparent",
        "Accept",
        "User-Agent",
    ],
)
def test_header_that_is_no_credential_goes_upstream(name: str) -> None:
    assert upstream_lines([(name.encode(), b"x")]) == f"{name}: x\r\n".encode()


def test_credential_is_dropped_beside_a_connection_header_that_names_another() -> None:
    fields = [(b"Connection", b"x-one"), (b"api-key", b"s"), (b"X-One", b"1"), (b"X-Two", b"2")]
    assert upstream_lines(fields) == b"X-Two: 2\r\n"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Set-Cookie",
        "Server",
        "Date",
        "X-Cortex-Node",
        "X-Request-Id",
        "Request-Id",
        "TE",
    ],
)
def test_what_an_upstream_says_of_itself_does_not_reach_the_client(name: str) -> None:
    fields = [(name.encode(), b"x"), (b"Retry-After", b"3")]
    assert client_lines(fields, is_event_stream=False) == b"Retry-After: 3\r\n"


def test_what_connection_names_is_dropped_wherever_it_stands() -> None:
    fields = [
        (b"X-One", b"1"),
        (b"Connection", b"keep-alive, X-One"),
        (b"x-two", b"2"),
        (b"connection", b"X-TWO"),
        (b"X-Three", b"3"),
    ]
    assert upstream_lines(fields) == b"X-Three: 3\r\n"


def test_any_number_of_connection_fields_is_understood() -> None:
    """An upstream's head may hold thousands."""
    named = [(b"Connection", b"x-%d" % number) for number in range(4000)]
    fields = [(b"X-3999", b"1"), *named, (b"X-0", b"1"), (b"X-A", b"1")]
    assert client_lines(fields, is_event_stream=False) == b"X-A: 1\r\n"


def test_spelling_order_and_repetition_survive() -> None:
    fields = [(b"aCCept", b"a"), (b"X-A", b"1"), (b"x-a", b"\xe9"), (b"X-Empty", b"")]
    assert upstream_lines(fields) == b"aCCept: a\r\nX-A: 1\r\nx-a: \xe9\r\nX-Empty: \r\n"


def test_an_event_stream_says_once_that_nobody_may_buffer_it() -> None:
    fields = [(b"cache-control", b"public"), (b"X-Accel-Buffering", b"yes"), (b"X-A", b"1")]
    assert client_lines(fields, is_event_stream=True) == (
        b"X-A: 1\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
    )


def test_what_no_header_can_hold_is_percent_encoded() -> None:
    assert lines({"x-a": "Qwen/Qwen3-8B: ok", "x-b": "a\r\nEvil: 1\u202e"}) == (
        b"x-a: Qwen/Qwen3-8B: ok\r\nx-b: a%0D%0AEvil: 1%E2%80%AE\r\n"
    )


@pytest.mark.parametrize("is_event_stream", [False, True])
def test_an_answer_says_once_that_it_depends_on_the_page(is_event_stream: bool) -> None:
    own = b"Server: cortexd\r\nVary: Origin\r\n"
    for fields, count in (
        ([(b"Vary", b"Accept")], 2),
        ([(b"vary", b"Origin")], 1),
        ([(b"Vary", b"Origin"), (b"X", b"y")], 1),
    ):
        lines = client_lines(fields, own, is_event_stream=is_event_stream)
        assert lines.lower().count(b"vary: ") == count
        assert lines.count(b"ary: Origin\r\n") == 1
        assert lines.endswith(own)
