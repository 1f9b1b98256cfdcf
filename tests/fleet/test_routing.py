from __future__ import annotations

from typing import Any

import pytest

from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.fleet.routing import Decision, Lazy, Load, Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import Failure, Ledger, Node, Promise, Snapshot
from cortexd.wire.neuron import Activation, Loadable, Model
from tests.fleet.fleet import BROKEN, fleet, full, hardware, held, node

M = Profile("m")
BIG = Profile("m", vram_mb=9000)
HIGH = Profile("high", residency_priority=200)
FULL = node("a", {"high": held(20000)}, free=(4000,))


def asked(
    snapshot: Snapshot, ledger: Ledger | None = None, *, tried: tuple[str, ...] = ()
) -> Decision:
    return decide(Query("m", tried), snapshot, ledger or Ledger(), 100.0)


def goes_to(decision: Decision) -> tuple[str, str | None]:
    match decision:
        case Serve(replica):
            return "serve", replica.node
        case Lazy(replica):
            return "lazy", replica.node
        case Load(_, placement):
            return "load", placement.node
        case Wait(_, reason, where):
            return reason, where
        case Refuse(refusal):
            return refusal.kind.code, None


# The four priorities, and what stands in their way. Each row: the fleet, and where "m" goes.
@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        pytest.param(
            fleet(node("a", {"m": "unloaded"}), node("b", {"m": "loaded"}), models=(M,)),
            ("serve", "b"),
            id="loaded comes before unloaded",
        ),
        pytest.param(
            fleet(node("a"), node("b", {"m": "unloaded"}), models=(M,)),
            ("lazy", "b"),
            id="unloaded comes before the catalogue",
        ),
        pytest.param(fleet(node("a"), models=(M,)), ("load", "a"), id="the catalogue is loaded"),
        pytest.param(fleet(node("a")), ("model_not_found", None), id="unknown everywhere"),
        pytest.param(
            fleet(node("a", {"m": "reloading"}), node("b", {"m": "loaded"})),
            ("serve", "b"),
            id="loaded comes before reloading",
        ),
        pytest.param(
            fleet(node("a", {"m": "reloading"}), node("b", {"m": "unloaded"})),
            ("serve", "a"),
            id="reloading counts as loaded",
        ),
        pytest.param(
            fleet(node("a", {"m": "loading"}), node("b", {"m": "unloaded"}), models=(M,)),
            ("loading", "a"),
            id="a load elsewhere is joined, no second copy",
        ),
        pytest.param(
            fleet(node("a", {"m": "recovering"}), node("b"), models=(M,)),
            ("recovering", "a"),
            id="a recovery is waited for",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(in_progress="m")), models=(M,)),
            ("loading", "a"),
            id="a node that activates it counts as loading",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(state="pre_warming", pending=["m"]))),
            ("loading", "a"),
            id="pending while pre-warming counts as loading",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(state="ready", pending=["m"]))),
            ("model_not_found", None),
            id="pending on a node that is ready does not",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, up=False), node("b"), models=(M,)),
            ("load", "b"),
            id="a node that is down does not count",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, draining=True), node("b"), models=(M,)),
            ("load", "b"),
            id="neither does one that drains",
        ),
        pytest.param(
            fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}), node("b"), models=(M,)),
            ("load", "b"),
            id="an unservable replica is passed over",
        ),
        pytest.param(
            fleet(node("a", {"m": "failed"}), models=(M,)),
            ("load", "a"),
            id="a failed one is loaded anew",
        ),
        pytest.param(
            fleet(node("a", {"m": "zombie"}), models=(M,)),
            ("load", "a"),
            id="an unknown status is never routed to",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}), settled=False),
            ("serve", "a"),
            id="a loaded model is served before the fleet is settled",
        ),
        pytest.param(
            fleet(node("a", {"m": "unloaded"}), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: lazy",
        ),
        pytest.param(
            fleet(node("a"), models=(M,), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: load",
        ),
        pytest.param(
            fleet(node("a"), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: 404",
        ),
    ],
)
def test_the_order_of_routing(snapshot: Snapshot, expected: tuple[str, str | None]) -> None:
    assert goes_to(asked(snapshot)) == expected


# The refusal table, in its order.
@pytest.mark.parametrize(
    ("snapshot", "kind", "words"),
    [
        pytest.param(fleet(), errors.NO_FEASIBLE_NEURON, "[[neurons]]", id="no nodes at all"),
        pytest.param(
            fleet(node("a", up=False), models=(M,)),
            errors.NO_HEALTHY_NODES,
            "a (connection refused)",
            id="all nodes down",
        ),
        pytest.param(
            fleet(node("a", up=False)),
            errors.NO_HEALTHY_NODES,
            "a (connection refused)",
            id="no healthy node comes before not found",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, up=False), node("b")),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "'m' is only available on a, which is unhealthy (connection refused). Try",
            id="known only to a node that is down",
        ),
        pytest.param(
            fleet(node("a"), node("b", up=False), models=(Profile("m", pinned_on=("b",)),)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "'m' could only be loaded on b, which is unhealthy (connection refused). Try",
            id="could be only on a node that is down",
        ),
        pytest.param(
            fleet(node("a", draining=True), node("b", gpus=()), models=(M,)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "a, which is draining",
            id="could be only on a node that drains",
        ),
        pytest.param(
            fleet(node("a", gpus=None), models=(M,)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "a, which is not described yet",
            id="could be on a node that is not described",
        ),
        pytest.param(
            fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}), models=(M,)),
            errors.MODEL_UNSERVABLE,
            "a says wedged",
            id="resident but unservable everywhere",
        ),
        pytest.param(
            fleet(node("a")), errors.MODEL_NOT_FOUND, "GET /v1/models", id="nobody knows it"
        ),
        pytest.param(
            fleet(node("a", gpus=(8000,)), models=(Profile("m", min_device_vram_mb=9000),)),
            errors.NO_FEASIBLE_NEURON,
            "a: 1 device of 9000 MiB or more needed, it has 1 device of 8000 MiB",
            id="no topology holds it",
        ),
        pytest.param(
            fleet(FULL, node("b", gpus=(8000,)), models=(BIG, HIGH)),
            errors.NO_ROOM,
            "a: 9000 MiB needed on 1 device, 4000 free; in the way: 'high' (class 200, above 100). "
            "Unload",
            id="a higher class holds the only node that could",
        ),
        pytest.param(
            fleet(FULL, node("b", up=False), models=(BIG, HIGH)),
            errors.NO_ROOM,
            "in the way: 'high'",
            id="it could not be only on a node that is down",
        ),
    ],
)
def test_the_refusals(snapshot: Snapshot, kind: errors.Kind, words: str) -> None:
    decision = asked(snapshot)
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is kind
    assert words in decision.refusal.message
    assert decision.refusal.retry_after == kind.retry_after


