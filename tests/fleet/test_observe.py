from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.fleet.anomalies import MAX_COUNT, MAX_DEVICES, MAX_ID
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, forgotten, is_restarted, observed, told
from cortexd.fleet.placement import place
from cortexd.fleet.routing import Query, decide
from cortexd.fleet.sanity import sane
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, with_node
from cortexd.wire.neuron import LOADED, LOADING, STATUSES, UNKNOWN, Health, Model, ModelLoad
from tests.fleet import nasty
from tests.fleet.fleet import hardware, node

NOTHING = Catalogue()


def seen(*models: Model, sent: float = 10.0, **fields: object) -> Observation:
    return Observation(sent, sent + 0.1, models=list(models), **fields)  # type: ignore[arg-type]


def after(before: Node, observation: Observation) -> Node:
    return observed(before, observation, NOTHING, unhealthy_after=3)


def test_a_node_is_healthy_from_its_first_answer_and_down_after_three_failures() -> None:
    one = Node("a", "http://a")
    assert not one.healthy
    one = after(one, seen())
    assert one.healthy
    fails = Observation(11.0, 11.1, failure="timed out")
    states = []
    for _ in range(4):
        one = after(one, fails)
        states.append(one.healthy)
    assert states == [True, True, False, False]
    assert one.trouble == "timed out"
    assert after(one, seen(sent=20.0)).healthy


def test_a_node_that_never_answered_is_polled_but_not_healthy() -> None:
    one = after(Node("a", "http://a"), Observation(1.0, 1.1, failure="refused"))
    assert one.polled
    assert not one.healthy


def test_a_failed_poll_keeps_what_was_known() -> None:
    one = after(node("a", {"m": "loaded"}), Observation(11.0, 11.1, failure="timed out"))
    assert one.models["m"].status == "loaded"


def test_a_poll_sent_before_a_told_fact_does_not_overrule_it() -> None:
    one = told(node("a"), "m", "loaded", at=10.5)
    assert after(one, seen(sent=10.0)).models["m"].status == "loaded"
    late = after(after(one, seen(sent=10.0)), seen(sent=11.0))
    assert "m" not in late.models
    assert not late.told


def test_a_told_fact_also_stands_against_another_status_of_an_older_poll() -> None:
    one = told(node("a", {"m": "unloaded"}), "m", "reloading", at=10.5)
    assert after(one, seen(Model("m", "unloaded"), sent=10.4)).models["m"].status == "reloading"
    assert after(one, seen(Model("m", "loaded"), sent=10.6)).models["m"].status == "loaded"


def test_what_is_forgotten_is_gone_until_a_poll_lists_it_again() -> None:
    one = forgotten(told(node("a"), "m", "loaded", at=10.5), "m")
    assert "m" not in one.models
    assert "m" not in after(one, seen(sent=10.0)).models
    assert "m" in after(one, seen(Model("m", "loaded"), sent=10.0)).models


@pytest.mark.parametrize(
    ("uptime", "elapsed", "restarted"),
    [
        (103.0, 3, False),
        (98.1, 3, False),
        (0.5, 3, True),
        (3.0, 3, True),
        (97.9, 3, False),  # a clock was set back
        (40.0, 3, False),
        (100.0, 3600, False),  # the host was suspended for an hour
        (104.0, 3600, False),
        (99.0, 3600, True),  # it started less than an hour ago
        (20.0, 3600, True),
        (3700.0, 3600, False),
    ],
)
def test_node_has_restarted_when_its_uptime_lags_and_is_near_zero(
    uptime: float, elapsed: float, restarted: bool
) -> None:
    before = node("a")  # an uptime of 100 s at 1.1 s on our clock
    assert is_restarted(before, Health(uptime_secs=uptime), 1.1 + elapsed) is restarted


def test_young_node_that_lags_counts_as_restarted() -> None:
    before = msgspec.structs.replace(node("a"), health=Health(uptime_secs=3))
    assert is_restarted(before, Health(uptime_secs=5), 20.0)


def test_a_restart_drops_the_description_and_starts_another_epoch() -> None:
    before = node("a", {"m": "loaded"})
    now = after(before, seen(Model("m", "loaded"), health=Health(uptime_secs=1)))
    assert now.hardware is None
    assert now.epoch == before.epoch + 1
    described = after(before, seen(health=Health(uptime_secs=1), discovery=hardware(8)))
    assert described.hardware == hardware(8)


def test_an_unchanged_list_keeps_its_identity() -> None:
    before = node("a", {"m": "loaded"})
    assert after(before, seen(Model("m", "loaded"))).models is before.models


def test_a_model_reported_with_its_source_is_understood_as_the_bare_id() -> None:
    catalogue = Catalogue.of((Profile("a/b", source="hf"),), {})
    one = observed(
        node("a"),
        seen(Model("hf:a/b", "loaded"), Model("llama3:8b", "loaded")),
        catalogue,
        unhealthy_after=3,
    )
    assert set(one.models) == {"a/b", "llama3:8b"}
    assert one.models["a/b"].id == "a/b"


def test_a_status_word_we_do_not_know_is_unknown() -> None:
    assert after(node("a"), seen(Model("m", "hibernating"))).models["m"].status == "unknown"


