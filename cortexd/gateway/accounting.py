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

# Answers that speak of no tokens by their nature.
UNCOUNTED = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/v1/messages/count_tokens",
        "/v1/moderations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/generations",
        "/v1/images/edits",
    }
)
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
        lines = [self._enter(inbound) for inbound in ended]
        if self._access is not None and lines:
            self._access(lines)

    def _enter(self, inbound: Inbound) -> AccessLine:
        metrics, snapshot = self._metrics, self._registry.snapshot
        duration = inbound.ended - inbound.received
        known = inbound.model in snapshot.replicas or inbound.model in snapshot.catalogue.profiles
        model = inbound.model if known and inbound.model is not None else OTHER
        metrics.requests.inc(model, inbound.path, str(inbound.status))
        metrics.request_duration.observe(duration, model)
        if inbound.sent is not None:
            metrics.overhead.observe(max(0.0, inbound.sent - inbound.received - inbound.waited))
        if inbound.status == CLIENT_GONE and inbound.is_open:
            metrics.streams_interrupted.inc("client")
        return _line(inbound, duration, self._answered(inbound, model))

    def _answered(self, inbound: Inbound, model: str) -> float | None:
        """Count what an upstream's answer tells; seconds to its first byte."""
        metrics, carried, route = self._metrics, inbound.carried, inbound.route
        if carried is None or route is None:
            return None
        metrics.upstream_requests.inc(route.replica.model, route.node, str(carried.status))
        if carried.is_interrupted:
            metrics.streams_interrupted.inc("upstream")
        if carried.status == 200 and inbound.path not in UNCOUNTED:
            metrics.used(model, route.node, carried.usage)
        if carried.first_byte is None:
            return None
        first = carried.first_byte - inbound.received
        if inbound.is_stream and carried.status == 200:
            metrics.first_token.observe(first, model)
            span = inbound.ended - carried.first_byte
            if carried.usage is not None and span > 0:
                metrics.output_rate.observe(carried.usage.completion / span, model)
        return first


def _line(inbound: Inbound, duration: float, first: float | None) -> AccessLine:
    route, carried = inbound.route, inbound.carried
    usage = carried.usage if carried else None
    return AccessLine(
        ts=round(time.time() - time.monotonic() + inbound.ended, 3),
        level="info",
        request_id=inbound.request_id,
        path=inbound.path,
        status=inbound.status,
        duration_s=round(duration, 4),
        client=inbound.request.remote,
        code=inbound.code,
        model=inbound.model,
        node=route.node if route else None,
        route=route.route if route else None,
        first_byte_s=None if first is None else round(first, 4),
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
    )