def test_a_refusal_names_the_down_node_that_has_the_file() -> None:
    has, lacks = (hardware(24000, loadable=[Loadable(model, [""])]) for model in ("m", "x"))
    away = node("a", up=False, discovery=has)
    other = node("c", up=False)
    decision = asked(fleet(away, full("b", "x", discovery=lacks), other, models=(BIG,)))
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.FEASIBLE_NODE_UNHEALTHY
    assert decision.refusal.message == (
        "The model 'm' is only available on a, which is unhealthy (connection refused). Try again "
        "when it is back."
    )


def test_a_model_without_a_file_anywhere_is_refused_for_good() -> None:
    lacks = hardware(24000, loadable=[Loadable("x", [""])])
    decision = asked(fleet(full("a", "x", discovery=lacks), node("b", gpus=()), models=(BIG,)))
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.NO_FEASIBLE_NEURON
    assert "a: has no file for 'm'; b: 1 device" in decision.refusal.message


def test_a_model_that_reserve_mb_leaves_no_memory_for_is_refused_for_good() -> None:
    decision = asked(fleet(node("a", gpus=(10000,), reserve_mb=2000), models=(BIG,)))
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.NO_FEASIBLE_NEURON
    assert "a: 9000 MiB needed on 1 device, at most 8000 there besides reserve_mb = 2000" in (
        decision.refusal.message
    )


def test_a_failed_load_is_refused_with_the_nodes_words_until_its_back_off_ends() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("disk on fire", until=107.2)})
    decision = asked(fleet(node("a"), models=(M,)), ledger)
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.COLD_LOAD_FAILED
    assert "a says disk on fire" in decision.refusal.message
    assert decision.refusal.retry_after == 8

    ledger.failures["a", "m"] = Failure("disk on fire", until=99.0)
    assert goes_to(asked(fleet(node("a"), models=(M,)), ledger)) == ("load", "a")


def test_no_room_on_one_node_is_said_before_a_failed_load_on_another() -> None:
    ledger = Ledger(failures={("b", "m"): Failure("disk on fire", until=107.2)})
    decision = asked(fleet(FULL, node("b"), models=(BIG, HIGH)), ledger)
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.NO_ROOM


def test_the_back_off_never_rounds_to_nothing() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", until=100.01)})
    decision = asked(fleet(node("a"), models=(M,)), ledger)
    assert isinstance(decision, Refuse)
    assert decision.refusal.retry_after == 1


def test_a_load_goes_to_the_next_candidate_while_the_first_backs_off() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", until=107.0)})
    assert goes_to(asked(fleet(node("a"), node("b"), models=(M,)), ledger)) == ("load", "b")


def test_our_own_load_is_joined_although_no_poll_has_seen_it() -> None:
    snapshot = fleet(node("a"), node("b", {"m": "unloaded"}), models=(M,))
    assert goes_to(asked(snapshot, Ledger(loading={"m": "a"}))) == ("loading", "a")


def test_where_it_is_being_unloaded_nothing_new_is_sent() -> None:
    ledger = Ledger(gates={"m": {"a"}})
    there = node("a", {"m": "loaded"})
    assert goes_to(asked(fleet(there, node("b", {"m": "loaded"})), ledger)) == ("serve", "b")
    assert goes_to(asked(fleet(there, node("b", {"m": "unloaded"})), ledger)) == ("lazy", "b")
    assert goes_to(asked(fleet(there, node("b"), models=(M,)), ledger)) == ("unloading", "a")
    asleep = fleet(node("a", {"m": "unloaded"}))
    assert goes_to(asked(asleep, ledger)) == ("unloading", "a")


