"""One face of the gateway: the paths of one listener, and who answers at each."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.intake import request_id
from cortexd.gateway.refusals import answer, dialect_of, own_headers
from cortexd.metrics import Metrics
from cortexd.proxy.door import Door

log = logging.getLogger(__name__)

_SLASHES: Final = re.compile("/{2,}")
_SERVED: Final = ("GET", "HEAD", "POST")

Handler = Callable[[Inbound], Awaitable[web.StreamResponse]]
Methods = Mapping[str, Handler]


class Face:
    """Default-deny: only what stands here is a route.

    paths: exact ones. prefixes: of paths whose rest is the handler's to read.
    """

    def __init__(
        self, metrics: Metrics, paths: Mapping[str, Methods], prefixes: Mapping[str, Methods]
    ) -> None:
        self._metrics = metrics
        self._paths = paths
        self._prefixes = prefixes
        # Each prefix, with one slash or more in place of each of its slashes.
        self._loose = {
            prefix: re.compile("/+".join(map(re.escape, prefix.split("/")))) for prefix in prefixes
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for cancellation."""
        path = request.raw_path
        methods = self._paths.get(path)
        if methods is None:  # it has a query, say
            path = self._tidied(request.rel_url.path)
            methods = self._paths.get(path)
        door: Door = request.protocol  # type: ignore[assignment] # a cast would be a call
        received = time.monotonic()
        if door.lag:
            received -= door.lag
        inbound = Inbound(request, path, request_id(request), dialect_of(path), received)
        try:
            handler = methods.get(request.method) if methods is not None else None
            return await (handler or self._otherwise(inbound, methods))(inbound)
        except Refusal as refused:
            refusal = refused
        except Exception:
            if request.writer.output_size:
                raise  # an error must not land among the bytes of an answer: the door cuts it
            log.exception("request %s failed", inbound.request_id)
            refusal = Refusal(
                errors.INTERNAL_ERROR,
                f"The gateway failed; its log has the details under {inbound.request_id}.",
            )
        if refusal.kind is errors.UNKNOWN_ROUTE:  # probes: they would drown real refusals
            self._metrics.unknown_paths.inc()
        else:
            self._metrics.refusals.inc(refusal.kind.code)
        return answer(refusal, inbound.dialect, inbound.request_id)

    def _tidied(self, path: str) -> str:
        """Return the path that is meant: without doubled or trailing slashes."""
        if path in self._paths:
            return path
        if (short := _SLASHES.sub("/", path).rstrip("/") or "/") in self._paths:
            return short
        for prefix, loose in self._loose.items():  # the rest is a name, which may hold any
            if (found := loose.match(path)) is not None:
                return prefix + path[found.end() :]
        return path

    def _otherwise(self, inbound: Inbound, methods: Methods | None) -> Handler:
        """Where it goes that no exact path takes. Raises Refusal."""
        method = inbound.request.method
        if methods is None:
            for prefix, below in self._prefixes.items():
                if inbound.path.startswith(prefix):
                    methods = below
        if methods is None and inbound.path == "*" and method == "OPTIONS":  # of the server
            return partial(_options, _SERVED)
        if methods is None:
            raise unknown_route(inbound)
        handler = methods.get(method)
        if handler is None and method == "OPTIONS":
            return partial(_options, methods)
        if handler is None:
            raise _not_allowed(inbound, methods)
        return handler


async def _options(methods: Iterable[str], inbound: Inbound) -> web.Response:
    """Answer OPTIONS with the methods that the path takes."""
    headers = own_headers(inbound.dialect, inbound.request_id) | {"Allow": ", ".join(_all(methods))}
    return web.Response(status=204, headers=headers)


def _all(methods: Iterable[str]) -> list[str]:
    return [*methods, "OPTIONS"]


def _not_allowed(inbound: Inbound, methods: Methods) -> Refusal:
    allowed = ", ".join(methods)
    if "websocket" in inbound.request.headers.get("Upgrade", "").lower():
        return Refusal(
            errors.UPGRADE_REQUIRED,
            f"There are no WebSockets here; ask over HTTP: {allowed} {inbound.path[:200]}.",
            allow=_all(methods),
        )
    return Refusal(
        errors.METHOD_NOT_ALLOWED,
        f"{inbound.path[:200]} takes {allowed}; use one of these.",
        allow=_all(methods),
    )


def read(handler: Handler) -> Methods:
    """What is read may be asked for with HEAD too: aiohttp then leaves the body out."""
    return {"GET": handler, "HEAD": handler}


def as_json(inbound: Inbound, content: object, status: int = 200) -> web.Response:
    """A whole answer."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(content),
        content_type="application/json",
        headers=own_headers(inbound.dialect, inbound.request_id),
    )


def unknown_route(inbound: Inbound) -> Refusal:
    """Nothing is there."""
    inference = "/v1/messages" if inbound.dialect == "anthropic" else "/v1/chat/completions"
    return Refusal(
        errors.UNKNOWN_ROUTE,
        f"There is no {inbound.request.method} {inbound.path[:200]} here; inference is at "
        f"{inference}, models are listed at /v1/models.",
    )
