"""The list of all metrics. Labels take known model ids, node names and paths only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortexd.series import Counter, Gauge, Histogram, Written
from cortexd.wire.usage import Usage

OTHER: Final = "_other"  # stands for every label value that is not a known name

# Seconds. A cached or small answer takes milliseconds, a long one and a load take minutes; what the
# gateway itself adds takes fractions of a millisecond.
_LOADS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_ANSWERS = (0.005, 0.01, 0.025, *_LOADS)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)
_TOKENS_PER_SECOND = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500)


class Metrics:
    """Every counter and histogram of one gateway, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._collectors: list[Collector] = []
        self._counted: list[Counter | Histogram] = []
        for collector in (
            ProcessCollector(registry=None),
            PlatformCollector(registry=None),
            GCCollector(registry=CollectorRegistry()),
        ):
            self.register(collector)

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"cortexd_{name}", text, labels)
            self.register(made)
            self._counted.append(made)
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            made = Histogram(f"cortexd_{name}", text, bounds, labels)
            self.register(made)
            self._counted.append(made)
            return made

        self.requests = counter(
            "requests", "Inference requests answered, by status.", "model", "path", "status"
        )
        self.request_duration = histogram(
            "request_duration_seconds",
            "From the request to its last byte.",
            _ANSWERS,
            "model",
            "node",
        )
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "From the request to the first content, reasoning or tool delta of a stream.",
            _ANSWERS,
            "model",
            "node",
        )
        self.first_byte = histogram(
            "time_to_first_byte_seconds",
            "From the request to the first byte of a streamed answer's body.",
            _ANSWERS,
            "model",
            "node",
        )
        self.output_rate = histogram(
            "output_tokens_per_second",
            "Completion tokens over the time from the first token to the last byte of a stream.",
            _TOKENS_PER_SECOND,
            "model",
            "node",
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
        self.unknown_paths = counter("unknown_paths", "Requests for a path that does not exist.")
        self.streams_interrupted = counter(
            "streams_interrupted", "Answers that ended before they were whole.", "by"
        )
        self.cold_starts = counter(
            "cold_starts", "Requests that met a cold model.", "model", "node", "kind"
        )
        self.loads = counter("loads", "Cold loads, by result.", "model", "node", "result")
        self.load_duration = histogram(
            "load_duration_seconds",
            "Duration of cold loads that succeeded.",
            _LOADS,
            "model",
            "node",
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
        self.register(self.reload_success)

    def register(self, collector: Collector) -> None:
        """Add a collector to the metrics shown."""
        self.registry.register(collector)
        self._collectors.append(collector)

    def forget_node(self, node: str) -> None:
        """Drop what was counted of a node that is gone."""
        for counted in self._counted:
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

    def exposition(self) -> Iterator[str]:
        """Yield the text format in small pieces, so that the loop can run between any two."""
        for collector in self._collectors:
            if isinstance(collector, Written):
                yield from collector.pieces()
            else:
                for family in collector.collect():
                    yield generate_latest(_Family(family)).decode()


class _Family(CollectorRegistry):
    """A registry of one family that was already collected."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]
