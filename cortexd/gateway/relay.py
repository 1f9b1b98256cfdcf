"""One inference request's life: read, route, carry, try again where that can do no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from itertools import count
from typing import Final

import msgspec
from aiohttp import hdrs, web

from cortexd import errors
from cortexd.config.current import Current
from cortexd.config.gateway import Gateway
from cortexd.control.dispatch import Dispatcher, RouteDecision
from cortexd.control.liveness import Liveness
from cortexd.control.registry import Registry
from cortexd.errors import Refusal
from cortexd.fleet.aliases import name_alias
from cortexd.fleet.routing import Query
from cortexd.gateway.accounting import CLIENT_GONE, TOKEN_PATHS, Accounting
from cortexd.gateway.affinity import Affinity
from cortexd.gateway.cors import allowance_lines
from cortexd.gateway.hops import HOP_LINES, HOPS, count_hops
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.intake import parse_view, with_model, with_usage
from cortexd.gateway.keepalive import KeepAlive, can_wait
from cortexd.gateway.refusals import own_lines, status_of
from cortexd.gateway.retry import Attempts
from cortexd.gateway.stored_responses import (
    StoredResponses,
    requested_response,
    response_not_found,
)
from cortexd.gateway.upstream_faults import AttemptPolicy, UpstreamFaults
from cortexd.nodes.endpoint import may_carry_token
from cortexd.nodes.masking import mask_of
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.bodies import Bodies, Hold
from cortexd.proxy.call import Call, Carried
from cortexd.proxy.credentials import without_credentials
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.headers import lines
from cortexd.proxy.splice import Splice
from cortexd.wire import responses
from cortexd.wire.first_token import FIRST_TOKEN
from cortexd.wire.multipart import is_form
from cortexd.wire.openai import without_bom
from cortexd.wire.responses import continued_response
from cortexd.wire.sse import UsageRemover

# Where a stream says its token counts only on request.
TELLS_WHEN_ASKED: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


class Relay:
    """Takes inference requests to the fleet."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        exchange: Exchange,
        registry: Registry,
        accounting: Accounting,
        liveness: Liveness,
        current: Current,
    ) -> None:
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._registry = registry
        self._accounting = accounting
        self._liveness = liveness
        self._turns = count()
        self._stored = StoredResponses()
        self._current = current
        self._faults = UpstreamFaults(registry, current)
        limits = current.config.gateway
        self._bodies = Bodies(limits.max_body, limits.max_buffered)

    def limit(self, limits: Gateway) -> None:
        """From now on it is these for the bodies that are read."""
        self._bodies.max_body, self._bodies.max_buffered = limits.max_body, limits.max_buffered

    def serve(self, inbound: Inbound) -> Awaitable[web.StreamResponse]:
        """Answer one request. Raises Refusal while nothing was sent to the client."""
        return self._serve(inbound, self._read)

    def serve_item(self, inbound: Inbound) -> Awaitable[web.StreamResponse]:
        """Answer a request for one stored response, as `serve` does."""
        return self._serve(inbound, self._read_item)

    async def _serve(
        self, inbound: Inbound, read: Callable[[Inbound, Hold], Awaitable[bytes]]
    ) -> web.StreamResponse:
        hold, splice, alive = self._bodies.hold(), None, None
        try:
            body = await read(inbound, hold)
            splice = Splice(inbound.request)
            if inbound.is_stream:
                splice.token = FIRST_TOKEN.get(inbound.path)
                if can_wait(inbound):
                    alive = KeepAlive(inbound, splice, self._current)
            carried = inbound.carried = await self._carry(inbound, body, splice, alive)
            inbound.status = carried.status
            return splice.response()
        except Refusal as refused:
            refusal = name_alias(refused, inbound.asked, inbound.model)
            inbound.status = status_of(refusal, inbound.dialect)
            inbound.code = refusal.kind.code
            if splice is None or alive is None or not splice.is_open:
                raise refusal from refused.__cause__
            self._accounting.refused(refusal)
            alive.fail(refusal)
            return splice.response()
        except asyncio.CancelledError:
            inbound.status = CLIENT_GONE
            raise
        except BaseException:
            inbound.status = errors.INTERNAL_ERROR.status
            raise
        finally:
            hold.release()
            if alive is not None:
                alive.stop()
            if splice is not None:
                inbound.is_open = splice.is_open
                if inbound.path == responses.PATH:
                    self._stored.end(splice)
                splice.release()
            self._accounting.ended(inbound)

    async def _read(self, inbound: Inbound, hold: Hold) -> bytes:
        """The body as it goes upstream; notes what it asks for."""
        request = inbound.request
        if (hops := request.headers.get(HOPS)) is not None:
            inbound.hops = count_hops(hops)
        content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
        body = hold.take(request)
        if body is None:
            body = await hold.read(request)
        if content_type == "application/json":
            body = without_bom(body)
        elif not is_form(content_type):
            inbound.is_mistyped, body = True, without_bom(body)
        view = parse_view(body, content_type)
        model = self._registry.snapshot.catalogue.resolve(view.model)
        inbound.asked, inbound.model, inbound.is_stream = view.model, model, bool(view.stream)
        if model != view.model:
            body = with_model(body, model, content_type)
        if inbound.path == responses.PATH and (previous := continued_response(body)) is not None:
            inbound.home, _ = self._stored.find(previous) or (None, None)
        asks = view.stream and self._current.config.upstream.ask_usage
        if asks and inbound.path in TELLS_WHEN_ASKED:
            asking = with_usage(body)
            inbound.hides_usage = asking is not None
            body = asking or body
        return body

    async def _read_item(self, inbound: Inbound, hold: Hold) -> bytes:
        """Read the body of a request for one response, usually empty. Raises Refusal."""
        inbound.hops = count_hops(inbound.request.headers.get(HOPS))
        inbound.target, inbound.path = inbound.path.rstrip("/"), responses.ITEM_PATH
        response = requested_response(inbound.request.method, inbound.target)
        place = self._stored.find(response)
        if place is None:
            raise response_not_found(response)
        inbound.home, inbound.model = place
        inbound.is_for_response = True
        inbound.is_stream = inbound.request.rel_url.query.get("stream") == "true"
        return await hold.read(inbound.request)

    async def _carry(
        self, inbound: Inbound, body: bytes, splice: Splice, alive: KeepAlive | None
    ) -> Carried:
        config = self._current.config
        affinity = Affinity(inbound.request, inbound.path, body)
        query = Query(
            inbound.model or "",
            frozenset(),
            affinity,
            next(self._turns),
            inbound.path not in TOKEN_PATHS,
            inbound.home,
            inbound.is_for_response,
            affinity.could_fit,
        )
        attempts = Attempts(
            self._dispatcher, query, config.upstream.retries, config.loading.timeout
        )
        first: RouteDecision | None = None
        while True:
            since = attempts.since
            route = self._dispatcher.route_now(attempts.query) if since is None else None
            if route is None:
                route = await self._dispatcher.route(attempts.query, alive, since)
            inbound.route = route
            if first is None:
                first = route
                self._accounting.routed(inbound, route)
            elif since is not None:
                # It met a cold model, however often it is turned away after that.
                route = inbound.route = msgspec.structs.replace(route, route=first.route)
            if alive is not None:
                alive.waits_at(route.node if route.route == "lazy" else None)
            if inbound.path == responses.PATH:
                self._stored.begin(splice, route)
            call = self._call(inbound, body, route, attempts, splice, alive)
            try:
                carried = await self._exchange.carry(splice, inbound.request, call)
            except UpstreamFault as fault:
                if alive is not None and fault.what == "answered" and 400 <= fault.status < 500:
                    self._dispatcher.confirm(route, served=True)
                    self._liveness.answered(route.replica, fault.status, is_whole=True)
                    mask = mask_of(self._current.tokens.get(route.node))
                    alive.reject(fault.status, mask.json(fault.content))
                    return Carried(fault.status, None, None, is_interrupted=False)
                self._accounting.failed(route, str(fault.status or fault.what))
                if fault.what != "model_missing":  # the poll that follows says more
                    is_there = fault.what == "context_overflow"
                    self._dispatcher.confirm(route, served=is_there)
                self._liveness.failed(route.replica, fault)
                if not await attempts.has_next(fault, route):
                    raise self._faults.refusal(fault, route) from fault
                self._accounting.retried(fault.what)
            else:
                self._dispatcher.confirm(route, served=carried.status < 500)
                self._liveness.answered(
                    route.replica, carried.status, is_whole=not carried.is_interrupted
                )
                return carried
            finally:
                route.lease.release()

    def _call(
        self,
        inbound: Inbound,
        body: bytes,
        route: RouteDecision,
        attempts: Attempts,
        splice: Splice,
        alive: KeepAlive | None,
    ) -> Call:
        config = self._current.config
        upstream = config.upstream
        first_byte: float | None = None  # an answer in one piece has its first byte last
        if inbound.is_stream:
            is_lazy = route.route == "lazy"
            first_byte = config.loading.timeout if is_lazy else upstream.first_byte_timeout
        token = self._current.tokens.get(route.node)
        target = inbound.target or inbound.path
        if inbound.request.raw_path != target and (
            query := without_credentials(inbound.request.rel_url.raw_query_string)
        ):
            target = f"{target}?{query}"
        return Call(
            route.endpoint,
            target,
            body,
            self._upstream_lines(inbound, route, token),
            self._answer_lines(inbound, route),
            upstream.connect_timeout,
            first_byte,
            upstream.idle_timeout,
            inbound.is_mistyped,
            attempts.is_fresh,
            AttemptPolicy(self._faults, inbound, route, attempts, splice),
            revise=mask_of(token).json if token else None,
            silence=alive,
            trusted=self._current.certificates.of(route.node),
            remover=UsageRemover() if inbound.hides_usage else None,
            target_key=route.replica,
        )

    def _upstream_lines(self, inbound: Inbound, route: RouteDecision, token: str | None) -> bytes:
        said = f"X-Request-Id: {inbound.request_id}\r\n{HOP_LINES[inbound.hops]}"
        if token:
            node = self._registry.snapshot.nodes[route.node]
            if may_carry_token(route.endpoint, node.endpoint):
                said += f"Authorization: Bearer {token}\r\n"
        return said.encode()

    def _answer_lines(self, inbound: Inbound, route: RouteDecision) -> bytes:
        own, gateway = own_lines(inbound.dialect, inbound.request_id), self._current.config.gateway
        if gateway.cors_origins:
            own += allowance_lines(inbound.request, gateway.cors_origins)
        if not gateway.expose_route:
            return own
        return own + _route_lines(route.node, route.replica.model, route.route)


@lru_cache(maxsize=4096)
def _route_lines(node: str, model: str, route: str) -> bytes:
    return lines(
        {
            "x-cortex-node": node,
            "x-cortex-model": model,
            "x-cortex-cold-start": "false" if route == "loaded" else "true",
            "x-cortex-route": route,
        }
    )
