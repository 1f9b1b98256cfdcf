"""What is counted and logged of each inference request, once, however it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from cortexd.control.dispatch import RouteDecision
from cortexd.control.registry import Registry
from cortexd.daemon.access import AccessLine
from cortexd.errors import Refusal
from cortexd.gateway.inbound import Inbound
from cortexd.metrics import OTHER, Metrics
from cortexd.proxy.call import Carried
from cortexd.wire import responses

# Paths of requests that only count tokens: no other model is unloaded for them.
TOKEN_PATHS: Final = frozenset(
    {
        "/v1/messages/count_tokens",
        "/v1/chat/completions/input_tokens",
        "/v1/responses/input_tokens",
        "/tokenize",
        "/detokenize",
    }
)
# Paths whose answers state no token usage.
UNCOUNTED: Final = TOKEN_PATHS | {
    responses.ITEM_PATH,  # counted when it was made
    "/v1/moderations",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/images/generations",
    "/v1/images/edits",
}
BATCH: Final = 64  # requests that are entered together
DELAY: Final = 0.1  # seconds for which the first of them waits
CLIENT_GONE = 499  # nginx's status for a client that left before its answer


class Accounting:
    """What each request leaves behind, entered a few times a second: done for many at once it costs
    a third of what it would after each. `access`: takes the lines of the access log.
    """

    def __init__(
        self,
        metrics: Metrics,
        registry: Registry,
        access: Callable[[list[AccessLine]], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._registry = registry
        self._access = access
        self._ended: list[Inbound] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def routed(self, inbound: Inbound, route: RouteDecision) -> None:
        """It is about to go upstream for the first time."""
        inbound.sent, inbound.waited = time.monotonic(), route.waited
        if route.is_cold_start:
            self._metrics.cold_starts.inc(route.replica.model, route.node, route.route)

    def failed(self, route: RouteDecision, result: str) -> None:
        """An attempt has failed: a status, or what went wrong."""
        self._metrics.upstream_requests.inc(route.replica.model, route.node, result)

    def retried(self, reason: str) -> None:
        """Another attempt follows."""
        self._metrics.upstream_retries.inc(reason)

    def refused(self, refusal: Refusal) -> None:
        """It was refused on a stream that was open already."""
        self._metrics.refusals.inc(refusal.kind.code)

    def ended(self, inbound: Inbound) -> None:
        """The request is over."""
        inbound.ended = time.monotonic()
        self._ended.append(inbound)
        if len(self._ended) >= BATCH:
            self.settle()
        elif self._timer is None:
            self._timer = self._loop.call_later(DELAY, self.settle)

    def settle(self) -> None:
        """Enter what has ended by now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ended, self._ended = self._ended, []
        if not ended:
            return
        alike: dict[tuple[object, ...], list[Inbound]] = {}
        for inbound in ended:
            node = inbound.route.node if inbound.route and inbound.carried else None
            key = inbound.model, inbound.path, inbound.status, node
            alike.setdefault(key, []).append(inbound)
        for some in alike.values():
            self._enter(some)
        if self._access is not None:
            began = time.time() - time.monotonic()
            self._access([_line(inbound, began) for inbound in ended])

    def _enter(self, some: list[Inbound]) -> None:
        """Count requests of one model, path, status and node."""
        metrics, snapshot = self._metrics, self._registry.snapshot
        one = some[0]
        known = one.model in snapshot.replicas or one.model in snapshot.catalogue.profiles
        model = one.model if known and one.model is not None else OTHER
        metrics.requests.inc(model, one.path, str(one.status), by=len(some))
        node = one.route.node if one.route is not None and one.carried is not None else OTHER
        took = [each.ended - each.received for each in some]
        metrics.request_duration.observe(took, model, node)
        metrics.overhead.observe(
            [
                max(0.0, each.sent - each.received - each.waited)
                for each in some
                if each.sent is not None
            ]
        )
        if one.status == CLIENT_GONE and (begun := sum(each.is_open for each in some)):
            metrics.streams_interrupted.inc("client", by=begun)
        if one.route is not None and one.carried is not None:
            self._answered(some, model, one.route)

    def _answered(self, some: list[Inbound], model: str, route: RouteDecision) -> None:
        """Count what the upstream's answers tell."""
        metrics, status = self._metrics, some[0].status
        answers = [each.carried for each in some if each.carried is not None]
        metrics.upstream_requests.inc(route.replica.model, route.node, str(status), by=len(some))
        if any(carried.first_byte is not None for carried in answers):
            self._registry.note_answered(route.node, route.replica.model, some[-1].ended)
        if cut := sum(carried.is_interrupted for carried in answers):
            metrics.streams_interrupted.inc("upstream", by=cut)
        if status != 200:
            return
        if some[0].path not in UNCOUNTED:
            metrics.used(model, route.node, [carried.usage for carried in answers])
        self._streamed(
            [
                (inbound, inbound.carried)
                for inbound in some
                if inbound.is_stream
                and inbound.carried is not None
                and inbound.carried.first_byte is not None
            ],
            model,
            route.node,
        )

    def _streamed(self, streams: list[tuple[Inbound, Carried]], model: str, node: str) -> None:
        """Count the latencies and rates of streams that each have a first byte."""
        bytes_after, tokens_after, rates = [], [], []
        for inbound, carried in streams:
            began = carried.first_byte or 0.0
            bytes_after.append(began - inbound.received)
            if carried.first_token is not None:
                began = carried.first_token
                tokens_after.append(began - inbound.received)
            if carried.usage and (span := inbound.ended - began) > 0:
                rates.append(carried.usage.completion / span)
        metrics = self._metrics
        metrics.first_byte.observe(bytes_after, model, node)
        metrics.first_token.observe(tokens_after, model, node)
        metrics.output_rate.observe(rates, model, node)


def _first_byte(inbound: Inbound) -> float | None:
    """Seconds from a request to the first byte of its answer, if it had any."""
    carried = inbound.carried
    if carried is None or carried.first_byte is None:
        return None
    return carried.first_byte - inbound.received


def _line(inbound: Inbound, began: float) -> AccessLine:
    """`began`: when the monotonic clock was 0, since the epoch."""
    route, carried = inbound.route, inbound.carried
    usage, first = carried.usage if carried else None, _first_byte(inbound)
    # Rounded without `round`, which takes five times as long, and without a call for each.
    return AccessLine(
        ts=int((began + inbound.ended) * 1e3 + 0.5) / 1e3,
        level="info",
        request_id=inbound.request_id,
        path=inbound.path,
        status=inbound.status,
        duration_s=int((inbound.ended - inbound.received) * 1e4 + 0.5) / 1e4,
        client=inbound.request.remote,
        code=inbound.code,
        model=inbound.model,
        node=route.node if route else None,
        route=route.route if route else None,
        first_byte_s=None if first is None else int(first * 1e4 + 0.5) / 1e4,
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
    )