def test_among_loaded_replicas_the_one_with_fewer_of_our_requests_is_chosen() -> None:
    snapshot = fleet(node("a", {"m": "loaded"}), node("b", {"m": "loaded"}))
    assert goes_to(asked(snapshot, Ledger(in_flight={("a", "m"): 3, ("b", "m"): 1})))[1] == "b"


def test_a_node_we_woke_is_woken_again_rather_than_a_second_one() -> None:
    snapshot = fleet(node("a", {"m": "unloaded"}), node("b", {"m": "unloaded"}))
    assert goes_to(asked(snapshot)) == ("lazy", "a")
    assert goes_to(asked(snapshot, Ledger(in_flight={("b", "m"): 1}))) == ("lazy", "b")


def asleep(name: str, free: int, *others: str, **fields: Any) -> Node:
    """A node of 24000 MiB that knows `m` unloaded; the others hold what is not free."""
    mb = (24000 - free) / max(1, len(others))
    listed = {other: held(mb) for other in others}
    return node(name, {"m": "unloaded", **listed}, free=(free,), **fields)


@pytest.mark.parametrize("profile", [None, M, BIG])
def test_of_several_that_know_it_the_one_with_most_memory_free_reloads_it(
    profile: Profile | None,
) -> None:
    models = (profile,) if profile else ()
    a, b, c = asleep("a", 10000), asleep("b", 12000), asleep("c", 12000)
    assert goes_to(asked(fleet(c, b, a, models=models))) == ("lazy", "b")
    reserved = asleep("b", 12000, reserve_mb=1000)
    assert goes_to(asked(fleet(c, reserved, a, models=models))) == ("lazy", "c")
    assert goes_to(asked(fleet(c, b, a, models=models), tried=("b", "c"))) == ("lazy", "a")


def test_a_catalogue_model_is_left_to_a_node_only_where_it_fits() -> None:
    tight = asleep("a", 8999, "x")
    assert goes_to(asked(fleet(tight, asleep("b", 9000), models=(BIG,)))) == ("lazy", "b")
    assert goes_to(asked(fleet(tight, node("b", free=(9000,)), models=(BIG,)))) == ("load", "b")
    ledger = Ledger(promises={("b", "n"): Promise({0: 9000.0}, {0: 17000.0})})
    roomy = asleep("b", 17000)
    assert goes_to(asked(fleet(roomy, node("c"), models=(BIG,)), ledger)) == ("load", "c")


def test_elsewhere_room_is_made_for_it_first_on_any_node() -> None:
    decision = asked(fleet(asleep("a", 4000, "x"), models=(BIG,)))
    assert isinstance(decision, Load)
    assert (decision.placement.node, decision.placement.victims) == ("a", ("x",))
    other = node("b", {"y": held(19000)}, free=(5000,))
    assert goes_to(asked(fleet(asleep("a", 4000, "x"), other, models=(BIG,)))) == ("load", "b")
    nothing = asked(fleet(asleep("a", 4000, "high"), models=(BIG, HIGH)))
    assert goes_to(nothing) == ("no_room", None)


def test_what_is_in_no_catalogue_is_left_to_its_node_however_full_that_is() -> None:
    assert goes_to(asked(fleet(asleep("a", 0, "x")))) == ("lazy", "a")


def test_a_node_that_was_not_described_reloads_what_it_knows() -> None:
    assert (
        goes_to(asked(fleet(node("a", {"m": "unloaded"}, gpus=None), models=(BIG,))))[0] == "lazy"
    )


def test_where_a_load_failed_lately_it_is_not_reloaded_behind_our_back() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", until=107.0)})
    snapshot = fleet(asleep("a", 24000), node("b"), models=(BIG,))
    assert goes_to(asked(snapshot, ledger)) == ("load", "b")


def test_whom_we_woke_is_woken_again_though_it_is_full_by_now() -> None:
    ledger = Ledger(in_flight={("a", "m"): 1})
    snapshot = fleet(asleep("a", 10, "x"), asleep("b", 24000), models=(BIG,))
    assert goes_to(asked(snapshot, ledger)) == ("lazy", "a")


def test_a_model_that_is_being_unloaded_is_not_begun_anew_where_it_does_not_fit() -> None:
    ledger = Ledger(gates={"m": {"a"}})
    gated = node("a", {"m": "loaded"})
    snapshot = fleet(gated, asleep("b", 4000, "x"), models=(BIG,))
    assert goes_to(asked(snapshot, ledger)) == ("unloading", "a")


@pytest.mark.parametrize("status", ["loaded", "unloaded"])
def test_a_replica_that_failed_this_request_is_not_asked_again(status: str) -> None:
    snapshot = fleet(node("a", {"m": status}), node("b", {"m": status}), models=(M,))
    assert goes_to(asked(snapshot, tried=("a",)))[1] == "b"
    decision = asked(snapshot, tried=("a", "b"))
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.UPSTREAM_FAILED
