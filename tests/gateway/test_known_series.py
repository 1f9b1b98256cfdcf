"""Series that are 0 before their first event."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cortexd.config.catalogue import Profile
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.errors import KINDS
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.snapshot import Node
from cortexd.gateway.known_series import MODELS, PAIRS, PAIRS_OF_NODE, STATUSES, KnownSeries
from cortexd.metrics import Metrics
from tests.fakes import FakeNeuron
from tests.fleet.fleet import node
from tests.gateway.fleet import running_fleet, total
from tests.waiting import until

CHAT = "/v1/chat/completions"


class Known:
    """The series of these nodes and of a catalogue."""

    def __init__(self, *nodes: Node, models: tuple[Profile, ...] = ()) -> None:
        self.metrics = Metrics()
        self.registry = Registry(nodes, Catalogue.of(models, {}), Events(), unhealthy_after=1)
        self.series = KnownSeries(self.metrics, self.registry)

    def look(self) -> None:
        for _ in self.series.expect():
            pass

    def of(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"cortexd_{name}", labels)


@pytest.mark.parametrize("code", sorted(KINDS.keys() - {"unknown_route"}))
def test_every_refusal_is_0_from_the_start(code: str) -> None:
    assert Known().of("refusals_total", code=code) == 0


def test_unknown_paths_are_0_from_the_start() -> None:
    known = Known()
    assert known.of("unknown_paths_total") == 0
    assert known.of("refusals_total", code="unknown_route") is None


def test_faults_and_polls_are_0_from_the_start() -> None:
    known = Known(node("a"))
    known.look()
    for by in ("client", "upstream"):
        assert known.of("streams_interrupted_total", by=by) == 0
    for reason in ("refused", "reset", "unsent", "declined", "dead"):
        assert known.of("upstream_retries_total", reason=reason) == 0
    for result in ("ok", "failed"):
        assert known.of("polls_total", node="a", result=result) == 0


def test_pair_of_model_and_node_is_0_from_the_start() -> None:
    known = Known(node("a", {"m": "loaded"}), models=(Profile("c"),))
    known.look()
    for model in ("m", "c"):
        where = {"model": model, "node": "a"}
        for result in ("ok", "failed", "cancelled", "timeout"):
            assert known.of("loads_total", **where, result=result) == 0
        for result in ("200", "500", "refused", "timeout", "dead"):
            assert known.of("upstream_requests_total", **where, result=result) == 0
        assert known.of("evictions_total", **where, reason="room") == 0
        assert known.of("cold_starts_total", **where, kind="cold") == 0
        assert known.of("completion_tokens_total", **where) == 0
        assert known.of("usage_missing_total", model=model) == 0
        for status in STATUSES:
            assert known.of("requests_total", model=model, path=CHAT, status=status) == 0


def test_path_that_was_asked_for_has_every_status_that_alerts_look_at() -> None:
    known = Known(node("a", {"m": "loaded"}))
    known.look()
    known.metrics.requests.inc("m", "/v1/messages", "200")
    known.look()
    assert known.of("requests_total", model="m", path="/v1/messages", status="200") == 1
    assert known.of("requests_total", model="m", path="/v1/messages", status="502") == 0


def test_models_by_the_thousand_are_bounded_and_resident_ones_come_first() -> None:
    def models(name: str) -> dict[str, str]:
        return {f"{name}{n}": "loaded" if n >= 990 else "unloaded" for n in range(1000)}

    names = [f"n{number}" for number in range(10)]
    catalogue = tuple(Profile(f"c{number}") for number in range(1000))
    known = Known(*(node(name, models(name)) for name in names), models=catalogue)
    known.look()
    assert len(known.series.pairs) == PAIRS
    assert len(known.series.models) == MODELS
    for name in names:
        assert {(f"{name}{n}", name) for n in range(990, 1000)} <= known.series.pairs.keys()
        assert sum(where == name for _, where in known.series.pairs) <= PAIRS_OF_NODE
    samples = sum(len(family.samples) for family in known.metrics.registry.collect())
    assert samples < 20_000
    # One that is used is shown whatever the bounds.
    known.registry.ledger.loading["c999"] = "n9"
    known.look()
    assert known.of("loads_total", model="c999", node="n9", result="failed") == 0


def test_node_that_renames_its_models_with_every_poll_is_bounded() -> None:
    known = Known(node("a"))
    for number in range(50):
        models = {f"m{number}-{n}": "loaded" for n in range(100)}
        there = msgspec.structs.replace(known.registry.snapshot.nodes["a"], models={})
        known.registry._put(msgspec.structs.replace(there, models=node("a", models).models))
        known.look()
    assert len(known.series.pairs) == PAIRS_OF_NODE


def test_node_that_is_gone_is_forgotten() -> None:
    known = Known(node("a", {"m": "loaded"}), node("b", {"m": "loaded"}))
    known.look()
    known.registry.drop("a")
    known.metrics.forget_node("a")
    known.series.forget_node("a")
    known.look()
    assert known.of("polls_total", node="a", result="ok") is None
    assert set(known.series.pairs) == {("m", "b")}


def test_node_that_is_removed_in_the_middle_of_a_look_is_not_shown_again() -> None:
    models = {f"m{number}": "loaded" for number in range(150)}
    known = Known(node("a", models), node("b", models))
    looking = known.series.expect()
    next(looking)
    known.registry.drop("b")
    known.series.forget_node("b")
    for _ in looking:
        pass
    assert {where for _, where in known.series.pairs} == {"a"}


def test_interrupted_run_of_expect_is_completed_by_the_next() -> None:
    known = Known(node("a", {f"m{number}": "loaded" for number in range(50)}))
    looking = known.series.expect()
    next(looking)
    looking.close()  # the client left while its answer was written
    known.look()
    assert len(known.series.pairs) == 50


async def test_gauges_stay_when_nothing_is_in_flight_or_waits_any_more() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:

        async def exposition() -> str:
            return (await fleet.get("/metrics")).body.decode()

        assert 'cortexd_in_flight{model="m",node="a"} 0.0' in await exposition()
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: bool(fleet.loads("a")))
        during = await exposition()
        assert total(during, "cortexd_load_waiting", model="m") == 1
        status = {"model": "m", "node": "a", "status": "loading"}
        assert total(during, "cortexd_model_status", **status) == 1
        neuron.release.set()
        assert (await asking).status == 200
        after = await exposition()
        assert 'cortexd_load_waiting{model="m"} 0.0' in after
        assert 'cortexd_in_flight{model="m",node="a"} 0.0' in after
        assert total(after, "cortexd_model_status", **status) == 0
