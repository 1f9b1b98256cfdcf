"""Which headers cross the gateway, in each direction (RFC 9110, section 7.6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The client's secrets are for the gateway, not for the nodes; length, host and encoding are
# stated anew, because the request that goes upstream is a new one.
_NOT_UPSTREAM: Final = _HOP_BY_HOP | {
    "accept-encoding",
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "x-api-key",
    "x-request-id",
}
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {"content-length", "date", "server", "set-cookie"}
_OURS: Final = "x-cortex-"


def upstream_headers(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """What of the client's headers goes upstream."""
    return _kept(headers, _NOT_UPSTREAM)


def client_headers(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """What of the upstream's headers goes to the client."""
    return _kept(headers, _NOT_TO_CLIENT)


def _kept(headers: Iterable[tuple[str, str]], dropped: frozenset[str]) -> Iterator[tuple[str, str]]:
    headers = list(headers)
    named = {
        word.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for word in value.split(",")
    }
    for name, value in headers:
        low = name.lower()
        if low not in dropped and low not in named and not low.startswith(_OURS):
            yield name, value
