"""One face of the gateway: the paths of one listener, and who answers at each."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

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

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for cancellation."""
        path = request.raw_path
        if path not in self._paths:  # it has a query, say
            path = request.rel_url.path
        received = time.monotonic() - (cast(Door, request.protocol).lag or 0.0)
        inbound = Inbound(request, path, request_id(request), dialect_of(path), received)
        try:
            methods = self._paths.get(path)
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
        self._metrics.refusals.inc(refusal.kind.code)
        return answer(refusal, inbound.dialect, inbound.request_id)

    def _otherwise(self, inbound: Inbound, methods: Methods | None) -> Handler:
        """Where it goes that no exact path takes. Raises Refusal."""
        if methods is None:
            for prefix, below in self._prefixes.items():
                if inbound.path.startswith(prefix):
                    methods = below
        if methods is None:
            raise unknown_route(inbound)
        handler = methods.get(inbound.request.method)
        if handler is None:
            allowed = ", ".join(methods)
            raise Refusal(
                errors.METHOD_NOT_ALLOWED, f"{inbound.path} takes {allowed}; use one of these."
            )
        return handler


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
