"""One inference request's life: read, route, carry, account for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from cortexd import errors
from cortexd.config.gateway import Config
from cortexd.control.dispatch import Dispatcher, RouteDecision
from cortexd.control.registry import Registry
from cortexd.errors import Refusal
from cortexd.fleet.routing import Query
from cortexd.gateway.bodies import Bodies
from cortexd.gateway.intake import parse_view, with_model
from cortexd.gateway.refusals import Dialect, own_headers, status_of
from cortexd.metrics import OTHER, Metrics
from cortexd.nodes.endpoint import is_own_host
from cortexd.proxy.exchange import Call, Carried, Exchange, UpstreamFault
from cortexd.wire.openai import RequestView

access = logging.getLogger("cortexd.access")

# Answers that speak of no tokens by their nature.
UNCOUNTED = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens", "/v1/moderations"})
CLIENT_GONE = 499  # nginx's status for a client that left before its answer


@dataclass(slots=True)
class Inbound:
    """A request on its way through, and what is known of it so far. Times are monotonic."""

    request: web.BaseRequest
    path: str
    request_id: str
    dialect: Dialect
    received: float
    asked: str | None = None
    model: str | None = None
    streamed: bool = False
    route: RouteDecision | None = None
    carried: Carried | None = None
    status: int = 0
    code: str | None = None


class Relay:
    """Takes inference requests to the fleet. `tokens`: node → the bearer token of its neuron."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        exchange: Exchange,
        registry: Registry,
        metrics: Metrics,
        config: Config,
        tokens: Mapping[str, str],
    ) -> None:
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._registry = registry
        self._metrics = metrics
        self._config = config
        self._tokens = tokens
        self._bodies = Bodies(config.gateway.max_body, config.gateway.max_buffered)

    async def serve(self, inbound: Inbound) -> web.StreamResponse:
        """Answer one request. Raises Refusal while nothing was sent to the client."""
        try:
            carried = await self._relay(inbound)
            inbound.status = carried.status
            return carried.response
        except Refusal as refusal:
            inbound.status = status_of(refusal, inbound.dialect)
            inbound.code = refusal.kind.code
            raise
        except asyncio.CancelledError:
            inbound.status = CLIENT_GONE
            raise
        except BaseException:
            inbound.status = errors.INTERNAL_ERROR.status
            raise
        finally:
            self._account(inbound)

    async def _relay(self, inbound: Inbound) -> Carried:
        content_type = inbound.request.headers.get("Content-Type", "")
        with self._bodies.hold() as hold:
            body = await hold.read(inbound.request)
            view = parse_view(body, content_type)
            model = self._registry.snapshot.catalogue.resolve(view.model)
            inbound.asked, inbound.model, inbound.streamed = view.model, model, bool(view.stream)
            if model != view.model:
                body = with_model(body, model, content_type)
            return await self._try_replicas(inbound, view, model, body)

    async def _try_replicas(
        self, inbound: Inbound, view: RequestView, model: str, body: bytes
    ) -> Carried:
        tried: set[str] = set()
        waited = 0.0
        for attempt in range(self._config.upstream.retries + 1):
            route = inbound.route = await self._dispatcher.route(Query(model, tried))
            waited += route.waited
            if attempt == 0:
                self._note_route(inbound, route, waited)
            try:
                inbound.carried = await self._carry(inbound, view, route, body)
            except UpstreamFault as fault:
                self._result(route, fault.what)
                self._dispatcher.confirm(route, served=False)
                if fault.what != "refused" or attempt == self._config.upstream.retries:
                    raise _refusal(fault, route) from fault
                # The node never saw the request: another replica may have it, or the same one
                # where it now says it is.
                self._metrics.child(self._metrics.upstream_retries, fault.what).inc()
                if await self._dispatcher.endpoint_moved(route) is None:
                    tried.add(route.node)
            else:
                self._result(route, str(inbound.carried.status))
                self._dispatcher.confirm(route, served=inbound.carried.status < 500)
                return inbound.carried
            finally:
                route.lease.release()
        raise AssertionError("the last attempt answers or raises")

    async def _carry(
        self, inbound: Inbound, view: RequestView, route: RouteDecision, body: bytes
    ) -> Carried:
        upstream = self._config.upstream
        deadline: float | None = None  # an answer in one piece has its first byte last
        if view.stream:
            lazy = route.route == "lazy"
            deadline = self._config.loading.timeout if lazy else upstream.first_byte_timeout
        call = Call(
            url=f"{route.endpoint}{inbound.path}{_query(inbound.request)}",
            body=body,
            headers=self._upstream_headers(inbound, route),
            answer_headers=self._answer_headers(inbound, route),
            connect_timeout=upstream.connect_timeout,
            first_byte_timeout=deadline,
            idle_timeout=upstream.idle_timeout,
        )
        return await self._exchange.carry(inbound.request, call)

    def _upstream_headers(self, inbound: Inbound, route: RouteDecision) -> dict[str, str]:
        headers = {"X-Request-Id": inbound.request_id}
        token = self._tokens.get(route.node)
        node = self._registry.snapshot.nodes[route.node]
        if token and is_own_host(route.endpoint, node.endpoint):
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _answer_headers(self, inbound: Inbound, route: RouteDecision) -> dict[str, str]:
        headers = own_headers(inbound.dialect, inbound.request_id)
        if self._config.gateway.expose_route:
            headers["x-cortex-node"] = route.node
            headers["x-cortex-model"] = route.replica.model
            headers["x-cortex-cold-start"] = "true" if route.is_cold_start else "false"
            headers["x-cortex-route"] = route.route
        return headers

    def _note_route(self, inbound: Inbound, route: RouteDecision, waited: float) -> None:
        metrics = self._metrics
        metrics.overhead.observe(max(0.0, time.monotonic() - inbound.received - waited))
        if route.is_cold_start:
            metrics.child(metrics.cold_starts, route.replica.model, route.node, route.route).inc()

    def _result(self, route: RouteDecision, result: str) -> None:
        metrics = self._metrics
        metrics.child(metrics.upstream_requests, route.replica.model, route.node, result).inc()

    def _account(self, inbound: Inbound) -> None:
        """Count the request and log its line; runs however it ended, once."""
        metrics, now = self._metrics, time.monotonic()
        snapshot = self._registry.snapshot
        known = inbound.model in snapshot.replicas or inbound.model in snapshot.catalogue.profiles
        model = inbound.model if known and inbound.model is not None else OTHER
        duration = now - inbound.received
        metrics.child(metrics.requests, model, inbound.path, str(inbound.status)).inc()
        metrics.child(metrics.request_duration, model).observe(duration)
        carried, route, first = inbound.carried, inbound.route, None
        if carried is not None and route is not None:
            first = carried.first_byte - inbound.received
            if carried.status == 200 and inbound.path not in UNCOUNTED:
                metrics.used(model, route.node, carried.usage)
            if carried.interrupted:
                metrics.child(metrics.streams_interrupted, "upstream").inc()
            if inbound.streamed and carried.status == 200:
                metrics.child(metrics.first_token, model).observe(first)
                span = now - carried.first_byte
                if carried.usage is not None and span > 0:
                    rate = carried.usage.completion / span
                    metrics.child(metrics.output_rate, model).observe(rate)
        if self._config.gateway.access_log:
            self._log(inbound, duration, first)

    def _log(self, inbound: Inbound, duration: float, first: float | None) -> None:
        route, carried = inbound.route, inbound.carried
        usage = carried.usage if carried else None
        fields = {
            "request_id": inbound.request_id,
            "client": inbound.request.remote,
            "path": inbound.path,
            "status": inbound.status,
            "code": inbound.code,
            "model": inbound.model,
            "node": route.node if route else None,
            "route": route.route if route else None,
            "first_byte_s": None if first is None else round(first, 4),
            "duration_s": round(duration, 4),
            "prompt_tokens": usage.prompt if usage else None,
            "completion_tokens": usage.completion if usage else None,
        }
        access.info(
            "%s %s %s",
            inbound.status,
            inbound.path,
            inbound.model,
            extra={name: value for name, value in fields.items() if value is not None},
        )


def _query(request: web.BaseRequest) -> str:
    query = request.rel_url.raw_query_string
    return f"?{query}" if query else ""


def _refusal(fault: UpstreamFault, route: RouteDecision) -> Refusal:
    model, node = route.replica.model, route.node
    if fault.what == "timeout":
        return Refusal(
            errors.UPSTREAM_TIMEOUT,
            f"The node {node} did not begin to answer for {model!r} in time: {fault}. Try again.",
        )
    return Refusal(
        errors.UPSTREAM_FAILED,
        f"The node {node} did not answer for {model!r}: {fault}. Try again.",
    )
