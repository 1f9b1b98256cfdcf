"""The one list of metrics. Labels only ever take known model ids, node names and paths.

The client library writes them down. Counting is our own: the library's children lock for threads
that there are none of here, which costs a request ten times as much as a dict does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cortexd import __version__
from cortexd.fleet.snapshot import Ledger, Node, Snapshot
from cortexd.wire.usage import Usage

OTHER = "_other"  # stands for every label value that is not a known name
MIB = 1024 * 1024

# Seconds. Answers and loads take minutes; what the gateway itself adds takes fractions of a
# millisecond.
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)
_TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500)


class Counter(Collector):
    """Counts by label values."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[tuple[str, ...], float] = {}

    def inc(self, *labels: str, by: float = 1) -> None:
        """Count one more, or so many."""
        self._counts[labels] = self._counts.get(labels, 0) + by

    def forget(self, label: str, value: str) -> None:
        """Drop what was counted of something that is gone, if it is counted by that label."""
        if label in self._labels:
            at = self._labels.index(label)
            for labels in [labels for labels in self._counts if labels[at] == value]:
                del self._counts[labels]

    def collect(self) -> Iterable[Metric]:
        """All of it, as it stands."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return [family]


class Gauge(Collector):
    """One value, which is set."""

    def __init__(self, name: str, text: str, value: float) -> None:
        self._name, self._text = name, text
        self.value = value

    def collect(self) -> Iterable[Metric]:
        """As it stands."""
        return [GaugeMetricFamily(self._name, self._text, value=self.value)]


class Histogram(Collector):
    """Counts values into buckets, by label values. `bounds`: the upper ones, ascending."""

    def __init__(
        self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...]
    ) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        # Of each: how many in each bucket and above the last, and the sum of the values.
        self._spreads: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        if not labels:
            self._add(())

    def observe(self, values: Sequence[float], *labels: str) -> None:
        """Count some values."""
        if not values:
            return
        counts, total = self._spreads.get(labels) or self._add(labels)
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
        total[0] += sum(values)

    def collect(self) -> Iterable[Metric]:
        """All of it, as it stands."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [floatToGoString(bound) for bound in (*self._bounds, float("inf"))]
        for labels, (counts, total) in self._spreads.items():
            buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
            family.add_metric(labels, buckets, total[0])
        return [family]

    def _add(self, labels: tuple[str, ...]) -> tuple[list[int], list[float]]:
        spread = self._spreads[labels] = [0] * (len(self._bounds) + 1), [0.0]
        return spread


class Metrics:
    """Every counter and histogram of one gateway, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._counters: list[Counter] = []
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"cortexd_{name}", text, labels)
            self.registry.register(made)
            self._counters.append(made)
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            made = Histogram(f"cortexd_{name}", text, bounds, labels)
            self.registry.register(made)
            return made

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
            "From the request to its way upstream, less the wait for a load. The first request of "
            "a connection counts from when its bytes came to the kernel.",
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
        self.evictions = counter(
            "evictions", "Models unloaded, by what for.", "model", "node", "reason"
        )
        self.polls = counter("polls", "Rounds of polling, by result.", "node", "result")
        self.reload_success = Gauge(
            "cortexd_config_last_reload_success",
            "1 when the configuration in use is that of the last reload.",
            1,
        )
        self.registry.register(self.reload_success)

    def forget_node(self, node: str) -> None:
        """Drop what was counted of a node that is gone."""
        for counted in self._counters:
            counted.forget("node", node)

    def used(self, model: str, node: str, usages: Sequence[Usage | None]) -> None:
        """Count the tokens of some answers, or that they did not say."""
        told = [usage for usage in usages if usage is not None]
        if told:
            self.prompt_tokens.inc(model, node, by=sum(usage.prompt for usage in told))
            self.completion_tokens.inc(model, node, by=sum(usage.completion for usage in told))
            self.cached_prompt_tokens.inc(model, node, by=sum(usage.cached for usage in told))
        if len(told) < len(usages):
            self.usage_missing.inc(model, by=len(usages) - len(told))

    def exposition(self) -> Iterator[bytes]:
        """The text format, family by family, so that a long scrape need not hold the loop."""
        for family in self.registry.collect():
            yield generate_latest(_Family(family))


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
