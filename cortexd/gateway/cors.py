"""The header fields that let web pages read answers: [gateway] cors_origins, none by default.

A node's own fields of that kind are not passed on: pages talk to the gateway. Which requests of
pages are answered at all is decided in `browser_access`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from cortexd.proxy.browser import ANY, ORIGIN, allows_origin
from cortexd.proxy.headers import lines

PREFLIGHT_AGE: Final = "600"  # seconds for which a browser need not ask again
_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,2000}")
_EXPOSED: Final = (
    "retry-after, request-id, x-request-id, x-should-retry, x-cortex-code, x-cortex-cold-start, "
    "x-cortex-model, x-cortex-node, x-cortex-route"
)


def allowance(request: web.BaseRequest, origins: Sequence[str]) -> dict[str, str]:
    """Return the fields of an answer that let the requesting page read it; none if it may not."""
    origin = request.headers.get(ORIGIN)
    if origin is None or not allows_origin(origin, origins):
        return {}
    return _allowed(ANY if ANY in origins else origin)


def allowance_of_unread(origins: Sequence[str]) -> dict[str, str]:
    """Return the `allowance` for a request whose head is unreadable: for the only listed origin."""
    if ANY in origins:
        return _allowed(ANY)
    return _allowed(origins[0]) if len(origins) == 1 and ANY not in origins[0] else {}


def allowance_lines(request: web.BaseRequest, origins: Sequence[str]) -> bytes:
    """The same as lines of a head."""
    return lines(allowance(request, origins)) if origins else b""


def preflight(request: web.BaseRequest) -> dict[str, str]:
    """Return the fields of an answer to a preflight request, besides the allowance.

    https://fetch.spec.whatwg.org/#http-cors-protocol; the private network's field is Chromium's,
    for pages of the internet that ask a host of the local network.
    """
    fields = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
        "Access-Control-Max-Age": PREFLIGHT_AGE,
    }
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    if _NAMES.fullmatch(wanted):  # the SDKs send many of their own
        fields["Access-Control-Allow-Headers"] = wanted
    if request.headers.get("Access-Control-Request-Private-Network", "").lower() == "true":
        fields["Access-Control-Allow-Private-Network"] = "true"
    return fields


def _allowed(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
    }