def test_a_report_says_how_many_requests_run_or_queue() -> None:
    loads = [ModelLoad("m", in_flight=2, queue_depth=3), ModelLoad("n", queue_depth=1)]
    models = [Model(name, "loaded") for name in "mno"]
    one = after(node("a"), seen(*models, health=Health(models=[*loads, ModelLoad("o")])))
    assert one.busy == {"m": 5, "n": 1, "o": 0}
    assert one.health_at == 10.1


def test_a_report_names_models_with_their_source() -> None:
    catalogue = Catalogue.of((Profile("a/b", source="hf"),), {})
    health = Health(models=[ModelLoad("hf:a/b", in_flight=2)])
    one = observed(
        node("a"), seen(Model("hf:a/b", "loaded"), health=health), catalogue, unhealthy_after=3
    )
    assert one.busy == {"a/b": 2}


@pytest.mark.parametrize(
    "load",
    [
        ModelLoad("m", in_flight=-1),
        ModelLoad("m", in_flight=1, queue_depth=-5),
        ModelLoad("m", in_flight=10**18),
        ModelLoad("elsewhere", in_flight=1),
    ],
)
def test_a_load_that_can_not_be_is_no_load(load: ModelLoad) -> None:
    one = after(node("a"), seen(Model("m", "loaded"), health=Health(models=[load])))
    assert not one.busy


def test_a_load_is_as_old_as_the_report_that_told_it() -> None:
    health = Health(models=[ModelLoad("m", in_flight=2)])
    one = after(node("a"), seen(Model("m", "loaded"), health=health))
    later = after(one, seen(Model("m", "loaded"), sent=12.0))
    assert (later.busy, later.health_at) == ({"m": 2}, 10.1)
    assert not after(later, seen(Model("m", "loaded"), sent=14.0, health=Health())).busy


def test_of_a_model_that_is_listed_with_and_without_its_source_the_first_counts() -> None:
    catalogue = Catalogue.of((Profile("a/b", source="hf"),), {})
    twice = seen(Model("hf:a/b", "loaded"), Model("a/b", "unloaded"))
    assert observed(node("a"), twice, catalogue, unhealthy_after=3).models["a/b"].status == LOADED


CATALOGUE = Catalogue.of(
    (Profile("a", vram_mb=8000), Profile("team/c", source="hf", min_devices=2), Profile("other")),
    {"alias": "a"},
)
facts = st.tuples(
    st.sampled_from(["a", "b", "other"]),
    st.sampled_from([LOADED, LOADING, "unloaded"]),
    st.floats(-2, 2),  # seconds after the poll before it was sent
)
steps = st.lists(
    st.tuples(st.sampled_from(["n", "o"]), nasty.observations() | facts | st.just("forget")),
    max_size=12,
)


def at(clock: float, said: Observation) -> Observation:
    return Observation(
        clock,
        clock + 0.1,
        said.models,
        said.health,
        said.discovery,
        said.failure,
        said.health_failure,
        said.discovery_failure,
    )


@given(steps)
def test_whatever_nodes_report_the_picture_of_them_makes_sense(
    steps: list[tuple[str, Any]],
) -> None:
    snapshot = Snapshot(catalogue=CATALOGUE, settled=True)
    for name in ("n", "o"):
        snapshot = with_node(snapshot, Node(name, f"http://{name}"))
    for turn, (name, step) in enumerate(steps):
        clock, one = 10.0 * turn, snapshot.nodes[name]
        if step == "forget":
            one = forgotten(one, "a")
        elif isinstance(step, tuple):
            one = told(one, step[0], step[1], clock + step[2])
        else:
            before = one
            said, _ = sane(at(clock, step), one.hardware)
            one = observed(one, said, CATALOGUE, unhealthy_after=2)
            assert one.polled
            for model, fact in before.told.items():
                if fact.at >= clock or step.models is None:
                    assert one.models[model].status == fact.status
        snapshot = with_node(snapshot, one)
        assert_consistent(snapshot)


def assert_consistent(snapshot: Snapshot) -> None:
    """The index and the nodes agree, nothing is out of bounds, and every decision can be taken."""
    indexed = {
        (replica.node, model, replica.model, replica.status, replica.epoch)
        for model, replicas in snapshot.replicas.items()
        for replica in replicas
    }
    assert indexed == {
        (one.name, model, info.id, info.status, one.epoch)
        for one in snapshot.nodes.values()
        for model, info in one.models.items()
    }
    assert sum(map(len, snapshot.replicas.values())) == len(indexed)
    assert all(snapshot.replicas.values())
    assert snapshot.healthy == sum(one.healthy for one in snapshot.nodes.values())
    for one in snapshot.nodes.values():
        assert all(0 <= count <= 2 * MAX_COUNT for count in one.busy.values())
        for model, info in one.models.items():
            assert 0 < len(model) <= MAX_ID
            assert model.isprintable()
            assert info.status in STATUSES | {UNKNOWN}
            assert set(info.devices or ()) <= set(range(MAX_DEVICES))
        for devices in (one.hardware and one.hardware.devices, one.health and one.health.devices):
            indices = [device.index for device in devices or ()]
            assert len(set(indices)) == len(indices)
            assert set(indices) <= set(range(MAX_DEVICES))
    for model in {*snapshot.replicas, *CATALOGUE.profiles, "nobody"}:
        decide(Query(model), snapshot, Ledger(), 1000.0)
    for profile in CATALOGUE.profiles.values():
        place(profile, snapshot, Ledger(), 1000.0)
