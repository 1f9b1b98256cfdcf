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
    ("field", "local"),
    [
        ("10.0.0.7", True),
        ("10.0.0.7:8080", True),
        ("[::1]:8080", True),
        ("[fe80::1%25eth0]", True),
        ("localhost:8080", True),
        ("LocalHost.", True),
        (socket.gethostname(), True),
        ("gateway:8080", True),
        ("gateway.local", True),
        ("gateway.lan:1", True),
        ("a.gateway.internal", True),
        ("gateway.home.arpa", True),
        ("app.localhost", True),
        ("gateway.example", False),
        ("127.0.0.1.evil.example", False),
        ("gateway.local.evil.example", False),
        ("gateway.evillocal", False),
        ("localhost@evil.example", False),
        ("evil.example:127", False),
        ("gateway:x", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_a_host_is_told_by_whose_dns_can_name_it(field: str, local: bool) -> None:
    assert is_local_host(host_name(field)) == local


def test_hosts_in_allowed_hosts_are_accepted() -> None:
    for allowed in (["llm.example"], ["*"]):
        assert is_local_host(host_name("LLM.example:443"), allowed)
    assert not is_local_host(host_name("evil.example"), ["llm.example"])
    assert not is_local_host("", ["*"])
