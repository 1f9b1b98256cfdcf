"""Which web pages may ask from a browser: [gateway] cors_origins, and nobody by default.

What a node says about that is not passed on: it is the gateway that pages ask.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Collection, Sequence
from typing import Final

from aiohttp import web

from cortexd.config.current import Current
from cortexd.proxy.door import Handler
from cortexd.proxy.headers import lines

PREFLIGHT_AGE: Final = "600"  # seconds for which a browser need not ask again
_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,2000}")
_EXPOSED: Final = (
    "retry-after, request-id, x-request-id, x-cortex-code, x-cortex-cold-start, x-cortex-model, "
    "x-cortex-node, x-cortex-route"
)


def allowance(request: web.BaseRequest, origins: Sequence[str]) -> dict[str, str]:
    """The fields of an answer that let the page which asks read it; none if it may not."""
    if not origins:
        return {}
    origin = request.headers.get("Origin", "")
    if "*" in origins:
        said = {"Access-Control-Allow-Origin": "*"}
    elif origin in origins:
        said = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    else:
        return {}
    return said | {"Access-Control-Expose-Headers": _EXPOSED}


def allowance_lines(request: web.BaseRequest, origins: Sequence[str]) -> bytes:
    """The same as lines of a head."""
    return lines(allowance(request, origins)) if origins else b""


class Cors:
    """Stands before the handler of a listener: answers what browsers ask beforehand, and marks the
    answers that are made here. Those of nodes are marked where they are carried.

    paths: the ones that pages may ask.
    """

    def __init__(self, handler: Handler, current: Current, paths: Collection[str]) -> None:
        self._handler = handler
        self._current = current
        self._paths = paths

    def handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer one request."""
        if not self._current.config.gateway.cors_origins:
            return self._handler(request)
        return self._marked(request)

    async def _marked(self, request: web.BaseRequest) -> web.StreamResponse:
        said: dict[str, str] = {}
        path = request.rel_url.path
        if path in self._paths or path.startswith("/v1/models"):
            said = allowance(request, self._current.config.gateway.cors_origins)
        if said and request.method == "OPTIONS":
            return _preflight(request, said)
        response = await self._handler(request)
        if said and not response.prepared:
            response.headers.update(said)
        return response


def _preflight(request: web.BaseRequest, said: dict[str, str]) -> web.Response:
    said |= {
        "Access-Control-Allow-Methods": "GET, HEAD, POST",
        "Access-Control-Max-Age": PREFLIGHT_AGE,
        "Server": "cortexd",
    }
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    if _NAMES.fullmatch(wanted):  # the SDKs send many of their own
        said["Access-Control-Allow-Headers"] = wanted
    return web.Response(status=204, headers=said)
