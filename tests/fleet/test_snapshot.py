from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cortexd.fleet.observe import Observation, forgotten, observed, told
from cortexd.fleet.snapshot import Node, Replica, Snapshot, with_node, without_node
from cortexd.wire.neuron import Health, Model
from tests.fleet.fleet import BROKEN, fleet, node


def test_the_index_lists_a_models_replicas_by_node() -> None:
    snapshot = fleet(node("b", {"m": "loaded"}), node("a", {"m": "unloaded", "n": "loaded"}))
    assert snapshot.replicas["m"] == (Replica("a", "m", "unloaded"), Replica("b", "m", "loaded"))
    assert snapshot.replicas["n"] == (Replica("a", "n", "loaded"),)


def test_a_poll_that_only_moved_gauges_leaves_the_index_alone() -> None:
    before = fleet(node("a", {"m": "loaded"}))
    seen = Observation(
        2.0, 2.1, models=[Model("m", "loaded", vram_used_mb=5)], health=Health(uptime_secs=101)
    )
    one = observed(before.nodes["a"], seen, before.catalogue, unhealthy_after=3)
    after = with_node(before, one)
    assert after.replicas is before.replicas
    assert after.nodes["a"].models["m"].vram_used_mb == 5


def test_a_model_that_vanishes_leaves_the_index() -> None:
    before = fleet(node("a", {"m": "loaded"}))
    assert not with_node(before, forgotten(before.nodes["a"], "m")).replicas


def test_a_restart_renews_the_replicas() -> None:
    before = fleet(node("a", {"m": "loaded"}))
    one = msgspec.structs.replace(before.nodes["a"], epoch=1)
    assert with_node(before, one).replicas["m"] == (Replica("a", "m", "loaded", epoch=1),)


def test_an_unservable_replica_keeps_the_nodes_reason() -> None:
    snapshot = fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}))
    assert snapshot.replicas["m"][0].unservable == "wedged"


statuses = st.sampled_from(["loaded", "unloaded", "loading", "nonsense"])
listing = st.dictionaries(st.sampled_from("mno"), statuses, max_size=3)
steps = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.one_of(listing, st.none(), st.tuples(st.sampled_from("mno"), statuses)),
    ),
    max_size=20,
)


@given(steps)
def test_after_any_observations_the_index_says_what_the_nodes_say(steps: list) -> None:  # type: ignore[type-arg]
    snapshot = Snapshot()
    for name in "ab":
        snapshot = with_node(snapshot, Node(name, f"http://{name}"))
    for clock, (name, step) in enumerate(steps):
        one = snapshot.nodes[name]
        if isinstance(step, tuple):
            one = told(one, *step, at=clock + 0.5)
        else:
            models = None if step is None else [Model(key, status) for key, status in step.items()]
            seen = Observation(float(clock), clock + 0.1, models=models, failure="no")
            one = observed(one, seen, snapshot.catalogue, unhealthy_after=2)
        snapshot = with_node(snapshot, one)
    expected = {
        (replica.node, replica.model, replica.status)
        for replicas in snapshot.replicas.values()
        for replica in replicas
    }
    assert expected == {
        (one.name, model, info.status)
        for one in snapshot.nodes.values()
        for model, info in one.models.items()
    }
    assert all(snapshot.replicas.values())
    assert snapshot.healthy == sum(one.healthy for one in snapshot.nodes.values())


NODES = st.dictionaries(
    st.sampled_from("abc"),
    st.dictionaries(st.sampled_from("mn"), st.sampled_from(["loaded", "unloaded"])),
    min_size=1,
)


@given(NODES, st.data())
def test_without_a_node_it_is_as_if_it_had_never_been_there(
    nodes: dict[str, dict[str, str]], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(nodes)))
    left = fleet(*(node(name, models) for name, models in nodes.items() if name != gone))
    after = without_node(fleet(*(node(name, models) for name, models in nodes.items())), gone)
    assert (after.nodes, after.replicas, after.healthy) == (left.nodes, left.replicas, left.healthy)
