"""Screens the requests that browsers send, before a listener's paths are looked at.

A request with neither `Origin` nor `Sec-Fetch-Site` is not a page's, and passes at the cost of two
look-ups. Reads on the operators' listener are an exception: browsers don't mark reads of a page
whose name was rebound to a plain http address. See docs/security.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Sequence
from typing import Final

from aiohttp import web

from cortexd import errors
from cortexd.config.address import is_host, listen_host
from cortexd.config.current import Current
from cortexd.errors import Kind, Refusal
from cortexd.gateway.cors import allowance, allowance_of_unread, preflight
from cortexd.gateway.intake import request_id
from cortexd.gateway.listeners import Key
from cortexd.gateway.refusals import answer, dialect_of, own_headers
from cortexd.metrics import Metrics
from cortexd.proxy.browser import (
    ANY,
    ORIGIN,
    SITE,
    foreign_origin,
    host_name,
    is_from_browser,
    is_local_host,
)
from cortexd.proxy.door import Handler, Refuse

log = logging.getLogger(__name__)

MAX_LOGGED: Final = 100  # origins and hosts whose refusal is logged, once each


class BrowserAccess:
    """Screens requests before the handler of one listener.

    key: the listener's key. Pages listed in `cors_origins` may use "listen" only.
    refuse: makes the answers of the HTTP layer.
    """

    def __init__(
        self, key: Key, handler: Handler, refuse: Refuse, current: Current, metrics: Metrics
    ) -> None:
        self._key = key
        self._handler = handler
        self._refuse = refuse
        self._current = current
        self._metrics = metrics
        self._checks_all = key == "admin_listen"
        self._logged: set[str] = set()

    def handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer one request."""
        headers = request.headers
        if ORIGIN in headers or SITE in headers or self._checks_all:
            return self._screened(request)
        return self._handler(request)

    def refuse(self, request: web.BaseRequest | None, kind: Kind, text: str) -> web.Response:
        """Return the answer to an invalid request, readable for the page that sent it."""
        response = self._refuse(request, kind, text)
        if origins := self._origins():
            is_read = request is not None and request.headers
            response.headers.update(
                allowance(request, origins)
                if request is not None and is_read
                else allowance_of_unread(origins)
            )
        return response

    def _origins(self) -> Sequence[str]:
        return self._current.config.gateway.cors_origins if self._key == "listen" else ()

    async def _screened(self, request: web.BaseRequest) -> web.StreamResponse:
        origins = self._origins()
        if (refusal := self._refusal(request, origins)) is not None:
            self._metrics.refusals.inc(refusal.kind.code)
            return answer(refusal, dialect_of(request.path), request_id(request))
        fields = allowance(request, origins)
        if not fields:
            return await self._handler(request)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            fields |= preflight(request) | own_headers("openai", request_id(request))
            return web.Response(status=204, headers=fields)
        response = await self._handler(request)
        if not response.prepared:
            response.headers.update(fields)
        return response

    def _refusal(self, request: web.BaseRequest, origins: Sequence[str]) -> Refusal | None:
        """Return why a request is refused; None: it is not."""
        config = self._current.config
        allowed = config.security.allowed_hosts
        host = host_name(given := request.headers.get("Host", ""))
        names = (*allowed, listen_host(getattr(config.gateway, self._key) or ""))
        # Browsers always send a Host; health checks in HTTP/1.0 do not.
        is_checked = bool(given) or is_from_browser(request)
        if is_checked and not is_local_host(host, names):
            text = (
                f"The Host {given[:200]!r} may be a stranger's name for this gateway; use its IP "
                "address"
            )
            if is_host(host):
                text += f", or allow the name: {_line('[security] allowed_hosts', allowed, host)}"
            return self._logged_once(host, errors.FORBIDDEN_HOST, text)
        origin = foreign_origin(request, origins)
        if origin is None:
            return None
        if self._key != "listen":
            text = "Pages of other origins may not use this listener; open it directly."
        elif origin == "null":
            text = (
                "A page without an origin (a sandboxed frame, a local file) may not use this "
                "gateway; serve it over http and list its origin in [gateway] cors_origins."
            )
        elif not origin:
            text = (
                "A page of another origin may not use this gateway; have it send its origin (with "
                "fetch, in the mode cors), and list that in [gateway] cors_origins."
            )
        else:
            line = _line("[gateway] cors_origins", origins, origin[:200])
            text = (
                f"The web page {origin[:200]!r} may not use this gateway; if it should, allow it: "
                f"{line}"
            )
        return self._logged_once(origin, errors.FORBIDDEN_ORIGIN, text)

    def _logged_once(self, name: str, kind: Kind, text: str) -> Refusal:
        """Log each refusal once: a browser hides the answer from its page, and the remedy in it."""
        if name not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(name)
            log.warning("refused a request on [gateway] %s: %s", self._key, text)
        return Refusal(kind, text)


def _line(key: str, values: Sequence[str], value: str) -> str:
    """Return the line of the configuration that adds a value."""
    return f"{key} = {json.dumps([*(each for each in values if each != ANY), value])}"
