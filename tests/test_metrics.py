"""Counting in dicts gives what the client library's own counters would."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cortexd import series
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.sanity import sane
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, with_node
from cortexd.fleet_gauges import FleetCollector
from cortexd.metrics import Metrics
from cortexd.series import Counter, Gauge, Histogram
from tests.fleet import nasty
from tests.fleet.fleet import fleet, node

BOUNDS = (0.1, 1.0, 60.0)
VALUES = st.floats(0, 1000) | st.sampled_from(BOUNDS)
LABELS = st.sampled_from(["a", "b", 'a "quoted\\\n one'])


def text(*collectors: prometheus_client.registry.Collector) -> str:
    registry = prometheus_client.CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def without_created(theirs: str) -> list[str]:
    return [line for line in theirs.splitlines() if "_created" not in line]


@given(st.lists(st.tuples(LABELS, st.integers(0, 1000)), max_size=20))
def test_counters(events: list[tuple[str, int]]) -> None:
    ours = Counter("x", "Some.", ("who",))
    theirs = prometheus_client.Counter("x", "Some.", ["who"], registry=None)
    for who, by in events:
        ours.inc(who, by=by)
        theirs.labels(who).inc(by)
    assert text(ours).splitlines() == without_created(text(theirs))


@given(st.lists(st.tuples(LABELS, VALUES), max_size=20))
def test_histograms(events: list[tuple[str, float]]) -> None:
    ours = Histogram("x", "Some.", BOUNDS, ("who",))
    theirs = prometheus_client.Histogram("x", "Some.", ["who"], buckets=BOUNDS, registry=None)
    for who, value in events:
        ours.observe((value,), who)
        theirs.labels(who).observe(value)
    assert text(ours).splitlines() == without_created(text(theirs))


def families(exposition: str) -> list[object]:
    return [
        (
            family.name,
            family.type,
            family.documentation,
            [(it.name, sorted(it.labels.items()), it.value) for it in family.samples],
        )
        for family in text_string_to_metric_families(exposition)
    ]


@given(st.lists(st.tuples(LABELS, VALUES), max_size=20), st.integers(1, 40))
def test_pieces_say_what_the_library_would_write(
    events: list[tuple[str, float]], piece: int
) -> None:
    histogram, bare = (
        Histogram("x", "Some.", BOUNDS, ("who", "a")),
        Histogram("b", "Some.", BOUNDS, ()),
    )
    counter, gauge = Counter("y", "Some.", ("who",)), Gauge("z", "Some.", 0.25)
    for who, value in events:
        histogram.observe((value,), who, "1")
        bare.observe((value,))
        counter.inc(who, by=value)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(series, "PIECE", piece)
        for collector in (histogram, bare, counter, gauge):
            assert families("".join(collector.pieces())) == families(text(collector))


@given(nasty.observations())
def test_fleet_pieces_say_what_the_library_would_write(said: Observation) -> None:
    better, _ = sane(said, None)
    one = observed(Node("n", "http://n"), better, Catalogue(), unhealthy_after=1)
    snapshot, ledger = with_node(Snapshot(), one), Ledger()
    ledger.loading.update(dict.fromkeys(list(one.models)[:1], "n"))
    gauges = FleetCollector(
        lambda: snapshot, ledger, dict, lambda: 0.0, lambda: 100.0, [("m", "n")], ["m"]
    )
    for _ in range(2):  # the second time from what is kept
        assert families("".join(gauges.pieces())) == families(text(gauges))


def fleet_gauges(snapshot: Snapshot, ledger: Ledger) -> str:
    made = FleetCollector(
        lambda: snapshot, ledger, dict, lambda: 0.0, lambda: 100.0, [("m", "a")], ["m"]
    )
    return "".join(made.pieces())


def test_gauges_of_what_is_known_are_0_rather_than_absent() -> None:
    said = fleet_gauges(Snapshot(), Ledger())
    assert 'cortexd_in_flight{model="m",node="a"} 0.0\n' in said
    assert 'cortexd_load_waiting{model="m"} 0.0\n' in said


def test_model_that_this_gateway_loads_is_loading_there_and_nothing_else() -> None:
    snapshot, ledger = fleet(node("a", {"m": "unloaded"}), node("b", {"m": "unloaded"})), Ledger()
    collector = FleetCollector(lambda: snapshot, ledger, dict, lambda: 0.0, lambda: 100.0)

    def statuses() -> list[str]:
        lines = "".join(collector.pieces()).splitlines()
        return [line for line in lines if line.startswith("cortexd_model_status{")]

    at_b = 'cortexd_model_status{model="m",node="b",status="unloaded"} 1.0'
    before = ['cortexd_model_status{model="m",node="a",status="unloaded"} 1.0', at_b]
    assert statuses() == before
    ledger.loading["m"] = "a"
    assert statuses() == ['cortexd_model_status{model="m",node="a",status="loading"} 1.0', at_b]
    ledger.loading.clear()
    assert statuses() == before


def test_expected_labels_are_0_until_they_are_counted() -> None:
    counter = Counter("x", "Some.", ("who",))
    counter.inc("a")
    counter.expect("a")
    counter.expect("b")
    said = "".join(counter.pieces())
    assert 'x_total{who="a"} 1.0\n' in said
    assert 'x_total{who="b"} 0.0\n' in said


@given(st.lists(st.lists(st.integers(0, 100).map(float)), max_size=5))
def test_many_values_at_once_are_each_counted(many: list[list[float]]) -> None:
    ours, alone = (Histogram("x", "Some.", BOUNDS, ("who",)) for _ in range(2))
    for values in many:
        ours.observe(values, "a")
        for value in values:
            alone.observe((value,), "a")
    assert text(ours) == text(alone)


def test_without_labels_a_histogram_is_there_before_it_has_counted_anything() -> None:
    ours = Histogram("x", "Some.", BOUNDS, ())
    theirs = prometheus_client.Histogram("x", "Some.", buckets=BOUNDS, registry=None)
    assert text(ours).splitlines() == without_created(text(theirs))


@given(nasty.observations())
def test_whatever_a_node_reports_its_series_can_be_read_and_none_is_there_twice(
    said: Observation,
) -> None:
    better, _ = sane(said, None)
    one = observed(Node("n", "http://n"), better, Catalogue(), unhealthy_after=1)
    snapshot = with_node(Snapshot(), one)
    gauges = FleetCollector(lambda: snapshot, Ledger(), dict, lambda: 0.0, lambda: 100.0)
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text(gauges))
        for sample in family.samples
    ]
    assert len(set(samples)) == len(samples)
    assert all(len(value) <= 512 for _, labels in samples for _, value in labels)


def test_what_was_counted_of_a_node_goes_with_it() -> None:
    metrics = Metrics()
    metrics.polls.inc("a", "ok")
    metrics.polls.inc("b", "ok")
    metrics.cold_starts.inc("a", "a", "lazy")
    metrics.cold_starts.inc("a", "b", "lazy")
    metrics.usage_missing.inc("a")  # a model of that name
    metrics.request_duration.observe((1.0,), "m", "a")
    metrics.forget_node("a")
    said = "".join(metrics.exposition())
    assert 'node="a"' not in said
    assert said.count('node="b"') == 2
    assert 'cortexd_usage_missing_total{model="a"} 1.0' in said


def test_a_gauge_is_what_it_was_set_to() -> None:
    gauge = Gauge("x", "Some.", 1)
    gauge.value = 0
    assert "\nx 0.0" in text(gauge)
