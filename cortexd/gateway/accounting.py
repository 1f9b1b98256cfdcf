"""What is counted and logged of each inference request, once, however it ended."""

from __future__ import annotations

import logging
import time

from cortexd.control.dispatch import RouteDecision
from cortexd.control.registry import Registry
from cortexd.gateway.inbound import Inbound
from cortexd.metrics import OTHER, Metrics

access = logging.getLogger("cortexd.access")

# Answers that speak of no tokens by their nature.
UNCOUNTED = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens", "/v1/moderations"})
CLIENT_GONE = 499  # nginx's status for a client that left before its answer


class Accounting:
    """`has_access_log`: write a line for each request."""

    def __init__(self, metrics: Metrics, registry: Registry, *, has_access_log: bool) -> None:
        self._metrics = metrics
        self._registry = registry
        self._has_access_log = has_access_log

    def routed(self, inbound: Inbound, route: RouteDecision, waited: float) -> None:
        """It is about to go upstream for the first time; `waited`: seconds, for a load."""
        metrics = self._metrics
        metrics.overhead.observe(max(0.0, time.monotonic() - inbound.received - waited))
        if route.is_cold_start:
            metrics.child(metrics.cold_starts, route.replica.model, route.node, route.route).inc()

    def tried(self, route: RouteDecision, result: str) -> None:
        """One attempt is over: a status, or what went wrong."""
        metrics = self._metrics
        metrics.child(metrics.upstream_requests, route.replica.model, route.node, result).inc()

    def retried(self, reason: str) -> None:
        """Another attempt follows."""
        self._metrics.child(self._metrics.upstream_retries, reason).inc()

    def ended(self, inbound: Inbound) -> None:
        """The request is over."""
        metrics, now = self._metrics, time.monotonic()
        snapshot = self._registry.snapshot
        known = inbound.model in snapshot.replicas or inbound.model in snapshot.catalogue.profiles
        model = inbound.model if known and inbound.model is not None else OTHER
        metrics.child(metrics.requests, model, inbound.path, str(inbound.status)).inc()
        metrics.child(metrics.request_duration, model).observe(now - inbound.received)
        if inbound.status == CLIENT_GONE and inbound.is_open:
            metrics.child(metrics.streams_interrupted, "client").inc()
        first = self._answered(inbound, model, now)
        if self._has_access_log:
            _log(inbound, now - inbound.received, first)

    def _answered(self, inbound: Inbound, model: str, now: float) -> float | None:
        """Count what an upstream's answer tells; seconds to its first byte."""
        metrics, carried, route = self._metrics, inbound.carried, inbound.route
        if carried is None or route is None:
            return None
        if carried.is_interrupted:
            metrics.child(metrics.streams_interrupted, "upstream").inc()
        if carried.status == 200 and inbound.path not in UNCOUNTED:
            metrics.used(model, route.node, carried.usage)
        if carried.first_byte is None:
            return None
        first = carried.first_byte - inbound.received
        if inbound.is_stream and carried.status == 200:
            metrics.child(metrics.first_token, model).observe(first)
            span = now - carried.first_byte
            if carried.usage is not None and span > 0:
                metrics.child(metrics.output_rate, model).observe(carried.usage.completion / span)
        return first


def _log(inbound: Inbound, duration: float, first: float | None) -> None:
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
