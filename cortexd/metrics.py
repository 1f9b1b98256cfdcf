"""The one list of metrics. Labels only ever take known model ids, node names and paths.

Children are bound once and kept: finding one by its labels costs more than counting with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortexd import __version__
from cortexd.fleet.snapshot import Ledger, Node, Snapshot
from cortexd.wire.usage import Usage

disable_created_metrics()  # a `_created` series beside every series tells nobody anything

OTHER = "_other"  # stands for every label value that is not a known name
MIB = 1024 * 1024

# Seconds. Answers and loads take minutes; what the gateway itself adds takes fractions of a
# millisecond.
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)
_TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500)


class Metrics:
    """Every counter and histogram of one gateway, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cortexd_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"cortexd_{name}", text, labels, buckets=buckets, registry=self.registry
            )

        self.requests = counter(
            "requests", "Inference requests answered, by status.", "model", "path", "status"
        )
        self.request_duration = histogram(
            "request_duration_seconds", "From the request to its last byte.", _LONG, "model"
        )
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "From the request to the first byte of a streamed answer.",
            _LONG,
            "model",
        )
        self.output_rate = histogram(
            "output_tokens_per_second",
            "Completion tokens over the time from first to last byte of a stream.",
            _TOKENS_PER_SECOND,
            "model",
        )
        self.overhead = histogram(
            "gateway_overhead_seconds",
            "From the request to its way upstream, less the wait for a load.",
            _SHORT,
        )
        self.upstream_requests = counter(
            "upstream_requests", "Requests sent to nodes, by result.", "model", "node", "result"
        )
        self.upstream_retries = counter(
            "upstream_retries", "Attempts after the first, by the fault before.", "reason"
        )
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens, as the nodes count them.", "model", "node"
        )
        self.completion_tokens = counter(
            "completion_tokens", "Completion tokens, as the nodes count them.", "model", "node"
        )
        self.cached_prompt_tokens = counter(
            "cached_prompt_tokens", "Prompt tokens found in the KV cache.", "model", "node"
        )
        self.usage_missing = counter(
            "usage_missing", "Answers that carried no token counts.", "model"
        )
        self.refusals = counter("refusals", "Requests refused, by code.", "code")
        self.streams_interrupted = counter(
            "streams_interrupted", "Answers that ended before they were whole.", "by"
        )
        self.cold_starts = counter(
            "cold_starts", "Requests that met a cold model.", "model", "node", "kind"
        )
        self.loads = counter("loads", "Cold loads, by result.", "model", "node", "result")
        self.load_duration = histogram(
            "load_duration_seconds", "Duration of cold loads that succeeded.", _LONG, "model"
        )
        self.polls = counter("polls", "Rounds of polling, by result.", "node", "result")
        # Bounded by what is known; the bound only guards against a mistake in ours.
        self.child = lru_cache(maxsize=65536)(_child)

    def polled(self, node: str, *, good: bool) -> None:
        """Count one round of polling."""
        self.child(self.polls, node, "ok" if good else "failed").inc()

    def used(self, model: str, node: str, usage: Usage | None) -> None:
        """Count the tokens of one answer, or that it did not say."""
        if usage is None:
            self.child(self.usage_missing, model).inc()
            return
        self.child(self.prompt_tokens, model, node).inc(usage.prompt)
        self.child(self.completion_tokens, model, node).inc(usage.completion)
        cached = self.child(self.cached_prompt_tokens, model, node)
        if usage.cached:
            cached.inc(usage.cached)

    def exposition(self) -> Iterator[bytes]:
        """The text format, family by family, so that a long scrape need not hold the loop."""
        for family in self.registry.collect():
            yield generate_latest(_Family(family))


def _child(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)


class _Family(CollectorRegistry):
    """A registry of one family that was already collected."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class FleetCollector(Collector):
    """Gauges of the fleet, read from the snapshot at the moment of the scrape."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        ledger: Ledger,
        waiting: Callable[[], dict[str, int]],
        longest_wait: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._waiting = waiting
        self._longest_wait = longest_wait
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """One family after the other."""
        snapshot = self._snapshot()
        nodes = list(snapshot.nodes.values())
        yield InfoMetricFamily("cortexd_build", "The running version.", {"version": __version__})
        yield _gauge(
            "in_flight",
            "Requests now at a node.",
            ("model", "node"),
            (((model, node), n) for (node, model), n in self._ledger.in_flight.items()),
        )
        yield _gauge(
            "load_waiting",
            "Requests that wait for a model.",
            ("model",),
            (((model,), n) for model, n in self._waiting().items()),
        )
        yield _gauge(
            "oldest_waiter_seconds",
            "For how long the oldest of them has waited.",
            (),
            [((), self._longest_wait())],
        )
        yield _gauge(
            "node_up", "1 for a healthy node.", ("node",), (((n.name,), n.healthy) for n in nodes)
        )
        now = self._clock()
        yield _gauge(
            "node_last_contact_seconds",
            "Seconds since the node's last good answer.",
            ("node",),
            (((n.name,), now - n.last_contact) for n in nodes if n.last_contact is not None),
        )
        for name, text, field, scale in (
            ("vram_used_bytes", "Memory in use.", "vram_used_mb", MIB),
            ("vram_free_bytes", "Memory that is free.", "vram_free_mb", MIB),
            ("utilization_ratio", "How busy it is, 0 to 1.", "utilization_pct", 0.01),
            ("temperature_celsius", "Temperature.", "temp_c", 1.0),
        ):
            yield _gauge(
                f"device_{name}", text, ("node", "device"), _device_samples(nodes, field, scale)
            )
        yield _gauge(
            "model_status",
            "1 for the status that a model has on a node.",
            ("model", "node", "status"),
            (
                ((model, node.name, info.status), 1)
                for node in nodes
                for model, info in node.models.items()
            ),
        )


def _device_samples(
    nodes: list[Node], field: str, scale: float
) -> Iterator[tuple[tuple[str, ...], float]]:
    for node in nodes:
        for device in (node.health and node.health.devices) or ():
            value = getattr(device, field)
            if value is not None:
                yield (node.name, str(device.index)), value * scale


def _gauge(
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"cortexd_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family
