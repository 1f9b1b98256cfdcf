"""What people are told of a decision: it is the one that is taken, and each node says why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.fleet.explain import Explanation, Verdict, explain
from cortexd.fleet.routing import Lazy, Load, Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import Failure, Fault, FreedMemory, Ledger, Node, Promise
from cortexd.wire.neuron import STATUSES, DeviceHealth, Health, Model
from tests.fleet.fleet import BROKEN, fleet, node

NOW = 1000.0
LARGE = Profile("m", vram_mb=18000)


def told(
    *nodes: Node,
    name: str = "m",
    models: tuple[Profile, ...] = (),
    ledger: Ledger | None = None,
    **fields: Any,
) -> Explanation:
    return explain(name, fleet(*nodes, models=models, **fields), ledger or Ledger(), NOW)


def verdict(*nodes: Node, **fields: Any) -> Verdict:
    """Of the only node."""
    (only,) = told(*nodes, **fields).nodes
    return only


# The decision.


def test_what_is_loaded_would_be_served_there() -> None:
    said = told(node("a", {"m": "loaded"}), node("b"))
    assert (said.decision, said.node) == ("serve", "a")
    assert said.words == "It would be served by a: it is loaded."
    assert [one.node for one in said.nodes] == ["a", "b"]


def test_an_alias_is_said_beside_the_model() -> None:
    said = told(node("a", {"m": "loaded"}), name="small", aliases={"small": "m"})
    assert (said.model, said.alias, said.decision) == ("m", "small", "serve")
    assert told(node("a", {"m": "loaded"})).alias is None


def test_what_a_node_knows_would_be_left_to_it() -> None:
    said = told(node("a", {"m": "unloaded"}))
    assert (said.decision, said.node) == ("lazy", "a")


def test_what_would_be_loaded_says_where_and_who_goes() -> None:
    gone = Model("old", "loaded", devices=[0], vram_used_mb=20000)
    said = told(node("a", {"old": gone}), models=(LARGE,))
    assert (said.decision, said.node) == ("load", "a")
    assert said.words == "It would be loaded on a, device 0, after old is unloaded."


def test_what_would_be_loaded_says_what_it_waits_for() -> None:
    busy = Model("old", "loaded", devices=[0], vram_used_mb=20000)
    said = told(
        node("a", {"old": busy}), models=(LARGE,), ledger=Ledger(in_flight={("a", "old"): 1})
    )
    assert said.words == (
        "It would be loaded on a, device 0; that waits for old to be no longer needed."
    )


@pytest.mark.parametrize("status", ["loading", "recovering"])
def test_what_is_under_way_would_be_waited_for(status: str) -> None:
    said = told(node("a", {"m": status}))
    assert (said.decision, said.node) == ("wait", "a")
    assert said.words == f"It would wait: it is {status} on a."


def test_a_load_that_has_not_begun_waits_for_room() -> None:
    ledger = Ledger(loading={"m": "a"})
    said = told(node("a"), models=(LARGE,), ledger=ledger)
    assert said.words == "It would wait: room is being made for it on a."
    ledger.promises["a", "m"] = Promise({0: 18000.0})
    assert "room is being made" in told(node("a"), models=(LARGE,), ledger=ledger).words
    ledger.promises["a", "m"] = Promise({0: 18000.0}, {0: 24000.0})
    said = told(node("a"), models=(LARGE,), ledger=ledger)
    assert said.words == "It would wait: it is loading on a."


def test_before_every_node_was_asked_it_would_wait() -> None:
    said = told(node("a"), settled=False)
    assert (said.decision, said.node) == ("wait", None)
    assert "not every node has been asked" in said.words


def test_a_refusal_is_told_with_its_code_and_its_words() -> None:
    said = told(node("a"))
    assert (said.decision, said.code) == ("refuse", "model_not_found")
    assert said.words.startswith("It would be refused: The model 'm' does not exist")


# The nodes.


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("loaded", "is loaded there"),
        ("reloading", "is coming back there"),
        ("loading", "is being loaded there"),
        ("recovering", "is being rebuilt there"),
        ("unloaded", "is known there, and reloaded by the node itself"),
        ("failed", "has failed there"),
        ("unknown", "is unknown there"),
        (Model("m", "loaded", servable=BROKEN), "is loaded there; can't answer: wedged"),
    ],
)
def test_what_the_model_is_on_a_node(there: str | Model, words: str) -> None:
    assert verdict(node("a", {"m": there})).words == words


def test_a_copy_that_could_serve_has_a_score() -> None:
    ledger = Ledger(in_flight={("a", "m"): 3})
    one = verdict(node("a", {"m": "loaded"}, weight=2.0), ledger=ledger)
    assert (one.score, one.in_flight, one.suspect) == (1.5, 3, False)
    assert verdict(node("a", {"m": "loaded"}, draining=True)).score is None
    assert verdict(node("a", {"m": "unloaded"})).score is None


def test_a_copy_that_failed_a_moment_ago_is_asked_last() -> None:
    ledger = Ledger(faults={("a", "m"): Fault(8.0, NOW, suspect_until=NOW + 5)})
    one = verdict(node("a", {"m": "loaded"}), ledger=ledger)
    assert (one.score, one.suspect) == (8.0, True)
    assert "failed a moment ago" in one.words


def test_a_copy_that_is_being_unloaded_says_so() -> None:
    one = verdict(node("a", {"m": "loaded"}), ledger=Ledger(gates={"m": {"a"}}))
    assert "is being unloaded, and gets nothing new" in one.words


def test_a_node_that_is_down_or_drained_says_so() -> None:
    down = verdict(node("a", up=False), models=(LARGE,))
    assert (down.status, down.words) == ("down", "the node is down: connection refused")
    assert down.free_mb == {}
    drained = verdict(node("a", draining=True), models=(LARGE,))
    assert (drained.status, drained.fits) == ("draining", None)
    assert drained.words == "drained: cortexd undrain a puts it back into service"


def test_a_node_that_is_not_described_yet_says_so() -> None:
    assert verdict(node("a", gpus=None), models=(LARGE,)).words == ("its devices are not known yet")


def test_a_node_that_can_never_hold_it_says_why() -> None:
    one = verdict(node("a", gpus=(8000,)), models=(LARGE,))
    assert one.infeasible is not None
    assert one.words.startswith("can't load it: 1 device of 18000 MiB or more needed")


def test_a_node_with_room_says_how_much_and_where() -> None:
    health = Health(devices=[DeviceHealth(0, vram_free_mb=1000), DeviceHealth(1)])
    one = verdict(node("a", gpus=(24000, 24000), health=health), models=(LARGE,))
    assert (one.fits, one.devices, one.needs_mb) == (True, [1], 18000)
    assert one.free_mb == {0: 1000.0, 1: 24000.0}
    assert one.words == "has room: 18000 MiB needed on device 1, 24000 MiB free"


def test_explain_names_memory_that_is_coming() -> None:
    full = node("a", {"old": Model("old", "loaded", vram_used_mb=2000)}, free=(4000,))
    coming = FreedMemory({0: 16000.0}, {0: 4000.0}, {0: 16000.0}, NOW)
    said = told(full, models=(LARGE,), ledger=Ledger(freed={"a": coming}))
    assert said.words == (
        "It would be loaded on a, device 0, as soon as the node reports the memory of unloaded "
        "models."
    )
    assert said.nodes[0].words == (
        "has room once it reports the memory of unloaded models: 18000 MiB needed on device 0, "
        "4000 MiB free"
    )


def test_a_node_of_several_devices_names_them_all() -> None:
    wide = Profile("m", vram_mb=40000, min_devices=2)
    one = verdict(node("a", gpus=(24000, 24000)), models=(wide,))
    assert (one.needs_mb, one.devices) == (40000, [0, 1])
    assert one.words == "has room: 20000 MiB needed on devices 0, 1, 24000 MiB free"


def test_a_model_of_unknown_size_says_what_would_tell() -> None:
    one = verdict(node("a"), models=(Profile("m"),))
    assert one.needs_mb is None
    assert one.words == "what it takes is not known (set vram_mb); 24000 MiB free on device 0"


def test_a_full_node_names_who_would_have_to_go() -> None:
    full = {
        name: Model(name, "loaded", devices=[0], vram_used_mb=11000) for name in ("idle", "busy")
    }
    ledger = Ledger(in_flight={("a", "busy"): 1})
    one = verdict(node("a", full), models=(LARGE,), ledger=ledger)
    assert (one.fits, one.victims, one.blockers) == (False, ["idle"], ["busy"])
    assert one.words == (
        "has room once idle is unloaded and busy is no longer needed: 18000 MiB needed on device 0"
    )


def test_a_node_that_makes_no_room_says_what_is_in_the_way() -> None:
    first = Model("first", "loaded", devices=[0], vram_used_mb=20000)
    one = verdict(node("a", {"first": first}), models=(LARGE, Profile("first", pinned_on=("a",))))
    assert one.crowded is not None
    assert one.words == f"no room: {one.crowded}"
    assert "'first' (class 1000, above 100)" in one.words


def test_a_node_where_a_load_failed_says_when_it_is_tried_again() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("the disk is full", NOW + 11.5)})
    one = verdict(node("a"), models=(LARGE,), ledger=ledger)
    assert (one.failure, one.retry_seconds) == ("the disk is full", 12)
    assert one.words.startswith("a load failed: the disk is full; tried again in 12 s")


def test_a_node_that_could_never_be_asked_for_it_says_so() -> None:
    assert verdict(node("a")).words == (
        "the node does not know it, and the catalogue does not list it"
    )


# Whatever the fleet.

STATUS = st.sampled_from([*sorted(STATUSES), "unknown", None])


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Node, ...]:
    nodes = []
    for name in "abc":
        models = {
            model: Model(model, status, devices=[0], vram_used_mb=draw(st.integers(0, 30000)))
            for model in ("m", "other")
            if (status := draw(STATUS)) is not None
        }
        gpus = draw(st.sampled_from([None, (), (8000,), (24000,), (24000, 16000)]))
        up, draining = draw(st.booleans()), draw(st.booleans())
        nodes.append(node(name, models, gpus=gpus, up=up, draining=draining))
    return tuple(nodes)


@given(nodes=fleets(), in_catalogue=st.booleans(), busy=st.booleans(), gated=st.booleans())
def test_it_tells_the_decision_that_is_taken_and_every_node_has_words(
    nodes: tuple[Node, ...], in_catalogue: bool, busy: bool, gated: bool
) -> None:
    snapshot = fleet(*nodes, models=(LARGE,) if in_catalogue else ())
    ledger = Ledger(
        in_flight={("a", "other"): 1} if busy else {}, gates={"m": {"b"}} if gated else {}
    )
    said = explain("m", snapshot, ledger, NOW)
    match decide(Query("m"), snapshot, ledger, NOW):
        case Serve(replica):
            assert (said.decision, said.node) == ("serve", replica.node)
        case Lazy(replica):
            assert (said.decision, said.node) == ("lazy", replica.node)
        case Load(_, placement):
            assert (said.decision, said.node) == ("load", placement.node)
            (there,) = [one for one in said.nodes if one.node == placement.node]
            assert tuple(there.victims) == placement.victims
            assert tuple(there.blockers) == placement.blockers
        case Wait(_, _, node):
            assert (said.decision, said.node) == ("wait", node)
        case Refuse(refusal):
            assert (said.decision, said.code) == ("refuse", refusal.kind.code)
    assert said.words
    assert [one.node for one in said.nodes] == ["a", "b", "c"]
    assert all(one.words for one in said.nodes)
