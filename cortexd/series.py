"""Counters, gauges and histograms, and their text form, piece by piece.

The client library's own children lock for threads, of which there are none here, and its writer
holds the loop for a tenth of a second at ten thousand samples. `collect` gives the library's view
of the same numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, Final, Protocol, runtime_checkable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

PIECE: Final = 200  # samples per piece: about a fifth of a millisecond

Labels = tuple[str, ...]
Sample = tuple[Labels, float]


@runtime_checkable
class Written(Protocol):
    """A collector that writes its own text."""

    def pieces(self) -> Iterator[str]:
        """Yield the text format in pieces of at most about `PIECE` samples."""


class Counter(Collector):
    """A counter by label values."""

    def __init__(self, name: str, text: str, labels: Labels) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[Labels, float] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[Labels]:
        return iter(self._counts)

    def inc(self, *labels: str, by: float = 1) -> None:
        """Add 1, or `by`."""
        self._counts[labels] = self._counts.get(labels, 0) + by

    def expect(self, *labels: str) -> None:
        """Show 0 for these label values until they are counted.

        A series that appears with its first event shows no increase to alert on.
        """
        self._counts.setdefault(labels, 0)

    def forget(self, label: str, value: str) -> None:
        """Drop the series in which that label has that value, if the metric has the label."""
        _forget(self._counts, self._labels, label, value)

    def collect(self) -> Iterable[Metric]:
        """Yield the family as an object of the client library."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return [family]

    def pieces(self) -> Iterator[str]:
        """Yield the text format."""
        name = f"{self._name}_total"
        return samples_text(name, self._text, "counter", self._labels, [*self._counts.items()])


class Gauge(Collector):
    """One value, which is set."""

    def __init__(self, name: str, text: str, value: float) -> None:
        self._name, self._text = name, text
        self.value = value

    def collect(self) -> Iterable[Metric]:
        """Yield the family as an object of the client library."""
        return [GaugeMetricFamily(self._name, self._text, value=self.value)]

    def pieces(self) -> Iterator[str]:
        """Yield the text format."""
        return samples_text(self._name, self._text, "gauge", (), [((), self.value)])


class Histogram(Collector):
    """A histogram by label values. `bounds`: the upper ones of its buckets, ascending."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], labels: Labels) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        # Of each: how many in each bucket and above the last, and the sum of the values.
        self._spreads: dict[Labels, tuple[list[int], list[float]]] = {}
        self._bound_names = [floatToGoString(bound) for bound in (*bounds, float("inf"))]
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

    def forget(self, label: str, value: str) -> None:
        """Drop the series in which that label has that value, if the metric has the label."""
        _forget(self._spreads, self._labels, label, value)

    def collect(self) -> Iterable[Metric]:
        """Yield the family as an object of the client library."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, (counts, total) in self._spreads.items():
            buckets = list(zip(self._bound_names, map(float, accumulate(counts)), strict=True))
            family.add_metric(labels, buckets, total[0])
        return [family]

    def pieces(self) -> Iterator[str]:
        """Yield the text format."""
        yield _head(self._name, self._text, "histogram")
        starts = [f'{self._name}_bucket{{le="{bound}"' for bound in self._bound_names]
        spreads = iter([*self._spreads.items()])
        at_once = max(1, PIECE // len(starts))
        while some := list(islice(spreads, at_once)):
            lines = []
            for labels, (counts, total) in some:
                written = label_text(self._labels, labels)
                end = f",{written}}} " if written else "} "
                lines += [
                    f"{start}{end}{count}.0\n"
                    for start, count in zip(starts, accumulate(counts), strict=True)
                ]
                braces = f"{{{written}}}" if written else ""
                lines.append(f"{self._name}_count{braces} {sum(counts)}.0\n")
                lines.append(f"{self._name}_sum{braces} {floatToGoString(total[0])}\n")
            yield "".join(lines)

    def _add(self, labels: Labels) -> tuple[list[int], list[float]]:
        spread = self._spreads[labels] = [0] * (len(self._bounds) + 1), [0.0]
        return spread


def samples_text(
    name: str, text: str, kind: str, labels: Labels, samples: Iterable[Sample]
) -> Iterator[str]:
    """Yield the text format of a counter or a gauge: its head, then the samples in pieces."""
    yield _head(name, text, kind)
    left = iter(samples)
    while some := list(islice(left, PIECE)):
        yield sample_lines(name, labels, some)


def sample_lines(name: str, labels: Labels, samples: Iterable[Sample]) -> str:
    """Return the lines of some samples."""
    if not labels:
        return "".join(f"{name} {floatToGoString(value)}\n" for _, value in samples)
    return "".join(
        f"{name}{{{label_text(labels, values)}}} {floatToGoString(value)}\n"
        for values, value in samples
    )


def label_text(names: Labels, values: Labels) -> str:
    """Return labels as they are written between the braces."""
    return ",".join(
        [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    )


def _escaped(value: str) -> str:
    # Most values need no escaping, so one look is enough.
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _forget(counted: dict[Labels, Any], names: Labels, label: str, value: str) -> None:
    if label in names:
        at = names.index(label)
        for labels in [labels for labels in counted if labels[at] == value]:
            del counted[labels]
