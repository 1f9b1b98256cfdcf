from __future__ import annotations

import socket

import pytest
from aiohttp.test_utils import make_mocked_request

from cortexd.proxy.browser import (
    allows_origin,
    foreign_origin,
    host_name,
    is_from_browser,
    is_local_host,
    is_own_host,
)

PAGE = "https://chat.example"
HERE = {"Host": "10.0.0.7:8080"}


@pytest.mark.parametrize(
    ("origin", "allowed", "expected"),
    [
        (PAGE, [PAGE], True),
        (PAGE, ["*"], True),
        (PAGE, [], False),
        (PAGE + ":8443", [PAGE], False),
        (PAGE + ".evil", [PAGE], False),
        ("http://chat.example", [PAGE], False),
        ("app://obsidian.md", ["app://obsidian.md"], True),
        ("tauri://localhost", ["tauri://localhost"], True),
        ("file://", ["file://"], True),
        ("chrome-extension://abc", ["chrome-extension://abc"], True),
        ("chrome-extension://abd", ["chrome-extension://abc"], False),
        ("vscode-webview://1f00", ["vscode-webview://*"], True),
        ("http://localhost:5173", ["http://localhost:*"], True),
        ("http://localhost", ["http://localhost:*"], True),
        ("http://[::1]:5173", ["http://[::1]:*"], True),
        ("https://localhost:5173", ["http://localhost:*"], False),
        ("http://localhost.evil:5173", ["http://localhost:*"], False),
        ("http://localhost:5173.evil", ["http://localhost:*"], False),
        ("http://evil.example", ["http://*"], False),
        ("null", [PAGE, "http://localhost:*"], False),
        ("null", ["null"], True),
        ("", [PAGE], False),
    ],
)
def test_an_origin_is_allowed_as_it_is_listed(
    origin: str, allowed: list[str], expected: bool
) -> None:
    assert allows_origin(origin, allowed) is expected


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        # Without Sec-Fetch-Site, as over plain http: the Host tells.
        ("POST", {"Origin": "http://10.0.0.7:8080"}, None),
        ("POST", {"Origin": "http://10.0.0.7:9090"}, "http://10.0.0.7:9090"),
        ("POST", {"Origin": "null"}, "null"),
        ("POST", {"Origin": PAGE}, PAGE),
        ("POST", {"Origin": "https://llm.example", "Host": "llm.example"}, None),
        ("POST", {"Origin": "https://llm.example", "Host": "llm.example:443"}, None),
        ("GET", {"Origin": PAGE}, PAGE),
        # With it.
        ("POST", {"Origin": PAGE, "Sec-Fetch-Site": "same-origin"}, None),
        ("POST", {"Origin": "chrome-extension://a", "Sec-Fetch-Site": "none"}, None),
        ("POST", {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}, PAGE),
        # Another scheme on the same host, say: the mark counts, not the Host.
        (
            "POST",
            {"Origin": "http://10.0.0.7:8080", "Sec-Fetch-Site": "cross-site"},
            "http://10.0.0.7:8080",
        ),
        ("POST", {"Origin": PAGE, "Sec-Fetch-Site": "same-site"}, PAGE),
        ("GET", {"Sec-Fetch-Site": "none"}, None),
        ("GET", {"Sec-Fetch-Site": "same-site"}, None),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, ""),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, ""),
        # A link that somebody follows, a frame, and a form that is sent.
        (
            "GET",
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            None,
        ),
        (
            "GET",
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "iframe",
            },
            "",
        ),
        (
            "POST",
            {
                "Origin": PAGE,
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            PAGE,
        ),
    ],
)
def test_a_cross_site_request_is_told_by_its_marks(
    method: str, headers: dict[str, str], expected: str | None
) -> None:
    request = make_mocked_request(method, "/v1/models", HERE | headers)
    assert is_from_browser(request)
    assert foreign_origin(request, ()) == expected
    assert foreign_origin(request, ("*",)) is None


def test_requests_without_browser_fields_are_not_screened() -> None:
    request = make_mocked_request("POST", "/", HERE | {"User-Agent": "curl"})
    assert not is_from_browser(request)
    assert foreign_origin(request, ()) is None


@pytest.mark.parametrize(
    ("field", "own", "local"),
    [
        ("10.0.0.7", True, True),
        ("10.0.0.7:8080", True, True),
        ("[::1]:8080", True, True),
        ("[fe80::1%25eth0]", True, True),
        ("localhost:8080", True, True),
        ("LocalHost.", True, True),
        (socket.gethostname(), True, True),
        ("gateway:8080", False, True),
        ("gateway.local", False, True),
        ("gateway.lan:1", False, True),
        ("a.gateway.internal", False, True),
        ("gateway.home.arpa", False, True),
        ("app.localhost", False, True),
        ("gateway.example", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("gateway.local.evil.example", False, False),
        ("gateway.evillocal", False, False),
        ("localhost@evil.example", False, False),
        ("evil.example:127", False, False),
        ("gateway:x", False, False),
        ("", False, False),
        ("[::1", False, False),
    ],
)
def test_a_host_is_told_by_whose_dns_can_name_it(field: str, own: bool, local: bool) -> None:
    host = host_name(field)
    assert (is_own_host(host), is_local_host(host)) == (own, local)


def test_hosts_in_allowed_hosts_are_accepted() -> None:
    for allowed in (["llm.example"], ["*"]):
        assert is_own_host(host_name("LLM.example:443"), allowed)
        assert is_local_host(host_name("llm.example"), allowed)
    assert not is_local_host(host_name("evil.example"), ["llm.example"])
    assert not is_own_host("", ["*"])
