"""Gauges of the fleet, read from the snapshot at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortexd import __version__
from cortexd.fleet.snapshot import Ledger, Node, Snapshot
from cortexd.series import Labels, Sample, samples_text
from cortexd.wire.neuron import LOADING, Model

MIB: Final = 1024 * 1024

_STATUS_LABELS: Final = ("model", "node", "status")


class _Family(NamedTuple):
    """One metric and its samples."""

    name: str
    text: str
    labels: Labels
    samples: Iterable[Sample]


class _NodeStatus(NamedTuple):
    """The lines of a node's models, with the models they were written for: valid for these only."""

    models: Mapping[str, Model]
    loading: frozenset[str]
    pieces: list[str]


class FleetCollector(Collector):
    """Collects the gauges.

    waiting: model → requests that wait for it. longest_wait: seconds.
    pairs, models: (model, node) and models whose gauges are 0 rather than absent.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        ledger: Ledger,
        waiting: Callable[[], dict[str, int]],
        longest_wait: Callable[[], float],
        clock: Callable[[], float],
        pairs: Collection[tuple[str, str]] = (),
        models: Collection[str] = (),
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._waiting = waiting
        self._longest_wait = longest_wait
        self._clock = clock
        self._pairs = pairs
        self._models = models
        self._statuses: dict[str, _NodeStatus] = {}

    def collect(self) -> Iterable[Metric]:
        """Yield the families as objects of the client library."""
        yield InfoMetricFamily("cortexd_build", "The running version.", {"version": __version__})
        snapshot = self._snapshot()
        for family in self._families(snapshot):
            yield _gauge(family)
        statuses = (
            sample
            for node in snapshot.nodes.values()
            for sample in _statuses(node, self._loading_on(node.name))
        )
        yield _gauge(_Family(*_MODEL_STATUS, _STATUS_LABELS, statuses))

    def pieces(self) -> Iterator[str]:
        """Yield the text format."""
        snapshot = self._snapshot()
        version = [((__version__,), 1.0)]
        yield from samples_text(
            "cortexd_build_info", "The running version.", "gauge", ("version",), version
        )
        for family in self._families(snapshot):
            samples = [*family.samples]
            yield from samples_text(family.name, family.text, "gauge", family.labels, samples)
        yield from samples_text(*_MODEL_STATUS, "gauge", _STATUS_LABELS, ())
        for gone in self._statuses.keys() - snapshot.nodes.keys():
            del self._statuses[gone]
        for node in snapshot.nodes.values():
            yield from self._status_pieces(node)

    def _status_pieces(self, node: Node) -> Iterator[str]:
        """Yield the lines of a node's models; they are written again only after a change."""
        loading = self._loading_on(node.name)
        known = self._statuses.get(node.name)
        if known is not None and known.models is node.models and known.loading == loading:
            yield from known.pieces
            return
        pieces = []
        for piece in samples_text(
            *_MODEL_STATUS, "gauge", _STATUS_LABELS, _statuses(node, loading)
        ):
            if not piece.startswith("#"):
                pieces.append(piece)
                yield piece
        self._statuses[node.name] = _NodeStatus(node.models, loading, pieces)

    def _loading_on(self, name: str) -> frozenset[str]:
        return frozenset(model for model, node in self._ledger.loading.items() if node == name)

    def _families(self, snapshot: Snapshot) -> Iterator[_Family]:
        nodes = list(snapshot.nodes.values())
        now = self._clock()
        in_flight = dict.fromkeys(self._pairs, 0)
        in_flight |= {(model, node): n for (node, model), n in self._ledger.in_flight.items()}
        yield _Family(
            "cortexd_in_flight",
            "Requests now at a node.",
            ("model", "node"),
            in_flight.items(),
        )
        waiting = dict.fromkeys(self._models, 0) | self._waiting()
        yield _Family(
            "cortexd_load_waiting",
            "Requests that wait for a model.",
            ("model",),
            (((model,), n) for model, n in waiting.items()),
        )
        yield _Family(
            "cortexd_oldest_waiter_seconds",
            "For how long the oldest of them has waited.",
            (),
            [((), self._longest_wait())],
        )
        yield _Family(
            "cortexd_node_up",
            "1 for a healthy node.",
            ("node",),
            (((node.name,), node.healthy) for node in nodes),
        )
        yield _Family(
            "cortexd_node_last_contact_seconds",
            "Seconds since the node's last good answer.",
            ("node",),
            (
                ((node.name,), now - node.last_contact)
                for node in nodes
                if node.last_contact is not None
            ),
        )
        for name, text, field, scale in (
            ("vram_used_bytes", "Memory in use.", "vram_used_mb", MIB),
            ("vram_free_bytes", "Memory that is free.", "vram_free_mb", MIB),
            ("utilization_ratio", "How busy it is, 0 to 1.", "utilization_pct", 0.01),
            ("temperature_celsius", "Temperature.", "temp_c", 1.0),
        ):
            yield _Family(
                f"cortexd_device_{name}",
                text,
                ("node", "device"),
                _device_samples(nodes, field, scale),
            )


_MODEL_STATUS: Final = ("cortexd_model_status", "1 for the status that a model has on a node.")


def _statuses(node: Node, loading: Collection[str]) -> Iterator[Sample]:
    """Yield the status of each model; `loading` if this gateway loads it there."""
    for model, info in node.models.items():
        if model not in loading:
            yield (model, node.name, info.status), 1
    for model in sorted(loading):
        yield (model, node.name, LOADING), 1


def _device_samples(nodes: list[Node], field: str, scale: float) -> Iterator[Sample]:
    for node in nodes:
        for device in (node.health and node.health.devices) or ():
            value = getattr(device, field)
            if value is not None:
                yield (node.name, str(device.index)), value * scale


def _gauge(family: _Family) -> GaugeMetricFamily:
    made = GaugeMetricFamily(family.name, family.text, labels=family.labels)
    for values, value in family.samples:
        made.add_metric(values, float(value))
    return made
